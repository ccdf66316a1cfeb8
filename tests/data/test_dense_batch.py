"""The batch that needs most memory: its shape, its boxes, and that no real batch has more."""

import numpy as np
import pytest
import torch

from data.augment.plan import batch_shape
from data.dense_batch import dense_batch, joined_pictures, largest_shape
from data.index import Index
from data.letterbox import input_shape
from data.loader import make_train_loader
from utils.config import AugmentConfig, Config
from utils.config_files import load_config


def make_index(counts: list[int], size: tuple[int, int] = (100, 200)) -> Index:
    """Pictures with these numbers of boxes, box k of a picture at x = k, its label the picture's number."""
    total, number = sum(counts), np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(count) for count in counts]) if total else np.zeros(0)
    boxes = np.stack((place, place * 0, place + 10, place * 0 + 20), 1).astype(float)
    return Index(
        paths=np.array([f"/nowhere/{i}.png".encode() for i in range(len(counts))]),
        sizes=np.tile(np.array(size, np.int32), (len(counts), 1)),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes,
        labels=number.astype(np.int64),
        ignore=place % 2 == 1,
        areas=np.full(total, 200.0),
        picture_ids=np.arange(len(counts)),
    )


def config(*sets: str) -> Config:
    return load_config(sets=["data.imgsz=128", *sets]).config


def test_four_pictures_in_the_cells_of_a_mosaic():
    """Pictures of 2, 0, 3, 1, 1 and 1 boxes: the mosaic of the four densest is of 2, 0, 3, 4 with 7 boxes.

    The densest stands top left: 200 x 100 px in a cell of 64 x 64 px, so by 0.32: box 1 at x 0.32 .. 3.52.
    """
    batch = dense_batch(make_index([2, 0, 3, 1, 1, 1]), config(), 5)
    assert batch.images.shape == (5, 3, 128, 128) and batch.images.dtype == torch.uint8
    assert batch.truth.valid.shape == (5, 7) and batch.truth.valid.all()
    assert batch.truth.labels[4].tolist() == [2, 2, 2, 0, 0, 3, 4]
    assert batch.truth.ignore[0].tolist() == [False, True, False, False, True, False, False]
    torch.testing.assert_close(batch.truth.boxes[2, 1], torch.tensor([0.32, 0, 3.52, 6.4]))
    torch.testing.assert_close(batch.truth.boxes[2, 3], torch.tensor([64.0, 0, 67.2, 6.4]))  # the next cell
    torch.testing.assert_close(batch.truth.boxes[2, 5], torch.tensor([0.0, 64, 3.2, 70.4]))  # the next row
    assert batch.pictures == [0] * 5 and batch.letterboxes == [None] * 5


@pytest.mark.parametrize(
    ("sets", "joined"),
    [
        ([], 4),
        (["augment.mosaic=0"], 1),
        (["augment.mosaic9=0.1"], 9),
        (["augment.mixup=0.1"], 8),
        (["augment.mosaic9=1", "augment.mixup=1"], 18),
        (["augment.mosaic=0", "augment.mosaic9=1", "augment.mixup=1"], 2),
    ],
)
def test_as_many_pictures_as_come_together(sets, joined):
    assert joined_pictures(config(*sets).augment) == joined
    batch = dense_batch(make_index([3] * 30), config(*sets), 2)
    assert batch.truth.valid.sum(1).tolist() == [3 * joined] * 2
    boxes = batch.truth.boxes
    assert (boxes >= 0).all() and (boxes <= 128).all() and (boxes[..., 2:] > boxes[..., :2]).all()


@pytest.mark.parametrize("counts", [[0, 0, 0], [0], [5], [0, 4]])
def test_few_pictures_or_boxes(counts):
    batch = dense_batch(make_index(counts), config(), 3)
    assert batch.truth.valid.sum(1).tolist() == [sum(counts)] * 3
    assert batch.truth.boxes.shape == (3, max(1, sum(counts)), 4)


@pytest.mark.parametrize("imgsz", ["128", "[96, 160]", "[320, 64]", "100"])
@pytest.mark.parametrize("change", [0, 0.1, 0.25, 0.5])
def test_no_batch_has_a_larger_shape(imgsz, change):
    cfg = load_config(sets=[f"data.imgsz={imgsz}", f"augment.multi_scale={change}"]).config
    shape = input_shape(cfg.data.imgsz, 32)
    drawn = [batch_shape(0, 0, batch, shape=shape, stride=32, multi_scale=change) for batch in range(300)]
    assert max(drawn) == largest_shape(cfg) and max(drawn, key=np.prod) == largest_shape(cfg)
    assert dense_batch(make_index([1]), cfg, 1).images.shape[2:] == largest_shape(cfg)


def test_like_a_batch_of_the_loader(shapes):
    """The same types, memory format and bounds as a real batch, which has no more boxes."""
    from data.index import load_split
    from data.spec import load_data_spec

    cfg = load_config(sets=["data.imgsz=96", "train.batch_size=4", "data.workers=0"]).config
    index, _ = load_split(load_data_spec(str(shapes)), "train")
    found, real = dense_batch(index, cfg, 4), make_train_loader(index, cfg, pin=False).first_batch()
    assert found.images.shape == real.images.shape and found.images.stride() == real.images.stride()
    for ours, theirs in zip(found.truth, real.truth, strict=True):
        assert ours.dtype == theirs.dtype and ours.ndim == theirs.ndim
    assert found.truth.valid.sum(1).min() >= real.truth.valid.sum(1).max()


def test_the_same_again():
    index, cfg = make_index([4, 2, 9]), config()
    one, other = dense_batch(index, cfg, 2), dense_batch(index, cfg, 2)
    assert torch.equal(one.images, other.images) and one.images.float().std() > 60
    assert not torch.equal(one.images[0], one.images[1])
    assert AugmentConfig().mosaic == 1  # which the numbers above take for granted
