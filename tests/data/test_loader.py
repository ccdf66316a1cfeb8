"""Which pictures make which batch: alike for any number of workers and ranks, decoded once an epoch."""

import hashlib
import os
import stat
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import data.loader
import data.pictures
from data.dataset import Batch
from data.images import choose_reduction, decode_image
from data.index import load_split
from data.letterbox import plan_letterbox, rounding_note
from data.loader import TrainSampler, Units, ValSampler, make_train_loader, make_val_loader
from data.picture_cache import cache_pictures
from data.shapes import make_shapes
from data.spec import load_data_spec
from utils.config import AugmentConfig, Config, DataConfig, TrainConfig, ValConfig
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


def config(workers=0, *, rect=False, batch=BATCH, imgsz=64, group=4, **augment) -> Config:
    return Config(
        data=DataConfig(workers=workers, imgsz=imgsz, rect=rect, group=group),
        train=TrainConfig(batch_size=batch, seed=3),
        val=ValConfig(batch_size=3),
        augment=AugmentConfig(**augment),
    )


def square(epoch: int, batch: int) -> tuple[int, int]:
    return (64, 64)


def digest(batch: Batch) -> str:
    parts = [batch.images.numpy().tobytes(), *(tensor.numpy().tobytes() for tensor in batch.truth)]
    return hashlib.sha256(b"|".join(parts) + repr((batch.pictures, batch.letterboxes)).encode()).hexdigest()


def be_rank(monkeypatch, rank, world):
    monkeypatch.setattr(data.loader, "rank", lambda: rank)
    monkeypatch.setattr(data.loader, "world_size", lambda: world)


# training


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("multi_scale", [0.0, 0.5])
def test_batches_do_not_depend_on_workers(indexes, cache, multi_scale):
    found, pictures = [], cache_pictures({"train": indexes[0]}, (64, 64), cache)["train"]
    for workers in (0, 1, 2, 4):
        cfg = config(workers, batch=2, multi_scale=multi_scale)
        loader = make_train_loader(indexes[0], cfg, pin=False, pictures=pictures)
        loader.set_epoch(2, mosaic=True)
        batches = list(loader)
        assert len(batches) == len(loader) == 6
        assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
        assert (len({batch.images.shape for batch in batches}) > 1) is bool(multi_scale)
        found.append([digest(batch) for batch in batches])
    assert found[0] == found[1] == found[2] == found[3]
    assert len(set(found[0])) == 6


def tree(folder: Path) -> dict[str, str]:
    """A digest of every file, and the mode and time of change of everything."""
    entries = [folder, *sorted(folder.rglob("*"))]
    content = {str(path): path.read_bytes() if path.is_file() else b"" for path in entries}
    states = {str(path): (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime_ns) for path in entries}
    return {name: hashlib.sha256(content[name] + repr(states[name]).encode()).hexdigest() for name in content}


def test_the_data_folder_is_only_read(tmp_path):
    """Root may write into read-only folders, too, so the tree is compared."""
    make_shapes(tmp_path / "shapes", num_train=6, num_val=3, seed=1, sides=(48, 96))
    folders = [path for path in (tmp_path / "shapes", *(tmp_path / "shapes").rglob("*")) if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    before = tree(tmp_path / "shapes")
    spec = load_data_spec(tmp_path / "shapes" / "data.yaml")
    found = {split: load_split(spec, split)[0] for split in ("train", "val")}
    for cache in ("none", "ram", "disk"):
        pictures = cache_pictures(found, (64, 64), cache)
        assert len(list(make_train_loader(found["train"], config(2), pin=False, pictures=pictures["train"])))
        assert len(list(make_val_loader(found["val"], config(), pin=False, pictures=pictures["val"])))
    assert tree(tmp_path / "shapes") == before
    for folder in folders:
        folder.chmod(0o755)


def count_decodes(index, monkeypatch, log: Path, cfg) -> Counter:
    """How often the processes of a loader decode each picture in one epoch."""

    def decode(path, **known):
        with open(log, "ab") as file:
            file.write(os.fsencode(path) + b"\n")
        return decode_image(path, **known)

    monkeypatch.setattr(data.pictures, "decode_image", decode)
    log.write_bytes(b"")
    for _ in make_train_loader(index, cfg, pin=False):
        pass
    return Counter(log.read_bytes().splitlines())


@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("batch", [2, 4, 8, 16])
def test_an_epoch_decodes_each_picture_once(tmp_path, monkeypatch, workers, batch):
    """Batches of a half, one, two and four groups of 4 (as 16, 32 ... of 32); 16 pictures fill them all."""
    make_shapes(tmp_path / "shapes", num_train=16, num_val=1, sides=(48, 64))
    index = load_split(load_data_spec(tmp_path / "shapes" / "data.yaml"), "train")[0]
    found = count_decodes(index, monkeypatch, tmp_path / "log", config(workers, batch=batch, mosaic=1.0))
    assert found == dict.fromkeys(index.paths.tolist(), 1)


@pytest.mark.parametrize(("batch", "extra"), [(3, 15), (4, 4)])
def test_what_is_decoded_more_than_once(indexes, tmp_path, monkeypatch, batch, extra):
    """11 pictures, groups 0-3, 4-7, 8-10. In batches of 3, one a unit, those of positions 3-5, 6-8 and 9-11
    lie across borders of groups; in batches of 4 the last is filled up from group 0, whose pictures are gone.
    """
    found = count_decodes(indexes[0], monkeypatch, tmp_path / "log", config(4, batch=batch, mosaic=1.0))
    assert set(found) == set(indexes[0].paths.tolist())
    assert 11 < sum(found.values()) <= 11 + extra


def test_batches_do_not_depend_on_what_was_loaded_before(indexes):
    fresh = make_train_loader(indexes[0], config(), pin=False)
    fresh.set_epoch(1, mosaic=True)
    used = make_train_loader(indexes[0], config(), pin=False)
    used.set_epoch(0, mosaic=True)
    assert next(iter(used)).pictures
    used.set_epoch(1, mosaic=True)
    assert [digest(batch) for batch in used] == [digest(batch) for batch in fresh]


def test_epochs_differ_and_mosaic_can_be_closed(indexes):
    loader, found = make_train_loader(indexes[0], config(), pin=False), set()
    for epoch, mosaic in ((0, True), (1, True), (1, False)):
        loader.set_epoch(epoch, mosaic=mosaic)
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
        sampler = TrainSampler(pictures, batch, square)
        seen.update(position for items in sampler for _, position, _, _ in items)
        assert len(list(sampler)) == len(sampler) == pictures // batch
    assert seen == dict.fromkeys(range(pictures), 1)


def test_the_last_batch_is_filled_up(indexes):
    loader = make_train_loader(indexes[0], config(), pin=False)
    pictures = [batch.pictures for batch in loader]
    assert [len(batch) for batch in pictures] == [4, 4, 4]
    order = loader.dataset.planner.order(0).tolist()
    assert [*chain(*pictures)] == [*order, order[0]]  # 11 pictures, and the first again


def test_fewer_pictures_than_a_batch():
    assert list(TrainSampler(3, 8, square)) == [[(0, position, (64, 64), True) for position in range(8)]]


def test_a_batch_the_ranks_do_not_divide_is_refused(monkeypatch):
    """Shares of 5 of 16 would lose a picture of every batch without a word."""
    be_rank(monkeypatch, 0, 3)
    with pytest.raises(UserError, match=r"--batch-size 16 .*multiple of 3") as error:
        TrainSampler(16, 16, square)
    assert error.value.code == USAGE
    assert len(next(iter(TrainSampler(16, 15, square)))) == 5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 2, 5, 6])
