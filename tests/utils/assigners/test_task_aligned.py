"""The task-aligned assigner against a slow reference, and the scenes that have made assigners lose truths."""

import numpy as np
import pytest
import torch

from utils.assigners.candidates import without_point
from utils.assigners.task_aligned import TaskAlignedAssigner
from utils.geometry.anchor_points import make_anchor_points
from utils.geometry.boxes import aligned_iou, pairwise_iou
from utils.geometry.ltrb import boxes_to_ltrb
from utils.structures import Assignment, Predictions, Targets

CLASSES = 3


def make_pred(size, strides=(8, 16, 32), *, reg_max=15, batch=1) -> Predictions:
    levels = tuple((size[0] // stride, size[1] // stride, stride) for stride in strides)
    points, cells = make_anchor_points([level[:2] for level in levels], strides)
    logits = torch.zeros(batch, len(points), CLASSES)
    return Predictions(logits, torch.zeros(batch, len(points), 4, reg_max + 1), points, cells, levels)


def make_truth(boxes, *, labels=None, valid=None, ignore=None) -> Targets:
    boxes = torch.as_tensor(np.asarray(boxes), dtype=torch.float32)
    boxes = boxes if boxes.ndim == 3 else boxes.unsqueeze(0)
    shape = boxes.shape[:2]

    def full(values, default, dtype):
        values = default if values is None else values
        return torch.as_tensor(np.asarray(values), dtype=dtype).expand(shape).clone()

    return Targets(
        boxes, full(labels, 0, torch.int64), full(valid, True, torch.bool), full(ignore, False, torch.bool)
    )


def random_scene(size, strides, reg_max, *, seed, count=8, largest=1.0, batch=2):
    """Truths of all sizes, and predictions: some near a truth, many nowhere (IoU 0, so that metrics tie)."""
    random = np.random.default_rng(seed)
    pred, extent = make_pred(size, strides, reg_max=reg_max, batch=batch), np.array(size[::-1])
    centre = random.uniform(0, 1, (batch, count, 2)) * extent
    half = random.uniform(0.05, 1, (batch, count, 1)) ** 2 * random.uniform(0.4, 1, (batch, count, 2))
    half = half * largest * extent / 2
    corners = np.concatenate((centre - half, centre + half), -1).round(0)
    kind = random.uniform(size=(batch, count))
    truth = make_truth(
        corners,
        labels=random.integers(0, CLASSES, (batch, count)),
        valid=kind < 0.9,
        ignore=(kind > 0.75) & (kind < 0.95),
    )
    num_points = len(pred.points)
    near = corners[:, random.integers(0, count, num_points)][0][None].repeat(batch, 0)
    boxes = (
        near + random.normal(0, 1, near.shape) * (near[..., 2:] - near[..., :2]).max(-1, keepdims=True) * 0.15
    )
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    boxes[random.uniform(size=boxes.shape[:2]) < 0.3] = (-9, -9, -8, -8)
    scores = random.uniform(0, 1, (batch, num_points, CLASSES))
    return torch.tensor(scores).float(), torch.tensor(boxes).float(), pred, truth


def reference(scores, boxes, pred, truth, *, top_k, alpha, beta):
    """(B, A) the truth of every point, -1 for none: as the design words it, with plain loops."""
    reach = pred.ltrb_logits.shape[-1] - 1
    points, strides = pred.points.double().numpy(), pred.strides[:, 0].double().numpy()
    owner = np.full(scores.shape[:2], -1)
    for b in range(len(scores)):
        wanted = [m for m in range(truth.labels.shape[1]) if truth.valid[b, m] and not truth.ignore[b, m]]
        best, sides = {}, {}
        for m in wanted:
            box = truth.boxes[b, m].double().numpy()
            centre = (box[:2] + box[2:]) / 2
            distance = ((points - centre) ** 2).sum(1)
            metric = (
                scores[b, :, truth.labels[b, m]] ** alpha * aligned_iou(boxes[b], truth.boxes[b, m]) ** beta
            )
            metric = metric.tolist()
            half = np.maximum((box[2:] - box[:2]) / 2, pred.strides.min().item() / 2)
            gaps = np.concatenate((points - (centre - half), centre + half - points), 1)
            candidates = np.flatnonzero((gaps.min(1) >= 0) & (gaps.max(1) <= reach * strides))
            ranked = sorted(candidates, key=lambda a: (-metric[a], distance[a], a))
            for a in ranked[:top_k]:
                bid = -metric[a], distance[a], m
                best[a] = min(best.get(a, bid), bid)
            sides[m] = np.concatenate((points - box[:2], box[2:] - points), 1).max(1), distance
        for a, (_, _, m) in best.items():
            owner[b, a] = m
        for _ in range(8):  # truths without a point: the nearest free one, in turn where several want it
            bids, turns = {}, {}
            for m in wanted:
                free = np.flatnonzero(owner[b] < 0)
                if m in owner[b] or not len(free):
                    continue
                longest, distance = sides[m][0][free], sides[m][1][free]
                level = np.where(longest <= reach * strides[free], strides[free], 1e6 - strides[free])
                ranked = free[np.lexsort((distance, level))]
                turn = turns[ranked[0]] = turns.get(ranked[0], -1) + 1
                if turn < len(ranked):
                    bids.setdefault(ranked[turn], m)
            for a, m in bids.items():
                owner[b, a] = m
        for m in wanted:
            free = np.flatnonzero(owner[b] < 0)
            if m not in owner[b] and len(free):
                owner[b, free[0]] = m
    return owner


def owners(match: Assignment):
    return match.truth.where(match.positive, -1)


def assign_fresh(
    truth, size=(640, 640), strides=(8, 16, 32), *, reg_max=15, **options
) -> tuple[Assignment, Predictions]:
    """As at the start of training: all scores 0.01, every prediction 2.7 strides to each side."""
    pred = make_pred(size, strides, reg_max=reg_max, batch=len(truth.labels))
    reach = 2.7 * pred.strides
    boxes = torch.cat((pred.points - reach, pred.points + reach), -1).expand(len(truth.labels), -1, 4)
    scores = torch.full_like(pred.cls_logits, 0.01)
    return TaskAlignedAssigner(**options)(scores, boxes, pred, truth), pred


SCENES = [
    pytest.param((64, 96), (8, 16, 32), 15, {}, id="64x96"),
    pytest.param((64, 96), (8, 16, 32), 3, {}, id="64x96 reg_max 3"),
    pytest.param((192, 128), (4, 8, 16, 32, 64), 15, {}, id="192x128 P2-6"),
    pytest.param((192, 128), (4, 8, 16, 32, 64), 3, {}, id="192x128 P2-6 reg_max 3"),
    pytest.param((96, 320), (8, 16, 32), 3, {"count": 40, "largest": 0.3}, id="96x320 crowded"),
    pytest.param((64, 64), (8, 16, 32), 15, {"count": 60, "largest": 0.4}, id="64x64 very crowded"),
    pytest.param((64, 64), (8, 16, 32), 2, {"count": 100, "batch": 1}, id="64x64: more truths than points"),
]
OPTIONS = [{"top_k": 13, "alpha": 1.0, "beta": 6.0}, {"top_k": 3, "alpha": 0.5, "beta": 2.0}]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS, ids=["default", "top 3"])
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES)
def test_the_reference_assigns_the_same(size, strides, reg_max, crowd, options, seed):
    scene = random_scene(size, strides, reg_max, seed=seed, **crowd)
    match = TaskAlignedAssigner(**options)(*scene)
    expected = reference(*scene, **options)
    np.testing.assert_array_equal(owners(match).numpy(), expected)
    truth = scene[-1]
    assert torch.equal(match.labels[match.positive], truth.labels.gather(1, match.truth)[match.positive])
    chosen = truth.boxes.gather(1, match.truth.unsqueeze(-1).expand(-1, -1, 4))
    assert torch.equal(match.boxes[match.positive], chosen[match.positive])
    assert match.boxes[~match.positive].eq(torch.tensor([0.0, 0, 1, 1])).all()


