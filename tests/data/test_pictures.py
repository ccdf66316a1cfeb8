"""Pixels in the size they are held in: no more than needed, decoded once, boxes along with them."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import data.pictures
from data.images import decode_image
from data.index import Index, path_of
from data.letterbox import plan_letterbox
from data.pictures import DecodedPictures, choose_reductions, fitted_sizes, needed_sizes, scale_index
from utils.errors import DATA, UserError

SIZES = [(80, 120), (160, 96), (33, 50), (64, 64)]
side = st.integers(1, 10_000)


@pytest.fixture
def index(tmp_path) -> Index:
    """Four pictures of noise; picture i has i boxes."""
    paths, rng = [], np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        paths.append(os.fsencode(tmp_path / f"{number}.jpg"))
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1].decode())
    return Index(
        paths=np.array(paths),
        sizes=np.array(SIZES, np.int32),
        offsets=np.array([0, 0, 1, 3, 6]),
        boxes=np.array([(10 * n, 4 * n, 10 * n + 8, 4 * n + 6) for n in range(6)], float),
        labels=np.arange(6),
        ignore=np.zeros(6, bool),
        areas=np.full(6, 48, np.float32),
        picture_ids=np.arange(4) + 1,
    )


@given(st.lists(st.tuples(side, side), min_size=1, max_size=8), st.tuples(side, side))
def test_fitted_sizes_are_those_of_the_letterbox(sizes, shape):
    found = fitted_sizes(np.array(sizes, np.int32), shape)
    assert found.dtype == np.int32
    assert [tuple(row) for row in found.tolist()] == [plan_letterbox(size, shape).resized for size in sizes]


def test_needed_sizes_by_hand():
    """3000 x 4000 into 640 x 640 is 480 x 640; shown up to 1.5 times as large, 720 x 960."""
    sizes = np.array([(3000, 4000), (480, 640)], np.int32)
    assert needed_sizes(sizes, (640, 640), enlarged=1.5).tolist() == [[720, 960], [720, 960]]
    assert needed_sizes(sizes, (640, 640), enlarged=1.001).tolist() == [[481, 641], [481, 641]]


def test_reductions_by_hand():
    """A quarter of 3000 x 4000 is 750 x 1000, an eighth less than 720 x 960; 33 px have no half."""
    sizes = np.array([(3000, 4000), (480, 640), (3000, 4000), (33, 64), (6000, 8000)], np.int32)
    needed = np.array([(720, 960), (720, 960), (480, 640), (8, 8), (720, 960)], np.int32)
    assert choose_reductions(sizes, needed).tolist() == [4, 1, 4, 1, 8]


def test_pictures_are_held_as_small_as_needed(index):
    needed = np.array([(20, 30), (41, 24), (8, 8), (64, 64)], np.int32)
    pictures = DecodedPictures(index, needed, keep=0)
    assert pictures.reductions.tolist() == [4, 2, 1, 1]
    assert pictures.sizes.tolist() == [[20, 30], [80, 48], [33, 50], [64, 64]]
    for number, reduction in enumerate((4, 2, 1, 1)):
        expected = decode_image(path_of(index, number), reduction=reduction)
        assert np.array_equal(pictures(number), expected)
        assert pictures(number).shape == (*pictures.sizes[number], 3)


def test_the_last_pictures_are_remembered(index, monkeypatch):
    decoded = []

    def count(path, **known):
        decoded.append(int(path.stem))
        return decode_image(path, **known)

    monkeypatch.setattr(data.pictures, "decode_image", count)
    pictures = DecodedPictures(index, index.sizes, keep=2)
    for number in (0, 1, 0, 2, 0, 1, 1):  # 2 takes the place of 1, which was used before 0; then 1 that of 2
        pictures(number)
    assert decoded == [0, 1, 2, 1]
    forgetful = DecodedPictures(index, index.sizes, keep=0)
    forgetful(3), forgetful(3)
    assert decoded == [0, 1, 2, 1, 3, 3]


def test_a_picture_that_has_changed_or_gone_is_named(index):
    pictures = DecodedPictures(index, index.sizes, keep=2)
    Image.new("RGB", (9, 7)).save(path_of(index, 1))
    path_of(index, 2).unlink()
    for number in (1, 2):
        with pytest.raises(UserError, match=f"{number}.jpg") as error:
            pictures(number)
        assert error.value.code == DATA


def test_scale_index_by_hand(index):
    """Picture 1 at a half; picture 2 from 33 x 50 to 11 x 100: x twice, y a third; picture 3 stays."""
    sizes = np.array([(80, 120), (80, 48), (11, 100), (64, 64)], np.int32)
    scaled = scale_index(index, sizes)
    assert np.array_equal(scaled.sizes, sizes)
    expected = np.array([(0, 0, 4, 3), (20, 4 / 3, 36, 10 / 3), (40, 8 / 3, 56, 14 / 3)])
    assert np.allclose(scaled.boxes[:3], expected, rtol=1e-15) and scaled.boxes.dtype == np.float64
    assert np.array_equal(scaled.boxes[3:], index.boxes[3:])
    assert np.allclose(scaled.areas, [12, 32, 32, 48, 48, 48]) and scaled.areas.dtype == index.areas.dtype
    assert scaled.labels is index.labels and scaled.paths is index.paths


def test_unscaled_index_is_itself(index):
    assert scale_index(index, index.sizes.copy()) is index


@given(st.lists(st.integers(1, 8), min_size=4, max_size=4))
def test_scaling_there_and_back(factors):
    boxes = np.random.default_rng(1).uniform(0, 500, (6, 4))
    sizes = np.array([(24, 40), (56, 8), (120, 64), (16, 16)], np.int32)
    index = Index(
        paths=np.array([b"a"] * 4),
        sizes=sizes,
        offsets=np.array([0, 2, 2, 3, 6]),
        boxes=boxes,
        labels=np.zeros(6, np.int64),
        ignore=np.zeros(6, bool),
        areas=np.ones(6, np.float32),
        picture_ids=np.arange(4),
    )
    there = scale_index(index, sizes * np.array(factors, np.int32)[:, None])
    back = scale_index(there, sizes)
    assert np.allclose(back.boxes, boxes, rtol=1e-14) and np.allclose(back.areas, 1)
