"""What an assigner did in an epoch: how much each size of truth was given, and which targets the bins cut.

B images, M padded truths, A anchor points, L levels. Boxes are xyxy px of the input, distances strides. A
truth is *small* below 32^2 px^2, *large* from 96^2 on, *medium* between: COCO's limits, but on the input.
"""

import math

import torch
from torch import Tensor

from utils.assigners.candidates import Levels
from utils.geometry.boxes import box_area
from utils.geometry.ltrb import boxes_to_ltrb
from utils.structures import Assignment, Predictions, Targets
from utils.training.distributed import global_sum

SIZES = ("small", "medium", "large")
_LIMITS = (32**2, 96**2)  # px^2
_FACTS = ("boxes", "positives_per_box", "fallback", "unmatched")
COLUMNS = (  # of assignment.csv: the epoch, and the keys of ``row``
    "epoch",
    *(f"{size}/{fact}" for size in SIZES for fact in _FACTS),
    *("unmatched", "unrepresentable", "saturated"),
)


class AssignmentStatistics:
    """Counts of one epoch, all in ``counts`` on ``device``; nothing is read from it before ``row``."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(len(SIZES) * len(_FACTS) + 3, dtype=torch.int64, device=device)
        self._by_size = self.counts[:-3].view(len(SIZES), len(_FACTS))
        self._overall = self.counts[-3:]

    @torch.no_grad()
    def add(self, match: Assignment, truth: Targets, pred: Predictions, reach: int) -> None:
        """Count one step's assignment; ``reach`` is that of the assigner, in strides."""
        wanted = truth.valid & ~truth.ignore
        points = torch.zeros_like(truth.labels).scatter_add_(1, match.truth, match.positive.long())
        facts = torch.stack((wanted.long(), points, match.fallback.long(), (wanted & (points == 0)).long()))
        area = box_area(truth.boxes)
        size = (area >= _LIMITS[0]).long() + (area >= _LIMITS[1])
        self._by_size += torch.stack([(facts * (size == s)).sum((1, 2)) for s in range(len(SIZES))])

        sides = boxes_to_ltrb(match.boxes, pred.points, pred.strides)
        beyond = (sides > reach - 0.5) & match.positive.unsqueeze(-1)
        lost = wanted & ~expressible(truth.boxes, pred.levels, reach)
        self._overall += torch.stack((lost.sum(), beyond.sum(), 4 * match.positive.sum()))

    def row(self) -> dict[str, float]:
        """The epoch over all ranks, keys always the same; nan where there is nothing to divide by.

        A collective, and the only reading from the device. For each of ``SIZES``: ``boxes``, their number;
        ``positives_per_box``; ``fallback`` and ``unmatched``, the shares of the boxes that were left a point
        no rule gave them, and that own none. Over all sizes: ``unmatched``; ``unrepresentable``, the share of
        the boxes that no level can express, as the doctor counts them; ``saturated``, the share of the
        positives' true sides beyond reach - 1/2 strides, where the last bin holds most of the target.
        """
        by_size = global_sum(self._by_size).tolist()
        unrepresentable, beyond, sides = global_sum(self._overall).tolist()
        values = []
        for boxes, points, fallback, unmatched in by_size:
            values += [float(boxes), *(_share(part, boxes) for part in (points, fallback, unmatched))]
        total, without = (sum(counts[i] for counts in by_size) for i in (0, 3))
        values += [_share(without, total), _share(unrepresentable, total), _share(beyond, sides)]
        return dict(zip(COLUMNS[1:], values, strict=True))


def expressible(boxes: Tensor, levels: Levels, reach: int) -> Tensor:
    """(B, M) bool: truths that have a candidate on some level, as ``find_candidates`` and the doctor see it.

    The axes are independent, and the cell centre nearest the box's centre is the best there is, so no window
    of cells is built.
    """
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = (boxes[..., 2:] - boxes[..., :2]).clamp(min=levels[0][2]) / 2
    able = torch.zeros(boxes.shape[:-1], dtype=torch.bool, device=boxes.device)
    for height, width, stride in levels:
        cells = (centre / stride).floor()
        cells = torch.stack((cells[..., 0].clamp(0, width - 1), cells[..., 1].clamp(0, height - 1)), -1)
        gap = (centre - (cells + 0.5) * stride).abs()
        able |= ((gap <= half) & (gap + half <= reach * stride)).all(-1)
    return able


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
