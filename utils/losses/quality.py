"""Class-quality losses: what the class logits are trained with. Elementwise, unreduced, from logits.

x is a logit, s = sigmoid(x) the score, y in [0, 1] the target of one class at one point: the quality at the
true class (an IoU, 1, or a task-aligned metric), 0 elsewhere. H = -((1 - y) log(1 - s) + y log s) is the
cross entropy. Every loss has the shape of its logits (...), is pure in its arguments, and is finite with a
finite gradient for logits of +-1e4. Half types are computed in float32; float64 stays float64.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from utils.config import LossConfig

TINY = 1e-12  # keeps the base of a power off 0, where its slope can be infinite


def class_loss(logits: Tensor, target: Tensor, cfg: LossConfig) -> Tensor:
    """(...) logits, (...) targets in [0, 1] -> (...) the loss named by ``loss.quality_loss``, not reduced."""
    match cfg.quality_loss:
        case "qfl":
            return quality_focal_loss(logits, target, cfg.beta, cfg.alpha)
        case "focal":
            return sigmoid_focal_loss(logits, target, cfg.gamma, cfg.alpha)
        case "vfl":
            return varifocal_loss(logits, target, cfg.gamma, cfg.alpha)
        case "mal":
            return matchability_aware_loss(logits, target, cfg.gamma)
        case "bce":
            return binary_cross_entropy(logits, target, cfg.label_smoothing)


def quality_focal_loss(
    logits: Tensor, target: Tensor, beta: float = 2.0, alpha: float | None = None
) -> Tensor:
    """Quality focal loss |y - s|^beta H (arXiv:2006.04388, eq. 2).

    Args:
        logits: (...).
        target: (...) in [0, 1]: the IoU at the true class, 0 elsewhere.
        beta: > 0; how fast easy elements lose weight. The factor keeps its gradient, as in the paper.
        alpha: None, or the weight of target 1 against 1 - alpha of target 0, linear in between (the paper has
            none).
    """
    logits, target = _promote(logits, target)
    loss = _QualityFocalLoss.apply(logits, target, beta)
    return loss if alpha is None else loss * _balance(target, alpha)


def sparse_quality_focal_loss(
    logits: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    weight: Tensor | None = None,
    beta: float = 2.0,
    avg_factor: Tensor | float | None = None,
) -> Tensor:
    """QFL from labels instead of a dense target, reduced, in the form of GFocal and mmdetection.

    Args:
        logits: (N, C).
        labels: (N,) int64 true classes; C, or whatever is no class, is background.
        scores: (N,) in [0, 1]: the target at the true class; not read where the label is background.
        weight: None, or (N,) a factor for each row.
        beta: as in ``quality_focal_loss``.
        avg_factor: what the sum is divided by; None takes the number of rows, at least 1.

    Returns:
        () the weighted sum of the rows' sums over the classes, divided by ``avg_factor``.
    """
    num_rows, num_classes = logits.shape
    place = labels.where((labels >= 0) & (labels < num_classes), num_classes)  # one column for background
    target = scores.new_zeros(num_rows, num_classes + 1).scatter(1, place[:, None], scores[:, None])
    rows = quality_focal_loss(logits, target[:, :-1], beta).sum(1)
    if weight is not None:
        rows = rows * weight
    return rows.sum() / (max(num_rows, 1) if avg_factor is None else avg_factor)


def sigmoid_focal_loss(
    logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None
) -> Tensor:
    """Focal loss m^gamma H with m = y (1 - s) + (1 - y) s, the probability given to what is not the case.

    arXiv:1708.02002, eq. 5, which has y in {0, 1} only; in between, m and alpha are linear in y. There the
    minimum does not lie at s = y: QFL is the loss made for soft targets.

    Args:
        logits: (...).
        target: (...) in [0, 1], without gradient.
        gamma: >= 0; 0 is the plain cross entropy.
        alpha: None, or the weight of target 1 against 1 - alpha of target 0.
    """
    logits, target = _promote(logits, target)
    with torch.no_grad():
        entropy, score, sign = _cross_entropy(logits, target), logits.sigmoid(), 1 - 2 * target
        wrong = torch.addcmul(target, score, sign)  # m
        power = wrong.clamp(min=TINY).pow_(gamma - 1)
        steep = torch.addcmul(score, score, score, value=-1).mul_(sign).mul_(entropy).mul_(gamma)
        slope = steep.addcmul_(wrong, score.sub_(target)).mul_(power)
        loss = entropy.mul_(wrong).mul_(power)
    loss = _WithSlope.apply(logits, loss, slope)
    return loss if alpha is None else loss * _balance(target, alpha)


def varifocal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Varifocal loss: y H where y > 0, alpha s^gamma H where y = 0 (arXiv:2008.13367, eq. 2).

    Args:
        logits: (...).
        target: (...) in [0, 1], without gradient. A positive weighs as much as its quality; one of quality 0
            is a negative.
        gamma: >= 0; how fast easy negatives lose weight.
        alpha: weight of the negatives, 0.75 in the paper; None is 1.
    """
    logits, target = _promote(logits, target)
    with torch.no_grad():
        positive, score = target > 0, logits.sigmoid()
        factor = score.pow(gamma) if alpha is None else score.pow(gamma).mul_(alpha)
        factor = target.where(positive, factor)
    return _focal_negatives(logits, target, factor, score=score, positive=positive, gamma=gamma)


