"""YOLO label rows: what is read, mended, dropped, and refused."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.formats.labels import LabelReport, clean_labels, format_report
from data.formats.problems import Problem, check_problems
from data.formats.yolo import label_paths_of, parse_labels, read_labels
from data.formats.yolo_rows import RowRule
from utils.errors import DATA, UserError

HEIGHT, WIDTH, NAMES = 100, 200, ("a", "b", "c")


def read(texts, *, names=NAMES, policy="stop"):
    """Label files of one content each, for pictures of WIDTH x HEIGHT: (raw, kept)."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.txt") for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_bytes(text.encode() if isinstance(text, str) else text)
        sizes = np.array([[HEIGHT, WIDTH]] * len(texts))
        raw = read_labels(list(map(str, files)), sizes, names)
        return raw, clean_labels(raw, sizes, policy=policy)


def boxes_of(text, *, single_cls=False):
    """What is kept of one faultless label file, or of several."""
    raw, kept = read(text if isinstance(text, list) else [text], names=None if single_cls else NAMES)
    assert raw.problems == kept.problems == [] and not raw.left_out.any()
    return kept


def fault_of(line, *, names=NAMES):
    """The text of a line's only fault, '' where there is none."""
    raw, kept = read([line], names=names)
    problems = raw.problems + kept.problems
    assert len(problems) <= 1 and all(problem.line == 1 or raw.left_out[0] for problem in problems)
    return "".join(problem.text for problem in problems)


def test_rows_become_pixel_boxes():
    # 200 x 100: centre (100, 50), 50 x 20 px -> 75..125, 40..60
    found = boxes_of("2 0.5 0.5 0.25 0.2\n\n  0\t0.25 0.5 0.5 1 \r\n")
    np.testing.assert_array_equal(found.boxes, [[75, 40, 125, 60], [0, 0, 100, 100]])
    assert found.boxes.dtype == np.float64 and found.labels.dtype == np.int64
    assert found.labels.tolist() == [2, 0] and found.areas.tolist() == [1000, 10_000]
    assert found[5:] == (0, 0, 0, [])


def test_line_numbers_count_blank_lines_and_every_line_end():
    _, lines, problems = parse_labels(b"\n0 .5 .5 .1 .1\r\n\r0 .5 .5 .1\n", "l.txt")
    assert lines == [2] and [problem.line for problem in problems] == [4]


def test_polygon_becomes_its_bounding_box():
    # corners (0.1, 0.2) (0.5, 0.4) (0.3, 0.9) -> x 20..100, y 20..90 px
    found = boxes_of("1 0.1 0.2 0.5 0.4 0.3 0.9")
    np.testing.assert_allclose(found.boxes, [[20, 20, 100, 90]], rtol=1e-6)
    assert found.labels.tolist() == [1]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_byte_order_mark_is_read_over(encoding):
    text = "\ufeff" * (encoding == "utf-16-be") + "0 .5 .5 .1 .1\r\n"
    assert parse_labels(text.encode(encoding), "l.txt")[0] == [[0, 0.5, 0.5, 0.1, 0.1]]


