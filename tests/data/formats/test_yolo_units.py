"""Fractions, percent, thousandths and pixels, centres and corners: told apart by a split as a whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.formats.units import unit_of, xywh_unit
from data.formats.yolo import read_labels
from data.formats.yolo_units import FEW, Written, centres_unit
from data.index import read_split
from data.spec import load_data_spec
from utils.errors import DATA, UserError

SIZE = (480, 640)  # height, width


def fractions(seed, count, *, low=0.05, high=0.3):
    """(T, 4) centre and size of boxes anywhere in the picture."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(low, high, (count, 2))
    return np.hstack([rng.uniform(size / 2, 1 - size / 2), size])


def corners(values):
    return np.hstack([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2])


def sizes(count, size=SIZE):
    return np.tile(size, (count, 1))


SCALES = {
    "fractions": 1,
    "percent (0..100)": 100,
    "thousandths (0..1000)": 1000,
    "pixels": np.array([640, 480, 640, 480]),
    "pixels of larger pictures than these": np.array([1920, 1080, 1920, 1080]),
}


@pytest.mark.parametrize("unit", SCALES)
@pytest.mark.parametrize("as_corners", [False, True])
@pytest.mark.parametrize("count", [12, 40, 400])
def test_the_unit_of_centres(unit, as_corners, count):
    values = fractions(count, count)
    written = (corners(values) if as_corners else values) * SCALES[unit]
    assert centres_unit(written, sizes(count)) == Written(unit, as_corners)


@pytest.mark.parametrize("unit", list(SCALES)[:4])
@pytest.mark.parametrize("count", [40, 400])
def test_the_upper_left_corner_in_place_of_the_centre(unit, count):
    values = fractions(count, count)
    values[:, :2] -= values[:, 2:] / 2
    assert centres_unit(values * SCALES[unit], sizes(count)) == Written(unit, False, upper_left=True)


def test_boxes_without_a_side_say_nothing_of_the_upper_left():
    values = fractions(0, 6, high=0.1)
    values[:4] = 0, 0, 0, 0.5
    assert centres_unit(values, sizes(6)) == Written("fractions", False)


def test_boxes_that_overshoot_on_the_left_are_no_upper_left_corners():
    values = fractions(0, 40)
    values[:6, 0] = values[:6, 2] / 3
    assert centres_unit(values, sizes(40)) == Written("fractions", False)


@pytest.mark.parametrize("unit", ["", "fractions", "percent"])
@pytest.mark.parametrize("form", ["", "corners", "centres"])
def test_unit_and_form_of_four_numbers_that_should_be_xywh(unit, form):
    values = fractions(1, 60)
    xyxy = corners(values)
    written = {"": np.hstack([xyxy[:, :2], values[:, 2:]]), "corners": xyxy, "centres": values}[form]
    written = written * {"": SCALES["pixels"], "fractions": 1, "percent": 100}[unit]
    read = np.hstack([written[:, :2], written[:, :2] + written[:, 2:]])
    assert xywh_unit(read, sizes(60)[:, ::-1]) == (unit, form)


@settings(deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 200), st.floats(0.001, 0.99), st.floats(0, 0.9), st.integers(0, 9)
)
def test_right_boxes_are_xywh_in_px_in_any_number(seed, count, low, spread, overshooting):
    values = fractions(seed, count, low=low, high=min(1, low + spread))
    boxes = corners(values) * SCALES["pixels"]
    boxes[:overshooting, 2:] *= 1.03
    unit, form = xywh_unit(boxes, sizes(count)[:, ::-1])
    assert unit == "" and (count < 40 or form == "")


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200), st.floats(0.001, 0.99), st.floats(0, 0.9))
def test_right_labels_are_right_in_any_number(seed, count, low, spread):
    values = fractions(seed, count, low=low, high=min(1, low + spread))
    assert centres_unit(values, sizes(count)) == Written("fractions", False)


def test_boxes_that_overshoot_are_no_corners():
    values = fractions(0, 20, low=0.7, high=0.9)
    values[:3, 0] = 0.7  # large boxes, of which some reach beyond the right edge
    assert centres_unit(values, sizes(20)) == Written("fractions", False)


def test_a_few_rows_in_pixels_do_not_make_the_split_one_in_pixels():
    values = fractions(0, 20)
    values[:5] *= SCALES["pixels"]
    assert centres_unit(values, sizes(20)) == Written("fractions", False)
    assert centres_unit(fractions(0, FEW - 1) * 100, sizes(FEW - 1)).unit == "fractions"  # told row by row


def test_small_pictures_leave_a_doubt_between_percent_and_pixels():
    assert centres_unit(fractions(0, 40) * 100, sizes(40, (100, 100))).unit == "percent or pixels"


@pytest.mark.parametrize("unit", ["fractions", "percent"])
def test_voc_boxes_in_another_unit_than_pixels(tmp_path, unit):
    boxes = corners(fractions(0, 60)) * {"fractions": 1, "percent": 100}[unit]
    assert unit_of(boxes, sizes(60)) == unit
    rows = [dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) for box in boxes.tolist()]
    tags = ["".join(f"<{key}>{value}</{key}>" for key, value in row.items()) for row in rows]
    text = "".join(f"<object><name>a</name><bndbox>{tag}</bndbox></object>" for tag in tags)
    (tmp_path / "a.xml").write_text(f"<annotation>{text}</annotation>")
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "a.png")
    (tmp_path / "data.yaml").write_text("train: .\nformat: voc\nnames: [a]\n")
    with pytest.raises(UserError, match=f"look like {unit} of the picture, where VOC has pixels") as error:
        read_split(load_data_spec(tmp_path / "data.yaml"), "train")
    assert error.value.code == DATA and "a.xml:1" in str(error.value)


ADVICE = {
    "percent (0..100)": ("divide all four by 100", "width"),
    "thousandths (0..1000)": ("divide all four by 1000", "width"),
    "pixels": ("divide x and w by the picture's width", "by 100"),
}


@pytest.mark.parametrize("unit", ADVICE)
def test_the_error_names_the_unit_and_the_one_thing_to_do(tmp_path, unit):
    values = fractions(0, 30) * SCALES[unit]
    path = tmp_path / "a.txt"
    path.write_text("".join("0 " + " ".join(f"{value:.3f}" for value in row) + "\n" for row in values))
    with pytest.raises(UserError) as error:
        read_labels([str(path)], np.array([SIZE]), ("a",))
    said, unsaid = ADVICE[unit]
    assert error.value.code == DATA and f"in {unit}" in str(error.value) and said in str(error.value)
    assert unsaid not in str(error.value) and "small" not in str(error.value)
