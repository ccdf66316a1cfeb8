"""What holds for every assigner, and the scenes that have made assigners lose truths."""

import numpy as np
import pytest
import torch

from tests.utils.assigners.scenes import (
    CLASSES,
    SCENES,
    make_truth,
    owners,
    points_of,
    random_scene,
    start_of_training,
)
from tests.utils.assigners.test_candidates import find_all
from utils.assigners.atss import ATSSAssigner
from utils.assigners.build import build_assigner
from utils.assigners.center import CenterAssigner
from utils.assigners.finish import without_point
from utils.assigners.simota import SimOTAAssigner
from utils.assigners.task_aligned import TaskAlignedAssigner
from utils.config import AssignerConfig, Config, ModelConfig
from utils.geometry.ltrb import boxes_to_ltrb
from utils.structures import Predictions, Targets

ASSIGNERS = {
    "task_aligned": TaskAlignedAssigner,
    "atss": lambda **options: ATSSAssigner(num_levels=5, **options),
    "simota": SimOTAAssigner,
    "center": lambda **options: CenterAssigner(num_levels=5, **options),
}


@pytest.fixture(params=ASSIGNERS)
def make(request):
    """``make(reach=None)`` is an assigner."""
    return ASSIGNERS[request.param]


scenes = pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES)


@scenes
@pytest.mark.parametrize("seed", range(2))
def test_what_an_assignment_is(make, size, strides, reg_max, crowd, seed):
    scores, boxes, pred, truth = random_scene(size, strides, reg_max, seed=seed, **crowd)
    assign = make()
    match, wanted = assign(scores, boxes, pred, truth), truth.valid & ~truth.ignore
    assert match.labels.shape == match.truth.shape == match.positive.shape == scores.shape[:2]
    assert match.fallback.shape == truth.labels.shape
    # Labels and boxes are the truth's; where there is none the box is a proper one.
    assert torch.equal(match.labels[match.positive], truth.labels.gather(1, match.truth)[match.positive])
    chosen = truth.boxes.gather(1, match.truth.unsqueeze(-1).expand(-1, -1, 4))
    assert torch.equal(match.boxes[match.positive], chosen[match.positive])
    assert match.boxes[~match.positive].eq(torch.tensor([0.0, 0, 1, 1])).all()
    # Positives may answer for their truth; only what the fallback served may not.
    candidates = find_all(truth, pred.levels, reg_max)
    able = torch.zeros(*truth.labels.shape, len(pred.points), dtype=torch.int64)
    able = able.scatter_add_(2, candidates.index, candidates.allowed.long()).bool()
    picture, point = match.positive.nonzero().unbind(1)
    owner = match.truth[picture, point]
    assert (able[picture, owner, point] | match.fallback[picture, owner]).all()
    # Every truth has a point while there are free ones, and no more than announced; regions have none.
    counts = torch.zeros_like(truth.labels).scatter_add_(1, match.truth, match.positive.long())
    assert counts[~wanted].eq(0).all()
    assert counts.max() <= assign.most_per_truth
    assert counts[match.fallback].eq(1).all()
    assert ((counts[wanted] > 0) | match.positive.all(1).repeat_interleave(wanted.sum(1))).all()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES[:5])
def test_order_of_pictures_and_padding_change_nothing(make, size, strides, reg_max, crowd, seed):
    scores, boxes, pred, truth = random_scene(size, strides, reg_max, seed=seed, **crowd)
    assign = make()
    match = assign(scores, boxes, pred, truth)
    swapped = assign(scores.flip(0), boxes.flip(0), pred, Targets(*(tensor.flip(0) for tensor in truth)))
    for mine, theirs in zip(match, swapped, strict=True):
        assert torch.equal(mine.flip(0), theirs)

    junk = torch.tensor([[0.0, 0, *size[::-1]], [5, 5, 9, 9], [0, 0, 0, 0]]).expand(len(scores), 3, 4)
    none = torch.zeros(junk.shape[:2], dtype=torch.bool)
    padded = Targets(
        *(torch.cat(pair, 1) for pair in zip(truth, (junk, none.long(), none, ~none), strict=True))
    )
    other = assign(scores, boxes, pred, padded)
    assert not other.fallback[:, -3:].any()
    for mine, theirs in zip(match, other._replace(fallback=other.fallback[:, :-3]), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES[:4])
