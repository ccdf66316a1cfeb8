"""YOLO label rows: what is read, mended, dropped, and refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.problems import Problem, check_problems
from data.yolo import (
    FINE,
    LabelReport,
    LabelRows,
    explain_fault,
    find_faults,
    format_report,
    label_path_of,
    make_boxes,
    parse_labels,
)
from utils.errors import DATA, UserError

HEIGHT, WIDTH, CLASSES = 100, 200, 3


def rows_of(text):
    """Rows of one label file, or of one file a picture when given a list."""
    texts = text if isinstance(text, list) else [text]
    parsed = [parse_labels(one.encode(), "l.txt") for one in texts]
    assert not any(problems for _, _, problems in parsed)
    values = np.array([row for rows, _, _ in parsed for row in rows], np.float64).reshape(-1, 5)
    pictures = np.repeat(np.arange(len(texts)), [len(rows) for rows, _, _ in parsed])
    return LabelRows(values, pictures, np.array([line for _, lines, _ in parsed for line in lines], np.int64))


def boxes_of(text, *, single_cls=False):
    rows = rows_of(text)
    assert (find_faults(rows.values, CLASSES) == FINE).all()
    count = len(text) if isinstance(text, list) else 1
    return make_boxes(rows, np.array([[HEIGHT, WIDTH]] * count), single_cls=single_cls)


def fault_of(line, num_classes=CLASSES):
    """The text of a line's only fault, '' where there is none."""
    rows, _, problems = parse_labels(line.encode() if isinstance(line, str) else line, "l.txt")
    texts = [problem.text for problem in problems]
    values = np.array(rows, np.float64).reshape(-1, 5)
    for row, fault in enumerate(find_faults(values, num_classes)):
        if fault != FINE:
            texts.append(explain_fault(fault, values[row], num_classes))
    assert len(texts) <= 1
    return "".join(texts)


def test_rows_become_pixel_boxes():
    # 200 x 100: centre (100, 50), 50 x 20 px -> 75..125, 40..60
    found = boxes_of("2 0.5 0.5 0.25 0.2\n\n  0\t0.25 0.5 0.5 1 \r\n")
    np.testing.assert_array_equal(found.boxes, np.array([[75, 40, 125, 60], [0, 0, 100, 100]], np.float32))
    assert found.boxes.dtype == np.float32 and found.labels.dtype == np.int64
    assert found.labels.tolist() == [2, 0] and found.areas.tolist() == [1000, 10_000]
    assert found[4:] == (0, 0, 0)


def test_line_numbers_count_blank_lines_and_every_line_end():
    _, lines, problems = parse_labels(b"\n0 .5 .5 .1 .1\r\n\r0 .5 .5 .1\n", "l.txt")
    assert lines == [2] and [problem.line for problem in problems] == [4]


def test_polygon_becomes_its_bounding_box():
    # corners (0.1, 0.2) (0.5, 0.4) (0.3, 0.9) -> x 20..100, y 20..90 px
    found = boxes_of("1 0.1 0.2 0.5 0.4 0.3 0.9")
    np.testing.assert_allclose(found.boxes, [[20, 20, 100, 90]], rtol=1e-6)
    assert found.labels.tolist() == [1]


def test_byte_order_mark_is_read_over():
    assert parse_labels("\ufeff0 .5 .5 .1 .1".encode(), "l.txt")[0] == [[0, 0.5, 0.5, 0.1, 0.1]]


def test_class_written_as_float_is_fine():
    assert boxes_of("1.000000 .5 .5 .1 .1").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("cat .5 .5 .1 .1", "class 'cat' is not a whole number"),
        ("1.5 .5 .5 .1 .1", "class 1.5 is not a whole number"),
        ("3 .5 .5 .1 .1", "class 3 is outside 0..2 (the data set has 3 names)"),
        ("-1 .5 .5 .1 .1", "class -1 is outside 0..2"),
        ("12345678 .5 .5 .1 .1", "class 12345678 is outside"),
        ("0 320 240 50 60", "cx is 320: these look like pixels, YOLO labels are fractions of the picture"),
        ("0 .5 .5 .1 50", "h is 50: these look like pixels"),
        ("0 10 10 50 10 50 60", "look like pixels"),
        ("0 nan .5 .1 .1", "cx is nan, not a finite number"),
        ("0 .5 .5 inf .1", "w is inf, not a finite number"),
        ("0 .1 .1 nan .5 .3 .3", "not a finite number"),
        ("nan .5 .5 .1 .1", "class is nan"),
        ("0 .5 .5 -0.1 .1", "w is -0.1, negative"),
        ("0 .5 .5 .1 -0.2", "h is -0.2, negative"),
        ("0 .5 .5 .1", "4 columns, not 5"),
        ("0 .5 .5 .1 .1 .93", "6 columns, not 5 (class cx cy w h) nor a polygon"),
        ("0 .5 .5 .1 .1 .93", "with a confidence as sixth column these are predictions"),
        ("0 .1 .1 .2 .2 .3 .3 .4", "8 columns"),
        ("0,0.5,0.5,0.1,0.1", "'0,0.5,0.5,0.1,0.1' has commas or semicolons"),
        ("0;0.5;0.5;0.1;0.1", "commas or semicolons"),
        ("0 0,5 0,5 0,1 0,1", "decimal points"),
        ("0 .5 .5 .1 1O", "column 5, '1O', is not a number"),
        ("0 .5 .5 .1 0_1", "column 5, '0_1', is not a number"),
        (b"0 \xff\xfe .5 .1 .1", r"column 2, '\\xff\\xfe', is not a number"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "binary data or UTF-16"),
        ("0 .5 .5 .1 .1\n".encode("utf-16"), "binary data or UTF-16"),
        ("x" * 5000 + " .5 .5 .1 .1", "xxx...' is not a whole number"),
        # half width 0.1: right edge at 1.02, two hundredths outside
        ("0 .92 .5 .2 .1", "box cx 0.92 cy 0.5 w 0.2 h 0.1 reaches 2.00% beyond the right edge; at most 1%"),
        ("0 .5 .03 .1 .1", "beyond the upper edge"),
        ("0 .03 .5 .1 .1", "beyond the left edge"),
        ("0 .5 1.5 .1 .1", "beyond the lower edge"),
    ],
)
def test_bad_lines_are_explained(line, text):
    assert text in fault_of(line)


