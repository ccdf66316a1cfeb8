"""Which pictures make which batch: alike for any number of workers and ranks, each once an epoch."""

import hashlib
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

import data.loader
from data.dataset import Batch
from data.index import load_split
from data.letterbox import plan_letterbox, rounding_note
from data.loader import TrainSampler, ValSampler, choose_workers, make_train_loader, make_val_loader
from data.shapes import make_shapes
from data.spec import load_data_spec
from utils.config import Config, DataConfig, TrainConfig, ValConfig
from utils.errors import USAGE, UserError

BATCH = 4
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with one core


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """Training and validation pictures: 11 and 7 small ones."""
    root = tmp_path_factory.mktemp("set") / "shapes"
    make_shapes(root, num_train=11, num_val=7, seed=1, sides=(48, 96))
    spec = load_data_spec(root / "data.yaml")
    return [load_split(spec, split)[0] for split in ("train", "val")]


def config(workers=0, *, rect=False, batch=BATCH, imgsz=64) -> Config:
    return Config(
        data=DataConfig(workers=workers, imgsz=imgsz, rect=rect, group=4),
        train=TrainConfig(batch_size=batch, seed=3),
        val=ValConfig(batch_size=3),
    )


def digest(batch: Batch) -> str:
    parts = [batch.images.numpy().tobytes(), *(tensor.numpy().tobytes() for tensor in batch.truth)]
    return hashlib.sha256(b"|".join(parts) + repr((batch.pictures, batch.letterboxes)).encode()).hexdigest()


def be_rank(monkeypatch, rank, world):
    monkeypatch.setattr(data.loader, "rank", lambda: rank)
    monkeypatch.setattr(data.loader, "world_size", lambda: world)


# training


def test_batches_do_not_depend_on_workers(indexes):
    found = []
    for workers in (0, 1, 2):
        loader = make_train_loader(indexes[0], config(workers), pin=False)
        loader.batch_sampler.set_epoch(2, mosaic=True)
        batches = list(loader)
        assert len(batches) == len(loader) == 3
        assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
        found.append([digest(batch) for batch in batches])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3


def test_batches_do_not_depend_on_what_was_loaded_before(indexes):
    fresh = make_train_loader(indexes[0], config(), pin=False)
    fresh.batch_sampler.set_epoch(1, mosaic=True)
    used = make_train_loader(indexes[0], config(), pin=False)
    used.batch_sampler.set_epoch(0, mosaic=True)
    assert next(iter(used)).pictures
    used.batch_sampler.set_epoch(1, mosaic=True)
    assert [digest(batch) for batch in used] == [digest(batch) for batch in fresh]


def test_epochs_differ_and_mosaic_can_be_closed(indexes):
    loader, found = make_train_loader(indexes[0], config(), pin=False), set()
    for epoch, mosaic in ((0, True), (1, True), (1, False)):
        loader.batch_sampler.set_epoch(epoch, mosaic=mosaic)
        found |= {digest(batch) for batch in loader}
    assert len(found) == 9


