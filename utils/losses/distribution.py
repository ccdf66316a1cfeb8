"""Losses on the distribution over the bins of a side. R bins stand for 0, 1, ..., R - 1."""

import torch
from torch import Tensor

from utils.losses.quality import TINY


def two_bins(distance: Tensor, num_bins: int) -> tuple[Tensor, Tensor]:
    """(...) distance in bins -> lower bin (...) int64 and the weight of the bin above it (...) in [0, 1].

    A distance beyond the bins is clipped to them. 2.3 -> bin 2 with 0.7 of the mass and bin 3 with 0.3; the
    last value, R - 1, is bin R - 2 with weight 1 on the bin above: exact at both ends, without an epsilon.
    """
    distance = distance.clamp(0, num_bins - 1)
    low = distance.floor().clamp(max=num_bins - 2)
    return low.long(), distance - low


def distribution_focal_loss(logits: Tensor, distance: Tensor) -> Tensor:
    """DFL -((y_r - y) log S_l + (y - y_l) log S_r), S = softmax(logits) (arXiv:2006.04388, eq. 6).

    Args:
        logits: (..., R), R >= 2; half types are computed in float32.
        distance: (...) in bins, clipped to [0, R - 1].

    Returns:
        (...) not reduced. Its minimum is the entropy of the two bins, not 0 (``two_bin_entropy``).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = logits.log_softmax(-1, dtype=dtype)
    low, above = two_bins(distance.to(dtype), logits.shape[-1])
    pair = log_probabilities.gather(-1, torch.stack((low, low + 1), -1))
    return -((1 - above) * pair[..., 0] + above * pair[..., 1])


def generalized_focal_loss(logits: Tensor, target: Tensor, values: Tensor, beta: float) -> Tensor:
    """GFL -|y - (y_l p_l + y_r p_r)|^beta ((y_r - y) log p_l + (y - y_l) log p_r) (arXiv:2006.04388, eq. 7).

    y_l <= y <= y_r are the two neighbouring values around the target, p = softmax(logits). QFL is the case of
    the values 0, 1 and the logits 0, x; DFL that of the values 0, 1, ..., R - 1 and beta 0. Those two are
    what trains; this is what they have in common.

    Args:
        logits: (..., R), R >= 2; half types are computed in float32.
        target: (...), clipped to the values.
        values: (R,) rising: what each bin stands for.
        beta: >= 0.

    Returns:
        (...) not reduced.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    values = values.to(logits.device, dtype)
    target = target.to(dtype).clamp(values[0], values[-1])
    low = torch.searchsorted(values, target.detach(), right=True).clamp(max=len(values) - 1) - 1
    left, right = values[low], values[low + 1]
    pair = logits.log_softmax(-1, dtype=dtype).gather(-1, torch.stack((low, low + 1), -1))
    log_left, log_right = pair.unbind(-1)
    gap = (target - left * log_left.exp() - right * log_right.exp()).abs()
    return -gap.clamp(min=TINY).pow(beta) * ((right - target) * log_left + (target - left) * log_right)


def two_bin_entropy(distance: Tensor, num_bins: int) -> Tensor:
    """(...) in bins -> (...) smallest value DFL can take there; subtract it when DFL is shown to people."""
    _, above = two_bins(distance, num_bins)
    return -(torch.xlogy(above, above) + torch.xlogy(1 - above, 1 - above))
