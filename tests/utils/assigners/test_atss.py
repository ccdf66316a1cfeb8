"""ATSS by hand and against plain loops; what all assigners share: test_laws.py."""

import statistics

import numpy as np
import pytest
import torch

from tests.utils.assigners.scenes import (
    SCENES,
    make_pred,
    make_truth,
    owners,
    points_of,
    random_scene,
    reference,
)
from utils.assigners.atss import ATSSAssigner
from utils.geometry.boxes import aligned_iou


def scene_of(*boxes, size=(64, 64), strides=(8,)):
    """Predictions play no part: they are nonsense."""
    pred = make_pred(size, strides)
    nonsense = torch.full((1, len(pred.points), 4), float("nan"))
    return torch.full_like(pred.cls_logits, float("nan")), nonsense, pred, make_truth(list(boxes))


def choose_by_loops(top_k):
    def choose(scene, b, m, candidates, distance):
        pred, truth = scene[2:]
        near = []
        for stride in pred.strides.unique().tolist():
            level = (pred.strides[:, 0] == stride).nonzero()[:, 0].tolist()
            near += sorted(level, key=lambda a: (distance[a], a))[:top_k]
        overlap = {}
        for a in near:
            anchor = torch.cat((pred.points[a] - 4 * pred.strides[a], pred.points[a] + 4 * pred.strides[a]))
            overlap[a] = aligned_iou(anchor, truth.boxes[b, m]).item()
        values = list(overlap.values())
        threshold = statistics.mean(values) + statistics.pstdev(values) - 1e-5
        return {a: iou for a, iou in overlap.items() if a in candidates and iou >= threshold}

    return choose


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_k", [9, 2])
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES)
def test_the_reference_assigns_the_same(size, strides, reg_max, crowd, top_k, seed):
    scene = random_scene(size, strides, reg_max, seed=seed, **crowd)
    match = ATSSAssigner(top_k=top_k, num_levels=5)(*scene)
    np.testing.assert_array_equal(owners(match).numpy(), reference(scene, choose_by_loops(top_k)))


def test_one_level_by_hand():
    # 8 x 8 points at 4, 12, ..., 60; the truth is the picture, its centre (32, 32). An anchor is 64 px wide:
    # along an axis, that of 28 or 36 covers 60 px of the truth, that of 20 or 44 covers 52 px.
    # IoU of 60 x 60: 3600 / 4592 = .784; of 60 x 52: 3120 / 5072 = .615; of 52 x 52: 2704 / 5488 = .493.
    scene = scene_of((0, 0, 64, 64))
    inner = [27, 28, 35, 36]
    # 4, 8 and 4 of these: mean .627, deviation .104, threshold .730.
    assert points_of(ATSSAssigner(top_k=16)(*scene)) == inner
    # The nearest 12 lack the corners: mean .671, deviation .080, threshold .751.
    assert points_of(ATSSAssigner(top_k=12)(*scene)) == inner
    # All equal: the threshold is their IoU, and all are positive.
    assert points_of(ATSSAssigner(top_k=4)(*scene)) == inner
    # Of four equally near the first in order.
    assert points_of(ATSSAssigner(top_k=1)(*scene)) == [27]
    assert points_of(ATSSAssigner(top_k=3)(*scene)) == [27, 28, 35]


def test_the_level_whose_anchor_fits_wins():
    # As above with 4 x 4 points of stride 16, numbers 64 on: their anchors, 128 px, hold the truth: IoU .25.
    # Four of .784 and four of .25 have mean .517 and deviation .267: the threshold is .784 itself.
    scene = scene_of((0, 0, 64, 64), strides=(8, 16))
    assert points_of(ATSSAssigner(top_k=4)(*scene)) == [27, 28, 35, 36]
    # 16 px: IoU with each anchor of 64 px 256 / 4096 = .0625, with 128 px .0156. Nine of each: the threshold
    # is .0625. Of the nine of P3, four lie inside.
    scene = scene_of((24, 24, 40, 40), strides=(8, 16))
    assert points_of(ATSSAssigner(top_k=9)(*scene)) == [27, 28, 35, 36]


