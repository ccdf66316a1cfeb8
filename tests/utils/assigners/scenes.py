"""What the tests of the assigners share: small scenes, and the slow form of what all assigners do alike."""

import numpy as np
import pytest
import torch

from utils.geometry.anchor_points import make_anchor_points
from utils.structures import Assignment, Predictions, Targets

CLASSES = 3
SCENES = [  # height and width, strides, reg_max, options of random_scene
    pytest.param((64, 96), (8, 16, 32), 15, {}, id="64x96"),
    pytest.param((64, 96), (8, 16, 32), 3, {}, id="64x96 reg_max 3"),
    pytest.param((192, 128), (4, 8, 16, 32, 64), 15, {}, id="192x128 P2-6"),
    pytest.param((192, 128), (4, 8, 16, 32, 64), 3, {}, id="192x128 P2-6 reg_max 3"),
    pytest.param((96, 320), (8, 16, 32), 3, {"count": 40, "largest": 0.3}, id="96x320 crowded"),
    pytest.param((64, 64), (8, 16, 32), 15, {"count": 60, "largest": 0.4}, id="64x64 very crowded"),
    pytest.param((64, 64), (8, 16, 32), 2, {"count": 100, "batch": 1}, id="64x64: more truths than points"),
]


def make_pred(size, strides=(8, 16, 32), *, reg_max=15, batch=1) -> Predictions:
    levels = tuple((size[0] // stride, size[1] // stride, stride) for stride in strides)
    points, cells = make_anchor_points([level[:2] for level in levels], strides)
    logits = torch.zeros(batch, len(points), CLASSES)
    return Predictions(logits, torch.zeros(batch, len(points), 4, reg_max + 1), points, cells, levels)


def make_truth(boxes, *, labels=None, valid=None, ignore=None) -> Targets:
    """Targets of one picture, or of a batch, from nested lists or an array of boxes."""
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


def one_level(batch=1):
    """4 x 4 points of stride 8, at 4, 12, 20, 28; all scores .5, and predictions that miss everything."""
    pred = make_pred((32, 32), (8,), batch=batch)
    return torch.full((batch, 16, CLASSES), 0.5), torch.full((batch, 16, 4), -9.0), pred


def start_of_training(truth, size=(640, 640), strides=(8, 16, 32), *, reg_max=15):
    """All scores 0.01, every prediction 2.7 strides to each side."""
    pred = make_pred(size, strides, reg_max=reg_max, batch=len(truth.labels))
    reach = 2.7 * pred.strides
    boxes = torch.cat((pred.points - reach, pred.points + reach), -1).expand(len(truth.labels), -1, 4)
    return torch.full_like(pred.cls_logits, 0.01), boxes, pred, truth


def owners(match: Assignment):
    """(B, A) the truth of every point, -1 for none."""
    return match.truth.where(match.positive, -1)


def points_of(match: Assignment, truth: int = 0) -> list[int]:
    """The points of one truth of the first picture."""
    return (owners(match)[0] == truth).nonzero()[:, 0].tolist()


def reference(scene, choose, *, reach=None):
    """(B, A) the truth of every point, -1 for none: as docs/loss.md words it, with plain loops.

    ``choose(scene, b, m, candidates, distance)`` gives ``{point: metric}`` of what a truth wants; candidates
    are its points in order, ``distance`` (A,) the squared ones to its centre.
    """
    scores, _, pred, truth = scene
    reach = pred.ltrb_logits.shape[-1] - 1 if reach is None else reach
    points, strides = pred.points.double().numpy(), pred.strides[:, 0].double().numpy()
    owner = np.full(scores.shape[:2], -1)
    for b in range(len(scores)):
        best, wishes = {}, {}
        for m in (m for m in range(truth.labels.shape[1]) if truth.valid[b, m] and not truth.ignore[b, m]):
            box = truth.boxes[b, m].double().numpy()
            centre = (box[:2] + box[2:]) / 2
            distance = ((points - centre) ** 2).sum(1)
            half = np.maximum((box[2:] - box[:2]) / 2, strides.min() / 2)
            gaps = np.concatenate((points - (centre - half), centre + half - points), 1)
            candidates = np.flatnonzero((gaps.min(1) >= 0) & (gaps.max(1) <= reach * strides)).tolist()
            for a, metric in choose(scene, b, m, candidates, distance).items():
                bid = -metric, distance[a], m
                best[a] = min(best.get(a, bid), bid)
            wishes[m] = wishes_of(box, points, strides, reach)
        for a, (_, _, m) in best.items():
            owner[b, a] = m
        serve_the_rest(owner[b], wishes)
    return owner


def wishes_of(box, points, strides, reach):
    """Points, most wanted first: finest level that can express the box, else coarsest; then nearest."""
    longest = np.concatenate((points - box[:2], box[2:] - points), 1).max(1)
    level = np.where(longest <= reach * strides, strides, 1e6 - strides)
    distance = ((points - (box[:2] + box[2:]) / 2) ** 2).sum(1)
    return np.lexsort((distance, level)).tolist()


def serve_the_rest(owner, wishes):
    """In place, one picture: truths without a point get the nearest free one, in turn if several want it."""
    for _ in range(8):
        bids, turns = {}, {}
        for m, wished in wishes.items():
            free = [a for a in wished if owner[a] < 0] if m not in owner else []
            if free:
                turn = turns[free[0]] = turns.get(free[0], -1) + 1
                if turn < len(free):
                    bids.setdefault(free[turn], m)
        for a, m in bids.items():
            owner[a] = m
    for m in wishes:
        free = np.flatnonzero(owner < 0)
        if m not in owner and len(free):
            owner[free[0]] = m