@pytest.mark.parametrize(
    ("count", "fitting"),
    [(56, "[17, 3]"), (17, "[4, 3] or [6, 2]"), (9, "[2, 2]"), (6, ""), (4, "")],
)
def test_a_wrong_shape_of_keypoints_names_the_one_that_fits(count, fitting):
    row = " ".join(["0", ".5", ".5", *[".1"] * (count - 3)])
    rule = RowRule((39,), source="kpt_shape: [17, 2]")
    (problem,) = parse_labels(row.encode(), "l.txt", rule).problems
    assert problem.kind == "keypoint columns" and "nor 39, as kpt_shape" in problem.text
    assert problem.text.endswith(f"; kpt_shape: {fitting} would fit" if fitting else "in the YAML says")


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
        (b"\x89PNG\r\n\x1a\n\0\0\0", "binary data, not a plain text file"),
        (b"\xff\xfe0\0 ", "binary data"),  # half a character of UTF-16
        ("98,53,18,24,1,4,0,0", "left, top, width, height, score, class, ... in px, as VisDrone has them?"),
        ("98,53,18,24,1,4,0,0,", "as VisDrone has them?"),
        ("Car 0 0 -1.5 98.0 53.0 116.0 77.0 1.5 1.6 3.9 1.0 1.5 20.1 -1.6", "14 numbers, as KITTI has them?"),
        ("x" * 5000 + " .5 .5 .1 .1", "xxx...' is not a whole number"),
        # half width 0.1: right edge at 1.02, two hundredths outside
        (
            "0 .92 .5 .2 .1",
            "the box 164 45 204 55 (left, top, right, bottom in px) reaches 2.00% beyond the right edge",
        ),
        ("0 .5 .03 .1 .1", "beyond the upper edge"),
        ("0 .03 .5 .1 .1", "beyond the left edge"),
        ("0 .5 1.5 .1 .1", "beyond the lower edge"),
    ],
)
def test_bad_lines_are_explained(line, text):
    assert text in fault_of(line)


def test_any_class_from_0_will_do_without_a_number_of_classes():
    assert fault_of("900 .5 .5 .1 .1", names=None) == ""
    assert fault_of("-1 .5 .5 .1 .1", names=None) == "class -1 is negative"
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
    assert found.boxes.shape == (0, 4) and found.areas.shape == (0,) and found[5:] == (0, 0, 0, [])


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
    assert label_paths_of([picture, "/x/images/y.png"]) == [label, "/x/labels/y.txt"]


def test_report_is_one_line_without_idle_counts():
    assert format_report(LabelReport(3, 1, 9)) == "3 pictures (1 background), 9 boxes"
    text = format_report(LabelReport(3, 1, 9, 6, 2, 4, 5, 7, 8, 1))
    assert "9 boxes (6 ignored: crowd or difficult), 2 clipped to the picture, 4 of no size dropped" in text
    assert text.endswith(
        "5 duplicates dropped, 7 faulty labels skipped, 8 pictures left out, 1 pictures without a label file"
    )


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
    try:
        raw, found = read([data])
    except UserError:  # five rows and more may look like another unit as a whole
        return
    texts = [problem.text for problem in raw.problems + found.problems]
    assert all(texts) and all("\n" not in text for text in texts)
    assert (found.boxes >= 0).all() and (found.boxes <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    dropped = found.num_empty + found.num_duplicate + len(found.problems)
    assert len(found.boxes) + dropped == len(raw.boxes)
    _, clipped = read([data], policy="clip")
    assert not clipped.problems and len(clipped.boxes) >= len(found.boxes)


def test_a_far_box_is_cut_by_the_policy_clip():
    _, found = read(["0 .92 .5 .2 .1\n0 1.5 .5 .2 .1"], policy="clip")
    np.testing.assert_allclose(found.boxes, [[164, 45, 200, 55]])
    assert (found.num_clipped, found.num_empty, found.problems) == (1, 1, [])


def test_kinds_of_problems():
    lines = [
        "cat .5 .5 .1 .1",
        "0 320 240 50 60",
        "0 nan .5 .1 .1",
        "0 .5 .5 -1 .1",
        "0 1",
        "0,1",
        "0 .1 .5 .5 .1",
    ]
    raw, kept = read(lines)
    kinds = [problem.kind for problem in raw.problems + kept.problems]
    assert sorted(kinds) == sorted(
        ["class", "pixels", "not finite", "negative", "columns", "separator", "outside"]
    )


def test_an_unreadable_file_leaves_its_picture_out_and_a_missing_one_does_not():
    raw, _ = read([b"\0\0", "0 .5 .5 .1 .1"])
    assert raw.left_out.tolist() == [True, False] and raw.num_missing == 0
    raw = read_labels(["/nowhere/a.txt", "/nowhere/\0.txt"], np.array([[1, 1]] * 2), NAMES)
    assert raw.left_out.tolist() == [False, True] and raw.num_missing == 1
    assert [problem.kind for problem in raw.problems] == ["label file"]