def test_order_of_truths_changes_nothing_but_ties(make, size, strides, reg_max, crowd, seed):
    scores, boxes, pred, truth = random_scene(size, strides, reg_max, seed=seed, count=5)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    moved = Targets(*(tensor[:, order] for tensor in truth))
    match, other = (make()(scores, boxes, pred, targets) for targets in (truth, moved))
    assert torch.equal(match.positive, other.positive)
    assert torch.equal(match.ignored, other.ignored)
    assert torch.equal(match.boxes, other.boxes)
    assert torch.equal(match.labels[match.positive], other.labels[match.positive])
    assert torch.equal(owners(match), torch.cat((order, torch.tensor([-1])))[owners(other)])
    assert torch.equal(match.fallback[:, order], other.fallback)


def test_the_batch_is_assigned_picture_by_picture(make):
    scores, boxes, pred, truth = random_scene((64, 96), (8, 16, 32), 15, seed=1, batch=4)
    match = make()(scores, boxes, pred, truth)
    for b in range(4):
        alone = Targets(*(tensor[b : b + 1] for tensor in truth))
        one = make()(scores[b : b + 1], boxes[b : b + 1], pred, alone)
        for mine, theirs in zip(match, one, strict=True):
            assert torch.equal(mine[b : b + 1], theirs)


def test_plain_sides_take_the_reach_they_are_given(make):
    scores, boxes, pred, truth = random_scene((192, 128), (8, 16, 32), 3, seed=0, count=20)
    plain = pred._replace(ltrb_logits=pred.ltrb_logits[..., :1])
    for mine, theirs in zip(
        make()(scores, boxes, pred, truth), make(reach=3)(scores, boxes, plain, truth), strict=True
    ):
        assert torch.equal(mine, theirs)
    wider = make(reach=15)(scores, boxes, plain, truth)
    assert not torch.equal(owners(wider), owners(make(reach=3)(scores, boxes, plain, truth)))


def test_blocks_of_truths_change_nothing(make, monkeypatch):
    scene = random_scene((64, 96), (8, 16, 32), 15, seed=1, count=11)
    match = make()(*scene)
    for rows in (1, 7, 21):  # blocks of 1, 3 and 10 truths of 2 pictures
        monkeypatch.setattr("utils.assigners.candidates._ROWS_CPU", rows)
        for mine, theirs in zip(match, make()(*scene), strict=True):
            assert torch.equal(mine, theirs)


def test_nothing_is_read_from_the_device(make):
    scene = random_scene((64, 96), (8, 16, 32), 15, seed=1)
    scores, boxes, pred, truth = scene
    there = [tensor.to("meta") for tensor in (scores, boxes, *pred[:4], *truth)]  # no values to read
    match = make()(*there[:2], Predictions(*there[2:6], pred.levels), Targets(*there[6:]))
    for found, expected in zip(match, make()(*scene), strict=True):
        assert found.shape == expected.shape and found.dtype == expected.dtype


def test_no_boxes(make):
    truth = make_truth([[(0, 0, 1, 1)]] * 3, valid=False)
    match = make()(*start_of_training(truth, (64, 96)))
    assert not match.positive.any() and not match.ignored.any() and not match.fallback.any()
    assert match.truth.eq(0).all() and match.boxes.eq(torch.tensor([0.0, 0, 1, 1])).all()


def test_300_boxes(make):
    random = np.random.default_rng(6)
    corner = random.uniform(0, 620, (1, 300, 2))
    boxes = np.concatenate((corner, corner + random.uniform(2, 60, (1, 300, 2))), -1)
    truth = make_truth(boxes, labels=random.integers(0, CLASSES, (1, 300)))
    match = make()(*start_of_training(truth))
    assert not without_point(owners(match), truth).any()
    assert torch.equal(owners(match)[0].unique(), torch.arange(-1, 300))


def test_300_identical_tiny_boxes(make):
    truth = make_truth([(321, 321, 323, 323)] * 300)
    match = make()(*start_of_training(truth))
    assert torch.equal(owners(match)[0].unique(), torch.arange(-1, 300))
    assert match.fallback.sum() in (298, 299)  # the first one or two have won points by the rule


def test_300_tiny_boxes_in_one_corner_get_points_nearby(make):
    random = np.random.default_rng(7)
    corner = random.uniform(0, 160, (1, 300, 2))  # 400 points of P3 there
    truth = make_truth(np.concatenate((corner, corner + 2), -1))
    scene = start_of_training(truth)
    match, pred = make()(*scene), scene[2]
    assert not without_point(owners(match), truth).any()
    centre = (match.boxes[..., :2] + match.boxes[..., 2:]) / 2
    far = (pred.points - centre)[match.positive].abs().amax(-1)
    assert far.median() <= 8 and far.max() <= 64


