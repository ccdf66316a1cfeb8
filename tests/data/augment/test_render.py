"""A plan's pixels and its boxes agree: what is painted in a box of a source shows where the box goes."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as oracle
from torchvision.tv_tensors import BoundingBoxes

from data.augment.colour import colour_matrix
from data.augment.homography import project, shift_matrix, transform_boxes, warp_matrix
from data.augment.plan import Plan, Planner, Tile
from data.augment.render import render, render_boxes, tile_outline
from data.index import Index
from data.letterbox import PAD_VALUE
from utils.config import AugmentConfig

EYE = np.eye(3, dtype=np.float32)


def straight(source, crop, place, flip=(False, False)) -> Tile:
    """A tile that shows ``crop`` at ``place``, mirrored in it by ``flip``."""
    matrix = np.eye(3)
    for axis in (0, 1):
        start, end = place[axis::2][:: -1 if flip[axis] else 1]
        matrix[axis, axis] = (end - start) / (crop[axis + 2] - crop[axis])
        matrix[axis, 2] = start - crop[axis] * matrix[axis, axis]
    return Tile(source, crop, matrix)


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


def test_pixels_and_boxes_of_straight_tiles_written_out():
    """As written out here, bit for bit, wherever nothing is turned."""
    rng = np.random.default_rng(3)
    sizes = [(480, 640), (31, 77), (5, 3), (300, 20), (64, 64), (333, 501)]
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    corners = rng.uniform(0, 1, (6, 4, 2, 2)) * np.array(sizes)[:, None, None, ::-1]
    index = index_of(sizes, list(np.concatenate((corners.min(2), corners.max(2)), 2)))
    planner = Planner(np.array(sizes), (160, 224), AugmentConfig(flip_ud=0.5), group=6, seed=0)
    for position in range(30):
        plan = planner.plan(0, position, mosaic=position % 5 > 0)
        canvas, boxes = np.full((160, 224, 3), PAD_VALUE, np.uint8), []
        for tile in plan.tiles:
            (x1, y1, x2, y2), (left, top, right, bottom) = tile.crop, tile.place
            crop, size = pictures[tile.source][y1:y2, x1:x2], (right - left, bottom - top)
            small = size[0] < (x2 - x1) / 3 or size[1] < (y2 - y1) / 3
            patch = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if small else cv2.INTER_LINEAR)
            across, down = np.sign(tile.matrix[[0, 1], [0, 1]]).astype(int)
            canvas[top:bottom, left:right] = patch[::down, ::across]
            numbers = slice(*index.offsets[tile.source : tile.source + 2])
            moved = transform_boxes(index.boxes[numbers].astype(np.float64), tile.matrix)
            boxes.append(moved.clip((left, top, left, top), (right, bottom, right, bottom)))
        assert np.array_equal(render(plan, pictures.__getitem__), cv2.transform(canvas, plan.colour))
        found, _, _ = render_boxes(plan, index, min_visible=0, min_side=0.5)
        every = np.concatenate(boxes)
        every = every[(every[:, 2:] - every[:, :2]).min(1) >= 0.5].astype(np.float32)
        assert np.array_equal(found, every)


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
        tile = straight(0, (int(left), int(top), int(right), int(bottom)), place, flip)
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
    plan = Plan((straight(0, (0, 0, 10, 10), (0, 0, 10, 10)),), (20, 30), EYE)
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
    plan = Plan((straight(0, (0, 0, 4, 4), (0, 0, 4, 4)),), (4, 4), colour_matrix(0, -1, 0))
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[..., 0] = 200
    assert np.abs(render(plan, lambda _: picture).astype(int) - round(0.299 * 200)).max() <= 1
    bright = render(plan._replace(colour=colour_matrix(0, 0, 1)), lambda _: picture)
    assert (bright[..., 0] == 255).all() and (bright[..., 1:] <= 1).all()


def test_identity_colour_changes_no_pixel():
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plan = Plan((straight(0, (0, 0, 64, 64), (0, 0, 64, 64)),), (64, 64), colour_matrix(0, 0, 0))
    assert np.abs(render(plan, lambda _: picture).astype(int) - picture).max() <= 1


def test_the_source_is_not_changed():
    picture = np.full((64, 64, 3), 9, np.uint8)
    plan = Plan((straight(0, (0, 0, 64, 64), (0, 0, 64, 64)),), (64, 64), colour_matrix(0, 0, 1))
    render(plan, lambda _: picture)
    assert (picture == 9).all()


# which boxes stay


def kept(boxes, *, min_visible, min_side, crop=(20, 0, 60, 40)):
    """Row numbers and boxes of what a 40 x 80 picture keeps in a tile that shows ``crop`` at double size."""
    place = (0, 0, 2 * (crop[2] - crop[0]), 2 * (crop[3] - crop[1]))
    plan = Plan((straight(0, crop, place),), (80, 80), EYE)
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
        straight(1, (0, 0, 40, 40), (0, 0, 40, 40)),
        straight(0, (10, 10, 40, 40), (40, 0, 70, 30)),
    )
    boxes, labels, ignore = render_boxes(Plan(tiles, (80, 80), EYE), index, min_visible=0.1, min_side=2)
    assert boxes.tolist() == [[5, 5, 20, 20], [60, 20, 69, 29]]
    assert labels.tolist() == [5, 3]
    assert ignore.tolist() == [True, True]


# turned, sheared and tilted tiles

FINE = 8  # the law is measured on a raster this much finer, since a sharp tip may miss every pixel centre
CORNER = 63  # a bilinear picture of a corner has a quarter of the full value there
WARPS = [
    {"degrees": 180.0},
    {"shear": 20.0},
    {"perspective": 0.4},
    {"degrees": 180.0, "mosaic9": 1.0},
    {"degrees": 45.0, "shear": 15.0, "perspective": 0.3, "mosaic9": 0.5, "flip_ud": 0.5, "translate": 0.3},
]


def finer(plan: Plan, factor: int) -> Plan:
    """The same picture with ``factor`` pixels in place of one along each axis."""
    grow = np.diag((factor, factor, 1.0))
    tiles = tuple(tile._replace(matrix=grow @ tile.matrix) for tile in plan.tiles)
    return Plan(tiles, (plan.size[0] * factor, plan.size[1] * factor), EYE)


def boxed_pictures(rng, sizes):
    """An index with a box in each picture, and pictures that are white there and black elsewhere."""
    boxes = []
    for height, width in sizes:
        low = rng.integers(0, (width - 40, height - 40))
        boxes.append([(*low, *rng.integers(low + 30, (width + 1, height + 1)))])
    return index_of(sizes, boxes), [painted(size, box) for size, (box,) in zip(sizes, boxes, strict=True)]


@pytest.mark.parametrize("changes", WARPS)
def test_painted_box_shows_where_a_turned_box_goes(changes):
    rng, checked = np.random.default_rng(0), 0
    sizes = [tuple(rng.integers(200, 400, 2).tolist()) for _ in range(8)]
    index, pictures = boxed_pictures(rng, sizes)
    planner = Planner(np.array(sizes), (64, 96), AugmentConfig(**changes), group=8, seed=1)
    for position in range(10):
        plan = planner.plan(0, position, mosaic=position > 2)
        for tile in plan.tiles:
            one = plan._replace(tiles=(tile,))
            boxes, _, _ = render_boxes(one, index, min_visible=0, min_side=2)
            image = render(finer(one, FINE), pictures.__getitem__)[..., 0]
            blank = render(finer(one, FINE), lambda i: np.zeros_like(pictures[i]))[..., 0]
            shown = image.astype(int) - blank > CORNER
            for box in boxes:
                assert np.abs(bounds(shown) / FINE - box).max() <= 1
                checked += 1
    assert checked > 10


@pytest.mark.parametrize("changes", WARPS)
def test_turned_boxes_agree_with_polygons_on_the_very_raster(changes):
    """Pixel by pixel at the output's own size: white well inside the moved box, nothing well outside it."""
    rng = np.random.default_rng(2)
    sizes = [tuple(rng.integers(200, 400, 2).tolist()) for _ in range(8)]
    index, pictures = boxed_pictures(rng, sizes)
    planner = Planner(np.array(sizes), (64, 96), AugmentConfig(**changes), group=8, seed=2)
    y, x = np.mgrid[:64, :96] + 0.5
    points = np.stack((x, y, np.ones_like(x)), -1)
    for position in range(10):
        plan = planner.plan(0, position, mosaic=True)
        image, clear = (
            render(plan._replace(colour=EYE), pictures.__getitem__)[..., 0],
            np.ones((64, 96), bool),
        )
        expected = np.full((64, 96), PAD_VALUE)
        for tile in plan.tiles:
            at = project(points, np.linalg.inv(tile.matrix))
            (box,), (x1, y1, x2, y2) = index.boxes[tile.source : tile.source + 1], tile.crop
            for edges, value in (((x1, y1, x2, y2), 0), (box, 255)):
                depth = np.minimum(at - edges[:2], edges[2:] - at).min(-1)  # source px, negative outside
                crop = np.minimum(at - (x1, y1), (x2, y2) - at).min(-1)
                expected[(depth > 0) & (crop > 0)] = value
                step = 1.5 / np.sqrt(np.abs(np.linalg.det(tile.matrix[:2, :2])))
                clear &= np.abs(depth) > 4 * step
        assert clear.mean() > 0.02
        assert (np.abs(image.astype(int) - expected) <= 1)[clear].all()


