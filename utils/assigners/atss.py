"""Adaptive training sample selection (arXiv:1912.02424, algorithm 1).

B images, M padded truths, A anchor points, N of them near a truth, over all levels.
"""

import math

import torch
from torch import Tensor

from utils.assigners.candidates import Candidates, award, find_candidates, rank_key, reach_of
from utils.assigners.finish import finish
from utils.geometry.boxes import aligned_iou
from utils.structures import Assignment, Predictions, Targets

_ANCHOR = 8  # strides: the side of the square that stands for a point, as in the paper
_ROUNDING = 1e-5  # of mean + deviation, which IoUs may equal exactly: half of them a, the others b


class ATSSAssigner:
    """Each truth takes the points whose anchor overlaps it more than is usual about its centre.

    On each level the ``top_k`` points nearest the truth's centre are looked at; the threshold is the mean
    plus the (population's) standard deviation of the IoUs of their anchors, squares of 8 strides about the
    point, over all levels. Those that reach it and may answer (``find_candidates``) are positive. A point
    wanted by several truths goes to the one of the highest IoU. Predictions play no part.

    Deviation from the paper: the range mask takes the place of its last condition, that a point lies inside
    the truth. It cannot come before the threshold: most of the points inside a small truth lie on the finest
    level and have the same IoU, and mean plus deviation would lie above it. The same happens, on three
    levels, to a truth whose size lies midway between two levels' anchors: it is left to the fallback.
    """

    def __init__(self, *, top_k: int = 9, num_levels: int = 3, reach: int | None = None):
        self.top_k, self.num_levels, self.reach = top_k, num_levels, reach
        self.most_per_truth = max(top_k, 1) * num_levels
        # Half a disc of this radius, all that is left of one at the border, holds top_k cells.
        self._window = math.ceil(2 * (math.sqrt(2 * top_k / math.pi) + 1))

    def __call__(self, scores: Tensor, boxes: Tensor, pred: Predictions, truth: Targets) -> Assignment:
        """Assign by position alone; ``scores`` lends the number of points, ``boxes`` (B, A, 4) nothing."""
        assert len(pred.levels) <= self.num_levels, "most_per_truth would be too small"
        reach = reach_of(pred, self.reach)
        candidates = find_candidates(truth, pred.levels, reach, window=self._window)
        parts = zip(*(_nearest(level, self.top_k) for level in candidates), strict=True)
        point, allowed, distance = (torch.cat(part, -1) for part in parts)
        iou = _anchor_iou(point, pred, truth.boxes)
        threshold = iou.mean(-1, keepdim=True) + iou.std(-1, correction=0, keepdim=True)
        wanted = allowed & (iou >= threshold - _ROUNDING)
        owner = award(wanted, point, iou, distance, num_points=scores.shape[1])
        return finish(owner, truth, pred.levels, reach)


def _nearest(level: Candidates, top_k: int) -> tuple[Tensor, ...]:
    """(B, M, N) point, allowed and squared distance px^2 of the level's ``top_k`` nearest, allowed or not."""
    count = level.index.shape[-1]
    place = torch.arange(count, device=level.index.device)
    key = rank_key(torch.zeros_like(level.distance), level.distance, place, count)
    place = key.topk(min(top_k, count), sorted=False).indices
    return tuple(values.gather(-1, place) for values in level)


def _anchor_iou(point: Tensor, pred: Predictions, boxes: Tensor) -> Tensor:
    """(B, M, N) IoU of the truths (B, M, 4) with the anchors of their points."""
    middle, half = pred.points[point], _ANCHOR / 2 * pred.strides[point]
    return aligned_iou(torch.cat((middle - half, middle + half), -1), boxes.unsqueeze(2))
