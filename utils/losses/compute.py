"""The training loss of a batch. B images, A anchor points, C classes, R bins; boxes xyxy in input pixels."""

from collections.abc import Callable

import torch
from torch import Tensor

from utils.config import LossConfig
from utils.geometry.boxes import aligned_ciou, aligned_iou
from utils.geometry.ltrb import boxes_to_ltrb, integral, ltrb_to_boxes
from utils.losses.distribution import distribution_focal_loss
from utils.losses.quality import quality_focal_loss
from utils.structures import Assignment, Predictions, Targets
from utils.training.distributed import global_sum, world_size

Assigner = Callable[[Tensor, Tensor, Predictions, Targets], Assignment]


def compute_loss(
    pred: Predictions, truth: Targets, assign: Assigner, cfg: LossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of one batch: ``(total, terms)``; ``total`` is the sum of the weighted ``terms``.

    * ``quality``: QFL at every anchor point; the target at a positive's class is the IoU of its decoded box,
      0 elsewhere.
    * ``box``: 1 - CIoU of the boxes decoded by the integral, at the positives.
    * ``dfl``: DFL of the four sides, their mean, at the positives; a target beyond the bins is clipped.

    The last two are weighted by the positive's quality (``loss.box_weight``). All terms share one normaliser
    N (``loss.normaliser``): the sum of the qualities, or the number of positives, over all ranks, at least 1,
    divided by the ranks. Without truths the box terms are 0 and keep the graph. Half types are promoted to
    float32 on entry; float64 stays float64.
    """
    pred = pred._replace(cls_logits=_promote(pred.cls_logits), ltrb_logits=_promote(pred.ltrb_logits))
    boxes = ltrb_to_boxes(integral(pred.ltrb_logits), pred.points, pred.strides)
    match = assign(pred.cls_logits.detach().sigmoid(), boxes.detach(), pred, truth)

    quality = aligned_iou(boxes.detach(), match.boxes) * match.positive
    share = quality if cfg.normaliser == "quality" else match.positive.to(quality.dtype)
    normaliser = global_sum(share.sum()).clamp(min=1) / world_size()
    weight = quality if cfg.box_weight == "quality" else match.positive.to(quality.dtype)

    target = torch.zeros_like(pred.cls_logits).scatter_(2, match.labels.unsqueeze(-1), quality.unsqueeze(-1))
    counted = (~match.ignored | match.positive).unsqueeze(-1)
    ltrb = boxes_to_ltrb(match.boxes, pred.points, pred.strides)
    per_point = {
        "quality": quality_focal_loss(pred.cls_logits, target, cfg.beta, cfg.alpha) * counted,
        "box": (1 - aligned_ciou(boxes, match.boxes)) * weight,
        "dfl": distribution_focal_loss(pred.ltrb_logits, ltrb).mean(-1) * weight,
    }
    gains = {"quality": cfg.quality, "box": cfg.box, "dfl": cfg.dfl}
    terms = {name: gains[name] * values.sum() / normaliser for name, values in per_point.items()}
    return sum(terms.values()), terms


def _promote(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
