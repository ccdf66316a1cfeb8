"""Which task the long rows of a split are of, by what they hold: polygons, or pose rows.

``class`` and 2m numbers are a polygon of m points or a box followed by m - 2 keypoints. T rows.
"""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from data.formats.yolo_rows import BOX_COLUMNS

NEARLY_ALL = 0.9  # of the rows; the others may be mistakes
BEYOND = 0.1  # keypoints may lie beyond their box by this share of its side
OUTSIDE = 0.01  # a box may reach this far beyond its picture
BETTER = 0.25  # share of rows by which a pose row has to fit better than the same numbers moved on
A_FILE, A_ROW = 4, 2000  # rows of a file and columns of a row that are looked at: this is memory


class LongRow(NamedTuple):
    """A row that is longer than a box, and where it stands."""

    row: list[float]
    path: str
    line: int


def sample_rows(rows: Iterable[LongRow], most: int = A_FILE) -> list[LongRow]:
    """Some of the rows that have the commonest number of columns, none where no number is common.

    Polygons differ in their number of points, so of them hardly any row is kept.
    """
    rows = list(rows)
    counts = Counter(len(item.row) for item in rows)
    columns, count = counts.most_common(1)[0] if counts else (0, 0)
    if count < NEARLY_ALL * len(rows) or columns > A_ROW:
        return []
    return [item for item in rows if len(item.row) == columns][:most]


def explain_pose(sample: list[LongRow], counts: Counter) -> str:
    """What to tell the user where long rows are pose rows by their looks; '' where they are polygons.

    ``counts``: of all long rows of the split by their columns.
    """
    columns, count = counts.most_common(1)[0] if counts else (0, 0)
    chosen = [item for item in sample if len(item.row) == columns]
    if not chosen or count < NEARLY_ALL * counts.total():
        return ""
    values = np.array([item.row for item in chosen])
    if has_visibility(values):
        keypoints, dims, what = (columns - BOX_COLUMNS) // 3, 3, "x y visible"
    elif looks_like_pose(values[:, 1:].reshape(len(values), -1, 2)):
        keypoints, dims, what = (columns - BOX_COLUMNS) // 2, 2, "x y"
    else:
        return ""
    return (
        f"{chosen[0].path}:{chosen[0].line}: the rows of {columns} columns look like pose rows (class, box, "
        f"{keypoints} keypoints of {what}), or they are polygons of {columns // 2} points. "
        f"In the data set's YAML write kpt_shape: [{keypoints}, {dims}] to have the boxes read without the "
        "keypoints, or task: segment if they are polygons"
    )


def has_visibility(values: np.ndarray) -> bool:
    """Whether every third number behind the box of (T, columns) rows belongs to the keypoint before it.

    It is a mark of visibility (0, 1, 2; -1 where there is no keypoint) or, in predictions, a confidence.
    """
    marks = values[:, BOX_COLUMNS + 2 :: 3]
    if (values.shape[1] - BOX_COLUMNS) % 3 or not marks.size:
        return False
    fits = _fits(values, step=3).mean()
    # coordinates are 0 or 1 where a polygon touches the picture's edges, but not in nearly all rows
    if np.isin(marks, (-1, 0, 1, 2)).all(1).mean() >= NEARLY_ALL:
        # no polygon holds a 2; keypoints may be in px, or beyond their box
        certain = (marks == 2).any(1).mean() >= 0.25 and _is_box(
            values[:, 1:BOX_COLUMNS]
        ).mean() >= NEARLY_ALL
        return bool(certain or fits > 0.5)
    if fits < NEARLY_ALL or ((marks >= 0) & (marks <= 1)).all(1).mean() < NEARLY_ALL:
        return False
    # as in ``looks_like_pose``: of a polygon the numbers moved on by a point fit as well
    moved = [np.roll(values[:, 1:], -shift, axis=1) for shift in range(2, values.shape[1] - 1, 2)]
    others = [_fits(np.hstack([values[:, :1], rows]), step=3).mean() for rows in moved]
    return bool(fits - max(others) > BETTER)


def looks_like_pose(points: np.ndarray) -> bool:
    """Whether (T, m, 2) points are a centre, a size and keypoints rather than a polygon.

    A polygon can begin at any of its points: where the first two happen to make a box around all others, as
    in small polygons near the middle, points 2 and 3 do as well, and so on. In a pose row they do not.
    """
    if points.shape[1] < 3:
        return False
    fits = [_fits_box(np.roll(points, -shift, axis=1)).mean() for shift in range(points.shape[1])]
    if fits[0] < NEARLY_ALL:
        return False
    return bool(fits[0] - max(fits[1:]) > BETTER) or _second_is_near(points).mean() < 0.5


def _fits(values: np.ndarray, step: int) -> np.ndarray:
    keypoints = values[:, BOX_COLUMNS:].reshape(len(values), -1, step)[..., :2]
    return _fits_box(np.concatenate([values[:, 1:BOX_COLUMNS].reshape(-1, 2, 2), keypoints], axis=1))


def _fits_box(points: np.ndarray) -> np.ndarray:
    """(T,) bool: the first two points are a box (centre, size) in the picture that holds all others."""
    centre, size, others = points[:, 0], points[:, 1], points[:, 2:]
    held = np.abs(others - centre[:, None]) <= size[:, None] * (0.5 + BEYOND)
    return _is_box(np.hstack([centre, size])) & (held.all(2) | _unset(others)).all(1)


def _is_box(values: np.ndarray) -> np.ndarray:
    """(T,) bool: (T, 4) centre and size of a box in the picture."""
    centre, size = values[:, :2], values[:, 2:]
    inside = (size > 0) & (centre - size / 2 >= -OUTSIDE) & (centre + size / 2 <= 1 + OUTSIDE)
    return inside.all(1)


def _unset(points: np.ndarray) -> np.ndarray:
    """(T, m) bool: keypoints that are not there stand at 0, 0 or -1, -1."""
    return (points == 0).all(2) | (points == -1).all(2)


def _second_is_near(points: np.ndarray) -> np.ndarray:
    """(T,) bool: the second point lies about the others, as the next corner does, and a size does not."""
    others = np.delete(points, 1, axis=1)
    unset = _unset(others)[..., None]
    low, high = np.where(unset, np.inf, others).min(1), np.where(unset, -np.inf, others).max(1)
    reach = (high - low).max(1, keepdims=True)
    return ((points[:, 1] >= low - reach) & (points[:, 1] <= high + reach)).all(1)
