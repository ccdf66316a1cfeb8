"""YOLO label files: one text file a picture, one row a box, ``class cx cy w h`` as fractions of the picture.

Polygon rows ``class x1 y1 x2 y2 x3 y3 ...`` become their bounding boxes. N pictures, T rows of a split.
"""

import math
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np

from data.files import open_regular
from data.formats.labels import RawLabels
from data.formats.problems import Problem

MAX_BYTES = 20_000_000  # 300 polygons of 4,000 points
PIXELS = 2.0  # larger coordinates can only be pixels
BOX_COLUMNS = 5
MIN_POLYGON_COLUMNS = 7  # class and three points
SHOWN_CHARACTERS = 40
THREADS = 4  # they wait for the disk
CHUNK = 256  # files a task

FINE, NOT_FINITE, NOT_WHOLE, NO_CLASS, IN_PIXELS, NEGATIVE = range(6)
KINDS = {
    NOT_FINITE: "not finite",
    NOT_WHOLE: "class",
    NO_CLASS: "class",
    IN_PIXELS: "pixels",
    NEGATIVE: "negative",
}


class _Files(NamedTuple):
    """What some label files hold; ``values`` and ``lines`` are flat, COCO has 860,000 rows."""

    values: array  # class, cx, cy, w, h of the first row, then of the second, ...
    lines: array
    num_rows: list[int | None]  # a picture; None without a label file
    unreadable: list[bool]
    problems: list[Problem]


def _no_files() -> _Files:
    return _Files(array("d"), array("q"), [], [], [])


def read_labels(files: list[str], sizes: np.ndarray, names: Sequence[str] | None) -> RawLabels:
    """The label ``files`` of the pictures of ``sizes`` (N, 2); without ``names`` any class is taken for 0."""
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    found = _no_files()
    with ThreadPoolExecutor(THREADS) as pool:
        for part in pool.map(_read_chunk, chunks):
            for whole, piece in zip(found, part, strict=True):
                whole.extend(piece)
    counts = np.array([count or 0 for count in found.num_rows], np.int64)
    values = np.array(found.values, np.float64).reshape(-1, BOX_COLUMNS)
    pictures, lines = np.repeat(np.arange(len(counts)), counts), np.array(found.lines, np.int64)
    faults = find_faults(values, len(names) if names else None)
    for row in np.flatnonzero(faults != FINE):
        text = explain_fault(faults[row], values[row], names)
        found.problems.append(Problem(files[pictures[row]], int(lines[row]), text, KINDS[faults[row]]))
    fine = faults == FINE
    values, pictures, lines = values[fine], pictures[fine], lines[fine]
    with np.errstate(over="ignore"):  # a box at -1e308 lies far outside in any case
        boxes = _corners(values) * sizes[pictures][:, [1, 0, 1, 0]]
    return RawLabels(
        boxes=boxes,
        labels=values[:, 0].astype(np.int64) if names else np.zeros(len(values), np.int64),
        ignore=np.zeros(len(values), bool),
        areas=np.full(len(values), np.nan),
        pictures=pictures,
        fault_at=lambda row, text, kind: Problem(files[pictures[row]], int(lines[row]), text, kind),
        problems=found.problems,
        left_out=np.array(found.unreadable, bool),
        num_missing=sum(map(_is_missing, found.num_rows, found.unreadable)),
    )


def _is_missing(num_rows: int | None, unreadable: bool) -> bool:
    return num_rows is None and not unreadable


def label_paths_of(pictures: list[str]) -> list[str]:
    """The label file of every picture: the last folder images becomes labels; without one, beside it."""
    prefixes: dict[str, str] = {}
    paths = []
    for picture in pictures:
        folder, _, name = picture.rpartition(os.sep)
        if folder not in prefixes:
            prefixes[folder] = _label_folder_of(folder) + os.sep
        paths.append(f"{prefixes[folder]}{name.rpartition('.')[0] or name}.txt")
    return paths


def _label_folder_of(folder: str) -> str:
    parts = folder.split(os.sep)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return os.sep.join(parts)


def _read_chunk(files: list[str]) -> _Files:
    found = _no_files()
    for path in files:
        _read_file(path, found)
    return found