def one_level(batch=1):
    """4 x 4 points of stride 8, at 4, 12, 20, 28; all scores .5, and predictions that miss everything."""
    pred = make_pred((32, 32), (8,), batch=batch)
    return torch.full((batch, 16, CLASSES), 0.5), torch.full((batch, 16, 4), -9.0), pred


def test_the_best_metrics_win():
    scores, boxes, pred = one_level()
    truth = make_truth([(0, 0, 32, 32)])
    boxes[0, [2, 7, 9]] = torch.tensor([(0.0, 0, 32, 30), (0, 0, 32, 16), (0, 0, 32, 20)])  # IoU .94, .5, .63
    match = TaskAlignedAssigner(top_k=2)(scores, boxes, pred, truth)
    assert match.positive[0].nonzero()[:, 0].tolist() == [2, 9]
    scores[0, 9, 0] = 0.01  # .01 * .63^6 < .5 * .5^6
    match = TaskAlignedAssigner(top_k=2)(scores, boxes, pred, truth)
    assert match.positive[0].nonzero()[:, 0].tolist() == [2, 7]
    scores[0, 9] = torch.tensor([0.01, 1, 1])  # the scores of other classes do not count
    match = TaskAlignedAssigner(top_k=2)(scores, boxes, pred, truth)
    assert match.positive[0].nonzero()[:, 0].tolist() == [2, 7]


