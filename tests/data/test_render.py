"""A plan's pixels and its boxes agree: what is painted in a box of a source shows where the box goes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as oracle
from torchvision.tv_tensors import BoundingBoxes

from data.index import Index
from data.letterbox import PAD_VALUE
from data.plan import Plan, Planner, Tile, colour_matrix
from data.render import render, render_boxes, transform_boxes
from utils.config import AugmentConfig

EYE = np.eye(3, dtype=np.float32)
PLAIN = (False, False)


def index_of(sizes, boxes, labels=None, ignore=None) -> Index:
    """An index without files: ``boxes`` is a list of boxes for each picture."""
    counts = [len(rows) for rows in boxes]
    total = sum(counts)
    return Index(
        paths=np.array([b"none"] * len(sizes)),
        sizes=np.array(sizes, np.int32),
        offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        boxes=np.concatenate([np.reshape(rows, (-1, 4)) for rows in boxes]).astype(np.float32),
        labels=np.arange(total) if labels is None else np.array(labels),
        ignore=np.zeros(total, bool) if ignore is None else np.array(ignore),
        areas=np.ones(total, np.float32),
        picture_ids=np.arange(len(sizes)) + 1,
    )


def bounds(mask: np.ndarray) -> np.ndarray:
    """xyxy of the true pixels."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])


def painted(size, box) -> np.ndarray:
    """White box on black."""
    picture = np.zeros((*size, 3), np.uint8)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    return picture


def law_violations(plan: Plan, index: Index, pictures) -> tuple[int, list]:
    """Boxes checked, and those whose pixels lie more than a pixel from where ``render_boxes`` says."""
    image, checked, wrong = render(plan._replace(colour=EYE), pictures.__getitem__), 0, []
    for tile in plan.tiles:
        one = plan._replace(tiles=(tile,))
        boxes, _, _ = render_boxes(one, index, min_visible=0, min_side=2)
        x1, y1, x2, y2 = tile.place
        shown = image[y1:y2, x1:x2, 0] > 127
        for box in boxes:
            checked += 1
            found = np.full(4, np.nan)
            if shown.any():
                found = np.add(bounds(shown), (x1, y1, x1, y1))
            if not np.abs(found - box).max() <= 1:
                wrong.append((tile, box, found))
    return checked, wrong


shapes = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda n: (32 * n[0], 32 * n[1]))
pictures_sizes = st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=6)
flips = st.tuples(st.sampled_from((0.0, 0.5, 1.0)), st.sampled_from((0.0, 0.5, 1.0)))


@given(pictures_sizes, shapes, flips, st.floats(0, 0.9), st.floats(0, 0.6), st.integers(0, 2**32 - 1))
@settings(max_examples=120, deadline=None)
def test_painted_box_shows_where_the_box_goes(sizes, shape, flip, scale, translate, seed):
    rng = np.random.default_rng(seed)
    boxes = []
    for height, width in sizes:
        low = rng.integers(0, (width, height))
        boxes.append([(*low, *rng.integers(low + 1, (width + 1, height + 1)))])
    pictures = [painted(size, box) for size, (box,) in zip(sizes, boxes, strict=True)]
    cfg = AugmentConfig(scale=scale, translate=translate, flip_lr=flip[0], flip_ud=flip[1])
    planner = Planner(np.array(sizes), shape, cfg, group=4, seed=seed)
    for position in range(4):
        plan = planner.plan(0, position, mosaic=position > 0)
        _, wrong = law_violations(plan, index_of(sizes, boxes), pictures)
        assert not wrong


