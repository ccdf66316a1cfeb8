"""Overlap of axis-aligned boxes: (..., 4) xyxy in pixels, x before y.

``pairwise_*`` compares every box with every box, ``aligned_*`` the boxes of equal position. The similarities
that train the boxes are in ``utils.losses.boxes``.
"""

import torch
from torch import Tensor

EPS = 1e-7  # added to denominators: far below one square pixel, so proper boxes keep six digits


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...) area in px^2; a box turned inside out has area 0."""
    return (boxes[..., 2] - boxes[..., 0]).clamp_(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp_(min=0)


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """(..., N, 4), (..., K, 4) -> (..., N, K) intersection over union; 0 where both boxes are empty."""
    return aligned_iou(first.unsqueeze(-2), second.unsqueeze(-3))


def aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """(..., 4), (..., 4) -> (...) intersection over union in [0, 1]; 0 where both are empty. Broadcasts."""
    inter = _intersection(first, second)
    return inter / (box_area(first) + (box_area(second) + EPS)).sub_(inter)


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    low = torch.maximum(first[..., :2], second[..., :2])
    size = torch.minimum(first[..., 2:], second[..., 2:]).sub_(low).clamp_(min=0)
    return size[..., 0] * size[..., 1]