@pytest.mark.parametrize("changes", [{**warp, "mosaic": mosaic} for warp in WARPS for mosaic in (0.0, 1.0)])
def test_no_seams_between_tiles_and_no_colour_from_beyond(changes):
    """White pictures: every pixel is white or the grey of the padding, and grey only where no tile is."""
    sizes = [(64, 64)] * 8
    cfg = AugmentConfig(**changes)
    planner = Planner(np.array(sizes), (96, 96), cfg, group=8, seed=5)
    y, x = np.mgrid[:96, :96] + 0.5
    points = np.stack((x, y, np.ones_like(x)), -1)
    for position in range(12):
        plan = planner.plan(0, position, mosaic=True)._replace(colour=EYE)
        image = render(plan, lambda _: np.full((64, 64, 3), 255, np.uint8))[..., 0]
        assert set(np.unique(image)) <= {PAD_VALUE, 255}
        covered, near = np.zeros((96, 96), bool), np.zeros((96, 96), bool)
        for tile in plan.tiles:
            at = project(points, np.linalg.inv(tile.matrix))
            depth = np.minimum(at - tile.crop[:2], np.subtract(tile.crop[2:], at)).min(-1)
            covered |= depth >= 0
            near |= depth > -1e-3
        assert (image[covered] == 255).all() and (image[~near] == PAD_VALUE).all()


