"""Resize and pad a picture to the model's input size, and the exact inverse for boxes.

Coordinates are edges: pixel i covers [i, i + 1), x before y. Sizes are (height, width).
"""

import math
from typing import NamedTuple

import cv2
import numpy as np
import torch

from data.images import choose_reduction
from utils.structures import Detections

PAD_VALUE = 114  # mid grey, the field's habit: near the mean of natural pictures


class Letterbox(NamedTuple):
    """How one picture lies in its input: scaled by ``scale`` (x, y), then shifted by ``offset`` (x, y) px."""

    scale: tuple[float, float]
    offset: tuple[int, int]
    resized: tuple[int, int]  # height, width of the scaled picture
    shape: tuple[int, int]  # height, width of the input
    size: tuple[int, int]  # height, width of the original picture

    @property
    def reduction(self) -> int:
        """The reduced decode that suffices for ``resized``."""
        return choose_reduction(self.size, self.resized)

    def forward(self, boxes: np.ndarray) -> np.ndarray:
        """(N, 4) xyxy px of the original picture -> px of the input."""
        return boxes * np.tile(self.scale, 2) + np.tile(self.offset, 2)

    def inverse(self, boxes: np.ndarray) -> np.ndarray:
        """(N, 4) xyxy px of the input -> px of the original picture, clipped to it."""
        height, width = self.size
        original = (boxes - np.tile(self.offset, 2)) / np.tile(self.scale, 2)
        return original.clip(0, (width, height, width, height))


def round_up(size: int, stride: int) -> int:
    """The smallest multiple of ``stride`` that is at least ``size``."""
    return math.ceil(size / stride) * stride


def input_shape(imgsz: int | tuple[int, int], stride: int) -> tuple[int, int]:
    """(height, width) of the input, each rounded up to a multiple of ``stride``."""
    asked = (imgsz, imgsz) if isinstance(imgsz, int) else tuple(imgsz)
    return round_up(asked[0], stride), round_up(asked[1], stride)


def rounding_note(imgsz: int | tuple[int, int], stride: int) -> str:
    """One line if ``input_shape`` had to round, else ''."""
    asked, shape = input_shape(imgsz, 1), input_shape(imgsz, stride)
    if shape == asked:
        return ""
    return f"imgsz {asked[0]}x{asked[1]} is no multiple of the stride {stride}: using {shape[0]}x{shape[1]}"


def plan_letterbox(size: tuple[int, int], shape: tuple[int, int]) -> Letterbox:
    """Fit a picture of ``size`` into ``shape``, centred, aspect kept up to the rounding to whole pixels.

    The scale is that of the rounded size, each axis its own, so that the inverse is exact.
    """
    ratio = min(shape[0] / size[0], shape[1] / size[1])
    resized = tuple(min(max(round(n * ratio), 1), limit) for n, limit in zip(size, shape, strict=True))
    offset = (shape[1] - resized[1]) // 2, (shape[0] - resized[0]) // 2
    return Letterbox((resized[1] / size[1], resized[0] / size[0]), offset, resized, shape, size)


def centre(letterbox: Letterbox, shape: tuple[int, int]) -> Letterbox:
    """The same scaled picture in the middle of another ``shape`` that holds it."""
    height, width = letterbox.resized
    return letterbox._replace(offset=((shape[1] - width) // 2, (shape[0] - height) // 2), shape=shape)


def rect_shape(size: tuple[int, int], limit: tuple[int, int], stride: int) -> tuple[int, int]:
    """The smallest shape of multiples of ``stride`` that holds a picture ``size`` fitted into ``limit``."""
    height, width = plan_letterbox(size, limit).resized
    return round_up(height, stride), round_up(width, stride)


def resize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) -> (height, width, 3): area averaging when both sides shrink, bilinear otherwise."""
    if picture.shape[:2] == tuple(size):
        return picture
    shrinks = size[0] < picture.shape[0] and size[1] < picture.shape[1]
    return cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def apply_letterbox(picture: np.ndarray, letterbox: Letterbox) -> np.ndarray:
    """(H, W, 3) uint8 of the planned size, or of that divided by ``reduction`` -> (*shape, 3) uint8."""
    canvas = np.full((*letterbox.shape, 3), PAD_VALUE, np.uint8)
    (left, top), (height, width) = letterbox.offset, letterbox.resized
    canvas[top : top + height, left : left + width] = resize(picture, letterbox.resized)
    return canvas


def restore(detections: Detections, letterbox: Letterbox) -> Detections:
    """Detections in input pixels -> in pixels of the original picture, clipped to it, on the CPU."""
    boxes = letterbox.inverse(detections.boxes.double().cpu().numpy())
    sigma = detections.sigma
    if sigma is not None:
        sigma = torch.from_numpy(sigma.double().cpu().numpy() / np.tile(letterbox.scale, 2)).float()
    return Detections(
        torch.from_numpy(boxes).float(),
        detections.scores.cpu(),
        detections.labels.cpu(),
        sigma,
        letterbox.size,
    )