def test_equal_metrics_are_ranked_by_distance_then_index():
    scores, boxes, pred = one_level()
    truth = make_truth(
        [(0, 0, 30, 30)]
    )  # centre (15, 15): (12, 12) is 4.2 px away, (12, 20) and (20, 12) 5.8 px
    for top_k, expected in ((1, [5]), (2, [5, 6]), (3, [5, 6, 9]), (4, [5, 6, 9, 10])):
        match = TaskAlignedAssigner(top_k=top_k)(scores, boxes, pred, truth)
        assert match.positive[0].nonzero()[:, 0].tolist() == expected
    match = TaskAlignedAssigner(top_k=99)(scores, boxes, pred, truth)
    assert match.positive.all()


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
    match = TaskAlignedAssigner(top_k=5)(scores, boxes, pred, truth)
    assert not without_point(owners(match), truth).any()


def test_top_k_counts_over_all_levels():
    truth = make_truth([(100, 100, 300, 300)])
    for top_k in (1, 5, 13):
        match, _ = assign_fresh(truth, top_k=top_k)
        assert match.positive.sum() == top_k


@pytest.mark.parametrize("reg_max", [3, 15])
@pytest.mark.parametrize("size", [(320, 320), (192, 448)])
@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 8, 16, 32, 64)])
def test_positives_can_be_expressed(size, strides, reg_max):
    random = np.random.default_rng(5)
    corner = random.uniform(0, 0.7, (1, 12, 2)) * size[::-1]
    boxes = np.concatenate((corner, corner + random.uniform(strides[0], 120, (1, 12, 2))), -1)
    match, pred = assign_fresh(make_truth(boxes), size, strides, reg_max=reg_max)
    ltrb = boxes_to_ltrb(match.boxes, pred.points, pred.strides)[match.positive]
    fits = (ltrb.amax(-1) <= reg_max) & (ltrb.amin(-1) >= 0)
    assert fits.float().mean() > 0.9
    # The others are the only points of truths without a candidate: thin boxes between points.
    owner = match.truth[match.positive]
    assert torch.bincount(owner, minlength=12)[owner[~fits]].eq(1).all()
    assert torch.bincount(owner, minlength=12).min() >= 1


