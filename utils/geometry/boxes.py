"""Overlap of axis-aligned boxes: (..., 4) xyxy in pixels, x before y.

Similarities, not losses: a loss is one minus the similarity. ``pairwise_*`` compares every box with every
box, ``aligned_*`` the boxes of equal position.
"""

import math

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


def aligned_ciou(first: Tensor, second: Tensor) -> Tensor:
    """(..., 4), (..., 4) -> (...) complete IoU in [-1.5, 1] (arXiv:1911.08287, eq. 10).

    CIoU = IoU - d^2 / c^2 - alpha v, with d the distance of the centres, c the diagonal of the enclosing box
    and v = (4 / pi^2) (atan(w2 / h2) - atan(w1 / h1))^2. As in the paper, alpha carries no gradient. Aspect
    ratios are taken by atan2, so a side of length 0 gives a finite value and a finite gradient.
    """
    iou = aligned_iou(first, second)
    size_first, size_second = first[..., 2:] - first[..., :2], second[..., 2:] - second[..., :2]
    offset = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    enclosing = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(
        first[..., :2], second[..., :2]
    )
    distance = offset.square().sum(-1) / (enclosing.square().sum(-1) + EPS)
    aspect = (4 / math.pi**2) * (_aspect_angle(size_first) - _aspect_angle(size_second)).square()
    with torch.no_grad():
        alpha = aspect / (1 - iou + aspect + EPS)
    return iou - distance - alpha * aspect


def _intersection(first: Tensor, second: Tensor) -> Tensor:
    low = torch.maximum(first[..., :2], second[..., :2])
    size = torch.minimum(first[..., 2:], second[..., 2:]).sub_(low).clamp_(min=0)
    return size[..., 0] * size[..., 1]


def _aspect_angle(size: Tensor) -> Tensor:
    """(..., 2) width and height -> angle of tangent width / height; EPS keeps the gradient at 0, 0 finite."""
    return torch.atan2(size[..., 0], size[..., 1].clamp(min=0) + EPS)
