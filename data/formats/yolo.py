"""YOLO label files: one text file a picture, one row a box, ``class cx cy w h`` as fractions of the picture.

Longer rows become boxes as ``yolo_rows`` says. N pictures, T rows of a split.
"""

import math
import os
from array import array
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from data.formats.labels import RawLabels
from data.formats.problems import Problem, dangling_link
from data.formats.row_tasks import LongRow, explain_pose, sample_rows
from data.formats.yolo_rows import BOX_COLUMNS, UNSAID, ParsedRows, RowRule, box_of, parse_labels
from data.formats.yolo_units import ABOVE_ONE, REMEDY, Written, centres_unit
from utils.errors import DATA, UserError
from utils.files import open_regular, read_many

MAX_BYTES = 20_000_000  # 300 polygons of 4,000 points
FRACTIONS = Written("fractions", corners=False)  # as it should be
FOUR_POINTS = 9  # columns of a polygon of four points, as of a rotated box

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
    long_rows: list[LongRow]  # some of the rows longer than a box, as written
    columns: list[int]  # of all of these


def _no_files() -> _Files:
    return _Files(array("d"), array("q"), [], [], [], [], [])


def read_labels(
    files: list[str], sizes: np.ndarray, names: Sequence[str] | None, rule: RowRule = UNSAID
) -> RawLabels:
    """The label ``files`` of the pictures of ``sizes`` (N, 2); without ``names`` any class is taken for 0.

    Raises ``UserError`` where the rows look like another task's and the YAML, ``rule``, does not say so.
    """
    found = _no_files()
    for part in read_many(partial(_read_chunk, rule=rule), files):
        for whole, piece in zip(found, part, strict=True):
            whole.extend(piece)
    columns = Counter(found.columns)
    unsaid = not rule.pose_columns and not rule.polygons
    if unsaid and (text := explain_pose(found.long_rows, columns)):
        raise UserError(text, DATA)
    counts = np.array([count or 0 for count in found.num_rows], np.int64)
    values = np.array(found.values, np.float64).reshape(-1, BOX_COLUMNS)
    pictures, lines = np.repeat(np.arange(len(counts)), counts), np.array(found.lines, np.int64)
    # polygons are no corners, and where they are in another unit their bounds are, too
    _check_unit(values, sizes[pictures], files[pictures[0]] if len(pictures) else "")
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
        num_keypoint_rows=columns.total() if rule.pose_columns else 0,
        num_polygons=0 if rule.pose_columns else columns.total(),
        num_four_points=0 if rule.pose_columns else columns[FOUR_POINTS],
    )


def _check_unit(values: np.ndarray, sizes: np.ndarray, path: str) -> None:
    """Raise ``UserError`` where the (T, 5) rows are not centres and sizes in fractions, as a whole."""
    written = centres_unit(values[:, 1:], sizes)
    if written == FRACTIONS:
        return
    what = "corners, x1 y1 x2 y2" if written.corners else "cx cy w h"
    what = "the upper left corner and the size, x y w h," if written.upper_left else what
    remedy = "" if written.unit == FRACTIONS.unit else f"{REMEDY[written.unit]}; "
    if written.corners:
        remedy += (
            "then " * bool(remedy) + "cx = (x1 + x2) / 2, cy = (y1 + y2) / 2, w = x2 - x1, h = y2 - y1; "
        )
    if written.upper_left:
        remedy += "then " * bool(remedy) + "cx = x + w / 2, cy = y + h / 2; "
    shown = " ".join(_number(value) for value in values[0])
    raise UserError(
        f"the labels of this split look like {what} in {written.unit}, where YOLO has cx cy w h in fractions "
        f"of the picture, 0..1; for example {path}: {shown}\nTo mend them: {remedy}or export them again",
        DATA,
    )


def _is_missing(num_rows: int | None, unreadable: bool) -> bool:
    return num_rows is None and not unreadable


def label_paths_of(pictures: list[str]) -> list[str]:
    """The label file of every picture: the last folder images becomes labels; without one, beside it.

    Where there is no such folder labels, another folder images of the path may be meant, or labels that lie
    beside their pictures all the same.
    """
    prefixes: dict[str, str] = {}
    paths = []
    for picture in pictures:
        folder, _, name = picture.rpartition(os.sep)
        if folder not in prefixes:
            prefixes[folder] = _label_folder_of(folder) + os.sep
        paths.append(f"{prefixes[folder]}{name.rpartition('.')[0] or name}.txt")
    return paths


