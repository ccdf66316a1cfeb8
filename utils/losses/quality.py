"""Class-quality losses: what the class logits are trained with. Elementwise, unreduced, from logits."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def quality_focal_loss(
    logits: Tensor, target: Tensor, beta: float = 2.0, alpha: float | None = None
) -> Tensor:
    """Quality focal loss -|y - s|^beta ((1 - y) log(1 - s) + y log s), s = sigmoid(logits).

    arXiv:2006.04388, eq. 2.

    Args:
        logits: (...) any float type; computed in float32 at least.
        target: (...) in [0, 1]: the IoU at the true class, 0 elsewhere.
        beta: > 0; how fast easy elements lose weight. The factor keeps its gradient, as in the paper.
        alpha: None, or the weight of target 1 against 1 - alpha of target 0, linear in between (the paper has
            none).

    Returns:
        (...) not reduced. Finite, with finite gradient, for logits of +-1e4.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    target = target.to(logits.dtype)
    loss = _QualityFocalLoss.apply(logits, target, beta)
    return loss if alpha is None else loss * (target * alpha + (1 - target) * (1 - alpha))


class _QualityFocalLoss(torch.autograd.Function):
    """With the gap g = s - y and the cross entropy E: L = |g|^beta E, and the gradient is written out.

    dL/dx = g (|g|^beta + beta |g|^(beta - 2) s (1 - s) E)
    dL/dy = -(|g|^beta x + beta |g|^(beta - 2) g E)
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
        steep = score.addcmul_(score, score, value=-1).mul_(entropy)  # s (1 - s) E
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
    return beta * gap.abs().clamp(min=1e-12).pow(beta - 2)
