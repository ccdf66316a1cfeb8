"""The task-aligned assigner against a slow reference and by hand; what all assigners share: test_laws.py."""

import numpy as np
import pytest
import torch

from tests.utils.assigners.scenes import (
    SCENES,
    make_pred,
    make_truth,
    one_level,
    owners,
    points_of,
    random_scene,
    reference,
    start_of_training,
)
from utils.assigners.finish import without_point
from utils.assigners.task_aligned import TaskAlignedAssigner
from utils.geometry.boxes import aligned_iou, pairwise_iou
from utils.geometry.ltrb import boxes_to_ltrb

OPTIONS = [{"top_k": 13, "alpha": 1.0, "beta": 6.0}, {"top_k": 3, "alpha": 0.5, "beta": 2.0}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS, ids=["default", "top 3"])
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES)
def test_the_reference_assigns_the_same(size, strides, reg_max, crowd, options, seed):
    def choose(scene, b, m, candidates, distance):
        scores, boxes, _, truth = scene
        metric = scores[b, :, truth.labels[b, m]] ** options["alpha"]
        metric = (metric * aligned_iou(boxes[b], truth.boxes[b, m]) ** options["beta"]).tolist()
        ranked = sorted(candidates, key=lambda a: (-metric[a], distance[a], a))
        return {a: metric[a] for a in ranked[: options["top_k"]]}

    scene = random_scene(size, strides, reg_max, seed=seed, **crowd)
    match = TaskAlignedAssigner(**options)(*scene)
    np.testing.assert_array_equal(owners(match).numpy(), reference(scene, choose))


def test_the_best_metrics_win():
    scores, boxes, pred = one_level()
    truth = make_truth([(0, 0, 32, 32)])
    boxes[0, [2, 7, 9]] = torch.tensor([(0.0, 0, 32, 30), (0, 0, 32, 16), (0, 0, 32, 20)])  # IoU .94, .5, .63
    assign = TaskAlignedAssigner(top_k=2)
    assert points_of(assign(scores, boxes, pred, truth)) == [2, 9]
    scores[0, 9, 0] = 0.01  # .01 * .63^6 < .5 * .5^6
    assert points_of(assign(scores, boxes, pred, truth)) == [2, 7]
    scores[0, 9] = torch.tensor([0.01, 1, 1])  # the scores of other classes do not count
    assert points_of(assign(scores, boxes, pred, truth)) == [2, 7]


def test_equal_metrics_are_ranked_by_distance_then_index():
    scores, boxes, pred = one_level()
    truth = make_truth(
        [(0, 0, 30, 30)]
    )  # centre (15, 15): (12, 12) is 4.2 px away, (12, 20) and (20, 12) 5.8 px
    for top_k, expected in ((1, [5]), (2, [5, 6]), (3, [5, 6, 9]), (4, [5, 6, 9, 10])):
        assert points_of(TaskAlignedAssigner(top_k=top_k)(scores, boxes, pred, truth)) == expected
    assert TaskAlignedAssigner(top_k=99)(scores, boxes, pred, truth).positive.all()


def test_a_point_goes_to_the_truth_of_its_largest_metric():
    scores, boxes, pred = one_level()
    truth = make_truth([(0, 0, 32, 32), (0, 0, 16, 16)], labels=[0, 1])
    boxes[0, 5] = torch.tensor([0.0, 0, 16, 16])  # IoU .25 with the first, 1 with the second
    match = TaskAlignedAssigner(top_k=16)(scores, boxes, pred, truth)
    assert match.truth[0, 5] == 1 and match.labels[0, 5] == 1
    scores[0, 5] = torch.tensor([1, 1e-4, 0])  # 1 * .25^6 = 2.4e-4 > 1e-4 * 1
    match = TaskAlignedAssigner(top_k=16)(scores, boxes, pred, truth)
    assert match.truth[0, 5] == 0