@pytest.mark.parametrize("world", [2, 4])
def test_global_batches_do_not_depend_on_ranks(indexes, monkeypatch, world):
    be_rank(monkeypatch, 0, 1)
    whole = list(make_train_loader(indexes[0], config(), pin=False))
    shares = []
    for rank in range(world):
        be_rank(monkeypatch, rank, world)
        shares.append(list(make_train_loader(indexes[0], config(), pin=False)))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {len(part.pictures) for part in parts} == {BATCH // world}
        assert [*chain(*(part.pictures for part in parts))] == batch.pictures
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        boxes = [boxes[valid] for part in parts for boxes, valid in zip(*part.truth[::2], strict=True)]
        expected = [boxes[valid] for boxes, valid in zip(*batch.truth[::2], strict=True)]
        assert all(torch.equal(first, second) for first, second in zip(boxes, expected, strict=True))


@pytest.mark.parametrize(("pictures", "batch", "world"), [(12, 4, 1), (12, 4, 2), (12, 4, 4), (5, 5, 5)])
def test_every_picture_once_where_the_batches_divide_the_epoch(monkeypatch, pictures, batch, world):
    seen = Counter()
    for rank in range(world):
        be_rank(monkeypatch, rank, world)
        sampler = TrainSampler(pictures, batch)
        seen.update(position for items in sampler for _, position, _ in items)
        assert len(list(sampler)) == len(sampler) == pictures // batch
    assert seen == dict.fromkeys(range(pictures), 1)


def test_the_last_batch_is_filled_up(indexes):
    loader = make_train_loader(indexes[0], config(), pin=False)
    pictures = [batch.pictures for batch in loader]
    assert [len(batch) for batch in pictures] == [4, 4, 4]
    order = loader.dataset.planner.order(0).tolist()
    assert [*chain(*pictures)] == [*order, order[0]]  # 11 pictures, and the first again


def test_fewer_pictures_than_a_batch():
    assert list(TrainSampler(3, 8)) == [[(0, position, True) for position in range(8)]]


def test_a_batch_the_ranks_do_not_divide_is_refused(monkeypatch):
    """Shares of 5 of 16 would lose a picture of every batch without a word."""
    be_rank(monkeypatch, 0, 3)
    with pytest.raises(UserError, match=r"--batch-size 16 .*multiple of 3") as error:
        TrainSampler(16, 16)
    assert error.value.code == USAGE
    assert len(next(iter(TrainSampler(16, 15)))) == 5


# validation


@pytest.mark.parametrize("rect", [False, True])
@pytest.mark.parametrize("size", [1, 3, 7, 50])
def test_val_sampler_yields_every_picture_once(rect, size):
    sizes = np.random.default_rng(0).integers(20, 900, (37, 2))
    sampler = ValSampler(sizes, size, (640, 640), stride=32, rect=rect)
    batches = list(sampler)
    assert len(batches) == len(sampler) == -(-37 // size)
    assert sorted(number for batch in batches for number, _ in batch) == list(range(37))
    assert all(len({shape for _, shape in batch}) == 1 for batch in batches)
    assert list(sampler) == batches  # again


def test_rect_batches_are_small_and_hold_their_pictures():
    sizes = np.random.default_rng(0).integers(20, 900, (40, 2))
    (square,) = {
        shape for batch in ValSampler(sizes, 4, (640, 640), stride=32, rect=False) for _, shape in batch
    }
    assert square == (640, 640)
    batches = list(ValSampler(sizes, 4, (640, 640), stride=32, rect=True))
    areas = []
    for batch in batches:
        (height, width) = batch[0][1]
        assert height % 32 == width % 32 == 0
        assert max(height, width) <= 640
        areas.append(height * width)
        for number, shape in batch:  # no picture is made smaller by its batch, but for rounding
            alone, together = (plan_letterbox(tuple(sizes[number]), s).resized for s in ((640, 640), shape))
            assert np.subtract(together, alone).min() >= -0.01 * 640
    assert np.mean(areas) < 0.75 * 640**2


@pytest.mark.parametrize("rect", [False, True])
def test_val_batches_do_not_depend_on_workers(indexes, rect):
    found = [
        [digest(batch) for batch in make_val_loader(indexes[1], config(workers, rect=rect), pin=False)]
        for workers in (0, 2)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_val_loader_measures_every_picture_and_its_boxes(indexes):
    for rect in (False, True):
        batches = list(make_val_loader(indexes[1], config(rect=rect), pin=False))
        assert sorted(chain(*(batch.pictures for batch in batches))) == list(range(7))
        assert sum(int(batch.truth.valid.sum()) for batch in batches) == len(indexes[1].labels)


def test_input_size_is_rounded_up_to_the_stride(indexes):
    loader = make_val_loader(indexes[1], config(imgsz=(60, 100)), pin=False)
    assert next(iter(loader)).images.shape[2:] == (64, 128)
    assert "60x100" in rounding_note((60, 100), 32) and "64x128" in rounding_note((60, 100), 32)
    assert rounding_note(64, 32) == ""


def test_choose_workers(monkeypatch):
    assert choose_workers(0, 100) == 0
    assert choose_workers(5, 1) == 5
    for cores, batches, expected in ((1, 100, 0), (4, 100, 3), (64, 100, 8), (64, 3, 3)):
        monkeypatch.setattr(data.loader.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert choose_workers(None, batches) == expected
