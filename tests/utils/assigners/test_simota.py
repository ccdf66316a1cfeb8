"""SimOTA by hand and against plain loops; what all assigners share: test_laws.py."""

import math

import numpy as np
import pytest
import torch

from tests.utils.assigners.scenes import (
    SCENES,
    make_truth,
    one_level,
    owners,
    points_of,
    random_scene,
    reference,
)
from utils.assigners.simota import SimOTAAssigner, assignment_cost
from utils.geometry.boxes import aligned_iou

OPTIONS = [{"top_k": 13, "iou_weight": 3.0}, {"top_k": 4, "iou_weight": 0.5}]


def choose_by_loops(top_k, iou_weight):
    def choose(scene, b, m, candidates, distance):
        scores, boxes, _, truth = scene
        iou = aligned_iou(boxes[b], truth.boxes[b, m])
        score = scores[b, :, truth.labels[b, m]]
        metric = (1 / (1 + assignment_cost(score, iou, iou_weight))).tolist()
        best = sorted((iou[a].item() for a in candidates), reverse=True)[:top_k]
        number = max(1, int(sum(best)))
        ranked = sorted(candidates, key=lambda a: (-metric[a], distance[a], a))
        return {a: metric[a] for a in ranked[:number]}

    return choose


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS, ids=["default", "4 IoUs"])
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES)
def test_the_reference_assigns_the_same(size, strides, reg_max, crowd, options, seed):
    scene = random_scene(size, strides, reg_max, seed=seed, **crowd)
    match = SimOTAAssigner(**options)(*scene)
    np.testing.assert_array_equal(owners(match).numpy(), reference(scene, choose_by_loops(**options)))


def test_cost_by_hand():
    # BCE(.3, .8) = -(.8 ln .3 + .2 ln .7) = .9632 + .0713 = 1.0345; * .5^2 = .2586; -ln .8 = .2231.
    cost = assignment_cost(torch.tensor(0.3), torch.tensor(0.8), 3.0)
    assert cost.item() == pytest.approx(0.2586 + 3 * 0.2231, abs=2e-4)
    assert assignment_cost(torch.tensor(0.8), torch.tensor(0.8), 0.0).item() == 0  # its class cost is 0


@pytest.mark.parametrize("score", [0.0, 1e-30, 0.5, 1 - 2**-24, 1.0])
@pytest.mark.parametrize("iou", [0.0, 1e-30, 0.5, 1.0])
def test_cost_is_finite_and_not_negative(score, iou):
    cost = assignment_cost(torch.tensor(score), torch.tensor(iou), 3.0).item()
    assert math.isfinite(cost) and cost >= 0


def scene_of(truth, boxes: dict):
    """4 x 4 points at 4, 12, 20, 28; scores .5; the predictions in ``boxes`` by point, the others miss."""
    scores, decoded, pred = one_level()
    for a, box in boxes.items():
        decoded[0, a] = torch.tensor(box, dtype=torch.float32)
    return scores, decoded, pred, truth


def test_the_sum_of_the_ious_is_the_number_of_points():
    # IoU .9375, .5 and .625 at the points 2, 7 and 9, 0 elsewhere: sum 2.06, so two points.
    # BCE(.5, y) is ln 2 for every y. Costs: .133 + 3 * .065 = .326; 0 + 3 * .693 = 2.079;
    # .0108 + 3 * .470 = 1.421. Without the IoU: .133, 0 and .0108, and .173 for IoU 0.
    truth = make_truth([(0, 0, 32, 32)])
    scene = scene_of(truth, {2: (0, 0, 32, 30), 7: (0, 0, 32, 16), 9: (0, 0, 32, 20)})
    assert points_of(SimOTAAssigner()(*scene)) == [2, 9]
    assert points_of(SimOTAAssigner(iou_weight=0)(*scene)) == [7, 9]
    assert points_of(SimOTAAssigner(top_k=2)(*scene)) == [2]  # .9375 + .625 = 1.56
    perfect = scene_of(truth, dict.fromkeys((0, 3, 6, 11, 14), (0, 0, 32, 32)))
    assert points_of(SimOTAAssigner()(*perfect)) == [0, 3, 6, 11, 14]
    assert points_of(SimOTAAssigner(top_k=4)(*perfect)) == [0, 6, 11, 14]  # 3 as far as 0, 17 px


def test_at_least_one_point_the_nearest_where_all_cost_the_same():
    scene = scene_of(make_truth([(0, 0, 30, 30)]), {})
    assert points_of(SimOTAAssigner()(*scene)) == [5]


def test_the_score_of_the_truths_class_counts():
    # IoU .5 everywhere: eight points. Score .5 costs nothing, .9 costs BCE(.9, .5) * .4^2 = 1.204 * .16.
    truth = make_truth([(0, 0, 32, 32)], labels=[1])
    scene = scene_of(truth, dict.fromkeys(range(16), (0, 0, 32, 16)))
    scene[0][0, ::2, 1] = 0.9
    assert points_of(SimOTAAssigner(top_k=16)(*scene)) == list(range(1, 16, 2))
    scene[0][0, 1::2, 0] = 0.9  # another class
    assert points_of(SimOTAAssigner(top_k=16)(*scene)) == list(range(1, 16, 2))


def test_a_point_goes_to_the_truth_for_which_it_is_cheapest():
    # At 5, IoU .25 with the first and 1 with the second: .043 + 3 * 1.386 against .173 + 0.
    truth = make_truth([(0, 0, 32, 32), (0, 0, 16, 16)], labels=[0, 1])
    scene = scene_of(truth, {5: (0, 0, 16, 16)})
    match = SimOTAAssigner()(*scene)
    assert points_of(match, 1) == [5]
    # The first wanted only that one, so it is left another: (20, 12) is as near to (16, 16), and first.
    assert points_of(match, 0) == [6] and match.fallback.tolist() == [[True, False]]
    # Equal costs: the nearer centre, then the first.
    twins = make_truth([(0, 0, 32, 32), (0, 0, 32, 32)])
    match = SimOTAAssigner()(*scene_of(twins, {5: (0, 0, 32, 32)}))
    assert points_of(match, 0) == [5] and match.fallback.tolist() == [[False, True]]