def matchability_aware_loss(logits: Tensor, target: Tensor, gamma: float = 1.5) -> Tensor:
    """Matchability-aware loss: H with the target y^gamma where y > 0, s^gamma H where y = 0.

    arXiv:2412.04234, section 3.3. Unlike in VFL a positive of low quality keeps its weight: its score is
    pushed down. The paper tells positives by their label; here a positive of quality 0 counts as a negative.

    Args:
        logits: (...).
        target: (...) in [0, 1], without gradient.
        gamma: >= 0; the paper takes 1.5.
    """
    logits, target = _promote(logits, target)
    with torch.no_grad():
        positive, score = target > 0, logits.sigmoid()
        power = target.where(positive, score).pow_(gamma)
        aim, factor = power.where(positive, 0), power.masked_fill_(positive, 1)
    return _focal_negatives(logits, aim, factor, score=score, positive=positive, gamma=gamma)


def binary_cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """H with the target y (1 - smoothing) + smoothing / 2.

    Label smoothing of arXiv:1512.00567, section 7, for two outcomes: a share of every target is one half.

    Args:
        logits: (...).
        target: (...) in [0, 1].
        smoothing: in [0, 1).
    """
    logits, target = _promote(logits, target)
    return _cross_entropy(logits, target * (1 - smoothing) + smoothing / 2 if smoothing else target)


def _promote(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), target.to(dtype)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


def _balance(target: Tensor, alpha: float) -> Tensor:
    """alpha at target 1, 1 - alpha at target 0, linear in between."""
    return target * (2 * alpha - 1) + (1 - alpha)


class _QualityFocalLoss(torch.autograd.Function):
    """With the gap g = s - y: L = |g|^beta H, and the gradient is written out.

    dL/dx = g (|g|^beta + beta |g|^(beta - 2) s (1 - s) H)
    dL/dy = -(|g|^beta x + beta |g|^(beta - 2) g H)
    It is computed beside the loss, in place where it can be: the loss touches every class of every anchor
    point, and fresh memory is what costs time there.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, beta: float) -> Tensor:
        entropy = functional.softplus(logits).addcmul_(logits, target, value=-1)  # log(1 + e^x) - x y
        score = logits.sigmoid()
        gap = score - target
        by_target = None
        if ctx.needs_input_grad[1]:
            by_target = -(gap.abs().pow(beta) * logits + _slope(gap, beta) * gap * entropy)
        steep = score.addcmul_(score, score, value=-1).mul_(entropy)  # s (1 - s) H
        if beta == 2:  # the default, without powers
            loss = entropy.mul_(gap).mul_(gap)
            by_logits = steep.mul_(2).addcmul_(gap, gap).mul_(gap)
        else:
            factor = gap.abs().pow(beta)
            loss = entropy.mul_(factor)
            by_logits = steep.mul_(_slope(gap, beta)).add_(factor).mul_(gap)
        ctx.save_for_backward(by_logits, by_target)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        by_logits, by_target = ctx.saved_tensors
        return grad * by_logits, None if by_target is None else grad * by_target, None


def _slope(gap: Tensor, beta: float) -> Tensor:
    """beta |g|^(beta - 2), finite at g = 0, where it meets a factor g."""
    return beta * gap.abs().clamp(min=TINY).pow(beta - 2)


def _focal_negatives(
    logits: Tensor, target: Tensor, factor: Tensor, *, score: Tensor, positive: Tensor, gamma: float
) -> Tensor:
    """L = f H; at the negatives the target is 0 and the factor f a multiple of s^gamma, elsewhere f is fixed.

    dL/dx = f (s - y) at the positives, f (s + gamma (1 - s) H) at the negatives. All (...), without gradient
    but for the logits.
    """
    with torch.no_grad():
        entropy = _cross_entropy(logits, target)
        steep = (1 - score).mul_(entropy).mul_(gamma).masked_fill_(positive, 0)
        slope = steep.add_(score).sub_(target).mul_(factor)
        loss = entropy.mul_(factor)
    return _WithSlope.apply(logits, loss, slope)


class _WithSlope(torch.autograd.Function):
    """A loss (...) and its slope by the logits (...), both written out, for the same reason as in QFL."""

    @staticmethod
    def forward(ctx, logits: Tensor, loss: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(slope)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return grad * ctx.saved_tensors[0], None, None
