"""Pictures and boxes on disk become samples and batches; remembered pictures change nothing."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import data.dataset
from data.dataset import Batch, Sample, TrainSet, ValSet, collate
from data.images import decode_image
from data.index import Index, path_of
from data.letterbox import PAD_VALUE
from data.plan import Planner
from utils.config import AugmentConfig

SIZES = [(40, 60), (60, 40), (32, 32), (50, 20), (64, 48), (30, 70)]


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Six pictures of noise; picture i has i boxes, so the first is background."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    paths, boxes = [], [np.zeros((0, 4))]
    for number, (height, width) in enumerate(SIZES):
        paths.append(os.fsencode(folder / f"{number}.png"))
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1].decode())
        boxes.append([(n, n, width - n, height - 2 * n) for n in range(number)] or boxes[0])
    counts = np.arange(len(SIZES))
    total = int(counts.sum())
    return Index(
        paths=np.array(paths),
        sizes=np.array(SIZES, np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))),
        boxes=np.concatenate(boxes).astype(np.float32),
        labels=np.arange(total),
        ignore=np.arange(total) % 3 == 0,
        areas=np.ones(total, np.float32),
        picture_ids=np.arange(len(SIZES)) + 1,
    )


def train_set(index, *, group=3, **changes) -> TrainSet:
    cfg = AugmentConfig(**changes)
    return TrainSet(index, Planner(index.sizes, (64, 96), cfg, group=group, seed=5), cfg)


def same(first: Sample, second: Sample) -> bool:
    fields = ("image", "boxes", "labels", "ignore")
    equal = all(np.array_equal(getattr(first, field), getattr(second, field)) for field in fields)
    return equal and first.picture == second.picture


# training


def test_train_sample(index):
    samples = [train_set(index)[0, position, True] for position in range(6)]
    for sample in samples:
        assert sample.image.shape == (64, 96, 3) and sample.image.dtype == np.uint8
        assert sample.boxes.dtype == np.float32 and sample.labels.dtype == np.int64
        assert sample.ignore.dtype == bool
        assert len(sample.boxes) == len(sample.labels) == len(sample.ignore)
        assert (sample.boxes >= 0).all() and (sample.boxes <= (96, 64, 96, 64)).all()
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2] >= 2).all()
        assert sample.letterbox is None
    assert sorted(sample.picture for sample in samples) == list(range(6))


def test_unchanged_pictures_are_letterboxed(index):
    """As in validation, shown on the pictures whose fitted sizes are whole pixels."""
    still = dict.fromkeys(("mosaic", "scale", "translate", "flip_lr", "hue", "saturation", "value"), 0.0)
    train, val = train_set(index, **still, min_visible=0.0, min_side=0.0), ValSet(index)
    samples = {sample.picture: sample for sample in (train[0, position, True] for position in range(6))}
    for picture in (0, 2, 4):
        sample, expected = samples[picture], val[picture, (64, 96)]
        assert np.abs(sample.image.astype(int) - expected.image).max() <= 1
        assert np.allclose(sample.boxes, expected.boxes, atol=1e-4)
        assert np.array_equal(sample.labels, expected.labels)


def test_remembered_pictures_change_nothing(index):
    one = train_set(index)
    items = [(epoch, position, True) for epoch in (0, 1) for position in (0, 5, 1, 7, 2, 3, 4, 0)]
    for item in items:
        assert same(one[item], train_set(index)[item])


def test_a_group_decodes_each_of_its_pictures_once(index, monkeypatch):
    decoded = []
    monkeypatch.setattr(data.dataset, "decode_image", lambda path: decoded.append(path) or decode_image(path))
    train = train_set(index, group=3, mosaic=1.0)
    for position in range(6):
        train[0, position, True]
    assert len(decoded) == len(set(decoded)) <= 6
    assert len(train._decoded._pictures) <= 3


def test_rendering_leaves_remembered_pictures_as_they_are(index):
    train = train_set(index, group=6)
    for position in range(6):
        train[0, position, True]
    for number, pixels in train._decoded._pictures.items():
        assert np.array_equal(pixels, decode_image(path_of(index, number)))


# validation


def test_val_sample_by_hand(index):
    # Picture 4 is 64 x 48; into 64 x 96 it goes unscaled, 24 px from the left. Boxes: n, n, 48 - n, 64 - 2 n.
    sample = ValSet(index)[4, (64, 96)]
    assert np.array_equal(sample.image[:, 24:72], decode_image(path_of(index, 4)))
    assert (sample.image[:, :24] == PAD_VALUE).all() and (sample.image[:, 72:] == PAD_VALUE).all()
    assert sample.boxes.tolist() == [[24 + n, n, 72 - n, 64 - 2 * n] for n in range(4)]
    assert sample.labels.tolist() == [6, 7, 8, 9]
    assert sample.ignore.tolist() == [True, False, False, True]
    assert sample.picture == 4 and sample.letterbox.size == (64, 48)


def test_val_boxes_go_back(index):
    for number in range(len(SIZES)):
        sample = ValSet(index)[number, (96, 64)]
        rows = slice(index.offsets[number], index.offsets[number + 1])
        assert np.allclose(sample.letterbox.inverse(sample.boxes), index.boxes[rows], atol=1e-4)


# batches


def test_collate(index):
    val = ValSet(index)
    batch = collate([val[number, (64, 64)] for number in (3, 0, 5)])
    assert isinstance(batch, Batch)
    assert batch.pictures == [3, 0, 5] and [box.size for box in batch.letterboxes] == [
        SIZES[n] for n in (3, 0, 5)
    ]
    assert batch.images.shape == (3, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for row, number in enumerate((3, 0, 5)):
        sample, truth = val[number, (64, 64)], [tensor[row] for tensor in batch.truth]
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), sample.image)
        boxes, labels, valid, ignore = truth
        assert valid.tolist() == [True] * number + [False] * (5 - number)
        assert np.array_equal(boxes[valid].numpy(), sample.boxes)
        assert np.array_equal(labels[valid].numpy(), sample.labels)
        assert np.array_equal(ignore[valid].numpy(), sample.ignore)
        assert boxes[~valid].tolist() == [[0, 0, 1, 1]] * (5 - number)  # a proper box: no NaN from padding
        assert not labels[~valid].any() and not ignore[~valid].any()
    types = [tensor.dtype for tensor in batch.truth]
    assert types == [torch.float32, torch.int64, torch.bool, torch.bool]


def test_collate_of_background_has_one_row_of_padding(index):
    for count in (1, 3):
        truth = collate([ValSet(index)[0, (64, 64)]] * count).truth
        assert truth.boxes.tolist() == [[[0, 0, 1, 1]]] * count
        assert truth.valid.tolist() == [[False]] * count


def test_collate_does_not_alias_its_samples(index):
    sample = ValSet(index)[2, (32, 32)]
    image, boxes = sample.image.copy(), sample.boxes.copy()
    batch = collate([sample, sample])
    batch.images.zero_()
    batch.truth.boxes.zero_()
    assert np.array_equal(sample.image, image) and np.array_equal(sample.boxes, boxes)


def test_unpad_gives_back_what_collate_padded():
    def make(count: int) -> Sample:
        boxes = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
        return Sample(
            np.zeros((32, 32, 3), np.uint8), boxes, np.arange(count), np.zeros(count, bool), 0, None
        )

    samples = [make(count) for count in (2, 0, 3)]
    boxes, labels = data.dataset.unpad(collate(samples).truth)
    for sample, box, label in zip(samples, boxes, labels, strict=True):
        np.testing.assert_array_equal(box, sample.boxes)
        np.testing.assert_array_equal(label, sample.labels)
