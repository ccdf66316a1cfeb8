"""Pictures and boxes on disk become samples and batches; remembered pictures change nothing."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import data.pictures
from data.augment.plan import Planner
from data.dataset import Batch, Sample, TrainSet, ValSet, collate, unpad
from data.images import decode_image
from data.index import Index, path_of
from data.letterbox import PAD_VALUE, plan_letterbox, rect_shape
from data.pictures import DecodedPictures
from utils.config import AugmentConfig
from utils.errors import UserError

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
        boxes=np.concatenate(boxes),
        labels=np.arange(total),
        ignore=np.arange(total) % 3 == 0,
        areas=np.ones(total, np.float32),
        picture_ids=np.arange(len(SIZES)) + 1,
    )


SHAPE = (64, 96)


def whole(index, *, keep=0) -> DecodedPictures:
    """Pictures decoded in full."""
    return DecodedPictures(index, index.sizes, keep=keep)


def train_set(index, *, group=3, pictures=None, **changes) -> TrainSet:
    cfg, pictures = AugmentConfig(**changes), pictures or whole(index, keep=group)
    return TrainSet(index, Planner(pictures.sizes, SHAPE, cfg, group=group, seed=5), cfg, pictures)


def val_set(index, limit=SHAPE) -> ValSet:
    return ValSet(index, whole(index), limit)


def train_samples(train, positions=range(6), *, epoch=0) -> list[Sample]:
    return [train.sample(epoch, position, SHAPE, True) for position in positions]


def same(first: Sample, second: Sample) -> bool:
    fields = ("image", "boxes", "labels", "ignore")
    equal = all(np.array_equal(getattr(first, field), getattr(second, field)) for field in fields)
    return equal and first.picture == second.picture


# training


def test_train_sample(index):
    samples = train_samples(train_set(index))
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
    train, val = train_set(index, **still, min_visible=0.0, min_side=0.0), val_set(index)
    samples = {sample.picture: sample for sample in train_samples(train)}
    for picture in (0, 2, 4):
        sample, expected = samples[picture], val.sample(picture, SHAPE)
        assert np.abs(sample.image.astype(int) - expected.image).max() <= 1
        assert np.allclose(sample.boxes, expected.boxes, atol=1e-4)
        assert np.array_equal(sample.labels, expected.labels)


def test_remembered_pictures_change_nothing(index):
    one = train_set(index)
    items = [(epoch, position, SHAPE, True) for epoch in (0, 1) for position in (0, 5, 1, 7, 2, 3, 4, 0)]
    for item in items:
        assert same(one.sample(*item), train_set(index).sample(*item))


def test_a_group_decodes_each_of_its_pictures_once(index, monkeypatch):
    decoded = []
    count = lambda path, **known: decoded.append(path) or decode_image(path, **known)  # noqa: E731
    monkeypatch.setattr(data.pictures, "decode_image", count)
    train_samples(train_set(index, group=3, mosaic=1.0))
    assert sorted(decoded) == sorted(path_of(index, number) for number in range(6))


def test_rendering_leaves_remembered_pictures_as_they_are(index):
    train = train_set(index, group=6)
    train_samples(train)
    for number in range(6):
        assert np.array_equal(train.pictures(number), decode_image(path_of(index, number)))


# validation


def test_val_sample_by_hand(index):
    # Picture 4 is 64 x 48; into 64 x 96 it goes unscaled, 24 px from the left. Boxes: n, n, 48 - n, 64 - 2 n.
    sample = val_set(index).sample(4, SHAPE)
    assert np.array_equal(sample.image[:, 24:72], decode_image(path_of(index, 4)))
    assert (sample.image[:, :24] == PAD_VALUE).all() and (sample.image[:, 72:] == PAD_VALUE).all()
    assert sample.boxes.tolist() == [[24 + n, n, 72 - n, 64 - 2 * n] for n in range(4)]
    assert sample.labels.tolist() == [6, 7, 8, 9]
    assert sample.ignore.tolist() == [True, False, False, True]
    assert sample.picture == 4 and sample.letterbox.size == (64, 48)


def test_val_boxes_go_back(index):
    for number in range(len(SIZES)):
        sample = val_set(index, (96, 64)).sample(number, (96, 64))
        rows = slice(index.offsets[number], index.offsets[number + 1])
        assert np.allclose(sample.letterbox.inverse(sample.boxes), index.boxes[rows], atol=1e-4)


def test_a_val_picture_has_one_size_in_whatever_batch_it_stands(index):
    """Its fitted size is that of the limit; the shape of a rect batch only says how it is padded."""
    val, limit = val_set(index), SHAPE
    for number, size in enumerate(SIZES):
        alone = rect_shape(size, limit, 32)
        first, second = val.sample(number, alone), val.sample(number, limit)
        assert first.image.shape[:2] == alone
        assert first.letterbox.resized == second.letterbox.resized == plan_letterbox(size, limit).resized
        cuts = [
            sample.image[y : y + sample.letterbox.resized[0], x : x + sample.letterbox.resized[1]]
            for sample in (first, second)
            for x, y in [sample.letterbox.offset]
        ]
        assert np.array_equal(*cuts)
        for sample in (first, second):
            (height, width), (x, y) = sample.letterbox.resized, sample.letterbox.offset
            assert 0 <= x <= sample.image.shape[1] - width and 0 <= y <= sample.image.shape[0] - height
            rows = slice(index.offsets[number], index.offsets[number + 1])
            assert np.allclose(sample.letterbox.inverse(sample.boxes), index.boxes[rows], atol=1e-4)


def test_a_narrow_val_picture_is_not_made_smaller_by_its_batch(index):
    """200 x 101 into 64 x 96 is 64 x 32.3; rounded, 64 x 32 would hold only 63 x 32 of it."""
    narrow = index._replace(sizes=np.array([(200, 101)], np.int32))
    val = ValSet(narrow, lambda _: np.zeros((200, 101, 3), np.uint8), SHAPE)
    assert rect_shape((200, 101), SHAPE, 32) == (64, 32)
    sample = val.sample(0, (64, 32))
    assert sample.letterbox.resized == (64, 32) and not sample.image.any()


def test_reduced_pictures_change_no_box(index):
    """Held at a half, pictures have the same plans; boxes agree to the rounding of a crop to held pixels."""
    half = whole(index)
    half.reductions[:] = 2
    half.sizes = index.sizes // 2
    still = {"scale": 0.0, "translate": 0.0, "mosaic": 0.0, "min_side": 0.0, "min_visible": 0.0}
    full, reduced = (train_samples(train_set(index, pictures=p, **still)) for p in (whole(index), half))
    for first, second in zip(full, reduced, strict=True):
        assert first.picture == second.picture and np.array_equal(first.labels, second.labels)
        assert np.abs(first.boxes - second.boxes).max(initial=0) < 1


# batches


def test_an_unreadable_picture_stands_for_its_batch(index, tmp_path):
    paths = index.paths.tolist()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    paths[2] = os.fsencode(broken)
    val = val_set(index._replace(paths=np.array(paths)))
    assert isinstance(val[[(0, SHAPE), (1, SHAPE)]], Batch)
    error = val[[(0, SHAPE), (2, SHAPE), (1, SHAPE)]]
    assert isinstance(error, UserError) and str(broken) in str(error)


def test_pinning_a_batch_pins_its_tensors_only(index, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    batch = val_set(index)[[(4, SHAPE)]]
    same_batch = batch.pin_memory()
    assert [tensor is other for tensor, other in zip(pinned, (*batch.truth, batch.images), strict=True)]
    assert same_batch.letterboxes is batch.letterboxes and same_batch.pictures is batch.pictures


def test_collate(index):
    val = val_set(index, (64, 64))
    batch = val[[(number, (64, 64)) for number in (3, 0, 5)]]
    assert isinstance(batch, Batch)
    assert batch.pictures == [3, 0, 5] and [box.size for box in batch.letterboxes] == [
        SIZES[n] for n in (3, 0, 5)
    ]
    assert batch.images.shape == (3, 3, 64, 64) and batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for row, number in enumerate((3, 0, 5)):
        sample, truth = val.sample(number, (64, 64)), [tensor[row] for tensor in batch.truth]
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
        truth = collate([val_set(index).sample(0, SHAPE)] * count).truth
        assert truth.boxes.tolist() == [[[0, 0, 1, 1]]] * count
        assert truth.valid.tolist() == [[False]] * count


def test_collate_does_not_alias_its_samples(index):
    sample = val_set(index, (32, 32)).sample(2, (32, 32))
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
    boxes, labels = unpad(collate(samples).truth)
    for sample, box, label in zip(samples, boxes, labels, strict=True):
        np.testing.assert_array_equal(box, sample.boxes)
        np.testing.assert_array_equal(label, sample.labels)
