"""The training loss of a batch. B images, A anchor points, C classes, R bins, P positives; boxes xyxy px."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from utils.assigners.finish import places_of
from utils.config import LossConfig
from utils.geometry.boxes import aligned_iou
from utils.geometry.ltrb import boxes_to_ltrb, decode_sides, ltrb_to_boxes
from utils.losses.boxes import box_loss
from utils.losses.distribution import distribution_focal_loss
from utils.losses.quality import class_loss
from utils.structures import Assignment, Predictions, Targets
from utils.training.distributed import global_sum, world_size


class Assigner(Protocol):
    """Says which truth each anchor point answers for, from detached scores (B, A, C) and boxes (B, A, 4)."""

    most_per_truth: int  # no truth gets more points than this

    def __call__(self, scores: Tensor, boxes: Tensor, pred: Predictions, truth: Targets) -> Assignment: ...


class Loss(NamedTuple):
    """``total`` is the sum of the weighted ``terms``; the rest, without gradient, is for looking inside."""

    total: Tensor  # ()
    terms: dict[str, Tensor]  # "quality", "box", "dfl", each ()
    match: Assignment
    class_loss: Tensor  # (B, A) unweighted, summed over the classes
    iou: Tensor  # (B, P) of the positives' decoded boxes; 0 where there is none
    normaliser: Tensor  # () what the terms are divided by, before it is raised to 1 / ranks


def compute_loss(pred: Predictions, truth: Targets, assign: Assigner, cfg: LossConfig) -> Loss:
    """Loss of one batch, of three terms.

    * ``quality``: the class loss (``loss.quality_loss``, QFL by default) at every anchor point; the target at
      a positive's class is its quality (``loss.target``, the IoU of its decoded box by default), else 0.
    * ``box``: the box loss (``loss.box_loss``, 1 - CIoU by default) of the decoded boxes, at the positives.
    * ``dfl``: DFL of the four sides, their mean, at the positives; a target beyond the bins is clipped. 0
      where the model has no bins.

    The last two are weighted by the positive's quality (``loss.box_weight``). All terms share one normaliser
    N (``loss.normaliser``): the sum of the qualities, or the number of positives, over all ranks, at least 1,
    divided by the ranks. Without truths the box terms are 0 and keep the graph. Half types are promoted to
    float32 on entry; float64 stays float64.
    """
    pred = pred._replace(cls_logits=_promote(pred.cls_logits), ltrb_logits=_promote(pred.ltrb_logits))
    with torch.no_grad():
        decoded = ltrb_to_boxes(decode_sides(pred.ltrb_logits), pred.points, pred.strides)
        match = assign(pred.cls_logits.sigmoid(), decoded, pred, truth)
    index, positive = places_of(match.positive, truth.labels.shape[1] * assign.most_per_truth)  # (B, P)
    points, strides, true_boxes = pred.points[index], pred.strides[index], _take(match.boxes, index)
    ltrb_logits = _take(pred.ltrb_logits, index)  # (B, P, 4, R)
    boxes = ltrb_to_boxes(decode_sides(ltrb_logits), points, strides)
    place = index * pred.cls_logits.shape[2] + match.labels.gather(1, index)  # of the true class's logit

    iou = aligned_iou(boxes.detach(), true_boxes) * positive  # (B, P)
    if cfg.target == "iou":
        quality = iou
    elif cfg.target == "hard":
        quality = positive.to(iou.dtype)
    else:
        scores = pred.cls_logits.detach().flatten(1).gather(1, place).sigmoid()
        quality = aligned_quality(scores, iou, match.truth.gather(1, index), cfg, truth.labels.shape[1])
    share = quality if cfg.normaliser == "quality" else positive.to(quality.dtype)
    normaliser = global_sum(share.sum()) / world_size()
    divisor = normaliser.clamp(min=1 / world_size())
    weight = quality if cfg.box_weight == "quality" else positive.to(quality.dtype)

    target = torch.zeros_like(pred.cls_logits)
    target.flatten(1).scatter_add_(1, place, quality.to(target.dtype))
    counted = match.positive | ~match.ignored
    per_point = {
        "quality": class_loss(pred.cls_logits, target, cfg).sum(-1) * counted,
        "box": box_loss(boxes, true_boxes, cfg.box_loss) * weight,
        "dfl": _dfl(ltrb_logits, boxes_to_ltrb(true_boxes, points, strides)) * weight,
    }
    gains = {"quality": cfg.quality, "box": cfg.box, "dfl": cfg.dfl}
    terms = {name: gains[name] * values.sum() / divisor for name, values in per_point.items()}
    return Loss(sum(terms.values()), terms, match, per_point["quality"].detach(), iou, normaliser)


def aligned_quality(scores: Tensor, iou: Tensor, truths: Tensor, cfg: LossConfig, num_truths: int) -> Tensor:
    """Task-aligned target of the positives: scores, iou and truths (B, P) -> (B, P).

    arXiv:2108.07755, section 3.2.2: the metric score^alpha * IoU^beta, scaled for each truth so that its
    largest value is the largest IoU among the truth's points. Rows that are no positives have IoU 0, and so
    target 0.
    """
    metric = scores.pow(cfg.aligned_alpha) * iou.pow(cfg.aligned_beta)
    metric = metric.where(iou > 0, 0)  # also with an exponent of 0
    empty = metric.new_zeros(len(metric), num_truths)
    largest, best_iou = (empty.scatter_reduce(1, truths, values, "amax") for values in (metric, iou))
    scale = best_iou / largest.clamp(min=torch.finfo(metric.dtype).tiny)
    return (metric * scale.gather(1, truths)).clamp(max=1)


def _dfl(ltrb_logits: Tensor, ltrb: Tensor) -> Tensor:
    """(B, P, 4, R), (B, P, 4) -> (B, P) mean over the sides; 0, with a graph, where a side has no bins."""
    if ltrb_logits.shape[-1] == 1:
        return ltrb_logits.sum((-2, -1)) * 0
    return distribution_focal_loss(ltrb_logits, ltrb).mean(-1)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """(B, A, ...) at (B, P) -> (B, P, ...)."""
    shape = values.shape[2:]
    return values.gather(1, index.view(*index.shape, *(1,) * len(shape)).expand(*index.shape, *shape))


def _promote(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
