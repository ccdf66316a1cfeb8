"""The training loss of a batch. B images, A anchor points, C classes, R bins, P positives; boxes xyxy px."""

from typing import Protocol

import torch
from torch import Tensor

from utils.config import LossConfig
from utils.geometry.boxes import aligned_ciou, aligned_iou
from utils.geometry.ltrb import boxes_to_ltrb, integral, ltrb_to_boxes
from utils.losses.distribution import distribution_focal_loss
from utils.losses.quality import quality_focal_loss
from utils.structures import Assignment, Predictions, Targets
from utils.training.distributed import global_sum, world_size


class Assigner(Protocol):
    """Says which truth each anchor point answers for, from detached scores (B, A, C) and boxes (B, A, 4)."""

    most_per_truth: int  # no truth gets more points than this

    def __call__(self, scores: Tensor, boxes: Tensor, pred: Predictions, truth: Targets) -> Assignment: ...


def compute_loss(
    pred: Predictions, truth: Targets, assign: Assigner, cfg: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one batch: ``(total, terms)``; ``total`` is the sum of the weighted ``terms``.

    * ``quality``: QFL at every anchor point; the target at a positive's class is its decoded box's IoU, else
      0.
    * ``box``: 1 - CIoU of the boxes decoded by the integral, at the positives.
    * ``dfl``: DFL of the four sides, their mean, at the positives; a target beyond the bins is clipped.

    The last two are weighted by the positive's quality (``loss.box_weight``). All terms share one normaliser
    N (``loss.normaliser``): the sum of the qualities, or the number of positives, over all ranks, at least 1,
    divided by the ranks. Without truths the box terms are 0 and keep the graph. Half types are promoted to
    float32 on entry; float64 stays float64.
    """
    pred = pred._replace(cls_logits=_promote(pred.cls_logits), ltrb_logits=_promote(pred.ltrb_logits))
    with torch.no_grad():
        decoded = ltrb_to_boxes(integral(pred.ltrb_logits), pred.points, pred.strides)
        match = assign(pred.cls_logits.sigmoid(), decoded, pred, truth)
    index, positive = gather_positives(match.positive, truth.labels.shape[1] * assign.most_per_truth)
    points, strides, true_boxes = pred.points[index], pred.strides[index], _take(match.boxes, index)
    ltrb_logits = _take(pred.ltrb_logits, index)  # (B, P, 4, R)
    boxes = ltrb_to_boxes(integral(ltrb_logits), points, strides)

    quality = aligned_iou(boxes.detach(), true_boxes) * positive  # (B, P)
    share = quality if cfg.normaliser == "quality" else positive.to(quality.dtype)
    normaliser = global_sum(share.sum()).clamp(min=1) / world_size()
    weight = quality if cfg.box_weight == "quality" else positive.to(quality.dtype)

    target = torch.zeros_like(pred.cls_logits)
    place = index * target.shape[2] + match.labels.gather(1, index)
    target.flatten(1).scatter_add_(1, place, quality.to(target.dtype))
    per_point = {
        "quality": quality_focal_loss(pred.cls_logits, target, cfg.beta, cfg.alpha).sum(-1)
        * (match.positive | ~match.ignored),
        "box": (1 - aligned_ciou(boxes, true_boxes)) * weight,
        "dfl": distribution_focal_loss(ltrb_logits, boxes_to_ltrb(true_boxes, points, strides)).mean(-1)
        * weight,
    }
    gains = {"quality": cfg.quality, "box": cfg.box, "dfl": cfg.dfl}
    terms = {name: gains[name] * values.sum() / normaliser for name, values in per_point.items()}
    return sum(terms.values()), terms


def gather_positives(positive: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(B, A) mask -> the positives' points, in order, (B, P) int64, and which of the P are real, (B, P) bool.

    P is ``most``, or A if that is less: a size known beforehand, so a GPU is not asked how many there are (on
    a CPU P is as small as it can be). The rest of a row is point 0, not real.
    """
    batch, num_points = positive.shape
    most = min(most, num_points)
    if positive.device.type == "cpu":  # where it costs nothing to ask
        most = min(most, max(1, int(positive.sum(1).max())))
    slot = (positive.cumsum(1) - 1).where(positive, most)
    points = torch.arange(num_points, device=positive.device).expand(batch, -1)
    index = torch.zeros(batch, most + 1, dtype=torch.int64, device=positive.device).scatter_(1, slot, points)
    real = torch.arange(most, device=positive.device) < positive.sum(1, keepdim=True)
    return index[:, :most] * real, real


def _take(values: Tensor, index: Tensor) -> Tensor:
    """(B, A, ...) at (B, P) -> (B, P, ...)."""
    shape = values.shape[2:]
    return values.gather(1, index.view(*index.shape, *(1,) * len(shape)).expand(*index.shape, *shape))


def _promote(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