def test_a_box_over_the_whole_picture():
    match, pred = assign_fresh(make_truth([(0, 0, 640, 640)]))
    assert match.positive.sum() == 13
    assert (
        pred.strides[match.positive[0]].eq(32).all()
    )  # P3 reaches 120 px and P4 240 px, the sides are 320 px off
    ltrb = boxes_to_ltrb(match.boxes, pred.points, pred.strides)[match.positive]
    assert ltrb.min() >= 0 and ltrb.max() <= 15


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 40, 30),
        (600, 610, 640, 640),
        (0, 300, 9, 330),
        (620, 0, 640, 640),
        (0, 0, 640, 12),
    ],
)
def test_a_box_at_the_border(box):
    match, pred = assign_fresh(make_truth([box]))
    assert match.positive.any()
    assert match.boxes[match.positive].eq(torch.tensor(box)).all()
    assert boxes_to_ltrb(match.boxes, pred.points, pred.strides)[match.positive].max() <= 15


@pytest.mark.parametrize("corner", [(0, 0), (3, 3), (7.5, 7.5), (100.2, 333.3), (638, 638), (319, 321)])
@pytest.mark.parametrize("side", [0, 0.5, 2])
def test_a_tiny_box_gets_a_point_next_to_it(corner, side):
    box = (*corner, corner[0] + side, corner[1] + side)
    match, pred = assign_fresh(make_truth([box]))
    assert match.positive.any()
    points = pred.points[match.positive[0] & (pred.strides[:, 0] == 8)]
    assert len(points)
    centre = torch.tensor(corner) + side / 2
    assert (points - centre).abs().amax(1).min() <= 4  # the point of the cell that holds its centre


def test_boxes_beyond_the_corners_of_the_picture():
    boxes = [
        (-30, -30, 20, 20),
        (630, 630, 700, 700),
        (-9, 635, 3, 700),
        (650, 650, 660, 660),
        (-90, -90, -50, -50),
    ]
    match, pred = assign_fresh(make_truth(boxes))
    assert not without_point(owners(match), make_truth(boxes)).any()
    # The last is wholly outside. The first one has the nine points of P3 up to (20, 20): (28, 4) is nearest.
    assert pred.points[owners(match)[0] == 4].tolist() == [[28, 4]]
    assert (pred.points[owners(match)[0] == 3] >= 600).all()


def test_300_boxes():
    random = np.random.default_rng(6)
    corner = random.uniform(0, 620, (1, 300, 2))
    boxes = np.concatenate((corner, corner + random.uniform(2, 60, (1, 300, 2))), -1)
    truth = make_truth(boxes, labels=random.integers(0, CLASSES, (1, 300)))
    match, _ = assign_fresh(truth)
    assert not without_point(owners(match), truth).any()
    assert torch.equal(owners(match)[0].unique(), torch.arange(-1, 300))


def test_300_identical_tiny_boxes():
    truth = make_truth([(321, 321, 323, 323)] * 300)
    match, _ = assign_fresh(truth)
    assert torch.equal(owners(match)[0].unique(), torch.arange(-1, 300))


def test_300_tiny_boxes_in_one_corner_get_points_nearby():
    random = np.random.default_rng(7)
    corner = random.uniform(0, 160, (1, 300, 2))  # 400 points of P3 there
    truth = make_truth(np.concatenate((corner, corner + 2), -1))
    match, pred = assign_fresh(truth)
    assert not without_point(owners(match), truth).any()
    centre = (match.boxes[..., :2] + match.boxes[..., 2:]) / 2
    far = (pred.points - centre)[match.positive].abs().amax(-1)
    assert far.median() <= 8 and far.max() <= 64


def test_more_truths_than_points():
    truth = make_truth([(10, 10, 20, 20)] * 30)  # 16 + 4 + 1 points
    match, _ = assign_fresh(truth, (32, 32))
    assert match.positive.all()
    # In the box lie (12, 12), (20, 12), (12, 20), (20, 20) of P3, none of P4, (16, 16) of P5. The first
    # truth takes these 5, and one truth each the other 16 points.
    assert len(match.truth.unique()) == 17
    assert without_point(owners(match), truth).sum() == 13