@pytest.mark.parametrize("side", [9, 9.813, 10.897, 11.439, 12.252, 14.149, 31.7, 40.3, 56])
def test_the_threshold_itself_is_enough(side):
    # Inside all anchors: four IoUs of side^2 / 64^2 and four of side^2 / 128^2. Mean plus deviation is the
    # first, up to rounding.
    scene = scene_of((32 - side / 2, 32 - side / 2, 32 + side / 2, 32 + side / 2), strides=(8, 16))
    assert points_of(ATSSAssigner(top_k=4)(*scene)) == [27, 28, 35, 36]


def test_the_range_mask_comes_last():
    # Reach 3 is 24 px on P3. From no point there are all sides of 64 px within 24 px; those of P4, which
    # reaches 48 px, stay below the threshold all the same. (24, 24), number 69, is the first of the four
    # nearest that can express it.
    match = ATSSAssigner(top_k=4, reach=3)(*scene_of((0, 0, 64, 64), strides=(8, 16)))
    assert points_of(match) == [69] and match.fallback.all()


def test_a_point_goes_to_the_truth_of_the_highest_iou():
    # Both want (28, 28), number 27: IoU .784 with the first, 24^2 / 64^2 = .141 with the second, which is
    # left one of the four next to it, 8 px off: (28, 20), number 19, is the first of them.
    match = ATSSAssigner(top_k=1)(*scene_of((0, 0, 64, 64), (16, 16, 40, 40)))
    assert points_of(match, 0) == [27] and points_of(match, 1) == [19]
    assert match.fallback.tolist() == [[False, True]]
    # Twins: the first has it.
    match = ATSSAssigner(top_k=1)(*scene_of((16, 16, 40, 40), (16, 16, 40, 40)))
    assert points_of(match, 0) == [27] and match.fallback.tolist() == [[False, True]]


def test_a_box_without_area():
    # All IoUs are 0, and so is the threshold. 8 px about (12, 12) hold its point, 8 px about (16, 16) four.
    assert points_of(ATSSAssigner()(*scene_of((12, 12, 12, 12)))) == [9]
    assert points_of(ATSSAssigner()(*scene_of((16, 16, 16, 16)))) == [9, 10, 17, 18]


def test_more_levels_than_announced_are_refused():
    scene = random_scene((192, 128), (4, 8, 16, 32, 64), 15, seed=0)
    assert ATSSAssigner(top_k=9, num_levels=5).most_per_truth == 45
    with pytest.raises(AssertionError):
        ATSSAssigner(top_k=9)(*scene)


@pytest.mark.parametrize("top_k", [1, 5, 9, 13, 30])
@pytest.mark.parametrize("centre", [(0, 0), (0, 101), (160, 320), (7, 313), (159.5, 0), (80, 160), (1, 160)])
def test_the_nearest_points_are_in_the_window(monkeypatch, top_k, centre):
    x, y = centre
    looked_at = []
    monkeypatch.setattr(
        "utils.assigners.atss._anchor_iou",
        lambda point, pred, boxes: looked_at.append(point) or torch.zeros(point.shape),
    )
    scene = scene_of((x - 9, y - 9, x + 9, y + 9), size=(320, 160), strides=(8, 16, 32))
    ATSSAssigner(top_k=top_k)(*scene)
    points, strides = scene[2].points.double(), scene[2].strides[:, 0]
    distance = (points - torch.tensor(centre)).square().sum(1)
    for stride in (8, 16, 32):
        of_level = distance[strides == stride].sort().values[:top_k]
        found = looked_at[0].flatten()
        found = found[strides[found] == stride]
        torch.testing.assert_close(distance[found].sort().values, of_level)
