"""Augmentation as data: what a plan depends on, where its tiles lie, and what its colours do."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data.augment.plan
from data.augment.arrange import View, arrange_nine
from data.augment.homography import visible_polygons
from data.augment.plan import Plan, Planner, Tile, batch_shape
from utils.config import AugmentConfig

SIZES = np.array([(480, 640), (640, 480), (31, 77), (5, 3), (1, 1), (300, 20), (64, 64), (333, 501)] * 5)
ALL = AugmentConfig(
    degrees=30.0, shear=10.0, perspective=0.2, mosaic=0.8, mosaic9=0.5, mixup=0.5, flip_ud=0.5
)
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


def plain(plan: Plan | None) -> tuple:
    """Everything a plan holds, comparable."""
    if plan is None:
        return ()
    tiles = tuple((tile.source, tile.crop, tile.matrix.tolist()) for tile in plan.tiles)
    return tiles, plan.size, plan.colour.tolist(), plain(plan.mixed), plan.weight


def same(first: Plan, second: Plan) -> bool:
    return plain(first) == plain(second)


def flip_of(tile: Tile) -> tuple[bool, bool]:
    """Left-right, up-down, of a tile that is not turned."""
    return tile.matrix[0, 0] < 0, tile.matrix[1, 1] < 0


def many_plans(count=200, **changes):
    planner = planner_of(**changes)
    return [planner.plan(n // 50, n % 50, mosaic=True) for n in range(count)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "4088cf872aa5bdbb"),
        ({"mosaic": 0.5, "scale": 0.9, "translate": 0.3, "flip_ud": 0.5}, "a58cb13893618c33"),
    ],
)
def test_plans_of_the_first_release(changes, expected):
    """Taken before rotation, mixup and the others were there: switched off, they draw nothing."""
    planner, rows = planner_of(cfg=AugmentConfig(**changes), seed=11), []
    for position in range(90):
        plan = planner.plan(position % 3, position, mosaic=position % 9 != 0)
        for tile in plan.tiles:
            rows.append((position, tile.source, *tile.crop, *tile.place, *map(int, flip_of(tile))))
        rows.append((position, *np.rint(plan.colour * 1e4).astype(int).ravel().tolist()))
    assert hashlib.sha256(repr(rows).replace(" ", "").encode()).hexdigest()[:16] == expected


# what a plan depends on


@pytest.mark.parametrize("cfg", [AugmentConfig(), ALL])
def test_depends_on_seed_epoch_and_position_alone(cfg):
    forwards, backwards = planner_of(cfg=cfg), planner_of(cfg=cfg)
    places = [(epoch, position) for epoch in (0, 3, 7) for position in range(45)]
    first = {place: forwards.plan(*place, mosaic=True) for place in places}
    for place in reversed(places):
        assert same(backwards.plan(*place, mosaic=True), first[place])
        assert same(planner_of(cfg=cfg).plan(*place, mosaic=True), first[place])


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
    """Neither two positions, nor a position and the epoch's permutation, nor a plan and a batch's shape."""
    made, make = [], data.augment.plan._generator

    def record(*key):
        made.append(make(*key))
        return make(*key)

    monkeypatch.setattr(data.augment.plan, "_generator", record)
    planner = planner_of(cfg=ALL)
    for epoch in (0, 1, 2):
        for position in range(len(SIZES) + 3):
            planner.plan(epoch, position, mosaic=True)
            batch_shape(0, epoch, position, shape=(640, 640), stride=32, multi_scale=0.5)
    starts = [generator.integers(2**63) for generator in made]
    assert len(starts) > 3 * (1 + 4 * (len(SIZES) + 3))  # an epoch's permutation is drawn once
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


def test_place_by_hand():
    # 20 px wide crop onto 40 px: x' = 2 (x - 10) + 5; 10 px tall onto 30 px: y' = 3 (y - 0) + 7.
    tile = Tile(0, (10, 0, 30, 10), np.array([[2.0, 0, -15], [0, 3, 7], [0, 0, 1]]))
    assert tile.place == (5, 7, 45, 37)
    # Mirrored left-right: x = 10 goes to 45, x = 30 to 5: x' = 65 - 2 x. Up-down: y' = 37 - 3 y.
    tile = tile._replace(matrix=np.array([[-2.0, 0, 65], [0, -3, 37], [0, 0, 1]]))
    assert tile.place == (5, 7, 45, 37)


def test_single_picture_by_hand():
    # 480 x 640 fitted into 96 x 128 is 96 x 128: the whole picture fills the whole output.
    (tile,) = planner_of([(480, 640)], (96, 128), STILL).plan(0, 0, mosaic=True).tiles
    assert (tile.crop, tile.place, flip_of(tile)) == ((0, 0, 640, 480), (0, 0, 128, 96), (False, False))
    # 480 x 480 fits as 96 x 96, 16 px from the left.
    (tile,) = planner_of([(480, 480)], (96, 128), STILL).plan(0, 0, mosaic=True).tiles
    assert (tile.crop, tile.place, flip_of(tile)) == ((0, 0, 480, 480), (16, 0, 112, 96), (False, False))


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
    assert np.mean([flip_of(tile)[0] for tile in tiles]) == pytest.approx(0.75, abs=0.06)
    assert np.mean([flip_of(tile)[1] for tile in tiles]) == pytest.approx(0.1, abs=0.05)
    assert all(len({flip_of(tile) for tile in plan.tiles}) == 1 for plan in plans)


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


def test_drawn_colours_stay_within_their_limits():
    planner = planner_of(cfg=AugmentConfig(hue=0.0, saturation=0.0, value=0.4))
    gains = [planner.plan(0, position, mosaic=False).colour[0, 0] for position in range(300)]
    assert 0.6 <= min(gains) < 0.65 and 1.35 < max(gains) <= 1.4001


# nine pictures, mixup, turning, the shape of a batch


def test_mosaic_of_nine_by_hand():
    # 300 px, square pictures: each 200 px. The first one's centre is the joint, 150 + 0.2 * 300 = 210 and
    # 150 - 0.1 * 300 = 120: it fills 110..310 by 20..220; its neighbours end and begin there.
    view = View((300, 300), np.array((0.0, 0, 300, 300)), 1.0, np.zeros(2))
    pieces = arrange_nine(list(range(9)), np.array([(600, 600)] * 9), np.array((1.2, 0.9)), view)
    places = {piece.source: piece.place for piece in pieces}
    assert places == {
        0: (110, 20, 300, 220),
        1: (0, 0, 110, 20),
        2: (110, 0, 300, 20),
        4: (0, 20, 110, 220),
        6: (0, 220, 110, 300),
        7: (110, 220, 300, 300),
    }  # the right column begins at 310, out of view
    assert {piece.source: piece.crop for piece in pieces}[1] == (270, 540, 600, 600)  # its lower right corner


def test_unlike_pictures_in_a_mosaic_of_nine():
    # 300 px. The first picture, 300 x 600, is shown as 200 x 100 at 50..250 by 100..200. Below it a 600 x 300
    # one, 100 x 200 px, stands in the middle of the column and begins at the line; right of it another is
    # taller than the row, which cuts it.
    view = View((300, 300), np.array((0.0, 0, 300, 300)), 1.0, np.zeros(2))
    sizes = np.array([(300, 600)] + [(600, 300)] * 8)
    pieces = arrange_nine(list(range(9)), sizes, np.array((1.0, 1.0)), view)
    found = {piece.source: (piece.place, piece.crop) for piece in pieces}
    assert found[0] == ((50, 100, 250, 200), (0, 0, 600, 300))
    assert found[7] == ((100, 200, 200, 300), (0, 0, 300, 300))
    assert found[5] == ((250, 100, 300, 200), (0, 150, 150, 450))


def test_mosaics_of_nine_show_more_pictures_and_leave_no_gap():
    cfg, counts = AugmentConfig(mosaic9=1.0, scale=0.0, translate=0.0), []
    planner = planner_of([(64, 64)] * 16, (96, 96), cfg, group=16)
    for position in range(100):
        painted, plan = np.zeros((96, 96), int), planner.plan(0, position, mosaic=True)
        for tile in plan.tiles:
            x1, y1, x2, y2 = tile.place
            painted[y1:y2, x1:x2] += 1
        assert (painted == 1).all()
        assert plan.tiles[0].source == planner.order(0)[position % 16]
        counts.append(len(plan.tiles))
    assert min(counts) >= 4 and max(counts) == 9


def test_shares_of_nine_and_of_mixup():
    planner = planner_of([(64, 64)] * 40, (64, 64), AugmentConfig(mosaic9=0.25, mixup=0.4, scale=0.0))
    plans = [planner.plan(0, position, mosaic=True) for position in range(800)]
    nine = [bool(np.abs(plan.tiles[0].matrix[0, 0]) < 0.9) for plan in plans]  # 2 / 3 of 1
    assert np.mean(nine) == pytest.approx(0.25, abs=0.06)
    assert np.mean([plan.mixed is not None for plan in plans]) == pytest.approx(0.4, abs=0.06)


def test_mixup_weighs_about_alike_and_stays_in_the_group():
    # Beta(32, 32): mean 1/2, variance 32 * 32 / (64^2 * 65), standard deviation 0.062.
    planner = planner_of([(64, 64)] * 40, (64, 64), AugmentConfig(mixup=1.0))
    plans = [planner.plan(0, position, mosaic=True) for position in range(400)]
    weights = np.array([plan.weight for plan in plans])
    assert weights.mean() == pytest.approx(0.5, abs=0.015) and weights.std() == pytest.approx(0.062, abs=0.01)
    for position, plan in enumerate(plans):
        place = position % 40
        own = set(planner.order(0)[place // 8 * 8 :][:8].tolist())
        assert {tile.source for tile in plan.mixed.tiles} <= own
        assert plan.mixed.mixed is None and not np.array_equal(plan.colour, plan.mixed.colour)


def test_new_draws_leave_the_others_as_they_are():
    """Mixup, and turning by nothing to speak of, show the same picture as without them."""
    sizes = [(480, 640), (500, 400)] * 8
    bare = planner_of(sizes)
    for changes in ({"mixup": 1.0}, {"degrees": 1e-7}, {"mosaic9": 1e-9}):
        planner = planner_of(sizes, cfg=AugmentConfig(**changes))
        for position in range(16):
            first, second = (p.plan(0, position, mosaic=True) for p in (bare, planner))
            assert [t.source for t in first.tiles] == [t.source for t in second.tiles]
            for one, two in zip(first.tiles, second.tiles, strict=True):
                assert np.allclose(one.matrix @ (200, 200, 1), two.matrix @ (200, 200, 1), atol=2)


def test_close_mosaic_ends_mosaics_of_nine_and_mixup():
    planner = planner_of(cfg=ALL)
    for position in range(40):
        plan = planner.plan(0, position, mosaic=False)
        assert plan.mixed is None and len(plan.tiles) <= 1


def test_everything_turns_alike_about_the_centre():
    """The tiles of a mosaic share one matrix: each is it times a tile that is only resized."""
    planner = planner_of([(480, 640)] * 8, (96, 128), AugmentConfig(degrees=40.0, shear=10.0, translate=0.0))
    for position in range(20):
        tiles = planner.plan(0, position, mosaic=True).tiles
        turns = {
            tuple(np.round(t.matrix[:2, 0] / np.linalg.norm(t.matrix[:2, 0]), 1).tolist()) for t in tiles
        }
        assert len(turns) == 1
    # A single picture without scale and shift keeps its centre where it was.
    planner = planner_of([(480, 640)], (96, 128), STILL.model_copy(update={"degrees": 180.0, "shear": 20.0}))
    for position in range(20):
        (tile,) = planner.plan(0, position, mosaic=True).tiles
        assert np.allclose(tile.matrix @ (320, 240, 1), (64, 48, 1))


def test_turns_stay_within_their_limits():
    planner = planner_of([(480, 640)], (96, 128), STILL.model_copy(update={"degrees": 30.0}))
    matrices = [planner.plan(0, n, mosaic=True).tiles[0].matrix for n in range(300)]
    turns = np.degrees([np.arctan2(matrix[1, 0], matrix[0, 0]) for matrix in matrices])
    assert -30 <= turns.min() < -28 and 28 < turns.max() <= 30


def test_every_tile_of_a_turned_plan_is_in_view():
    planner = planner_of([(64, 64)] * 8, (96, 128), ALL)
    for position in range(60):
        for tile in planner.plan(0, position, mosaic=True).tiles:
            seen = visible_polygons(np.array([tile.crop], float), tile.matrix, (96, 128))
            assert not np.isnan(seen).any()


def test_shape_of_a_plan_on_demand():
    planner = planner_of([(480, 640)] * 8, (96, 128), ALL)
    fresh = planner_of([(480, 640)] * 8, (64, 64), ALL)
    for position in range(8):
        plan = planner.plan(0, position, mosaic=True, shape=(64, 64))
        assert plan.size == (64, 64) and same(plan, fresh.plan(0, position, mosaic=True))
    assert planner.plan(0, 0, mosaic=True).size == (96, 128)


def test_batch_shapes():
    drawn = [
        batch_shape(3, epoch, batch, shape=(640, 640), stride=32, multi_scale=0.5)
        for epoch in range(4)
        for batch in range(200)
    ]
    # 1 -+ 0.5 of 640 is 320 .. 960: 21 multiples of 32, each as likely.
    assert {height for height, _ in drawn} == set(range(320, 961, 32))
    assert all(height == width for height, width in drawn)
    assert np.mean(drawn) == pytest.approx(640, abs=30)
    assert drawn[:200] != drawn[200:400]
    again = batch_shape(3, 2, 5, shape=(640, 640), stride=32, multi_scale=0.5)
    assert again == drawn[405] and all(type(side) is int for side in again)


@pytest.mark.parametrize(
    ("shape", "stride", "multi_scale", "allowed"),
    [
        ((640, 640), 32, 0.0, {(640, 640)}),
        ((640, 640), 32, 0.04, {(640, 640)}),  # 614.4 .. 665.6 holds one multiple
        ((640, 640), 32, 0.05, {(608, 608), (640, 640), (672, 672)}),  # 608 .. 672, the ends included
        (
            (320, 640),
            64,
            0.1,
            {(256, 576), (320, 640), (384, 704)},
        ),  # 288 and 352 lie halfway between multiples
        ((32, 32), 32, 0.9, {(32, 32)}),  # 3.2 .. 60.8: never below one stride
    ],
)
def test_batch_shapes_by_hand(shape, stride, multi_scale, allowed):
    drawn = {batch_shape(0, 0, n, shape=shape, stride=stride, multi_scale=multi_scale) for n in range(60)}
    assert drawn == allowed