def test_no_boxes():
    truth = make_truth([[(0, 0, 1, 1)]] * 3, valid=False)
    match, _ = assign_fresh(truth, (64, 96))
    assert not match.positive.any() and not match.ignored.any()
    assert match.truth.eq(0).all() and match.boxes.eq(torch.tensor([0.0, 0, 1, 1])).all()


def test_ignore_regions_are_never_positive():
    truth = make_truth([(100, 100, 300, 300), (150, 150, 200, 200)], ignore=[True, False])
    match, pred = assign_fresh(truth)
    assert match.positive.any() and match.truth[match.positive].eq(1).all()
    inside = ((pred.points >= 100) & (pred.points <= 300)).all(1)
    assert torch.equal(match.ignored[0], inside)
    alone, _ = assign_fresh(make_truth([(150, 150, 200, 200)]))
    assert torch.equal(alone.positive, match.positive)  # the region takes nothing from the truth inside it


def test_a_box_larger_than_any_level_gets_the_coarsest():
    match, pred = assign_fresh(make_truth([(0, 0, 640, 640)]), reg_max=3)
    assert match.positive.sum() == 1
    assert pred.strides[match.positive[0]].item() == 32
    assert (pred.points[match.positive[0]] - 320).abs().max() <= 16


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES[:5])
def test_order_of_pictures_and_truths_and_padding_change_nothing(size, strides, reg_max, crowd, seed):
    scores, boxes, pred, truth = random_scene(size, strides, reg_max, seed=seed, **crowd)
    if crowd:  # keep the truths that own a point by merit: who comes first decides only among the leftovers
        scores, boxes = scores.clamp(min=0.01), boxes.clone()
    assign = TaskAlignedAssigner()
    match = assign(scores, boxes, pred, truth)

    swapped = assign(scores.flip(0), boxes.flip(0), pred, Targets(*(tensor.flip(0) for tensor in truth)))
    for mine, theirs in zip(match, swapped, strict=True):
        assert torch.equal(mine.flip(0), theirs)

    junk = torch.tensor([[0.0, 0, *size[::-1]], [5, 5, 9, 9], [0, 0, 0, 0]]).expand(len(scores), 3, 4)
    none = torch.zeros(junk.shape[:2], dtype=torch.bool)
    padded = Targets(
        *(torch.cat(pair, 1) for pair in zip(truth, (junk, none.long(), none, ~none), strict=True))
    )
    for mine, theirs in zip(match, assign(scores, boxes, pred, padded), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES[:4])
def test_order_of_truths_changes_nothing_but_ties(size, strides, reg_max, crowd, seed):
    scores, boxes, pred, truth = random_scene(size, strides, reg_max, seed=seed, count=5)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    moved = Targets(*(tensor[:, order] for tensor in truth))
    match, other = (
        TaskAlignedAssigner()(scores, boxes, pred, truth),
        TaskAlignedAssigner()(scores, boxes, pred, moved),
    )
    assert torch.equal(match.positive, other.positive)
    assert torch.equal(match.ignored, other.ignored)
    assert torch.equal(match.boxes, other.boxes)
    assert torch.equal(match.labels[match.positive], other.labels[match.positive])
    assert torch.equal(owners(match), torch.cat((order, torch.tensor([-1])))[owners(other)])


def test_the_batch_is_assigned_picture_by_picture():
    scores, boxes, pred, truth = random_scene((64, 96), (8, 16, 32), 15, seed=1, batch=4)
    match = TaskAlignedAssigner()(scores, boxes, pred, truth)
    for b in range(4):
        one = TaskAlignedAssigner()(
            scores[b : b + 1], boxes[b : b + 1], pred, Targets(*(tensor[b : b + 1] for tensor in truth))
        )
        for mine, theirs in zip(match, one, strict=True):
            assert torch.equal(mine[b : b + 1], theirs)


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
