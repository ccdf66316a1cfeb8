"""Box losses: one minus the similarity of a box and its truth. (..., 4) xyxy in pixels, aligned, broadcast.

Every similarity is 1 for identical boxes, at most 1, symmetric in its arguments and free of unit and origin.
d is the distance of the centres, c the diagonal of the enclosing box (the smallest around both), w and h the
sides. A box turned inside out counts as the empty box at its first corner. Values and gradients are finite
for every pair of boxes, without width or height too; EPS in the denominators is far below a square pixel.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from utils.geometry.boxes import EPS, aligned_iou, box_area

SHAPE_EXPONENT = 4  # theta of SIoU: the paper's choice; it finds 2 to 6


def box_loss(boxes: Tensor, true_boxes: Tensor, name: str) -> Tensor:
    """(..., 4), (..., 4) -> (...) >= 0: one minus the similarity of that name in ``SIMILARITIES``."""
    return 1 - SIMILARITIES[name](boxes, true_boxes)


def aligned_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU in [-1, 1]: IoU - (C - U) / C (arXiv:1902.09630, algorithm 1).

    C is the area of the enclosing box, U that of the union. Where C is 0 (empty boxes in line) it is the IoU.
    """
    pair = _measure(first, second)
    enclosing = pair.enclosing[..., 0] * pair.enclosing[..., 1]
    union = (box_area(pair.first) + box_area(pair.second)) / (1 + pair.iou)  # I + U = U (1 + IoU)
    return pair.iou - (enclosing - union) / (enclosing + EPS)


def aligned_diou(first: Tensor, second: Tensor) -> Tensor:
    """Distance IoU in [-1, 1]: IoU - d^2 / c^2 (arXiv:1911.08287, eq. 7)."""
    pair = _measure(first, second)
    return pair.iou - _centre_distance(pair)


def aligned_ciou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU in [-1.5, 1]: IoU - d^2 / c^2 - alpha v (arXiv:1911.08287, eqs. 8 to 11).

    v = (4 / pi^2) (atan(w2 / h2) - atan(w1 / h1))^2 and alpha = v / (1 - IoU + v); as in the paper, alpha
    carries no gradient. Aspect ratios are taken by atan2, so a side of length 0 gives a finite value and a
    finite gradient.
    """
    pair = _measure(first, second)
    aspect = (4 / math.pi**2) * (_aspect_angle(pair.first) - _aspect_angle(pair.second)).square()
    with torch.no_grad():
        alpha = aspect / (1 - pair.iou + aspect + EPS)
    return pair.iou - _centre_distance(pair) - alpha * aspect


def aligned_eiou(first: Tensor, second: Tensor) -> Tensor:
    """Efficient IoU in [-2.25, 1]: IoU - d^2 / c^2 - (w1 - w2)^2 / cw^2 - (h1 - h2)^2 / ch^2.

    arXiv:2101.08158, the EIOU loss, with cw and ch the sides of the enclosing box.
    """
    pair = _measure(first, second)
    sides = (_size(pair.first) - _size(pair.second)).square() / (pair.enclosing.square() + EPS)
    return pair.iou - _centre_distance(pair) - sides.sum(-1)


def aligned_siou(first: Tensor, second: Tensor) -> Tensor:
    """SIoU in [-1.03, 1]: IoU - (distance + shape) / 2 (arXiv:2205.12740).

    With dx, dy the offset of the centres and cw, ch the sides of the enclosing box:

    * angle = sin(2 asin(|dy| / d)) = 2 |dx| |dy| / d^2, 1 where the centres lie on a diagonal of a square;
    * distance = the sum over both axes of 1 - exp(-(2 - angle) (dx / cw)^2);
    * shape = the sum over both sides of (1 - exp(-|w1 - w2| / max(w1, w2)))^4.
    """
    pair = _measure(first, second)
    squares = pair.offset.square()
    angle = 2 * pair.offset.abs().prod(-1, keepdim=True) / (squares.sum(-1, keepdim=True) + EPS)
    distance = -torch.expm1((angle - 2) * squares / (pair.enclosing.square() + EPS)).sum(-1)
    size_first, size_second = _size(pair.first), _size(pair.second)
    change = (size_first - size_second).abs() / (torch.maximum(size_first, size_second) + EPS)
    shape = (-torch.expm1(-change)).pow(SHAPE_EXPONENT).sum(-1)
    return pair.iou - (distance + shape) / 2


SIMILARITIES = {
    "iou": aligned_iou,
    "giou": aligned_giou,
    "diou": aligned_diou,
    "ciou": aligned_ciou,
    "eiou": aligned_eiou,
    "siou": aligned_siou,
}


class _Pair(NamedTuple):
    first: Tensor  # (..., 4) proper or empty
    second: Tensor  # (..., 4) proper or empty
    iou: Tensor  # (...)
    offset: Tensor  # (..., 2) px from the centre of the second to that of the first
    enclosing: Tensor  # (..., 2) px, width and height


def _measure(first: Tensor, second: Tensor) -> _Pair:
    first, second = _unturn(first), _unturn(second)
    offset = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]) / 2
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    return _Pair(first, second, aligned_iou(first, second), offset, high - low)


def _unturn(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat((low, high.where(high >= low, low)), -1)


def _size(boxes: Tensor) -> Tensor:
    return boxes[..., 2:] - boxes[..., :2]


def _centre_distance(pair: _Pair) -> Tensor:
    """d^2 / c^2 in [0, 1]."""
    return pair.offset.square().sum(-1) / (pair.enclosing.square().sum(-1) + EPS)


def _aspect_angle(boxes: Tensor) -> Tensor:
    """Angle of tangent width / height; EPS keeps the gradient at 0, 0 finite."""
    size = _size(boxes)
    return torch.atan2(size[..., 0], size[..., 1] + EPS)