def test_an_epoch_may_start_at_any_batch(indexes, start, workers):
    """Units of two batches: an odd start cuts the first of them."""
    loader = make_train_loader(indexes[0], config(workers, batch=2), pin=False)
    whole = [digest(batch) for batch in loader]
    loader.set_epoch(0, mosaic=True, start=start)
    assert [digest(batch) for batch in loader] == whole[start:]
    assert len(loader) == len(whole) == 6  # of the whole epoch, wherever it starts


@pytest.mark.parametrize(("size", "start", "lengths"), [(1, 0, [1] * 5), (2, 0, [2, 2, 1]), (2, 3, [1, 1])])
def test_units_are_cut_at_the_same_places(size, start, lengths):
    sampler = TrainSampler(10, 2, square)
    sampler.start = start
    units = list(Units(sampler, size))
    assert [len(unit) for unit in units] == lengths
    assert [*chain(*units)] == list(sampler)


def test_first_batch_is_rendered_here(indexes):
    loader = make_train_loader(indexes[0], config(2), pin=False)
    first = loader.first_batch()
    assert loader.worker_pids() == []
    assert digest(first) == digest(next(iter(loader)))
    assert len(loader.worker_pids()) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_picture_ends_the_epoch_at_its_batch(indexes, tmp_path, workers):
    paths = indexes[1].paths.tolist()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    paths[4] = os.fsencode(broken)  # in the second batch of three
    batches = iter(make_val_loader(indexes[1]._replace(paths=np.array(paths)), config(workers), pin=False))
    assert next(batches).pictures == [0, 1, 2]
    with pytest.raises(UserError, match=r"broken\.jpg"):
        next(batches)


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


@pytest.mark.parametrize("rect", [False, True])
@pytest.mark.parametrize(("imgsz", "shape"), [(32, (32, 32)), (64, (64, 64)), ((64, 96), (64, 96))])
def test_val_pixels_are_the_same_from_the_cache(indexes, rect, imgsz, shape):
    cfg = config(rect=rect, imgsz=imgsz)
    pictures = cache_pictures({"val": indexes[1]}, shape, "ram")["val"]
    cached = make_val_loader(indexes[1], cfg, pin=False, pictures=pictures)
    plain = make_val_loader(indexes[1], cfg, pin=False)
    assert [digest(batch) for batch in cached] == [digest(batch) for batch in plain]


def test_pictures_are_decoded_no_larger_than_needed(indexes):
    """Sides of 48 to 96 px fitted into 32: validation needs a half, training 1.8 times that."""
    index, cfg = indexes[0], config(imgsz=32, scale=0.5, multi_scale=0.2)
    for loader, enlarged in ((make_val_loader, 1.0), (make_train_loader, 1.8)):
        pictures = loader(index, cfg, pin=False).dataset.pictures
        needed = [plan_letterbox(tuple(size), (32, 32)).resized for size in index.sizes.tolist()]
        expected = [
            choose_reduction(tuple(size), tuple(np.ceil(np.multiply(fitted, enlarged))))
            for size, fitted in zip(index.sizes.tolist(), needed, strict=True)
        ]
        assert pictures.reductions.tolist() == expected
    assert make_val_loader(index, cfg, pin=False).dataset.pictures.reductions.max() == 2
