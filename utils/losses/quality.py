"""Class-quality losses: what the class logits are trained with. Elementwise, unreduced, from logits."""

import torch
from torch import Tensor
from torch.nn import functional


def quality_focal_loss(
    logits: Tensor, target: Tensor, beta: float = 2.0, alpha: float | None = None
) -> Tensor:
    """Quality focal loss (arXiv:2006.04388, eq. 5).

    -|y - s|^beta ((1 - y) log(1 - s) + y log s), with y the target and s = sigmoid(logits).

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
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    gap = logits.sigmoid() - target
    # abs() has gradient 0 at 0 and a power below 1 an infinite one there: beta 2, the default, needs neither.
    factor = gap.square() if beta == 2 else gap.abs().clamp(min=1e-12).pow(beta)
    loss = factor * entropy
    return loss if alpha is None else loss * (target * alpha + (1 - target) * (1 - alpha))