def label_folders(folder: str) -> list[str]:
    """Folders in which the labels of a folder of pictures may lie, by their rank; the last is the folder."""
    parts = folder.split(os.sep)
    places = [place for place, part in enumerate(parts) if part == "images"]
    swapped = [os.sep.join([*parts[:place], "labels", *parts[place + 1 :]]) for place in reversed(places)]
    return [*swapped, folder]


def _label_folder_of(folder: str) -> str:
    first, *others = label_folders(folder)
    if not others or os.path.isdir(first):
        return first
    there = filter(os.path.isdir, others[:-1])
    return next(there, folder if _holds_labels(folder) else first)


def _holds_labels(folder: str) -> bool:
    """Whether a label file lies beside its picture."""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    labels = {name[:-4] for name in names if name.endswith(".txt")}
    return any(name.rpartition(".")[0] in labels for name in names if not name.endswith(".txt"))


def _read_chunk(files: list[str], rule: RowRule) -> _Files:
    found = _no_files()
    for path in files:
        _read_file(path, found, rule)
    kept = sample_rows(found.long_rows, most=len(found.long_rows))
    return found._replace(long_rows=kept)


def _read_file(path: str, found: _Files, rule: RowRule) -> None:
    parsed, unreadable = None, False
    try:
        with open_regular(path, most=MAX_BYTES) as file:
            parsed = parse_labels(file.read(), path, rule)
    except (FileNotFoundError, NotADirectoryError):
        problem = dangling_link(path)
        found.problems.extend([problem] if problem else [])
        unreadable = problem is not None
    except (OSError, ValueError) as error:  # ValueError: a pipe, or a NUL in the path
        unreadable = True
        reason = getattr(error, "strerror", None) or error
        found.problems.append(Problem(path, 0, f"cannot read this label file: {reason}", "label file"))
    else:
        unreadable = any(not problem.line for problem in parsed.problems)
        found.values.extend(chain.from_iterable(_box_rows(parsed, path, found, rule)))
        found.lines.extend(parsed.lines)
        found.problems.extend(parsed.problems)
    found.num_rows.append(None if parsed is None else len(parsed.rows))
    found.unreadable.append(unreadable)


def _box_rows(parsed: ParsedRows, path: str, found: _Files, rule: RowRule) -> list[list[float]]:
    """The rows as boxes; what longer ones looked like is noted in ``found``."""
    long = [
        LongRow(row, path, line)
        for row, line in zip(parsed.rows, parsed.lines, strict=True)
        if len(row) != BOX_COLUMNS
    ]
    if not long:
        return parsed.rows
    found.columns.extend(len(item.row) for item in long)
    found.long_rows.extend(sample_rows(long))
    return [box_of(row, rule) for row in parsed.rows]


def find_faults(values: np.ndarray, num_classes: int | None) -> np.ndarray:
    """(T,) the first fault of every row, else FINE; with ``num_classes`` None any class will do."""
    classes, coordinates = values[:, 0], values[:, 1:]
    limit = np.inf if num_classes is None else num_classes
    with np.errstate(invalid="ignore", over="ignore"):
        conditions = [
            ~np.isfinite(values).all(axis=1),
            classes != np.floor(classes),
            (classes < 0) | (classes >= limit),
            (coordinates > ABOVE_ONE).any(axis=1),
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
        name = next(name for name in ("cx", "cy", "w", "h") if columns[name] > ABOVE_ONE)
        what = "pixels" if columns[name] > 100 else "pixels or percent"
        remedy = f"these look like {what}, YOLO labels are fractions of the picture (0..1)"
        return f"{name} is {_number(columns[name])}: {remedy}"
    name = "w" if row[3] < 0 else "h"
    return f"{name} is {_number(columns[name])}, negative"


def _corners(values: np.ndarray) -> np.ndarray:
    """(T, 4) xyxy as fractions of the picture."""
    half = values[:, 3:] / 2
    return np.hstack([values[:, 1:3] - half, values[:, 1:3] + half])


def _number(value: float) -> str:
    return f"{value:.12g}"