def test_equal_bids_go_to_the_nearer_truth_then_to_the_first():
    scores, boxes, pred = one_level()
    truth = make_truth(
        [(0, 0, 32, 32), (4, 4, 20, 20), (4, 4, 20, 20)]
    )  # centres (16, 16), (12, 12), (12, 12)
    match = TaskAlignedAssigner(top_k=16)(scores, boxes, pred, truth)
    assert match.truth[0, 5] == 1  # (12, 12) is the second's centre
    assert match.truth[0, 15] == 0
    # The third lost all its points to its twin, and gets a free one. All are taken: it goes without.
    assert match.positive.all() and without_point(owners(match), truth).tolist() == [[False, False, True]]
    assert not match.fallback.any()
    match = TaskAlignedAssigner(top_k=5)(scores, boxes, pred, truth)
    assert not without_point(owners(match), truth).any()
    assert match.fallback.tolist() == [[False, False, True]]


def test_top_k_counts_over_all_levels():
    truth = make_truth([(100, 100, 300, 300)])
    for top_k in (1, 5, 13):
        assert TaskAlignedAssigner(top_k=top_k)(*start_of_training(truth)).positive.sum() == top_k


@pytest.mark.parametrize("reg_max", [3, 15])
@pytest.mark.parametrize("size", [(320, 320), (192, 448)])
@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 8, 16, 32, 64)])
def test_most_positives_can_be_expressed(size, strides, reg_max):
    random = np.random.default_rng(5)
    corner = random.uniform(0, 0.7, (1, 12, 2)) * size[::-1]
    boxes = np.concatenate((corner, corner + random.uniform(strides[0], 120, (1, 12, 2))), -1)
    scene = start_of_training(make_truth(boxes), size, strides, reg_max=reg_max)
    match, pred = TaskAlignedAssigner()(*scene), scene[2]
    ltrb = boxes_to_ltrb(match.boxes, pred.points, pred.strides)[match.positive]
    fits = (ltrb.amax(-1) <= reg_max) & (ltrb.amin(-1) >= 0)
    assert fits.float().mean() > 0.9
    # The others are the only points of truths without a candidate: thin boxes between points.
    owner = match.truth[match.positive]
    assert torch.bincount(owner, minlength=12)[owner[~fits]].eq(1).all()
    assert torch.bincount(owner, minlength=12).min() >= 1


def test_a_box_over_the_whole_picture():
    scene = start_of_training(make_truth([(0, 0, 640, 640)]))
    match, pred = TaskAlignedAssigner()(*scene), scene[2]
    assert match.positive.sum() == 13
    # P3 reaches 120 px and P4 240 px, the sides are 320 px off
    assert pred.strides[match.positive[0]].eq(32).all()


def test_more_truths_than_points():
    truth = make_truth([(10, 10, 20, 20)] * 30)  # 16 + 4 + 1 points
    match = TaskAlignedAssigner()(*start_of_training(truth, (32, 32)))
    assert match.positive.all()
    # In the box lie (12, 12), (20, 12), (12, 20), (20, 20) of P3, none of P4, (16, 16) of P5. The first
    # truth takes these 5, and one truth each the other 16 points.
    assert len(match.truth.unique()) == 17
    assert without_point(owners(match), truth).sum() == 13 and match.fallback.sum() == 16


def test_half_scores_and_boxes_in_float64_are_fine():
    scores, boxes, pred, truth = random_scene((64, 96), (8, 16, 32), 15, seed=2)
    assign = TaskAlignedAssigner()
    assert assign(scores.bfloat16(), boxes, pred, truth).positive.any()
    expected = assign(scores, boxes, pred, truth)
    assert torch.equal(owners(assign(scores.double(), boxes.double(), pred, truth)), owners(expected))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(owners(assign(scores, boxes, pred, truth)), owners(expected))


def test_positives_overlap_their_truth_when_predictions_are_good():
    truth = make_truth([(50, 60, 150, 160), (300, 310, 340, 380), (400, 20, 600, 220)])
    pred = make_pred((640, 640))
    boxes = truth.boxes[
        0,
        pairwise_iou(  # every point predicts the truth it lies nearest to
            torch.cat((pred.points - 30, pred.points + 30), -1), truth.boxes[0]
        ).argmax(1),
    ].unsqueeze(0)
    match = TaskAlignedAssigner()(torch.full_like(pred.cls_logits, 0.5), boxes, pred, truth)
    assert torch.equal(boxes[match.positive], match.boxes[match.positive])
    assert torch.bincount(match.truth[match.positive]).tolist() == [13, 13, 13]