def test_turned_pixels_agree_with_torchvision():
    """Smooth pixels through torchvision's ``affine``, bilinear, away from the border: within 1.5 of 255."""
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (80, 100, 3), np.uint8), (0, 0), 4) * 3
    matrix = warp_matrix((80, 100), degrees=25, shear=(10, -5), tilt=(0, 0))
    image = render(Plan((Tile(0, (0, 0, 100, 80), matrix),), (80, 100), EYE), lambda _: picture)
    theirs = oracle.affine(
        torch.from_numpy(picture).permute(2, 0, 1).float(),
        angle=25.0,
        translate=[0, 0],
        scale=1.0,
        shear=[-10.0, 5.0],
        interpolation=oracle.InterpolationMode.BILINEAR,
    ).permute(1, 2, 0)
    y, x = np.mgrid[:80, :100] + 0.5
    at = project(np.stack((x, y, np.ones_like(x)), -1), np.linalg.inv(matrix))
    inside = (np.minimum(at, (100, 80) - at) > 1).all(-1)
    assert inside.mean() > 0.6
    assert np.abs(image - theirs.numpy())[inside].max() <= 1.5


def test_a_strongly_shrunk_turned_tile_is_averaged():
    """A chess board of single pixels is grey once it is shrunk; sampled, it would be black or white."""
    board = (np.indices((640, 800)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    for gain in (0.05, 0.11, 0.24, 0.49):
        matrix = warp_matrix((64, 64), degrees=20, shear=(0, 0), tilt=(0, 0)) @ np.diag((gain, gain, 1))
        tile = Tile(0, (0, 0, 800, 640), matrix)
        image = render(Plan((tile,), (64, 64), EYE), lambda _: board)[..., 0]
        y, x = np.mgrid[:64, :64] + 0.5
        at = project(np.stack((x, y, np.ones_like(x)), -1), np.linalg.inv(matrix))
        inner = (np.minimum(at, (800, 640) - at) > 40).all(-1)
        assert inner.any() and np.abs(image[inner].astype(int) - 127).max() < 20


def test_reduction_moves_nothing():
    """A box painted in a large picture that is averaged by 8 first, on an odd crop."""
    picture = painted((1403, 1901), (511, 307, 1205, 907))
    index = index_of([(1403, 1901)], [[(511, 307, 1205, 907)]])
    matrix = warp_matrix((160, 200), degrees=-15, shear=(3, 0), tilt=(0.1, 0)) @ np.diag((0.11, 0.11, 1))
    plan = Plan((Tile(0, (3, 5, 1898, 1401), matrix),), (160, 200), EYE)
    ((box,), _, _) = render_boxes(plan, index, min_visible=0, min_side=2)
    assert np.abs(bounds(render(plan, lambda _: picture)[..., 0] > 127) - box).max() <= 1.2


def test_min_visible_of_a_turned_box_by_hand():
    # A square of 10 px turned by 45 degrees: the corner that reaches 15 px beyond x = 0 ... its diagonal is
    # 14.14 px. Cut at half of it, half of its area is left; at a quarter, an eighth.
    root = 0.5**0.5
    turn = np.array(((root, -root, 0), (root, root, 0), (0, 0, 1)))
    half = 10 * root  # of the diagonal
    index = index_of([(10, 10)], [[(0, 0, 10, 10)]])

    def kept(shift, share):
        tile = Tile(0, (0, 0, 10, 10), shift_matrix(shift, 0) @ turn)
        return len(render_boxes(Plan((tile,), (50, 50), EYE), index, min_visible=share, min_side=0)[0])

    assert (kept(0, 0.49), kept(0, 0.51)) == (1, 0)  # x runs from -7.07 to 7.07
    assert (kept(-half / 2, 0.12), kept(-half / 2, 0.13)) == (1, 0)
    assert (kept(half, 1 - 1e-9), kept(-half - 1, 0)) == (1, 0)


def test_a_box_behind_the_horizon_is_dropped():
    # Depth 1 - x / 100: beyond x = 100 a point's image would return from the other side.
    matrix = np.array(((1.0, 0, 0), (0, 1, 0), (-0.01, 0, 1)))
    index = index_of([(50, 400)], [[(120, 0, 200, 50), (20, 0, 300, 10), (10, 10, 20, 20)]])
    plan = Plan((Tile(0, (0, 0, 400, 50), matrix),), (100, 100), EYE)
    boxes, labels, _ = render_boxes(plan, index, min_visible=0, min_side=1)
    assert labels.tolist() == [1, 2]
    assert np.allclose(boxes, [[25, 0, 100, 20], [100 / 9, 100 / 9, 25, 25]])
    assert render(plan, lambda _: np.zeros((50, 400, 3), np.uint8)).shape == (100, 100, 3)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=4),
    st.tuples(st.floats(0, 180), st.floats(0, 45), st.floats(0, 0.4), st.floats(0, 0.9), st.floats(0, 1)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_any_change_gives_boxes_inside_the_output(sizes, change, seed):
    rng = np.random.default_rng(seed)
    boxes = [np.sort(rng.uniform(0, 1, (6, 2, 2)), 1) * (width, height) for height, width in sizes]
    index = index_of(sizes, [corners.reshape(-1, 4) for corners in boxes])
    keys = ("degrees", "shear", "perspective", "scale", "translate")
    cfg = AugmentConfig(**dict(zip(keys, change, strict=True)), mosaic9=0.5, mixup=0.5)
    planner = Planner(np.array(sizes), (64, 96), cfg, group=4, seed=seed)
    for position in range(3):
        plan = planner.plan(0, position, mosaic=position > 0)
        image = render(plan, lambda i: np.zeros((*sizes[i], 3), np.uint8))
        found, labels, _ = render_boxes(plan, index, min_visible=0, min_side=1)
        assert image.shape == (64, 96, 3) and len(found) == len(labels)
        assert np.isfinite(found).all() and (found[:, :2] >= 0).all() and (found[:, 2:] <= (96, 64)).all()
        assert (found[:, 2:] - found[:, :2] >= 0.999).all()
        assert all(len(tile_outline(tile, plan.size)) >= 3 for tile in plan.tiles)


def test_large_pictures_turn():
    """A side beyond what OpenCV can warp (32,767 px) is averaged down first."""
    picture = np.zeros((700, 40000, 3), np.uint8)
    planner = Planner(
        np.array([(700, 40000)]), (64, 640), AugmentConfig(degrees=20.0, mosaic=0.0), group=1, seed=0
    )
    image = render(planner.plan(0, 0, mosaic=False)._replace(colour=EYE), lambda _: picture)
    assert (image == 0).any()


# mixup


def test_mixup_blends_pixels_and_keeps_the_boxes_of_both():
    # 0.25 * 200 + 0.75 * 40 = 80; where only the first picture lies, 0.25 * 200 + 0.75 * 114 = 135.5.
    index = index_of(
        [(40, 40), (20, 40)], [[(0, 0, 9, 9)], [(5, 5, 20, 15)]], labels=[7, 3], ignore=[False, True]
    )
    second = Plan((straight(1, (0, 0, 40, 20), (0, 0, 40, 20)),), (40, 40), EYE)
    first = Plan((straight(0, (0, 0, 40, 40), (0, 0, 40, 40)),), (40, 40), EYE, second, 0.25)
    pictures = [np.full((40, 40, 3), 200, np.uint8), np.full((20, 40, 3), 40, np.uint8)]
    image = render(first, pictures.__getitem__)
    assert (image[:20] == 80).all() and (np.abs(image[20:].astype(float) - 135.5) <= 0.5).all()
    boxes, labels, ignore = render_boxes(first, index, min_visible=0.1, min_side=2)
    assert boxes.tolist() == [[0, 0, 9, 9], [5, 5, 20, 15]]
    assert labels.tolist() == [7, 3] and ignore.tolist() == [False, True]


def test_mixup_colours_each_layer_by_itself():
    second = Plan((), (8, 8), colour_matrix(0, 0, -1))
    image = render(Plan((), (8, 8), EYE, second, 0.5), None)
    assert (image == round(PAD_VALUE / 2)).all()