def test_a_box_over_the_whole_picture(make):
    scene = start_of_training(make_truth([(0, 0, 640, 640)]))
    match, strides = make()(*scene), scene[2].strides
    # P3 reaches 120 px and P4 240 px, the sides are 320 px off.
    assert match.positive.any() and not match.fallback.any()
    assert strides[match.positive[0]].eq(32).all()


def test_a_box_larger_than_any_level_gets_the_coarsest(make):
    scene = start_of_training(make_truth([(0, 0, 640, 640)]), reg_max=3)
    match, pred = make()(*scene), scene[2]
    assert match.positive.sum() == 1 and match.fallback.all()
    assert pred.strides[match.positive[0]].item() == 32
    assert (pred.points[match.positive[0]] - 320).abs().max() <= 16


@pytest.mark.parametrize(
    "box", [(0, 0, 40, 30), (600, 610, 640, 640), (0, 300, 9, 330), (620, 0, 640, 640), (0, 0, 640, 12)]
)
def test_a_box_at_the_border(make, box):
    scene = start_of_training(make_truth([box]))
    match, pred = make()(*scene), scene[2]
    assert match.positive.any()
    assert match.boxes[match.positive].eq(torch.tensor(box)).all()
    assert boxes_to_ltrb(match.boxes, pred.points, pred.strides)[match.positive].max() <= 15


@pytest.mark.parametrize("corner", [(0, 0), (3, 3), (7.5, 7.5), (100.2, 333.3), (638, 638), (319, 321)])
@pytest.mark.parametrize("side", [0, 0.5, 2])
def test_a_tiny_box_gets_a_point_next_to_it(make, corner, side):
    scene = start_of_training(make_truth([(*corner, corner[0] + side, corner[1] + side)]))
    match, pred = make()(*scene), scene[2]
    centre = torch.tensor(corner) + side / 2
    assert match.positive.any() and not match.fallback.any()
    assert (pred.points[match.positive[0]] - centre).abs().max() <= 4 + side / 2
    assert pred.strides[match.positive[0]].max() <= 16


def test_boxes_beyond_the_corners_of_the_picture(make):
    boxes = [(-30, -30, 20, 20), (630, 630, 700, 700), (-9, 635, 3, 700), (650, 650, 660, 660)]
    truth = make_truth([*boxes, (-90, -90, -50, -50)])
    scene = start_of_training(truth)
    match, points = make()(*scene), scene[2].points
    assert not without_point(owners(match), truth).any()
    assert match.fallback[0, 3:].all()  # the last two are wholly outside
    assert (points[points_of(match, 3)] >= 600).all() and (points[points_of(match, 4)] <= 40).all()


def test_ignore_regions_own_nothing_and_take_nothing(make):
    truth = make_truth([(100, 100, 300, 300), (150, 150, 200, 200)], ignore=[True, False])
    scene = start_of_training(truth)
    match, pred = make()(*scene), scene[2]
    assert match.positive.any() and match.truth[match.positive].eq(1).all()
    inside = ((pred.points >= 100) & (pred.points <= 300)).all(1)
    assert torch.equal(match.ignored[0], inside)
    alone = make()(*start_of_training(make_truth([(150, 150, 200, 200)])))
    assert torch.equal(alone.positive, match.positive)


@pytest.mark.parametrize(
    ("name", "kind", "most"),
    [
        ("task_aligned", TaskAlignedAssigner, 7),
        ("atss", ATSSAssigner, 35),
        ("simota", SimOTAAssigner, 7),
        ("center", CenterAssigner, 5),
    ],
)
def test_build_assigner(name, kind, most):
    rule = AssignerConfig(name=name, top_k=7, alpha=0.5, beta=2.0, iou_weight=1.5)
    assign = build_assigner(Config(model=ModelConfig(levels=(2, 3, 4, 5, 6), reg_max=9), assigner=rule))
    assert type(assign) is kind and assign.most_per_truth == most and assign.reach == 9
    plain = build_assigner(Config(model=ModelConfig(reg_max=0), assigner=rule))
    assert plain.reach == 15  # as with the default bins
    if name == "task_aligned":
        assert (assign.top_k, assign.alpha, assign.beta) == (7, 0.5, 2.0)
    if name == "simota":
        assert (assign.top_k, assign.iou_weight) == (7, 1.5)
    if name == "atss":
        assert (assign.top_k, assign.num_levels, plain.most_per_truth) == (7, 5, 21)
