"""Task-aligned assignment (arXiv:2108.07755, section 3.2).

B images, M padded truths, A anchor points, C classes.
"""

import torch
from torch import Tensor

from utils.assigners.candidates import find_candidates, finish, key_index, rank_key, settle
from utils.config import AssignerConfig
from utils.geometry.boxes import aligned_iou
from utils.structures import Assignment, Predictions, Targets


class TaskAlignedAssigner:
    """Each truth takes its ``top_k`` candidates of largest score^alpha * IoU^beta.

    Candidates lie inside the truth *and* can express it with their bins (``find_candidates``). Equal metrics,
    as at the start of training, are ranked by distance to the centre. A point wanted by several truths goes
    to the one for which its metric is largest. Every truth gets a point while there are free ones
    (``finish``).
    """

    def __init__(self, *, top_k: int = 13, alpha: float = 1.0, beta: float = 6.0):
        self.top_k, self.alpha, self.beta = top_k, alpha, beta
        self.most_per_truth = max(top_k, 1)

    def __call__(self, scores: Tensor, boxes: Tensor, pred: Predictions, truth: Targets) -> Assignment:
        """Assign by detached scores (B, A, C) in [0, 1] and decoded boxes (B, A, 4) xyxy px."""
        batch, num_points, num_classes = scores.shape
        num_truths, reach = truth.labels.shape[1], pred.ltrb_logits.shape[-1] - 1
        candidates = find_candidates(truth, pred.levels, reach)
        # Rows of the batch's points laid end to end; in place, as fresh memory is what costs time here.
        first = torch.arange(batch, device=boxes.device).view(-1, 1, 1) * num_points
        row = (candidates.index + first).flatten()
        near = boxes.flatten(0, 1).index_select(0, row).view(*candidates.index.shape, 4)
        labels = truth.labels.clamp(min=0).unsqueeze(-1).expand_as(candidates.index).flatten()
        score = scores.flatten().index_select(0, row.mul_(num_classes).add_(labels)).view_as(candidates.index)
        iou = aligned_iou(near, truth.boxes.unsqueeze(2))
        metric = iou.pow_(self.beta).mul_(score.float().pow_(self.alpha))

        num_candidates = metric.shape[-1]
        key = rank_key(metric, candidates.distance, _arange_like(metric), num_candidates)
        key.masked_fill_(~candidates.allowed, -1)
        best, place = key.topk(min(self.top_k, num_candidates), sorted=False)

        number = _arange_like(truth.labels).unsqueeze(-1)
        bid = rank_key(metric.gather(-1, place), candidates.distance.gather(-1, place), number, num_truths)
        point = candidates.index.gather(-1, place)
        won = settle(point.flatten(1), bid.where(best >= 0, -1).flatten(1), num_points)
        owner = key_index(won, num_truths).where(won >= 0, -1)
        return finish(owner, truth, pred.levels, reach)


def build_assigner(cfg: AssignerConfig) -> TaskAlignedAssigner:
    """The assigner that a configuration names."""
    return TaskAlignedAssigner(top_k=cfg.top_k, alpha=cfg.alpha, beta=cfg.beta)


def _arange_like(tensor: Tensor) -> Tensor:
    """The numbers of the last axis's places."""
    return torch.arange(tensor.shape[-1], device=tensor.device)