def test_any_class_from_0_will_do_without_a_number_of_classes():
    assert fault_of("900 .5 .5 .1 .1", num_classes=None) == ""
    assert fault_of("-1 .5 .5 .1 .1", num_classes=None) == "class -1 is negative"
    assert boxes_of("2 .5 .5 .1 .1", single_cls=True).labels.tolist() == [0]


def test_overshoot_up_to_one_percent_is_clipped_and_counted():
    # right edge at 1.01 of 200 px, upper edge at -0.01 of 100 px
    found = boxes_of("0 0.96 0.5 0.1 0.1\n0 0.5 0.04 0.1 0.1")
    np.testing.assert_allclose(found.boxes, [[182, 45, 200, 55], [90, 0, 110, 9]], rtol=1e-6)
    np.testing.assert_allclose(found.areas, [180, 180], rtol=1e-5)
    assert found.num_clipped == 2
    assert "reaches 1.01%" in fault_of("0 0.9601 0.5 0.1 0.1")


def test_overshoot_of_six_decimals_is_clipped_but_not_counted():
    found = boxes_of("0 0.9000005 0.5 0.2 0.1")
    assert found.boxes[0, 2] == WIDTH and found.num_clipped == 0


def test_boxes_of_no_size_are_dropped_and_counted():
    outside = "0 1.005 .5 .01 .1"  # 1.0..1.01: nothing is left of it
    found = boxes_of(f"0 .5 .5 0 .1\n0 .5 .5 .1 0\n{outside}\n0 .5 .5 1e-12 .1\n1 .5 .5 .1 .1")
    assert found.num_empty == 4 and found.labels.tolist() == [1] and found.num_clipped == 0


def test_duplicates_are_dropped_and_the_first_is_kept():
    found = boxes_of(["0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n0 .5 .5 .1 .1\n0 .5 .50 .1 .1", "0 .5 .5 .1 .1"])
    assert found.num_duplicate == 2
    assert found.labels.tolist() == [0, 1, 0] and found.pictures.tolist() == [0, 0, 1]
    assert boxes_of("0 .5 .5 .1 .1\n1 .5 .5 .1 .1", single_cls=True).num_duplicate == 1


def test_no_rows_are_no_boxes():
    found = boxes_of("")
    assert found.boxes.shape == (0, 4) and found.areas.shape == (0,) and found[4:] == (0, 0, 0)


@pytest.mark.parametrize(
    ("picture", "label"),
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/d/images/x/a.b.jpg", "/images/d/labels/x/a.b.txt"),
        ("/d/train/images/a.PNG", "/d/train/labels/a.txt"),
        ("/d/my_images/a.jpg", "/d/my_images/a.txt"),
        ("/d/pictures/images.jpg", "/d/pictures/images.txt"),
    ],
)
def test_label_path(picture, label):
    assert label_path_of(picture) == label


def test_report_is_one_line_without_idle_counts():
    assert format_report(LabelReport(3, 1, 9, 0, 0, 0, 0)) == "3 pictures (1 background), 9 boxes"
    text = format_report(LabelReport(3, 1, 9, 2, 4, 5, 1))
    assert "9 boxes, 2 clipped to the picture, 4 of no size dropped, 5 duplicates dropped" in text
    assert text.endswith("dropped, 1 pictures without a label file")


def test_first_ten_problems_and_the_total():
    check_problems([], "here")
    with pytest.raises(UserError) as error:
        check_problems(
            [Problem("b.txt", line, "bad") for line in range(30, 0, -1)] + [Problem("a", 0, "x")], "here"
        )
    lines = str(error.value).splitlines()
    assert error.value.code == DATA
    assert lines[:3] == ["here: 31 problems", "  a: x", "  b.txt:1: bad"]
    assert lines[10:12] == ["  b.txt:9: bad", "  ... and 21 more"] and "Mend or delete" in lines[12]


number = st.floats() | st.floats(-0.02, 1.02) | st.integers(-3, 5)
line_like = st.lists(number, max_size=9).map(lambda row: " ".join(map(str, row)))


@given(st.binary() | st.text().map(str.encode) | st.lists(line_like).map("\n".join).map(str.encode))
def test_any_bytes_give_boxes_inside_the_picture_or_a_text(data):
    rows, lines, problems = parse_labels(data, "l.txt")
    values = np.array(rows, np.float64).reshape(-1, 5)
    faults = find_faults(values, CLASSES)
    texts = [problem.text for problem in problems]
    texts += [explain_fault(fault, row, CLASSES) for fault, row in zip(faults, values, strict=True) if fault]
    assert all(texts) and all("\n" not in text for text in texts)
    good = faults == FINE
    kept = LabelRows(values[good], np.zeros(good.sum(), np.int64), np.array(lines, np.int64)[good])
    found = make_boxes(kept, np.array([[HEIGHT, WIDTH]]), single_cls=False)
    assert (found.boxes >= 0).all() and (found.boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert len(found.boxes) + found.num_empty + found.num_duplicate == good.sum()
