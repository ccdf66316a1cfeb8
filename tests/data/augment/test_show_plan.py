"""The annotated plans: what is written, and what their words say."""

import json

import numpy as np
import pytest
from PIL import Image

from data.augment.colour import colour_matrix
from data.augment.homography import warp_matrix
from data.augment.plan import Plan, Planner, Tile
from data.augment.render import render, tile_outline
from data.augment.show_plan import describe_layer, describe_tile, show_plan
from data.index import Index
from utils.config import AugmentConfig

SIZES = [(120, 160), (160, 120), (100, 100), (90, 200)]


def index_of_boxes() -> Index:
    """A box in the middle of each picture."""
    return Index(
        paths=np.array([f"/folder/picture{i}.jpg".encode() for i in range(4)]),
        sizes=np.array(SIZES, np.int32),
        offsets=np.arange(5),
        boxes=np.array([(w / 4, h / 4, w * 3 / 4, h * 3 / 4) for h, w in SIZES]),
        labels=np.array([0, 1, 0, 1]),
        ignore=np.zeros(4, bool),
        areas=np.ones(4, np.float32),
        picture_ids=np.arange(4),
    )


def describe(matrix, size=(100, 100)) -> str:
    tile = Tile(0, (0, 0, 50, 50), matrix)
    return describe_tile(tile, tile_outline(tile, size))


def test_words_for_a_tile():
    assert describe(np.diag((0.5, 0.5, 1))) == "gain 0.50"
    assert describe(np.array(((-2.0, 0, 100), (0, 2, 0), (0, 0, 1)))) == "gain 2.00, mirrored left-right"
    turned = warp_matrix((50, 50), degrees=12.34, shear=(0, 0), tilt=(0, 0))
    assert describe(turned) == "gain 1.00, turned +12.3°"
    mirror = np.array(((-1.0, 0, 50), (0, 1, 0), (0, 0, 1)))
    assert describe(turned @ mirror) == "gain 1.00, mirrored left-right, turned +12.3°"
    sheared = warp_matrix((50, 50), degrees=0, shear=(30, 0), tilt=(0, 0))
    assert describe(sheared) == "gain 1.00, sheared +30.0°"
    assert describe(warp_matrix((50, 50), degrees=0, shear=(0, 0), tilt=(0.1, 0))).endswith("tilted")


def test_words_for_the_colours():
    plan = Plan((), (8, 8), colour_matrix(0.01, -0.3, 0.2))
    assert describe_layer(plan) == "tiles: 0, brightness 1.20, saturation 0.70"
    assert describe_layer(plan._replace(colour=np.zeros((3, 3)))).startswith("tiles: 0, brightness 0.00")


@pytest.mark.parametrize("changes", [{}, {"degrees": 30.0, "perspective": 0.2, "mixup": 1.0, "mosaic9": 0.5}])
def test_writes_pictures_and_plans(tmp_path, changes):
    planner = Planner(np.array(SIZES), (256, 320), AugmentConfig(**changes), group=4, seed=0)
    pictures = [np.full((*size, 3), 60 * n, np.uint8) for n, size in enumerate(SIZES)]
    folder, index = tmp_path / "run" / "plan", index_of_boxes()
    show_plan(folder, planner, index, pictures.__getitem__, epoch=2, count=3, names=("cat", "dog"))
    assert sorted(path.name for path in folder.iterdir()) == ["plan.json"] + [
        f"position{n:03d}.jpg" for n in range(3)
    ]
    plans = json.loads((folder / "plan.json").read_text())
    for position, plain in enumerate(plans):
        plan = planner.plan(2, position, mosaic=True)
        assert (plain["epoch"], plain["position"], plain["size"]) == (2, position, [256, 320])
        assert plain["weight"] == plan.weight and (plain["mixed"] is None) == (plan.mixed is None)
        for tile, row in zip(plan.tiles, plain["tiles"], strict=True):
            assert (row["source"], tuple(row["crop"])) == (tile.source, tile.crop)
            assert row["path"] == f"/folder/picture{tile.source}.jpg"
            assert np.array_equal(row["matrix"], tile.matrix)
        with Image.open(folder / plain["picture"]) as image:
            shown = np.asarray(image)
        lines = 1 + len(plan.tiles) + (1 + len(plan.mixed.tiles) if plan.mixed else 0)
        assert shown.shape[1] == 320 and (shown.shape[0] - 256) % lines == 0 and shown.shape[0] > 256
        same = np.abs(shown[:256].astype(int) - render(plan, pictures.__getitem__)) < 12
        assert 0.3 < same.mean() < 0.999  # the picture itself, with something drawn in


def test_outlines_and_boxes_are_where_the_plan_has_them(tmp_path):
    # A picture of 90 x 200 fitted into 256 x 320 is 144 x 320 and lies at y = 56 .. 200; its box, the middle
    # half, at x = 80 .. 240.
    still = dict.fromkeys(
        ("mosaic", "scale", "translate", "flip_lr", "flip_ud", "hue", "saturation", "value"), 0.0
    )
    planner = Planner(np.array(SIZES[3:]), (256, 320), AugmentConfig(**still), group=1, seed=0)
    index = index_of_boxes()
    index = index._replace(offsets=np.array((0, 1)), boxes=index.boxes[3:], labels=index.labels[3:])
    show_plan(
        tmp_path,
        planner,
        index,
        lambda _: np.zeros((90, 200, 3), np.uint8),
        epoch=0,
        count=1,
        names=("cat", "dog"),
    )
    shown = np.asarray(Image.open(tmp_path / "position000.jpg")).astype(int)[:256]
    rows = np.flatnonzero(np.ptp(shown[:, 300], axis=1) > 60)  # coloured, right of the box
    assert {56, 200} <= set(rows.tolist()) and set(rows.tolist()) <= {*range(53, 60), *range(197, 204)}
    row = np.flatnonzero(np.ptp(shown[128], axis=1) > 60)  # left and right side of the tile and of the box
    assert all(np.abs(row - side).min() <= 2 for side in (0, 80, 240, 319))
