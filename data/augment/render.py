"""A plan -> pixels and boxes, with OpenCV. Every tile is resampled once, straight into the output.

A tile that is only scaled, mirrored and shifted is a crop, ``cv2.resize`` and ``cv2.flip``; it is resampled
bilinearly, and averaged by area where it shrinks to less than a third. Any other is warped
into the rectangle that holds what is in view of it, and the pixels whose centres it covers are copied. Where
it shrinks to a half or less, its crop is first averaged by the largest power of two that leaves a gain of at
most 1 (so of more than 1/2) to the warp, along each axis by its own. Coordinates are edges: pixel i covers
[i, i + 1), x before y. Sizes are (height, width).
"""

from collections.abc import Callable

import cv2
import numpy as np

from data.augment.homography import (
    is_straight,
    jacobians,
    polygon_areas,
    project,
    shift_matrix,
    transform_boxes,
    visible_polygons,
)
from data.augment.plan import Plan, Tile
from data.index import Index
from data.letterbox import PAD_VALUE

FLIPS = {(True, False): 1, (False, True): 0, (True, True): -1}  # mirrored x, y -> OpenCV's code
NUDGE = 1e-6  # px, by which a warped tile is taken larger: no pixel centre falls between two neighbours


def render(plan: Plan, picture: Callable[[int], np.ndarray]) -> np.ndarray:
    """The output picture (H, W, 3) uint8 RGB; ``picture(i)``: source picture i, of the size planned for."""
    canvas = np.full((*plan.size, 3), PAD_VALUE, np.uint8)
    for tile in plan.tiles:
        paint = _paint_straight if is_straight(tile.matrix) else _paint_warped
        paint(canvas, tile, picture(tile.source))
    image = cv2.transform(canvas, plan.colour)
    if plan.mixed is None:
        return image
    return cv2.addWeighted(image, plan.weight, render(plan.mixed, picture), 1 - plan.weight, 0)


def render_boxes(
    plan: Plan, index: Index, *, min_visible: float, min_side: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) float32 xyxy px of the output, labels (n,), ignore (n,), through the tiles' own matrices.

    A box is cut at the edges of its tile and of the output, and where it is turned, the bounds are those of
    the turned region that is left, not of the whole. It is dropped where less than ``min_visible`` of its
    area (of a turned or tilted one: in source pixels) or a side of less than ``min_side`` px is left. With
    mixup, the boxes of both.
    """
    boxes, rows = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    for tile in (*plan.tiles, *(plan.mixed.tiles if plan.mixed else ())):
        numbers = np.arange(index.offsets[tile.source], index.offsets[tile.source + 1])
        cut_boxes = _cut_straight if is_straight(tile.matrix) else _cut_warped
        cut, shown, whole = cut_boxes(np.asarray(index.boxes[numbers], np.float64), tile, plan.size)
        sides = cut[:, 2:] - cut[:, :2]
        keep = (sides.min(1, initial=np.inf) >= max(min_side, 1e-3)) & (shown >= min_visible * whole)
        boxes.append(cut[keep])
        rows.append(numbers[keep])
    row = np.concatenate(rows)
    return np.concatenate(boxes).astype(np.float32), index.labels[row], index.ignore[row]


def tile_outline(tile: Tile, size: tuple[int, int]) -> np.ndarray:
    """(V, 2) px of the output: the polygon in view of a tile; V = 0 where nothing is."""
    crop = np.array([tile.crop], np.float64)
    outline = project(visible_polygons(crop, tile.matrix, size)[0], tile.matrix)
    return outline[~np.isnan(outline[:, 0])]


def _cut_straight(boxes: np.ndarray, tile: Tile, _) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in the output, cut to the tile; the areas left and the whole ones, output px^2."""
    moved = transform_boxes(boxes, tile.matrix)
    place = tile.place
    cut = moved.clip(place[:2] * 2, place[2:] * 2)
    return cut, np.prod(cut[:, 2:] - cut[:, :2], 1), np.prod(moved[:, 2:] - moved[:, :2], 1)


