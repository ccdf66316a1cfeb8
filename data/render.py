"""A plan -> pixels and boxes, with OpenCV. Every tile is resampled once, straight into the output."""

from collections.abc import Callable

import cv2
import numpy as np

from data.index import Index
from data.letterbox import PAD_VALUE, resize
from data.plan import Plan


def render(plan: Plan, picture: Callable[[int], np.ndarray]) -> np.ndarray:
    """The output picture (H, W, 3) uint8 RGB; ``picture(i)`` gives source picture i in full size."""
    canvas = np.full((*plan.size, 3), PAD_VALUE, np.uint8)
    for tile in plan.tiles:
        (x1, y1, x2, y2), (left, top, right, bottom) = tile.crop, tile.place
        patch = resize(picture(tile.source)[y1:y2, x1:x2], (bottom - top, right - left))
        across, down = (-1 if flipped else 1 for flipped in tile.flip)
        canvas[top:bottom, left:right] = patch[::down, ::across]
    return cv2.transform(canvas, plan.colour)


def render_boxes(
    plan: Plan, index: Index, *, min_visible: float, min_side: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32 xyxy px of the output, labels (n,), ignore (n,), through the tiles' own matrices.

    A box is cut at the edge of its tile, and dropped where less than ``min_visible`` of its area or a side of
    less than ``min_side`` px is left.
    """
    boxes, rows = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    for tile in plan.tiles:
        numbers = np.arange(index.offsets[tile.source], index.offsets[tile.source + 1])
        moved = transform_boxes(index.boxes[numbers].astype(np.float64), tile.matrix)
        cut = moved.clip(tile.place[:2] * 2, tile.place[2:] * 2)
        sides = cut[:, 2:] - cut[:, :2]
        whole = np.prod(moved[:, 2:] - moved[:, :2], 1)
        keep = (sides.min(1, initial=np.inf) >= max(min_side, 1e-3)) & (sides.prod(1) >= min_visible * whole)
        boxes.append(cut[keep])
        rows.append(numbers[keep])
    row = np.concatenate(rows)
    return np.concatenate(boxes).astype(np.float32), index.labels[row], index.ignore[row]


def transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy through a (3, 3) matrix -> the bounds of the four moved corners, (N, 4) xyxy."""
    corners = (
        np.stack((boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]], np.ones((len(boxes), 4))), -1) @ matrix.T
    )
    corners = corners[..., :2] / corners[..., 2:]
    return np.concatenate((corners.min(1), corners.max(1)), 1)
