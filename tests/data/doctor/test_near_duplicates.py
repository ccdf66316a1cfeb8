"""Copies are found whatever was done to them, different pictures are not, and many pictures stay cheap."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.doctor.inspect_pictures import SIDE, make_thumbnail
from data.doctor.near_duplicates import (
    MAX_BITS,
    Duplicates,
    find_candidates,
    find_duplicates,
    find_repeats,
    find_shared,
)
from data.images import decode_image

REAL = Path(__file__).parents[3].parent / "shared" / "datasets"


def draw(seed, size=(240, 320)):
    """A picture of photographic kind: noise of several scales."""
    rng = np.random.default_rng(seed)
    height, width = size
    layers = [
        share
        * cv2.resize(rng.random((height >> s, width >> s, 3)), (width, height), interpolation=cv2.INTER_CUBIC)
        for s, share in ((5, 0.7), (3, 0.2), (0, 0.1))
    ]
    return (255 * np.clip(sum(layers), 0, 1)).astype(np.uint8)


def encode(picture, quality):
    return cv2.imdecode(
        cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
    )


CHANGES = {
    "quality 60": lambda p: encode(p, 60),
    "half": lambda p: cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "double": lambda p: cv2.resize(p, None, fx=2, fy=2),
    "darker": lambda p: (p * 0.9).astype(np.uint8),
    "brighter": lambda p: np.clip(p * 1.1, 0, 255).astype(np.uint8),
    "cut": lambda p: p[3:-3, 4:-4],
}


def digests(count):
    return np.arange(2 * count, dtype=np.uint64).reshape(-1, 2)


def find(thumbnails):
    return find_duplicates(np.array(thumbnails), digests(len(thumbnails)))


@pytest.fixture(scope="module")
def pictures():
    return [draw(seed) for seed in range(40)]


@pytest.mark.parametrize("name", CHANGES)
def test_changed_copies_are_found_and_nothing_else(pictures, name):
    copies = [CHANGES[name](picture) for picture in pictures[:20]]
    found = find([make_thumbnail(picture) for picture in pictures + copies])
    assert found.group.tolist() == [*range(40), *range(20)]
    assert found.first.tolist() == [*range(60)] and found.num_flat == 0 and found.complete


def test_a_changed_object_in_one_scene_is_no_copy(pictures):
    other = pictures[0].copy()
    other[60:100, 60:110] = 255 - other[60:100, 60:110]  # 2 % of the picture
    assert find([make_thumbnail(pictures[0]), make_thumbnail(other)]).group.tolist() == [0, 1]


def test_flat_pictures_are_copies_only_by_their_bytes():
    rng = np.random.default_rng(0)
    flat = 128 + rng.integers(-2, 3, (4, SIDE, SIDE))
    keys = digests(4)
    keys[3] = keys[1]
    found = find_duplicates(flat.astype(np.uint8), keys)
    assert found.group.tolist() == [0, 1, 2, 1] and found.first.tolist() == [0, 1, 2, 1]
    assert found.num_flat == 4


def test_shared_and_repeated_pictures():
    # train 0..3, val 4..7: 4 has the bytes of 1; 5 looks like 1; 6 like 7 alone; 3 repeats 2's bytes
    found = Duplicates(
        first=np.array([0, 1, 2, 2, 1, 5, 6, 7]),
        group=np.array([0, 1, 2, 2, 1, 1, 6, 6]),
        num_flat=0,
        complete=True,
    )
    train, val = np.arange(4), np.arange(4, 8)
    assert find_shared(found, val, train).tolist() == [[4, 1, 1], [5, 1, 0]]
    assert find_repeats(found, train).tolist() == [[3, 2, 1]]
    assert find_repeats(found, val).tolist() == [[5, 4, 0], [7, 6, 0]]


def test_bytes_win_over_looks():
    found = Duplicates(np.array([0, 1, 1]), np.array([0, 0, 0]), 0, True)
    assert find_shared(found, np.array([2]), np.array([0, 1])).tolist() == [[2, 1, 1]]
    assert find_repeats(found, np.arange(3)).tolist() == [[1, 0, 0], [2, 1, 1]]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pictures(count):
    found = find_duplicates(np.zeros((count, SIDE, SIDE), np.uint8), digests(count))
    assert found.group.tolist() == [*range(count)] and find_repeats(found, np.arange(count)).shape == (0, 3)


def test_a_hundred_thousand_hashes_take_seconds():
    bits = np.random.default_rng(0).random((100_000, 64)) < 0.5
    begun = time.process_time()
    pairs = np.concatenate(list(find_candidates(bits)))
    assert time.process_time() - begun < 10  # about 1 s
    assert len(pairs) < 200_000  # of 5e9
    assert (bits[pairs[:, 0]] != bits[pairs[:, 1]]).sum(1).max() <= MAX_BITS


def test_a_static_camera_does_not_cost_the_square():
    base = make_thumbnail(draw(0)).astype(int)
    rng = np.random.default_rng(0)
    frames = np.clip(base + rng.integers(-2, 3, (3000, SIDE, SIDE)), 0, 255).astype(np.uint8)
    begun = time.process_time()
    found = find(frames)
    assert time.process_time() - begun < 5  # about 0.5 s
    assert (found.group == 0).mean() > 0.99


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("bccd", [("val/BloodImage_00037.jpg", "train/BloodImage_00038.jpg")]),
        ("deeppcb", []),
        ("coco_free", []),
    ],
)
def test_real_pictures_of_alike_scenes(name, pairs):
    folder = REAL / name / "images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    files = sorted(folder.glob("*/*.jpg"))
    found = find([make_thumbnail(decode_image(file)) for file in files])
    names = [file.relative_to(folder).as_posix() for file in files]
    alike = [(names[number], names[first]) for number, first in enumerate(found.group) if first != number]
    assert alike == pairs
