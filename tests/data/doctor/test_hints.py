"""Hints from many labels: given where labels are wrong as a whole, not for odd but right ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.doctor.hints import find_hints
from data.formats.yolo_units import written_as_corners
from data.index import read_split
from data.spec import load_data_spec


def random_xywh(seed, count, low, high):
    """Right labels: boxes of sides ``low``..``high`` anywhere in the picture."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(low, high, (count, 2))
    return np.hstack([rng.uniform(size / 2, 1 - size / 2), size])


def outside(values):
    """Rows of xywh that reach beyond the picture."""
    low, high = values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2
    return int(((low < -0.01) | (high > 1.01)).any(1).sum())


def corners(values):
    return np.hstack([values[:, :2] - values[:, 2:] / 2, values[:, :2] + values[:, 2:] / 2])


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 200), st.floats(0.01, 0.99), st.floats(0.0, 0.9))
def test_right_labels_are_never_taken_for_corners(seed, count, low, spread):
    values = random_xywh(seed, count, low, min(1, low + spread))
    assert not written_as_corners(values, outside(values))


def test_large_central_objects_are_right():
    rng = np.random.default_rng(0)
    values = np.hstack([rng.normal(0.5, 0.01, (200, 2)), rng.normal(0.9, 0.02, (200, 2)).clip(0, 1)])
    assert (values[:, 2:] > values[:, :2]).all() and not written_as_corners(values, 0)


@pytest.mark.parametrize("margin", [0, 0.02])
def test_boxes_that_all_begin_at_the_upper_left_are_right(margin):
    size = np.random.default_rng(0).uniform(0.1, 0.6, (40, 2))
    values = np.hstack([margin + size / 2, size])
    assert (values[:, 2:] > values[:, :2]).all() and not written_as_corners(values, 0)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 200), st.floats(0.01, 0.4), st.floats(0.0, 0.3))
def test_corners_are_seen(seed, count, low, spread):
    values = corners(random_xywh(seed, count, low, low + spread))
    assert written_as_corners(values, outside(values))


def test_corners_about_the_middle_all_lie_inside_and_are_seen():
    rng = np.random.default_rng(0)
    low = rng.uniform(0.45, 0.55, (50, 2))
    values = np.hstack([low, low + rng.uniform(0.09, 0.11, (50, 2))])
    assert outside(values) == 0 and written_as_corners(values, 0)


def test_few_rows_say_nothing():
    values = corners(random_xywh(0, 4, 0.1, 0.2))
    assert not written_as_corners(values, outside(values))


def hints(tmp_path, rows, names):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("\n".join(rows))
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: {names}\n")
    spec = load_data_spec(tmp_path)
    return [hint.code for hint in find_hints(spec, {"train": read_split(spec, "train")})]


def rows_of(classes):
    boxes = random_xywh(0, len(classes), 0.1, 0.3)
    return [
        f"{key} {x:.6f} {y:.6f} {w:.6f} {h:.6f}" for key, (x, y, w, h) in zip(classes, boxes, strict=True)
    ]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        ([1, 2, 3] * 10, ["classes-from-1"]),  # of the names a, b, c
        ([1, 2] * 10, ["class-0-unused"]),
        ([0, *[1, 2] * 10], []),
        ([2] * 20, []),
        ([1, 2] * 5, []),  # too few
    ],
)
def test_classes_from_1(tmp_path, classes, expected):
    assert hints(tmp_path, rows_of(classes), "[a, b, c]") == expected


def test_two_classes_of_which_one_is_not_used_are_no_hint(tmp_path):
    assert hints(tmp_path, rows_of([1] * 30), "[background, a]") == []
