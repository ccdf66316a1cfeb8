"""YOLO label files: one text file a picture, one row a box, ``class cx cy w h`` as fractions of the picture.

Polygon rows ``class x1 y1 x2 y2 x3 y3 ...`` become their bounding boxes. T is the number of rows of a split.
"""

import math
import os
from typing import NamedTuple

import numpy as np

from data.problems import Problem

TOLERANCE = 0.01  # a box may overshoot the picture by this share of the picture's side; it is clipped
ROUNDING = 1e-6  # overshoot that six decimals explain: clipped without being counted
PIXELS = 2.0  # larger coordinates can only be pixels
BOX_COLUMNS = 5
MIN_POLYGON_COLUMNS = 7  # class and three points
SHOWN_CHARACTERS = 40

FINE, NOT_FINITE, NOT_WHOLE, NO_CLASS, IN_PIXELS, NEGATIVE, OUTSIDE = range(7)


class LabelReport(NamedTuple):
    """What reading the labels of a split came to."""

    num_pictures: int
    num_background: int  # pictures without a box
    num_boxes: int
    num_clipped: int  # kept, but reached beyond the picture by up to 1 % of its side
    num_empty: int  # dropped: no width or no height
    num_duplicate: int  # dropped: same box and class as an earlier row of the picture
    missing_label_files: int


class LabelRows(NamedTuple):
    """Rows of label files as written, in order of the pictures."""

    values: np.ndarray  # (T, 5) float64 class, cx, cy, w, h
    pictures: np.ndarray  # (T,) int64 index of the picture
    lines: np.ndarray  # (T,) int64 line in the label file, from 1


class YoloBoxes(NamedTuple):
    """Boxes that are kept of the rows, and how many were not."""

    boxes: np.ndarray  # (T, 4) float32 xyxy px
    labels: np.ndarray  # (T,) int64
    areas: np.ndarray  # (T,) float32 px^2
    pictures: np.ndarray  # (T,) int64, ascending
    num_clipped: int
    num_empty: int
    num_duplicate: int


def format_report(report: LabelReport) -> str:
    """One line for people; counts of mended rows only where there are any."""
    parts = [
        f"{report.num_pictures} pictures ({report.num_background} background)",
        f"{report.num_boxes} boxes",
        f"{report.num_clipped} clipped to the picture" * (report.num_clipped > 0),
        f"{report.num_empty} of no size dropped" * (report.num_empty > 0),
        f"{report.num_duplicate} duplicates dropped" * (report.num_duplicate > 0),
        f"{report.missing_label_files} pictures without a label file" * (report.missing_label_files > 0),
    ]
    return ", ".join(filter(None, parts))


def label_path_of(picture: str) -> str:
    """The label file of a picture: the last folder ``images`` becomes ``labels``; without one, beside it."""
    folders = os.path.dirname(picture).split(os.sep)
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        folders[last] = "labels"
    stem = os.path.splitext(os.path.basename(picture))[0]
    return os.sep.join([*folders, stem + ".txt"])


def parse_labels(data: bytes, path: str) -> tuple[list[list[float]], list[int], list[Problem]]:
    """Rows (class, cx, cy, w, h), values unchecked; their line numbers; the lines that are no rows."""
    rows, lines, problems = [], [], []
    if b"\0" in data:
        return rows, lines, [Problem(path, 0, "binary data or UTF-16, not a plain text file")]
    for line, text in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        tokens = text.split()
        if not tokens:
            continue
        try:
            row = [float(token) for token in tokens]
        except ValueError:
            row = None
        if row is None or b"_" in text:  # float() takes 1_0 for 10
            problems.append(Problem(path, line, _explain_text(text, tokens)))
            continue
        if len(row) >= MIN_POLYGON_COLUMNS and len(row) % 2 == 1:
            row = _box_of_polygon(row)
        if len(row) != BOX_COLUMNS:
            problems.append(Problem(path, line, _explain_columns(len(row))))
            continue
        rows.append(row)
        lines.append(line)
    return rows, lines, problems


def find_faults(values: np.ndarray, num_classes: int | None) -> np.ndarray:
    """(T,) the first fault of every row, else FINE; with ``num_classes`` None any class will do."""
    classes, coordinates = values[:, 0], values[:, 1:]
    limit = np.inf if num_classes is None else num_classes
    with np.errstate(invalid="ignore", over="ignore"):
        conditions = [
            ~np.isfinite(values).all(axis=1),
            classes != np.floor(classes),
            (classes < 0) | (classes >= limit),
            (coordinates > PIXELS).any(axis=1),
            (values[:, 3:] < 0).any(axis=1),
            _overshoot(values).max(axis=1) > TOLERANCE + 1e-9,
        ]
    return np.select(conditions, [NOT_FINITE, NOT_WHOLE, NO_CLASS, IN_PIXELS, NEGATIVE, OUTSIDE], FINE)


