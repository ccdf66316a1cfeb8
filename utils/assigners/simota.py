"""Dynamic-k assignment by cost: SimOTA (arXiv:2107.08430, section 2.1) with soft labels (arXiv:2212.07784).

B images, M padded truths, A anchor points, K candidates of a truth.
"""

import torch
from torch import Tensor

from utils.assigners.candidates import award, find_candidates, in_blocks, pick, rate_candidates, reach_of
from utils.assigners.finish import finish
from utils.structures import Assignment, Predictions, Targets

_EPS = 1e-7  # keeps -log IoU finite
_LOWEST_LOG = -100.0  # of a score of 0 or 1, which a saturated sigmoid gives


class SimOTAAssigner:
    """Each truth takes its k cheapest candidates; k is the sum of its ``top_k`` best IoUs, at least 1.

    cost = BCE(score, IoU) * |IoU - score|^2 + iou_weight * -log IoU (arXiv:2212.07784, section 3.3), with
    the score of the truth's class. A point wanted by several truths goes to the one for which it is cheapest.

    Deviations: candidates are those of ``find_candidates`` in place of the paper's centre region or centre
    prior, and the class cost leaves out the other classes, whose soft label is 0. Equal costs are ranked by
    distance to the centre, then by index.
    """

    def __init__(self, *, top_k: int = 13, iou_weight: float = 3.0, reach: int | None = None):
        self.top_k, self.iou_weight, self.reach = top_k, iou_weight, reach
        self.most_per_truth = max(top_k, 1)

    def __call__(self, scores: Tensor, boxes: Tensor, pred: Predictions, truth: Targets) -> Assignment:
        """Assign by detached scores (B, A, C) in [0, 1] and decoded boxes (B, A, 4) xyxy px."""
        reach = reach_of(pred, self.reach)

        def choose(some: Targets) -> tuple[Tensor, ...]:
            candidates, metrics, ious = find_candidates(some, pred.levels, reach), [], []
            for level in candidates:
                score, iou = rate_candidates(level, scores, boxes, some)
                metrics.append(1 / (1 + assignment_cost(score, iou, self.iou_weight)))
                ious.append(_largest(iou * level.allowed, self.top_k))
            number = _largest(torch.cat(ious, -1), self.top_k).sum(-1, keepdim=True).long().clamp(min=1)
            real, *picked = pick(candidates, metrics, self.top_k)
            return real & (torch.arange(real.shape[-1], device=real.device) < number), *picked

        owner = award(*in_blocks(choose, truth), num_points=scores.shape[1])
        return finish(owner, truth, pred.levels, reach)


def _largest(values: Tensor, count: int) -> Tensor:
    """Up to ``count`` of the last axis, the largest first."""
    return values.topk(min(count, values.shape[-1])).values


def assignment_cost(score: Tensor, iou: Tensor, iou_weight: float) -> Tensor:
    """(...) cost, finite and not negative, of a point of this score and IoU, both in [0, 1]."""
    yes, no = (part.log().clamp_(min=_LOWEST_LOG) for part in (score, 1 - score))
    entropy = -(iou * yes + (1 - iou) * no)
    return entropy * (iou - score).square() - iou_weight * (iou + _EPS).log().clamp_(max=0)
