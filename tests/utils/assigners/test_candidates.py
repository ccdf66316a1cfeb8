"""What all assigners share, against slow and obvious references in float64.

Coordinates are eighths of a pixel where ties matter: float32 then holds every distance exactly.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.assigners.scenes import serve_the_rest, wishes_of
from utils.assigners.candidates import Candidates, cells_around, find_candidates, key_index, rank_key, settle
from utils.assigners.finish import finish, without_point
from utils.geometry.anchor_points import make_anchor_points
from utils.geometry.ltrb import boxes_to_ltrb
from utils.structures import Targets


def make_levels(size, strides=(8, 16, 32)):
    return tuple((size[0] // stride, size[1] // stride, stride) for stride in strides)


def points_of(levels):
    return make_anchor_points([level[:2] for level in levels], [level[2] for level in levels])


def make_truth(boxes, *, valid=None, ignore=None) -> Targets:
    """Targets of one picture, or of a batch, from nested lists or an array of boxes."""
    boxes = torch.as_tensor(np.asarray(boxes), dtype=torch.float32)
    boxes = boxes if boxes.ndim == 3 else boxes.unsqueeze(0)
    shape = boxes.shape[:2]
    valid = torch.ones(shape, dtype=torch.bool) if valid is None else torch.tensor(valid).view(shape)
    ignore = torch.zeros(shape, dtype=torch.bool) if ignore is None else torch.tensor(ignore).view(shape)
    return Targets(boxes, torch.arange(shape[1]).expand(shape) % 3, valid, ignore)


def random_truth(size, *, seed, batch=2, count=24) -> Targets:
    """Boxes of all sizes from 0 px up, some beyond the border; a few padded, a few ignore regions."""
    random = np.random.default_rng(seed)
    extent = np.array(size[::-1])
    centre = random.uniform(-0.1, 1.1, (batch, count, 2)) * extent
    half = random.uniform(0.3, 1, (batch, count, 2)) * 2.0 ** random.uniform(-1, 9, (batch, count, 1))
    boxes = np.round(np.concatenate((centre - half, centre + half), -1) * 8) / 8
    kind = random.uniform(size=(batch, count))
    return make_truth(boxes, valid=kind < 0.9, ignore=(kind > 0.75) & (kind < 0.95))


def reference_inside(truth, levels, reach):
    """(B, M, A) bool: may this point answer for this truth; one truth after the other."""
    points, strides = (tensor.double().numpy() for tensor in points_of(levels))
    allowed = np.zeros((*truth.labels.shape, len(points)), bool)
    for b, m in np.ndindex(*truth.labels.shape):
        if not truth.valid[b, m] or truth.ignore[b, m]:
            continue
        x1, y1, x2, y2 = truth.boxes[b, m].double().tolist()
        shortest = levels[0][2]
        if x2 - x1 < shortest:
            x1, x2 = (x1 + x2 - shortest) / 2, (x1 + x2 + shortest) / 2
        if y2 - y1 < shortest:
            y1, y2 = (y1 + y2 - shortest) / 2, (y1 + y2 + shortest) / 2
        x, y = points.T
        sides = np.stack((x - x1, y - y1, x2 - x, y2 - y))
        allowed[b, m] = (sides >= 0).all(0) & (sides.max(0) <= reach * strides[:, 0])
    return allowed


def reference_finish(owner, truth, levels, reach):
    """(B, A) owners after every truth without a point has got a free one, as ``finish`` describes it."""
    points, strides = (tensor.double().numpy() for tensor in points_of(levels))
    owner = owner.numpy().copy()
    for b in range(len(owner)):
        wanted = (truth.valid & ~truth.ignore)[b].nonzero()[:, 0].tolist()
        boxes = truth.boxes[b].double().numpy()
        serve_the_rest(owner[b], {m: wishes_of(boxes[m], points, strides[:, 0], reach) for m in wanted})
    return owner


def find_all(truth, levels, reach, **options) -> Candidates:
    """The candidates of all levels side by side."""
    parts = zip(*find_candidates(truth, levels, reach, **options), strict=True)
    return Candidates(*(torch.cat(part, -1) for part in parts))


def dense(candidates, num_points):
    """(B, M, A) bool from the windows; fails on a point that a truth lists twice."""
    shape = (*candidates.index.shape[:2], num_points)
    counts = torch.zeros(shape, dtype=torch.int64).scatter_add_(
        2, candidates.index, candidates.allowed.long()
    )
    assert counts.max() <= 1
    return counts.bool()


def nobody(truth, levels):
    return torch.full((len(truth.labels), len(points_of(levels)[0])), -1)


SCENES = [
    pytest.param((64, 96), (8, 16, 32), 15, id="64x96 P3-5"),
    pytest.param((64, 96), (8, 16, 32), 3, id="64x96 P3-5 reg_max 3"),
    pytest.param((192, 128), (4, 8, 16, 32, 64), 15, id="192x128 P2-6"),
    pytest.param((192, 128), (4, 8, 16, 32, 64), 3, id="192x128 P2-6 reg_max 3"),
    pytest.param((64, 512), (8, 16, 32), 3, id="64x512 P3-5 reg_max 3"),
    pytest.param((512, 512), (8, 16, 32), 1, id="512x512 P3-5 reg_max 1"),
    pytest.param((32, 32), (8, 16, 32), 15, id="32x32: one cell on P5"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "strides", "reach"), SCENES)
def test_candidates_are_those_of_the_reference(size, strides, reach, seed):
    levels, truth = make_levels(size, strides), random_truth(size, seed=seed)
    candidates = find_all(truth, levels, reach)
    points, cells = points_of(levels)
    allowed = dense(candidates, len(points))
    np.testing.assert_array_equal(allowed.numpy(), reference_inside(truth, levels, reach))
    # The squared distance to the centre, for the allowed ones.
    centre = (truth.boxes[..., :2] + truth.boxes[..., 2:]) / 2
    distance = (points[candidates.index] - centre.unsqueeze(2)).square().sum(-1)
    torch.testing.assert_close(
        candidates.distance[candidates.allowed], distance[candidates.allowed], atol=1e-3, rtol=1e-5
    )
    # And what the rule is for: a point inside its truth, whose four distances the bins can express.
    proper = allowed & ((truth.boxes[..., 2:] - truth.boxes[..., :2]).amin(-1) >= strides[0]).unsqueeze(-1)
    ltrb = boxes_to_ltrb(truth.boxes.unsqueeze(2), points, cells)[proper]
    assert len(ltrb) and ltrb.min() >= 0 and ltrb.max() <= reach


@given(
    st.lists(
        st.tuples(*(st.floats(-50, 250, width=32),) * 2, *(st.floats(0, 300, width=32),) * 2),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from((1, 3, 7, 15)),
)
@settings(max_examples=100, deadline=None)
def test_candidates_of_any_boxes(boxes, reach):
    levels = make_levels((160, 224))
    truth = make_truth([[(x, y, x + w, y + h) for x, y, w, h in boxes]])
    points, strides = (tensor.double() for tensor in points_of(levels))
    allowed = dense(find_all(truth, levels, reach), len(points))
    enlarged = truth.boxes.double()
    centre, half = (enlarged[..., :2] + enlarged[..., 2:]) / 2, (enlarged[..., 2:] - enlarged[..., :2]) / 2
    half = half.clamp(min=4)
    ltrb = boxes_to_ltrb(torch.cat((centre - half, centre + half), -1).unsqueeze(2), points, strides)
    slack = 1e-4  # what float32 may decide either way
    surely = (ltrb.amin(-1) > slack) & (ltrb.amax(-1) < reach - slack)
    maybe = (ltrb.amin(-1) > -slack) & (ltrb.amax(-1) < reach + slack)
    assert (allowed[surely]).all()
    assert (maybe[allowed]).all()


def test_candidates_by_hand():
    # One level of 4 x 4 cells of 8 px, reach 2 (16 px): points at 4, 12, 20, 28 on both axes.
    levels = ((4, 4, 8),)

    def found(*box, reach=2):
        return dense(find_all(make_truth([box]), levels, reach), 16)[0, 0].nonzero()[:, 0].tolist()

    assert found(0, 0, 16, 16) == [0, 1, 4, 5]  # 4 and 12: from each to the farther side 12 px
    assert found(0, 0, 32, 32) == []  # from 12 to the far side 20 px, beyond 16
    assert found(0, 0, 32, 32, reach=3) == [5, 6, 9, 10]  # 12 and 20: 20 px, within 24
    assert found(0, 0, 28, 8) == [1]  # 12 is 16 px from 28, just in reach; 20 is 20 px from 0
    assert found(4, 4, 12, 12) == [0, 1, 4, 5]  # points on the sides are inside
    assert found(4.5, 4.5, 11.5, 11.5) == [0, 1, 4, 5]  # 7 px, enlarged to 8: the same box
    assert found(11, 19, 13, 21) == [9]  # 2 px about (12, 20), enlarged to 8 .. 16 and 16 .. 24
    assert found(15, 19, 17, 21) == [9, 10]  # 12 .. 20 touches two columns
    assert found(12, 12, 12, 12) == [5]  # no area at all
    assert found(5, 0, 7, 16) == [0, 4]  # enlarged in x only: 2 .. 10
    assert found(-40, -40, -10, -10) == []  # out of the picture


def test_a_box_larger_than_the_reach_of_a_level_goes_to_a_coarser_one():
    levels, (points, strides) = make_levels((640, 640)), points_of(make_levels((640, 640)))
    whole = find_all(make_truth([(0, 0, 640, 640)]), levels, 15)
    index = whole.index[whole.allowed]
    assert len(index) and strides[index].eq(32).all()  # 320 px from the centre: 20 strides of 16, 10 of 32
    ltrb = boxes_to_ltrb(torch.tensor([0.0, 0, 640, 640]), points[index], strides[index])
    assert ltrb.max() <= 15
    border = find_all(make_truth([(0, 0, 260, 20)]), levels, 15)  # 130 px from its middle: not on P3
    assert set(strides[border.index[border.allowed]].flatten().tolist()) == {16, 32}


@given(st.floats(0, 320, width=32), st.integers(1, 12), st.sampled_from((8, 32)))
@settings(max_examples=200, deadline=None)
def test_cells_around_a_centre_are_the_nearest(centre, window, stride):
    cells = 320 // stride
    found = cells_around(torch.tensor([centre]), cells, stride, window)[0].tolist()
    assert (
        found == list(range(found[0], found[0] + min(window, cells))) and 0 <= found[0] <= found[-1] < cells
    )
    left_out = [abs(cell + 0.5 - centre / stride) for cell in range(cells) if cell not in found]
    assert min(left_out, default=99) >= window / 2 - 1e-4


METRIC = st.one_of(st.just(0.0), st.floats(0, 1, width=32), st.floats(0, 2**-126, width=32))
DISTANCE = st.one_of(st.just(0.0), st.floats(0, 1e7, width=32))


@given(
    st.lists(st.tuples(METRIC, DISTANCE), min_size=2, max_size=40), st.sampled_from((1, 20, 3000, 100_000))
)
@settings(max_examples=150, deadline=None)
def test_rank_key_sorts_by_metric_then_distance_then_index(items, spare):
    metric, distance = (torch.tensor(values) for values in zip(*items, strict=True))
    index, num_indices = torch.arange(len(items)), len(items) + spare
    key = rank_key(metric, distance, index, num_indices)
    assert (key >= 0).all()
    assert torch.equal(key_index(key, num_indices), index)
    assert len(key.unique()) == len(items)
    order = key.argsort(descending=True).tolist()
    coarse = 2**-6 if spare == 100_000 else 2**-9  # what the index leaves of the distance's 24 bits
    for first, second in itertools.pairwise(order):
        assert metric[first] >= metric[second]
        if metric[first] == metric[second]:
            assert distance[first] <= distance[second] * (1 + coarse) + 1e-38
            if distance[first] == distance[second]:
                assert first < second


def test_settle_gives_a_point_to_its_best_bidder():
    point = torch.tensor([[0, 2, 2, 0, 3, 2], [1, 1, 1, 1, 1, 1]])
    bid = torch.tensor([[5, 7, 9, -1, -1, 8], [3, 2, 1, 0, -1, 3]])
    assert settle(point, bid, 5).tolist() == [[5, -1, 9, -1, -1], [-1, 3, -1, -1, -1]]


def test_without_point():
    truth = make_truth(
        [[(0, 0, 8, 8)] * 4] * 2, valid=[[1, 1, 1, 0], [1, 1, 1, 1]], ignore=[[0, 0, 1, 0], [0] * 4]
    )
    truth = truth._replace(valid=truth.valid.bool(), ignore=truth.ignore.bool())
    owner = torch.tensor([[-1, 1, -1, 1, -1], [3, -1, 0, 0, 3]])
    assert without_point(owner, truth).tolist() == [[True, False, False, False], [False, True, True, False]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "strides", "reach"), SCENES)
def test_leftovers_are_those_of_the_reference(size, strides, reach, seed):
    levels, truth = make_levels(size, strides), random_truth(size, seed=seed)
    owner = nobody(truth, levels)
    taken = torch.rand(owner.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
    owner = torch.where(taken & truth.valid[:, :1] & ~truth.ignore[:, :1], 0, owner)  # truth 0 is everywhere
    match = finish(owner, truth, levels, reach)
    expected = reference_finish(owner, truth, levels, reach)
    np.testing.assert_array_equal(match.truth.where(match.positive, -1).numpy(), expected)
    assert (
        not without_point(match.truth.where(match.positive, -1), truth).any() or match.positive.all(1).any()
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "strides", "reach"), SCENES)
def test_room_for_more_bidders_changes_nothing(monkeypatch, size, strides, reach, seed):
    """As on a GPU, which is not asked how many truths are left over."""
    levels, truth = make_levels(size, strides), random_truth(size, seed=seed, count=60)
    owner = nobody(truth, levels)
    match = finish(owner, truth, levels, reach)
    monkeypatch.setattr("utils.assigners.finish._room", lambda mask, most: most)
    for mine, theirs in zip(match, finish(owner, truth, levels, reach), strict=True):
        assert torch.equal(mine, theirs)


def test_leftover_by_hand():
    levels = ((4, 4, 8), (2, 2, 16), (1, 1, 32))  # points 0..15, 16..19, 20
    boxes = [
        (10, 10, 13, 13),  # nearest free point: (12, 12), number 5
        (
            11,
            11,
            13,
            13,
        ),  # wants 5 too, but comes later; from (4, 12) its far side is 9 px off: to P4, number 16
        (
            0,
            0,
            32,
            32,
        ),  # from (16, 16) beyond 8 px and, at (8, 8), 24 px: reach 1 allows 16 and 32: number 20
        (0, 0, 200, 200),  # no level can express it: the coarsest, which is taken, so the next: (24, 24)
    ]
    match = finish(torch.full((1, 21), -1), make_truth(boxes), levels, 1)
    assert match.positive.nonzero()[:, 1].tolist() == [5, 16, 19, 20]
    assert match.truth[0, [5, 16, 20, 19]].tolist() == [0, 1, 2, 3]
    assert match.boxes[0, 19].tolist() == [0, 0, 200, 200]
    assert match.labels[0, [5, 16, 20, 19]].tolist() == [0, 1, 2, 0]


def test_an_unrepresentable_box_gets_the_coarsest_level():
    levels = make_levels((256, 384))
    match = finish(nobody(make_truth([(0, 0, 384, 256)]), levels), make_truth([(0, 0, 384, 256)]), levels, 3)
    points, strides = points_of(levels)
    assert match.positive.sum() == 1
    assert strides[match.positive[0]].item() == 32  # reaches 96 px, the farther side is 192 px away
    assert (points[match.positive[0]] - torch.tensor([192.0, 128])).abs().max() <= 16  # a cell at the centre


@pytest.mark.parametrize("count", [1, 20, 21, 22, 300])
def test_every_truth_gets_a_point_while_there_are_free_ones(count):
    levels = ((4, 4, 8), (2, 2, 16), (1, 1, 32))  # 21 points
    truth = make_truth([(15, 15, 17, 17)] * count)
    match = finish(torch.full((1, 21), -1), truth, levels, 15)
    assert match.positive.sum() == min(count, 21)
    held = match.truth[match.positive]
    assert len(held.unique()) == min(count, 21)  # each its own
    left = without_point(match.truth.where(match.positive, -1), truth)
    assert left.sum() == max(0, count - 21)


def test_points_that_are_owned_stay_with_their_owner():
    levels = ((4, 4, 8),)
    truth = make_truth([(0, 0, 8, 8), (0, 0, 8, 8)])
    owner = torch.full((1, 16), -1)
    owner[0, [0, 1, 4]] = 1
    match = finish(owner, truth, levels, 15)
    assert match.truth[0, [0, 1, 4]].tolist() == [1, 1, 1]
    assert match.truth[0, 5] == 0 and match.positive[0, 5]
    assert match.positive.sum() == 4


def test_filler_rows_hold_a_proper_box():
    truth = make_truth([(5, 5, 5, 5), (40, 40, 20, 20)], valid=[False, False])
    match = finish(torch.full((1, 16), -1), truth, ((4, 4, 8),), 15)
    assert not match.positive.any() and not match.ignored.any()
    assert match.boxes.tolist() == [[[0, 0, 1, 1]] * 16]
    assert match.truth.eq(0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "strides", "reach"), SCENES[:4])
def test_ignored_points_are_those_inside_a_region(size, strides, reach, seed):
    levels, truth = make_levels(size, strides), random_truth(size, seed=seed, batch=3)
    ignored = finish(nobody(truth, levels), truth, levels, reach).ignored
    expected = np.zeros(ignored.shape, bool)
    for b, m in np.ndindex(*truth.labels.shape):
        if truth.valid[b, m] and truth.ignore[b, m]:
            x1, y1, x2, y2 = truth.boxes[b, m].tolist()
            for a, (x, y) in enumerate(points_of(levels)[0].tolist()):
                expected[b, a] |= x1 <= x <= x2 and y1 <= y <= y2
    assert expected.any() and not expected.all()
    np.testing.assert_array_equal(ignored.numpy(), expected)


def test_ignore_regions_by_hand():
    levels = ((4, 4, 8),)  # points at 4, 12, 20, 28

    def inside(*regions):
        truth = make_truth(regions, ignore=[True] * len(regions))
        match = finish(torch.full((1, 16), -1), truth, levels, 15)
        assert not match.positive.any()
        return match.ignored[0].nonzero()[:, 0].tolist()

    assert inside((4, 4, 12, 12)) == [0, 1, 4, 5]  # points on the sides are inside
    assert inside((4.125, 4, 11.875, 12)) == []
    assert inside((-100, -100, 500, 500)) == list(range(16))
    assert inside((0, 0, 8, 8), (24, 24, 99, 99)) == [0, 15]
    assert inside((0, 0, 16, 8), (8, 0, 24, 8)) == [0, 1, 2]  # overlapping regions
    assert inside((12, 12, 12, 12)) == [5]  # a point region on a point
    assert inside((20, 0, 10, 30)) == []  # turned inside out
    assert inside((0, 0, 16, 8), (20, 0, 10, 30)) == [0, 1]  # and it takes nothing from another
    assert inside((100, 100, 200, 200)) == []


def test_an_ignore_region_never_owns_a_point():
    levels = make_levels((64, 96))
    truth = make_truth([(10, 10, 60, 50), (20, 20, 28, 30)], ignore=[True, False])
    assert not find_all(truth, levels, 15).allowed[0, 0].any()
    match = finish(nobody(truth, levels), truth, levels, 15)
    assert match.truth[match.positive].tolist() == [1]
    assert match.ignored[match.positive].all()  # the real truth lies inside the region