def _cut_warped(
    boxes: np.ndarray, tile: Tile, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bounds in the output of what is in view; the areas in view and the whole ones, source px^2."""
    x1, y1, x2, y2 = tile.crop
    polygons = visible_polygons(boxes.clip((x1, y1, x1, y1), (x2, y2, x2, y2)), tile.matrix, size)
    corners = project(polygons, tile.matrix).clip(0, size[::-1])  # NaN where nothing is in view: not kept
    bounds = np.concatenate((corners.min(1), corners.max(1)), 1)
    return bounds, polygon_areas(polygons), np.prod(boxes[:, 2:] - boxes[:, :2], 1)


def _paint_straight(canvas: np.ndarray, tile: Tile, picture: np.ndarray) -> None:
    (x1, y1, x2, y2), (left, top, right, bottom) = tile.crop, tile.place
    size = right - left, bottom - top
    small = 3 * size[0] < x2 - x1 or 3 * size[1] < y2 - y1
    method = cv2.INTER_AREA if small else cv2.INTER_LINEAR
    patch = cv2.resize(picture[y1:y2, x1:x2], size, interpolation=method)
    mirrored = tile.matrix[0, 0] < 0, tile.matrix[1, 1] < 0
    canvas[top:bottom, left:right] = cv2.flip(patch, FLIPS[mirrored]) if any(mirrored) else patch


def _paint_warped(canvas: np.ndarray, tile: Tile, picture: np.ndarray) -> None:
    """Draw the pixels whose centres lie in matrix(crop), with no colour from beyond the crop."""
    (x1, y1, x2, y2), limits = tile.crop, canvas.shape[1::-1]
    polygon = visible_polygons(np.array([tile.crop], np.float64), tile.matrix, canvas.shape[:2])[0]
    if np.isnan(polygon).any():
        return
    corners = project(polygon, tile.matrix)
    left, top = np.floor(corners.min(0)).clip(0, limits).astype(int).tolist()
    right, bottom = np.ceil(corners.max(0)).clip(0, limits).astype(int).tolist()
    gains = np.linalg.norm(jacobians(tile.matrix, polygon), axis=1).max(0)
    patch = _reduce(picture[y1:y2, x1:x2], gains)
    height, width = patch.shape[:2]
    unit = np.diag(((x2 - x1) / width, (y2 - y1) / height, 1.0))  # source px in a px of the patch
    back = np.linalg.inv(shift_matrix(-left, -top) @ tile.matrix @ shift_matrix(x1, y1) @ unit)
    drawn = _warp(patch, back, (bottom - top, right - left))
    mask = _covered(back, (height, width), drawn.shape[:2])
    cv2.copyTo(drawn, mask, canvas[top:bottom, left:right])


def _reduce(patch: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The patch averaged down by powers of two, so that none of its ``gains`` (2,) stays at 1/2 or less."""
    factors = np.exp2(np.floor(-np.log2(gains.clip(max=1))))
    if factors.max() < 2:
        return patch
    width, height = np.rint(patch.shape[1::-1] / factors).clip(1).astype(int).tolist()
    return cv2.resize(patch, (width, height), interpolation=cv2.INTER_AREA)


def _warp(patch: np.ndarray, back: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The patch through the inverse of ``back``, bilinear; OpenCV counts from the first pixel's centre."""
    framed = cv2.copyMakeBorder(patch, 1, 1, 1, 1, cv2.BORDER_REPLICATE)  # all that a covered pixel can touch
    centres = shift_matrix(0.5, 0.5) @ back @ shift_matrix(0.5, 0.5)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if (back[2, :2] == 0).all():
        return cv2.warpAffine(framed, centres[:2], size[::-1], flags=flags)
    return cv2.warpPerspective(framed, centres, size[::-1], flags=flags)


def _covered(back: np.ndarray, patch_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(height, width) uint8, 1 where ``back`` brings a pixel's centre into the patch.

    A pixel (x, y) does where four forms a x + b y + c are not negative, one for each side of the patch: in
    every row the pixels between two ends.
    """
    forms = np.stack((back[0], patch_size[1] * back[2] - back[0], back[1], patch_size[0] * back[2] - back[1]))
    slope = np.where(forms[:, 0] == 0, 1e-12, forms[:, 0])
    ends = -(forms[:, 1:2] * (np.arange(size[0]) + 0.5) + forms[:, 2:]) / slope[:, None]
    first = np.where(slope[:, None] > 0, ends, -np.inf).max(0) - NUDGE
    last = np.where(slope[:, None] < 0, ends, np.inf).min(0) + NUDGE
    first = np.ceil(first - 0.5).clip(0, size[1]).astype(np.int16)[:, None]
    last = np.floor(last - 0.5).clip(-1, size[1]).astype(np.int16)[:, None]
    columns = np.arange(size[1], dtype=np.int16)
    return ((columns >= first) & (columns <= last)).view(np.uint8)