def explain_fault(fault: int, row: np.ndarray, num_classes: int | None) -> str:
    """The text of a row's fault, with the offending value."""
    columns = dict(zip(("class", "cx", "cy", "w", "h"), row.tolist(), strict=True))
    if fault == NOT_FINITE:
        name = next(name for name, value in columns.items() if not math.isfinite(value))
        return f"{name} is {columns[name]}, not a finite number"
    if fault == NOT_WHOLE:
        return f"class {_number(row[0])} is not a whole number"
    if fault == NO_CLASS and num_classes is None:
        return f"class {_number(row[0])} is negative"
    if fault == NO_CLASS:
        names = f"the data set has {num_classes} names"
        return f"class {_number(row[0])} is outside 0..{num_classes - 1} ({names})"
    if fault == IN_PIXELS:
        name = next(name for name in ("cx", "cy", "w", "h") if columns[name] > PIXELS)
        remedy = "these look like pixels, YOLO labels are fractions of the picture (0..1)"
        return f"{name} is {_number(columns[name])}: {remedy}"
    if fault == NEGATIVE:
        name = "w" if row[3] < 0 else "h"
        return f"{name} is {_number(columns[name])}, negative"
    overshoot = _overshoot(row[None])[0]
    side = ("left", "upper", "right", "lower")[int(overshoot.argmax())]
    box = f"cx {row[1]:g} cy {row[2]:g} w {row[3]:g} h {row[4]:g}"
    reach = f"reaches {overshoot.max():.2%} beyond the {side} edge"
    return f"box {box} {reach}; at most {TOLERANCE:.0%} can be clipped"


def make_boxes(rows: LabelRows, sizes: np.ndarray, *, single_cls: bool) -> YoloBoxes:
    """Pixel boxes of faultless rows: clipped, then those of no size and repeated ones dropped.

    ``sizes`` (N, 2) height, width. Computed in float64, rounded once: a corner on the border stays on it.
    """
    scale = sizes[rows.pictures][:, [1, 0, 1, 0]].astype(np.float64)
    exact = _corners(rows.values).clip(0, 1) * scale
    boxes = exact.astype(np.float32)
    labels = np.zeros(len(boxes), np.int64) if single_cls else rows.values[:, 0].astype(np.int64)
    solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    kept = np.flatnonzero(solid)
    kept = kept[_first_of_equals(boxes[kept], labels[kept], rows.pictures[kept])]
    clipped = _overshoot(rows.values[kept]).max(axis=1, initial=0) > ROUNDING
    areas = (exact[kept, 2:] - exact[kept, :2]).prod(axis=1).astype(np.float32)
    num_solid = int(solid.sum())
    return YoloBoxes(
        boxes=boxes[kept],
        labels=labels[kept],
        areas=areas,
        pictures=rows.pictures[kept],
        num_clipped=int(clipped.sum()),
        num_empty=len(boxes) - num_solid,
        num_duplicate=num_solid - len(kept),
    )


def _corners(values: np.ndarray) -> np.ndarray:
    """(T, 4) xyxy as fractions of the picture."""
    half = values[:, 3:] / 2
    return np.hstack([values[:, 1:3] - half, values[:, 1:3] + half])


def _overshoot(values: np.ndarray) -> np.ndarray:
    """(T, 4) how far left, top, right, bottom lie outside, as a share of the side; negative inside."""
    corners = _corners(values)
    return np.hstack([-corners[:, :2], corners[:, 2:] - 1])


def _first_of_equals(boxes: np.ndarray, labels: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Ascending indices of the rows that repeat no earlier row."""
    columns = (*boxes.T, labels, pictures)
    order = np.lexsort(columns)  # stable: of equal rows the earliest comes first
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    return np.sort(np.concatenate([order[:1], order[1:][~same]]))


def _box_of_polygon(row: list[float]) -> list[float]:
    x, y = row[1::2], row[2::2]
    if not math.isfinite(sum(row)):  # min and max may pass over a NaN
        return [row[0], math.nan, math.nan, math.nan, math.nan]
    left, top, right, bottom = min(x), min(y), max(x), max(y)
    return [row[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _explain_text(text: bytes, tokens: list[bytes]) -> str:
    if b"," in text or b";" in text:
        return f"{_show(text)} has commas or semicolons; YOLO labels need spaces and decimal points"
    wrong = next(index for index, token in enumerate(tokens) if not _is_number(token))
    if wrong == 0:
        return f"class {_show(tokens[0])} is not a whole number; labels hold the index of the class in names"
    return f"column {wrong + 1}, {_show(tokens[wrong])}, is not a number"


def _explain_columns(count: int) -> str:
    text = (
        f"{count} columns, not 5 (class cx cy w h) nor a polygon of 3 or more points (class x1 y1 x2 y2 ...)"
    )
    if count == BOX_COLUMNS + 1:
        text += "; with a confidence as sixth column these are predictions, not labels"
    return text


def _is_number(token: bytes) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return b"_" not in token


def _show(token: bytes) -> str:
    text = token.decode("utf-8", "backslashreplace").strip()
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")


def _number(value: float) -> str:
    return f"{value:.12g}"
