"""Focal losses for classes that exclude each other: C logits through a softmax. N samples, C classes.

The detector trains one sigmoid per class; these serve heads with a softmax. Two forms are published under
one name, and they differ: the factor applied to each sample, or to the mean over the samples. Both are pure
functions; class weights are an argument. Half types are computed in float32; float64 stays float64.
"""

import torch
from torch import Tensor

from utils.losses.quality import TINY


def softmax_focal_loss(
    logits: Tensor, labels: Tensor, gamma: float = 2.0, weight: Tensor | None = None
) -> Tensor:
    """Focal loss of each sample: -w (1 - p)^gamma log p, p the softmax at the label, w the label's weight.

    arXiv:1708.02002, eq. 5, for C classes.

    Args:
        logits: (N, C).
        labels: (N,) int64 in 0..C - 1.
        gamma: >= 0; 0 is the weighted cross entropy.
        weight: None, or (C,) the factor of each class.

    Returns:
        (N,) not reduced.
    """
    cross_entropy = _cross_entropy(logits, labels)
    loss = cross_entropy * _focal_factor(cross_entropy, gamma)
    return loss if weight is None else loss * weight.to(loss)[labels]


def focal_loss_of_mean(
    logits: Tensor, labels: Tensor, gamma: float = 2.0, weight: Tensor | None = None
) -> Tensor:
    """Focal loss of a batch's mean: (1 - exp(-E))^gamma E, E the weighted mean cross entropy.

    E = sum(w CE) / sum(w), with w the weight of each sample's label. Easy and hard samples are averaged
    first, so they share one factor, the batch's. Arguments as in ``softmax_focal_loss``.

    Returns:
        (); 0 without samples.
    """
    cross_entropy = _cross_entropy(logits, labels)
    share = torch.ones_like(cross_entropy) if weight is None else weight.to(cross_entropy)[labels]
    mean = (cross_entropy * share).sum() / share.sum().clamp(min=TINY)
    return mean * _focal_factor(mean, gamma)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return -logits.log_softmax(-1, dtype=dtype).gather(-1, labels[..., None])[..., 0]


def _focal_factor(cross_entropy: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma of a cross entropy -log p, exact where p is near 1."""
    return (-torch.expm1(-cross_entropy)).clamp(min=TINY).pow(gamma)