def test_the_law_is_checked_on_many_boxes():
    """The same on ordinary sizes, counted: a law that checks nothing always holds."""
    rng, checked = np.random.default_rng(0), 0
    sizes = [tuple(rng.integers(30, 400, 2).tolist()) for _ in range(12)]
    boxes = [[(width // 5, height // 4, width * 3 // 4, height * 4 // 5)] for height, width in sizes]
    pictures = [painted(size, box) for size, (box,) in zip(sizes, boxes, strict=True)]
    cfg = AugmentConfig(flip_ud=0.5)
    planner = Planner(np.array(sizes), (160, 224), cfg, group=12, seed=3)
    for position in range(60):
        count, wrong = law_violations(
            planner.plan(0, position, mosaic=True), index_of(sizes, boxes), pictures
        )
        checked += count
        assert not wrong
    assert checked > 100


def test_boxes_agree_with_torchvision():
    """Crop, resize, flip and pad as torchvision's transforms do them, on random tiles."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(20, 500, 2)
        left, top = rng.integers(0, (width - 5, height - 5))
        right, bottom = rng.integers((left + 2, top + 2), (width + 1, height + 1))
        x1, y1, wide, tall = rng.integers(1, 300, 4)
        place = (int(x1), int(y1), int(x1 + wide), int(y1 + tall))
        flip = tuple(bool(value) for value in rng.integers(0, 2, 2))
        tile = Tile(0, (int(left), int(top), int(right), int(bottom)), place, flip)
        corners = rng.uniform((left, top), (right, bottom), (8, 2, 2))
        boxes = np.concatenate((corners.min(1), corners.max(1)), 1)
        moved = BoundingBoxes(
            torch.from_numpy(boxes), format="XYXY", canvas_size=(int(height), int(width)), dtype=torch.float64
        )
        moved = oracle.resized_crop(
            moved, int(top), int(left), int(bottom - top), int(right - left), [tall, wide]
        )
        moved = oracle.horizontal_flip(moved) if flip[0] else moved
        moved = oracle.vertical_flip(moved) if flip[1] else moved
        moved = oracle.pad(moved, [int(x1), int(y1), 0, 0])
        assert np.allclose(transform_boxes(boxes, tile.matrix), moved.numpy(), rtol=0, atol=1e-3)


def test_transform_boxes_takes_the_bounds_of_a_turned_box():
    # A quarter turn, x' = -y, y' = x: corners (1, 2), (3, 2), (3, 5), (1, 5) go to (-2, 1) ... (-5, 3).
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert transform_boxes(np.array([[1.0, 2, 3, 5]]), turn).tolist() == [[-5, 1, -2, 3]]
    assert transform_boxes(np.zeros((0, 4)), turn).shape == (0, 4)


def test_flip_mirrors_pixels_and_boxes():
    rng = np.random.default_rng(0)
    sizes = [(60, 80), (90, 50), (64, 64), (33, 71)]
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    boxes = [[(5, 5, width - 9, height - 3)] for height, width in sizes]
    index, still = index_of(sizes, boxes), {"flip_lr": 0.0, "flip_ud": 0.0}
    plain = Planner(np.array(sizes), (96, 128), AugmentConfig(**still), group=4, seed=0)
    for flip, axis in (("flip_lr", 1), ("flip_ud", 0)):
        mirrored = Planner(np.array(sizes), (96, 128), AugmentConfig(**{**still, flip: 1.0}), group=4, seed=0)
        for position in range(20):
            first, second = (p.plan(0, position, mosaic=True) for p in (plain, mirrored))
            images = [render(plan, pictures.__getitem__) for plan in (first, second)]
            assert np.array_equal(np.flip(images[1], axis), images[0])
            (one, labels, _), (two, same, _) = (
                render_boxes(plan, index, min_visible=0.1, min_side=2) for plan in (first, second)
            )
            extent, low = images[0].shape[axis], 1 - axis
            back = two.copy()
            back[:, [low, low + 2]] = extent - two[:, [low + 2, low]]
            assert np.allclose(back, one, atol=1e-3) and np.array_equal(labels, same)


def test_padding_is_grey_and_turns_with_the_colours():
    plan = Plan((Tile(0, (0, 0, 10, 10), (0, 0, 10, 10), PLAIN),), (20, 30), EYE)
    image = render(plan, lambda _: np.full((10, 10, 3), 7, np.uint8))
    assert image.shape == (20, 30, 3) and image.dtype == np.uint8
    assert (image[:10, :10] == 7).all()
    assert (image[10:] == PAD_VALUE).all() and (image[:, 10:] == PAD_VALUE).all()
    brighter = render(
        plan._replace(colour=colour_matrix(0, 0, 0.5)), lambda _: np.zeros((10, 10, 3), np.uint8)
    )
    assert (brighter[10:] == round(1.5 * PAD_VALUE)).all()


def test_a_plan_without_tiles_is_an_empty_picture():
    plan = Plan((), (32, 64), EYE)
    assert (render(plan, None) == PAD_VALUE).all()
    boxes, labels, ignore = render_boxes(
        plan, index_of([(5, 5)], [[(0, 0, 5, 5)]]), min_visible=0, min_side=0
    )
    assert boxes.shape == (0, 4) and labels.shape == ignore.shape == (0,)
    assert (boxes.dtype, labels.dtype, ignore.dtype) == (np.float32, np.int64, bool)


def test_colours_are_rgb_and_cut_at_255():
    # Red alone, saturation off: luma 0.299 of it in all three channels. Doubled, 200 is 255, not 400 - 256.
    plan = Plan((Tile(0, (0, 0, 4, 4), (0, 0, 4, 4), PLAIN),), (4, 4), colour_matrix(0, -1, 0))
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[..., 0] = 200
    assert np.abs(render(plan, lambda _: picture).astype(int) - round(0.299 * 200)).max() <= 1
    bright = render(plan._replace(colour=colour_matrix(0, 0, 1)), lambda _: picture)
    assert (bright[..., 0] == 255).all() and (bright[..., 1:] <= 1).all()


def test_identity_colour_changes_no_pixel():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plan = Plan((Tile(0, (0, 0, 64, 64), (0, 0, 64, 64), PLAIN),), (64, 64), colour_matrix(0, 0, 0))
    assert np.abs(render(plan, lambda _: picture).astype(int) - picture).max() <= 1


def test_the_source_is_not_changed():
    picture = np.full((64, 64, 3), 9, np.uint8)
    plan = Plan((Tile(0, (0, 0, 64, 64), (0, 0, 64, 64), PLAIN),), (64, 64), colour_matrix(0, 0, 1))
    render(plan, lambda _: picture)
    assert (picture == 9).all()


# which boxes stay


def kept(boxes, *, min_visible, min_side, crop=(20, 0, 60, 40)):
    """Row numbers and boxes of what a 40 x 80 picture keeps in a tile that shows ``crop`` at double size."""
    place = (0, 0, 2 * (crop[2] - crop[0]), 2 * (crop[3] - crop[1]))
    plan = Plan((Tile(0, crop, place, PLAIN),), (80, 80), EYE)
    found, labels, _ = render_boxes(
        plan, index_of([(40, 80)], [boxes]), min_visible=min_visible, min_side=min_side
    )
    return dict(zip(labels.tolist(), found.tolist(), strict=True))


def test_min_visible_by_hand():
    # x from 20 is shown. Of 10 px wide boxes from 11, 12 and 19, 1, 2 and 9 px are left: shares 0.1, 0.2, 0.9
    boxes = [(11, 10, 21, 30), (12, 10, 22, 30), (19, 10, 29, 30)]
    assert kept(boxes, min_visible=0.25, min_side=0).keys() == {2}
    assert kept(boxes, min_visible=0.2, min_side=0).keys() == {1, 2}
    assert kept(boxes, min_visible=0.05, min_side=0).keys() == {0, 1, 2}
    assert kept(boxes, min_visible=0.2, min_side=0)[1] == [0, 20, 4, 60]  # cut at the edge, doubled


def test_min_side_by_hand():
    # Doubled, the 1, 2 and 3 px wide boxes are 2, 4 and 6 px wide in the output, which is what counts.
    boxes = [(30, 10, 31, 30), (30, 10, 32, 30), (30, 10, 33, 30)]
    assert kept(boxes, min_visible=0, min_side=2).keys() == {0, 1, 2}
    assert kept(boxes, min_visible=0, min_side=4).keys() == {1, 2}
    assert kept(boxes, min_visible=0, min_side=4.1).keys() == {2}
    assert kept([(30, 10, 50, 11)], min_visible=0, min_side=4).keys() == set()  # the height counts too


@pytest.mark.parametrize(("min_visible", "min_side"), [(0.1, 0), (0, 1), (0.1, 2)])
def test_boxes_out_of_view_are_dropped(min_visible, min_side):
    boxes = [(0, 0, 20, 40), (60, 0, 80, 40), (0, 0, 10, 10), (30, 10, 40, 20)]
    assert kept(boxes, min_visible=min_visible, min_side=min_side).keys() == {3}


def test_boxes_out_of_view_are_dropped_without_limits():
    assert kept([(0, 0, 10, 10), (30, 10, 40, 20)], min_visible=0, min_side=0).keys() == {1}


def test_labels_and_ignore_follow_their_boxes():
    index = index_of(
        [(40, 40), (40, 40)],
        [[(0, 0, 9, 9), (30, 30, 39, 39)], [(5, 5, 20, 20)]],
        labels=[7, 3, 5],
        ignore=[0, 1, 1],
    )
    index = index._replace(ignore=index.ignore.astype(bool))
    tiles = (
        Tile(1, (0, 0, 40, 40), (0, 0, 40, 40), PLAIN),
        Tile(0, (10, 10, 40, 40), (40, 0, 70, 30), PLAIN),
    )
    boxes, labels, ignore = render_boxes(Plan(tiles, (80, 80), EYE), index, min_visible=0.1, min_side=2)
    assert boxes.tolist() == [[5, 5, 20, 20], [60, 20, 69, 29]]
    assert labels.tolist() == [5, 3]
    assert ignore.tolist() == [True, True]
