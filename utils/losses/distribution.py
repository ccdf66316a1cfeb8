"""Losses on the distribution over the bins of a side. R bins stand for 0, 1, ..., R - 1."""

import torch
from torch import Tensor


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
    dtype = torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype
    log_probabilities = logits.log_softmax(-1, dtype=dtype)
    low, above = two_bins(distance.to(dtype), logits.shape[-1])
    pair = log_probabilities.gather(-1, torch.stack((low, low + 1), -1))
    return -((1 - above) * pair[..., 0] + above * pair[..., 1])


def two_bin_entropy(distance: Tensor, num_bins: int) -> Tensor:
    """(...) in bins -> (...) smallest value DFL can take there; subtract it when DFL is shown to people."""
    _, above = two_bins(distance, num_bins)
    return -(torch.xlogy(above, above) + torch.xlogy(1 - above, 1 - above))
