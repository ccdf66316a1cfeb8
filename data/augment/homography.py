"""3x3 matrices from source to output pixels, and what they bring into view. N rectangles, V vertices.

Coordinates are edges: pixel i covers [i, i + 1), x before y; homogeneous points are (x, y, 1). Sizes are
(height, width).
"""

import numpy as np


def warp_matrix(
    shape: tuple[int, int], *, degrees: float, shear: tuple[float, float], tilt: tuple[float, float]
) -> np.ndarray:
    """(3, 3) about the centre of ``shape``: sheared along x, then y, turned clockwise (degrees), then tilted.

    ``tilt`` (x, y): at the right (lower) edge the depth is 1 + tilt times the centre's, at the other edge
    1 - tilt. It comes last, so with |tilt| < 0.5 no point of the output lies on or behind the horizon.
    """
    height, width = shape
    turn, (along_x, along_y) = np.deg2rad(degrees), np.tan(np.deg2rad(shear))
    turning = np.array(((np.cos(turn), -np.sin(turn), 0), (np.sin(turn), np.cos(turn), 0), (0, 0, 1)))
    shearing = np.array(((1, along_x, 0), (along_y, 1 + along_x * along_y, 0), (0, 0, 1)))
    tilting = np.array(((1, 0, 0), (0, 1, 0), (2 * tilt[0] / width, 2 * tilt[1] / height, 1)))
    return (
        shift_matrix(width / 2, height / 2)
        @ tilting
        @ turning
        @ shearing
        @ shift_matrix(-width / 2, -height / 2)
    )


def shift_matrix(x: float, y: float) -> np.ndarray:
    """(3, 3) that moves points by (x, y)."""
    return np.array(((1, 0, x), (0, 1, y), (0, 0, 1)), float)


def is_straight(matrix: np.ndarray) -> bool:
    """Whether the matrix only scales, mirrors and shifts, so that rectangles stay rectangles."""
    (_, a, _), (b, _, _), last = matrix.tolist()
    return a == b == 0 and last == [0, 0, 1]


def transform_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy through a (3, 3) matrix -> the bounds of the four moved corners, (N, 4) xyxy.

    For points before the horizon of the matrix only.
    """
    corners = project(_corners(boxes), matrix)
    return np.concatenate((corners.min(1), corners.max(1)), 1)


def project(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(..., 3) homogeneous points through the matrix, (..., 2)."""
    moved = points @ matrix.T
    return moved[..., :2] / moved[..., 2:]


def visible_polygons(rects: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What an output of ``size`` shows of each rectangle (N, 4): convex polygons (N, V, 3) in source pixels.

    One ``matrix`` (3, 3) for all, or (N, 3, 3).
    Vertices repeat where a polygon has fewer than V; all are NaN where nothing is in view. The rectangles are
    cut by the output's edges in homogeneous coordinates, before the division, so one that reaches the horizon
    or beyond is cut like any other.
    """
    height, width = size
    polygons = _corners(rects)
    for line in ((1, 0, 0), (-1, 0, width), (0, 1, 0), (0, -1, height)):
        polygons = _cut(polygons, line @ matrix)
    return polygons


def polygon_areas(polygons: np.ndarray) -> np.ndarray:
    """(N,) px^2 of (N, V, 3) source polygons, 0 for those of NaN."""
    x, y = polygons[..., 0], polygons[..., 1]
    doubled = (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1)
    return np.where(np.isnan(doubled), 0, np.abs(doubled) / 2)  # nothing in view has no area


def jacobians(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(V, 2, 2) at homogeneous points (V, 3): output px, in rows x and y, for a source px along x and y."""
    depth = (points @ matrix[2])[:, None, None]
    return (matrix[:2, :2] - project(points, matrix)[..., None] * matrix[2, :2]) / depth


def _corners(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) xyxy -> (N, 4, 3) homogeneous corners, in turn."""
    return np.stack((boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]], np.ones((len(boxes), 4))), -1)


def _cut(polygons: np.ndarray, line: np.ndarray) -> np.ndarray:
    """The parts of convex polygons (N, V, 3) on the side of a ``line`` where its form is not negative.

    The line's form is (3,) for all, or (N, 3). Each vertex inside is kept, and each edge that crosses the
    line adds the crossing (Sutherland and Hodgman, Communications of the ACM 17, 1974); what a polygon lacks
    to the longest one repeats its first vertex.
    """
    form = (polygons * line[..., None, :]).sum(-1)
    inside = form >= 0
    if inside.all():
        return polygons
    following = np.roll(form, -1, 1)
    crossing = inside != (following >= 0)
    share = np.divide(form, form - following, out=np.zeros_like(form), where=crossing)
    crossings = polygons + share[..., None] * (np.roll(polygons, -1, 1) - polygons)
    points = np.stack((polygons, crossings), 2).reshape(len(polygons), -1, 3)
    kept = np.stack((inside, crossing), 2).reshape(len(polygons), -1)
    points[~kept] = np.nan
    order = np.argsort(~kept, 1, kind="stable")[:, : max(1, kept.sum(1).max(initial=1))]
    points = np.take_along_axis(points, order[..., None], 1)
    return np.where(np.isnan(points), points[:, :1], points)
