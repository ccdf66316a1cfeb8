"""The records that cross module borders. B images, A anchor points, C classes, R bins, M padded truths."""

from typing import NamedTuple

from torch import Tensor


class Predictions(NamedTuple):
    """Raw head output, identical in training and evaluation."""

    cls_logits: Tensor  # (B, A, C)
    ltrb_logits: Tensor  # (B, A, 4, R) one distribution per box side
    points: Tensor  # (A, 2) anchor points: xy, input pixels, cell centres
    strides: Tensor  # (A, 1) input pixels per cell
    levels: tuple[tuple[int, int, int], ...]  # height, width and stride of every level, finest first


class Targets(NamedTuple):
    """Ground truth of a batch, padded to the largest image's count M (at least 1)."""

    boxes: Tensor  # (B, M, 4) xyxy, input pixels
    labels: Tensor  # (B, M) int64 in 0..C-1, on padding too
    valid: Tensor  # (B, M) bool, False on padding
    ignore: Tensor  # (B, M) bool, crowd or difficult: neither positive nor negative


class Assignment(NamedTuple):
    """Which truth each anchor point answers for. Filler rows hold a proper box: masked terms stay finite."""

    positive: Tensor  # (B, A) bool
    ignored: Tensor  # (B, A) bool, inside an ignore region: no class loss unless positive
    truth: Tensor  # (B, A) int64 index into M
    labels: Tensor  # (B, A) int64
    boxes: Tensor  # (B, A, 4) xyxy, input pixels
    fallback: Tensor  # (B, M) bool, truths to which no rule gave a point: they own the one they were left


class Detections(NamedTuple):
    """Final boxes of one picture, best first."""

    boxes: Tensor  # (N, 4) xyxy, pixels of the original picture
    scores: Tensor  # (N,)
    labels: Tensor  # (N,) int64
    sigma: Tensor | None  # (N, 4) standard deviation of l, t, r, b in original pixels
    size: tuple[int, int]  # (height, width) of the original picture