def _read_file(path: str, found: _Files) -> None:
    rows, unreadable = None, False
    try:
        with open_regular(path, most=MAX_BYTES) as file:
            rows, lines, problems = parse_labels(file.read(), path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # ValueError: a pipe, or a NUL in the path
        unreadable = True
        found.problems.append(
            Problem(
                path,
                0,
                f"cannot read this label file: {getattr(error, 'strerror', None) or error}",
                "label file",
            )
        )
    else:
        unreadable = any(not problem.line for problem in problems)
        found.values.extend(chain.from_iterable(rows))
        found.lines.extend(lines)
        found.problems.extend(problems)
    found.num_rows.append(None if rows is None else len(rows))
    found.unreadable.append(unreadable)


def parse_labels(data: bytes, path: str) -> tuple[list[list[float]], list[int], list[Problem]]:
    """Rows (class, cx, cy, w, h), values unchecked; their line numbers; the lines that are no rows."""
    rows, lines, problems = [], [], []
    if b"\0" in data:
        return rows, lines, [Problem(path, 0, "binary data or UTF-16, not a plain text file", "label file")]
    for line, text in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        tokens = text.split()
        if not tokens:
            continue
        try:
            row = [float(token) for token in tokens]
        except ValueError:
            row = None
        if row is None or b"_" in text:  # float() takes 1_0 for 10
            problems.append(Problem(path, line, *_explain_text(text, tokens)))
            continue
        if len(row) >= MIN_POLYGON_COLUMNS and len(row) % 2 == 1:
            wrong = next((column for column, value in enumerate(row) if not math.isfinite(value)), None)
            if wrong is not None:
                text = f"column {wrong + 1} of this polygon is {row[wrong]}, not a finite number"
                problems.append(Problem(path, line, text, "not finite"))
                continue
            row = _box_of_polygon(row)
        if len(row) != BOX_COLUMNS:
            problems.append(Problem(path, line, _explain_columns(len(row)), "columns"))
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
        ]
    return np.select(conditions, [NOT_FINITE, NOT_WHOLE, NO_CLASS, IN_PIXELS, NEGATIVE], FINE)


def explain_fault(fault: int, row: np.ndarray, names: Sequence[str] | None) -> str:
    """The text of a row's fault, with the offending value."""
    columns = dict(zip(("class", "cx", "cy", "w", "h"), row.tolist(), strict=True))
    if fault == NOT_FINITE:
        name = next(name for name, value in columns.items() if not math.isfinite(value))
        return f"{name} is {columns[name]}, not a finite number"
    if fault == NOT_WHOLE:
        return f"class {_number(row[0])} is not a whole number"
    if fault == NO_CLASS and names is None:
        return f"class {_number(row[0])} is negative"
    if fault == NO_CLASS:
        hint = "; do these labels count from 1? Classes count from 0" if row[0] == len(names) else ""
        has = f"the data set has {len(names)} names"
        return f"class {_number(row[0])} is outside 0..{len(names) - 1} ({has}){hint}"
    if fault == IN_PIXELS:
        name = next(name for name in ("cx", "cy", "w", "h") if columns[name] > PIXELS)
        remedy = "these look like pixels, YOLO labels are fractions of the picture (0..1)"
        return f"{name} is {_number(columns[name])}: {remedy}"
    name = "w" if row[3] < 0 else "h"
    return f"{name} is {_number(columns[name])}, negative"


def _corners(values: np.ndarray) -> np.ndarray:
    """(T, 4) xyxy as fractions of the picture."""
    half = values[:, 3:] / 2
    return np.hstack([values[:, 1:3] - half, values[:, 1:3] + half])


def _box_of_polygon(row: list[float]) -> list[float]:
    x, y = row[1::2], row[2::2]
    left, top, right, bottom = min(x), min(y), max(x), max(y)
    return [row[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _explain_text(text: bytes, tokens: list[bytes]) -> tuple[str, str]:
    """The text and the kind of the problem."""
    if b"," in text or b";" in text:
        return (
            f"{_show(text)} has commas or semicolons; YOLO labels need spaces and decimal points",
            "separator",
        )
    wrong = next(index for index, token in enumerate(tokens) if not _is_number(token))
    if wrong == 0:
        hint = "not a whole number; labels hold the index of the class in names"
        return f"class {_show(tokens[0])} is {hint}", "class"
    return f"column {wrong + 1}, {_show(tokens[wrong])}, is not a number", "not a number"


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
