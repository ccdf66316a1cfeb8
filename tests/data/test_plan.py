"""Augmentation as data: what a plan depends on, where its tiles lie, and what its colours do."""

import colorsys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.plan
from data.plan import Plan, Planner, Tile, colour_matrix
from utils.config import AugmentConfig

SIZES = np.array([(480, 640), (640, 480), (31, 77), (5, 3), (1, 1), (300, 20), (64, 64), (333, 501)] * 5)
STILL = AugmentConfig(
    mosaic=0.0,
    scale=0.0,
    translate=0.0,
    flip_lr=0.0,
    flip_ud=0.0,
    hue=0.0,
    saturation=0.0,
    value=0.0,
)


def planner_of(sizes=SIZES, shape=(96, 128), cfg=None, *, group=8, seed=0):
    return Planner(np.asarray(sizes), shape, cfg or AugmentConfig(), group=group, seed=seed)


def same(first: Plan, second: Plan) -> bool:
    equal = first.tiles == second.tiles and first.size == second.size
    return equal and np.array_equal(first.colour, second.colour)


def many_plans(count=200, **changes):
    planner = planner_of(**changes)
    return [planner.plan(n // 50, n % 50, mosaic=True) for n in range(count)]


# what a plan depends on


def test_depends_on_seed_epoch_and_position_alone():
    forwards, backwards = planner_of(), planner_of()
    places = [(epoch, position) for epoch in (0, 3, 7) for position in range(45)]
    first = {place: forwards.plan(*place, mosaic=True) for place in places}
    for place in reversed(places):
        assert same(backwards.plan(*place, mosaic=True), first[place])
        assert same(planner_of().plan(*place, mosaic=True), first[place])


def test_global_random_state_plays_no_part():
    np.random.seed(1)  # noqa: NPY002 - this state is what must not matter
    first = planner_of().plan(2, 3, mosaic=True)
    np.random.seed(2)  # noqa: NPY002
    assert same(planner_of().plan(2, 3, mosaic=True), first)


def test_seeds_epochs_and_positions_differ():
    plans = [
        planner_of(seed=seed).plan(epoch, position, mosaic=True)
        for seed in (0, 1, 2**32 - 1)
        for epoch in (0, 1, 500)
        for position in range(10)
    ]
    colours = {plan.colour.tobytes() for plan in plans}
    assert len(colours) == len(plans)


def test_a_position_beyond_the_last_picture_is_its_picture_with_new_draws():
    planner = planner_of(cfg=AugmentConfig(mosaic=0.0))
    first, again = planner.plan(0, 3, mosaic=True), planner.plan(0, 3 + len(SIZES), mosaic=True)
    assert first.tiles[0].source == again.tiles[0].source == planner.order(0)[3]
    assert not same(first, again)


def test_no_two_draws_share_a_random_stream(monkeypatch):
    """Neither two positions, nor position 0 and the epoch's permutation."""
    made, make = [], data.plan._generator

    def record(*key):
        made.append(make(*key))
        return make(*key)

    monkeypatch.setattr(data.plan, "_generator", record)
    planner = planner_of()
    for epoch in (0, 1, 2):
        for position in range(len(SIZES) + 3):
            planner.plan(epoch, position, mosaic=False)
    starts = [generator.integers(2**63) for generator in made]
    assert len(starts) == 3 * (1 + len(SIZES) + 3)  # an epoch's permutation is drawn once
    assert len(set(starts)) == len(starts)


def test_order_is_a_permutation_of_each_epoch():
    planner = planner_of()
    orders = [planner.order(epoch) for epoch in range(5)]
    assert all(sorted(order) == list(range(len(SIZES))) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert np.array_equal(planner.order(0), orders[0])
    assert not np.array_equal(planner_of(seed=1).order(0), orders[0])


# tiles


@pytest.mark.parametrize("group", [1, 8, 32, 100])
def test_mosaic_partners_come_from_the_own_group(group):
    planner = planner_of(SIZES[[0, 1]].repeat(20, 0), group=group)
    order, partners = planner.order(4).tolist(), set()
    for position in range(2 * len(order)):
        place = position % len(order)
        own = order[place // group * group :][:group]
        sources = [tile.source for tile in planner.plan(4, position, mosaic=True).tiles]
        assert set(sources) <= set(own)
        partners |= set(sources) - {order[place]}
    assert (len(partners) > 0) == (group > 1)


def test_first_tile_of_a_whole_mosaic_is_the_own_picture():
    planner = planner_of(SIZES[[0, 1]].repeat(20, 0), group=8)
    for position in range(40):
        tiles = planner.plan(0, position, mosaic=True).tiles
        if len(tiles) == 4:
            assert tiles[0].source == planner.order(0)[position]


def overlap(first: Tile, second: Tile) -> bool:
    (a1, b1, a2, b2), (c1, d1, c2, d2) = first.place, second.place
    return min(a2, c2) > max(a1, c1) and min(b2, d2) > max(b1, d1)


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=9),
    st.tuples(st.integers(1, 20), st.integers(1, 20)).map(lambda n: (32 * n[0], 32 * n[1])),
    st.floats(0, 0.95),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_tiles_are_disjoint_inside_the_output_and_cropped_inside_the_pictures(
    sizes, shape, scale, translate, seed
):
    cfg = AugmentConfig(scale=scale, translate=translate, flip_ud=0.5)
    planner = planner_of(sizes, shape, cfg, seed=seed)
    for position in range(8):
        plan = planner.plan(1, position, mosaic=position % 4 != 0)
        assert plan.size == shape
        assert len(plan.tiles) <= 4
        for number, tile in enumerate(plan.tiles):
            x1, y1, x2, y2 = tile.place
            assert 0 <= x1 < x2 <= shape[1] and 0 <= y1 < y2 <= shape[0]
            left, top, right, bottom = tile.crop
            height, width = sizes[tile.source]
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
            assert not any(overlap(tile, other) for other in plan.tiles[:number])
            assert all(type(value) is int for value in (tile.source, *tile.crop, *tile.place))


def test_mosaics_of_square_pictures_leave_no_gap_between_their_tiles():
    # Square pictures fill a square output, and the joint lies in it: the four tiles cover everything.
    planner = planner_of([(64, 64)] * 8, (64, 64), AugmentConfig(scale=0.0, translate=0.0))
    for position in range(200):
        painted = np.zeros((64, 64), bool)
        for tile in planner.plan(0, position, mosaic=True).tiles:
            x1, y1, x2, y2 = tile.place
            painted[y1:y2, x1:x2] = True
        assert painted.all()


def test_matrix_maps_the_crop_onto_the_place():
    # 20 px wide crop onto 40 px: x' = 2 (x - 10) + 5; 10 px tall onto 30 px: y' = 3 (y - 0) + 7.
    tile = Tile(0, (10, 0, 30, 10), (5, 7, 45, 37), (False, False))
    assert tile.matrix.tolist() == [[2, 0, -15], [0, 3, 7], [0, 0, 1]]
    # Mirrored left-right: x = 10 goes to 45, x = 30 to 5: x' = 65 - 2 x. Up-down: y' = 37 - 3 y.
    tile = tile._replace(flip=(True, True))
    assert tile.matrix.tolist() == [[-2, 0, 65], [0, -3, 37], [0, 0, 1]]


def test_single_picture_by_hand():
    # 480 x 640 fitted into 96 x 128 is 96 x 128: the whole picture fills the whole output.
    (tile,) = planner_of([(480, 640)], (96, 128), STILL).plan(0, 0, mosaic=True).tiles
    assert tile == Tile(0, (0, 0, 640, 480), (0, 0, 128, 96), (False, False))
    # 480 x 480 fits as 96 x 96, 16 px from the left.
    (tile,) = planner_of([(480, 480)], (96, 128), STILL).plan(0, 0, mosaic=True).tiles
    assert tile == Tile(0, (0, 0, 480, 480), (16, 0, 112, 96), (False, False))


def test_scale_and_shift_stay_within_their_limits():
    # One 1000 x 1000 picture in 100 x 100: scale s gives 0.1 s px per px, shift t a centre at 50 + 100 t.
    planner = planner_of([(1000, 1000)], (100, 100), AugmentConfig(mosaic=0.0, scale=0.5, translate=0.2))
    tiles = [planner.plan(0, n, mosaic=False).tiles[0] for n in range(300)]
    scales = np.array([abs(tile.matrix[0, 0]) for tile in tiles])
    centres = np.array([tile.matrix[:2, :2] @ (500, 500) + tile.matrix[:2, 2] for tile in tiles])
    assert 0.048 <= scales.min() < 0.06 and 0.14 < scales.max() <= 0.152
    assert 28.5 <= centres.min() < 33 and 67 < centres.max() <= 71.5


def test_aspect_and_centre_are_kept():
    """Whatever part of it is in view, a large picture is scaled alike both ways about its centre."""
    planner = planner_of([(900, 1300)], (300, 500), AugmentConfig(mosaic=0.0, scale=0.6, translate=0.0))
    for position in range(100):
        matrix = planner.plan(0, position, mosaic=False).tiles[0].matrix
        assert abs(matrix[0, 0]) == pytest.approx(abs(matrix[1, 1]), rel=0.02)
        assert matrix[:2, :2] @ (650, 450) + matrix[:2, 2] == pytest.approx([250, 150], abs=1)


def test_mosaic_shows_pictures_at_the_scale_of_single_ones():
    planner = planner_of([(1000, 1000)] * 8, (100, 100), AugmentConfig(scale=0.0, translate=0.0))
    for position in range(50):
        tiles = planner.plan(0, position, mosaic=True).tiles
        big = [
            tile for tile in tiles if min(tile.place[2] - tile.place[0], tile.place[3] - tile.place[1]) > 20
        ]
        assert all(np.abs(tile.matrix[[0, 1], [0, 1]]) == pytest.approx(0.1, abs=0.003) for tile in big)


def test_probabilities():
    cfg = AugmentConfig(mosaic=0.25, flip_lr=0.75, flip_ud=0.1)
    planner = planner_of([(64, 64)] * 40, (64, 64), cfg)
    plans = [planner.plan(0, position, mosaic=True) for position in range(1000)]
    tiles = [plan.tiles[0] for plan in plans]
    assert np.mean([len(plan.tiles) > 1 for plan in plans]) == pytest.approx(0.25, abs=0.06)
    assert np.mean([tile.flip[0] for tile in tiles]) == pytest.approx(0.75, abs=0.06)
    assert np.mean([tile.flip[1] for tile in tiles]) == pytest.approx(0.1, abs=0.05)
    assert all(len({tile.flip for tile in plan.tiles}) == 1 for plan in plans)


def test_no_mosaic_on_demand():
    plans = [planner_of().plan(0, position, mosaic=False) for position in range(40)]
    assert all(len(plan.tiles) <= 1 for plan in plans)


def test_a_flip_moves_the_tiles_and_nothing_else():
    """The draws do not depend on the outcome of earlier ones, so one seed shows the same scene mirrored."""
    for axis, key in ((0, "flip_lr"), (1, "flip_ud")):
        plain = planner_of(cfg=AugmentConfig(flip_lr=0.0, flip_ud=0.0))
        mirrored = planner_of(cfg=AugmentConfig(**{"flip_lr": 0.0, "flip_ud": 0.0, key: 1.0}))
        extent = (128, 96)[axis]
        for position in range(40):
            first, second = (p.plan(0, position, mosaic=True) for p in (plain, mirrored))
            for tile, moved in zip(first.tiles, second.tiles, strict=True):
                place = list(moved.place)
                place[axis], place[axis + 2] = extent - place[axis + 2], extent - place[axis]
                assert tuple(place) == tile.place  # mirrored twice
                assert (moved.source, moved.crop) == (tile.source, tile.crop)


# colour


def test_no_change_of_colour_is_the_identity():
    assert np.abs(colour_matrix(0, 0, 0) - np.eye(3)).max() * 255 < 0.5
    assert colour_matrix(0.1, 0.2, 0.3).dtype == np.float32


@given(st.floats(-0.5, 0.5), st.floats(-1, 1))
def test_grey_stays_grey_under_hue_and_saturation(hue, saturation):
    for level in (0, 100, 255):
        assert np.allclose(colour_matrix(hue, saturation, 0) @ np.full(3, level), level, rtol=0, atol=0.05)


def test_value_is_a_gain_of_everything():
    assert np.allclose(colour_matrix(0, 0, 0.4), 1.4 * np.eye(3), atol=1e-6)
    assert np.allclose(colour_matrix(0, 0, -1), 0, atol=1e-6)


def test_no_saturation_gives_the_luma_of_video():
    # ITU-R BT.601: Y = 0.299 R + 0.587 G + 0.114 B.
    matrix = colour_matrix(0.3, -1, 0)
    assert np.allclose(matrix, np.tile((0.299, 0.587, 0.114), (3, 1)), atol=1e-3)


def test_hue_turns():
    assert np.allclose(colour_matrix(1, 0, 0), np.eye(3), atol=1e-5)
    assert np.allclose(colour_matrix(0.2, 0, 0) @ colour_matrix(-0.2, 0, 0), np.eye(3), atol=1e-5)
    assert np.allclose(
        colour_matrix(0.1, 0, 0) @ colour_matrix(0.2, 0, 0), colour_matrix(0.3, 0, 0), atol=1e-5
    )


def test_a_small_hue_turns_every_colour_one_way():
    """By about the same angle as HSV's hue: the spaces differ in shape."""
    changes = []
    for colour in ((0.6, 0.4, 0.4), (0.4, 0.6, 0.4), (0.4, 0.4, 0.6), (0.55, 0.5, 0.42)):
        turned = colour_matrix(0.03, 0, 0) @ colour
        change = colorsys.rgb_to_hsv(*turned)[0] - colorsys.rgb_to_hsv(*colour)[0]
        changes.append((change + 0.5) % 1 - 0.5)
    assert len(set(np.sign(changes))) == 1
    assert all(0.01 < abs(change) < 0.07 for change in changes)


def test_drawn_colours_stay_within_their_limits():
    planner = planner_of(cfg=AugmentConfig(hue=0.0, saturation=0.0, value=0.4))
    gains = [planner.plan(0, position, mosaic=False).colour[0, 0] for position in range(300)]
    assert 0.6 <= min(gains) < 0.65 and 1.35 < max(gains) <= 1.4001
