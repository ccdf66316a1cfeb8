"""Every picture and box of a data-set split in packed arrays: N pictures, T boxes.

Packed, because loader workers share these arrays without copying: a Python object a picture would be copied,
one reference count at a time, into every worker.
"""

import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.images import read_size
from data.problems import Problem, check_problems
from data.spec import DataSpec, list_pictures
from data.yolo import (
    BOX_COLUMNS,
    FINE,
    LabelReport,
    LabelRows,
    YoloBoxes,
    explain_fault,
    find_faults,
    label_path_of,
    make_boxes,
    parse_labels,
)
from utils.errors import DATA, UserError

THREADS = 8  # they wait for the disk
CHUNK = 256  # pictures a task
MAX_ID_DIGITS = 15  # evaluators hold ids as float64, exact to 2^53
SHOWN_FOLDERS = 10


class Index(NamedTuple):
    """One split of a data set."""

    paths: np.ndarray  # (N,) bytes, absolute; see path_of
    sizes: np.ndarray  # (N, 2) int32 height, width, EXIF orientation applied
    offsets: np.ndarray  # (N + 1,) int64; the boxes of picture i are the rows offsets[i]:offsets[i + 1]
    boxes: np.ndarray  # (T, 4) float64 xyxy, pixels of the original picture
    labels: np.ndarray  # (T,) int64 class index
    ignore: np.ndarray  # (T,) bool, crowd or difficult
    areas: np.ndarray  # (T,) float32 px^2, the area that decides COCO's small, medium, large
    picture_ids: np.ndarray  # (N,) int64


class _Files(NamedTuple):
    """What the files of some pictures hold; ``values`` and ``lines`` are flat, COCO has 860,000 rows."""

    sizes: list[tuple[int, int]]
    values: array  # class, cx, cy, w, h of the first row, then of the second, ...
    lines: array
    num_rows: list[int | None]  # a picture; None without a label file
    problems: list[Problem]


def _no_files() -> _Files:
    return _Files([], array("d"), array("q"), [], [])


def path_of(index: Index, i: int) -> Path:
    """Path of picture ``i``."""
    return Path(os.fsdecode(index.paths[i]))


def load_split(spec: DataSpec, split: str, *, single_cls: bool = False) -> tuple[Index, LabelReport]:
    """Read the headers of all pictures of a split and their YOLO labels.

    Faults of the whole split are gathered into one error. With ``single_cls`` every box gets class 0, and the
    class in the file only has to be a whole number from 0.
    """
    pictures = list_pictures(spec, split)
    files = _read_files(pictures)
    num_classes = None if single_cls else len(spec.names)
    missing = files.num_rows.count(None)
    if missing == len(pictures) and not files.problems:
        raise _no_labels_error(spec, split, pictures)
    rows = _pack_rows(files)
    faults = _row_problems(rows, pictures, num_classes)
    check_problems([*files.problems, *faults], f"{spec.yaml}, split {split!r}")
    sizes = np.array(files.sizes, np.int32)
    found = make_boxes(rows, sizes, single_cls=single_cls)
    index = _make_index(pictures, sizes, found)
    report = LabelReport(
        num_pictures=len(pictures),
        num_background=int((np.diff(index.offsets) == 0).sum()),
        num_boxes=len(found.boxes),
        num_clipped=found.num_clipped,
        num_empty=found.num_empty,
        num_duplicate=found.num_duplicate,
        missing_label_files=missing,
    )
    return index, report


def picture_ids_of(pictures: list[str]) -> np.ndarray:
    """(N,) ids: the stems where all of them are distinct numbers (as COCO names its pictures), else 1..N."""
    stems = [Path(picture).stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() and len(stem) <= MAX_ID_DIGITS for stem in stems):
        ids = np.array([int(stem) for stem in stems], np.int64)
        if len(np.unique(ids)) == len(ids):
            return ids
    return np.arange(1, len(pictures) + 1, dtype=np.int64)


def _read_files(pictures: list[str]) -> _Files:
    chunks = [pictures[start : start + CHUNK] for start in range(0, len(pictures), CHUNK)]
    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(_read_chunk, chunks))
    files = _no_files()
    for part in parts:
        for whole, piece in zip(files, part, strict=True):
            whole.extend(piece)
    return files


def _read_chunk(pictures: list[str]) -> _Files:
    files = _no_files()
    for picture in pictures:
        try:
            files.sizes.append(read_size(picture))
        except UserError as error:
            files.sizes.append((0, 0))
            files.problems.append(Problem(picture, 0, str(error).removeprefix(f"{picture}: ")))
        _read_labels(label_path_of(picture), files)
    return files


def _read_labels(path: str, files: _Files) -> None:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        files.num_rows.append(None)
        return
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, from a list file
        files.num_rows.append(None)
        files.problems.append(Problem(path, 0, f"cannot read this label file: {error}"))
        return
    values, lines, problems = parse_labels(data, path)
    files.values.extend(chain.from_iterable(values))
    files.lines.extend(lines)
    files.num_rows.append(len(values))
    files.problems.extend(problems)


def _pack_rows(files: _Files) -> LabelRows:
    counts = np.array([count or 0 for count in files.num_rows], np.int64)
    return LabelRows(
        values=np.array(files.values, np.float64).reshape(-1, BOX_COLUMNS),
        pictures=np.repeat(np.arange(len(counts)), counts),
        lines=np.array(files.lines, np.int64),
    )


def _row_problems(rows: LabelRows, pictures: list[str], num_classes: int | None) -> list[Problem]:
    faults = find_faults(rows.values, num_classes)
    return [
        Problem(
            label_path_of(pictures[rows.pictures[row]]),
            int(rows.lines[row]),
            explain_fault(faults[row], rows.values[row], num_classes),
        )
        for row in np.flatnonzero(faults != FINE)
    ]


def _make_index(pictures: list[str], sizes: np.ndarray, found: YoloBoxes) -> Index:
    counts = np.bincount(found.pictures, minlength=len(pictures))
    return Index(
        paths=np.array([os.fsencode(picture) for picture in pictures]),
        sizes=sizes,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=found.boxes,
        labels=found.labels,
        ignore=np.zeros(len(found.boxes), bool),
        areas=found.areas,
        picture_ids=picture_ids_of(pictures),
    )


def _no_labels_error(spec: DataSpec, split: str, pictures: list[str]) -> UserError:
    folders = sorted({os.path.dirname(label_path_of(picture)) for picture in pictures})
    shown = [f"  {folder}" for folder in folders[:SHOWN_FOLDERS]]
    more = [f"  ... and {len(folders) - SHOWN_FOLDERS} more"] if len(folders) > SHOWN_FOLDERS else []
    lines = [
        f"{spec.yaml}: none of the {len(pictures)} pictures of split {split!r} has a label file; looked in:",
        *shown,
        *more,
        f"For example {pictures[0]} needs {label_path_of(pictures[0])}.",
        "(The last folder called images is replaced by labels; without one, labels lie beside the pictures.)",
    ]
    return UserError("\n".join(lines), DATA)
