"""What the files of a split say, in whichever of the formats: N pictures, their sizes, ids and labels."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.formats import coco, voc, yolo
from data.formats.labels import RawLabels
from data.formats.nearby import labels_elsewhere
from data.formats.problems import MISSING_PICTURE, Problem, show_problem
from data.formats.sources import DataSpec, coco_files, coco_folder, list_pictures, spec_error, xml_folders
from data.formats.units import leave_out_fractions, unit_of
from data.images import read_size
from utils.errors import DATA, NothingThereError, UserError
from utils.files import read_many
from utils.wording import printable

MAX_ID_DIGITS = 15  # evaluators hold ids as float64, exact to 2^53
MAX_ID = 2**53
NO_IDS = np.zeros(0, "S1")
SHOWN_FOLDERS = 10


class SplitFiles(NamedTuple):
    """Pictures of a split with their labels."""

    pictures: list[str]  # (N,)
    picture_ids: np.ndarray  # (N,) int64
    label_files: list[str]  # of each picture (YOLO, VOC), or the JSON files
    sizes: np.ndarray  # (N, 2) int32 height, width, EXIF orientation applied; 0, 0 of one that cannot be read
    raw: RawLabels
    problems: list[Problem]  # of pictures; those of labels are in raw
    source_ids: np.ndarray  # (N,) bytes, or (0,); see Index


def list_sources(spec: DataSpec, split: str) -> tuple[list[str] | None, list[str]]:
    """Pictures of a split (None where the label files list them) and its label files."""
    if spec.format == "coco":
        return None, list(map(str, coco_files(spec, split)))
    pictures = list_pictures(spec, split)
    if spec.format == "voc":
        return pictures, voc.label_paths_of(pictures, xml_folders(spec, split))
    return pictures, yolo.label_paths_of(pictures)


def read_files(
    spec: DataSpec, split: str, pictures: list[str] | None, label_files: list[str], *, names
) -> SplitFiles:
    """Headers of all pictures and their labels, from ``list_sources``; without ``names`` every class is 0."""
    read = {"yolo": _read_yolo, "coco": _read_coco, "voc": _read_voc}[spec.format]
    files = read(spec, split, pictures, label_files, names=names)
    silent = not files.problems and not files.raw.problems
    if silent and files.pictures and files.raw.num_missing == len(files.pictures):
        raise _no_labels_error(spec, split, files)
    return files


def picture_ids_of(pictures: list[str]) -> np.ndarray:
    """(N,) ids: the stems where all of them are distinct numbers (as COCO names its pictures), else 1..N."""
    stems = [Path(picture).stem for picture in pictures]
    if all(stem.isascii() and stem.isdigit() and len(stem) <= MAX_ID_DIGITS for stem in stems):
        ids = np.array([int(stem) for stem in stems], np.int64)
        if len(np.unique(ids)) == len(ids):
            return ids
    return np.arange(1, len(pictures) + 1, dtype=np.int64)


def read_sizes(pictures: list[str]) -> tuple[np.ndarray, list[Problem]]:
    """(N, 2) int32 height, width from the headers; 0, 0 and a problem where a picture cannot be read."""
    parts = list(read_many(_read_sizes, pictures))
    sizes = [size for part, _ in parts for size in part]
    return np.array(sizes, np.int32).reshape(-1, 2), [problem for _, part in parts for problem in part]


def _read_sizes(pictures: list[str]) -> tuple[list[tuple[int, int]], list[Problem]]:
    sizes, problems = [], []
    for picture in pictures:
        try:
            sizes.append(read_size(picture))
        except UserError as error:
            sizes.append((0, 0))
            kind = "picture" if os.path.lexists(picture) else MISSING_PICTURE
            text = str(error).removeprefix(f"{picture}: ") if kind == "picture" else "no such file"
            problems.append(Problem(picture, 0, text, kind))
    return sizes, problems


def number_pictures(ids: list[int | str]) -> tuple[np.ndarray, np.ndarray]:
    """``picture_ids`` and ``source_ids`` of an index, from the ids that COCO files give its N pictures.

    Ids stay as they are where they are numbers and no two are equal. Else pictures count from 1 in their
    order, and predictions name them by the source's ids all the same, where these are one for one.
    """
    if len(set(ids)) < len(ids):
        return np.arange(1, len(ids) + 1, dtype=np.int64), np.array([b"null"] * len(ids), "S")
    if all(type(number) is int and abs(number) <= MAX_ID for number in ids):
        return np.array(ids, np.int64), NO_IDS
    return np.arange(1, len(ids) + 1, dtype=np.int64), np.array([json.dumps(i).encode() for i in ids], "S")


def _read_yolo(
    spec: DataSpec, split: str, pictures: list[str], label_files: list[str], *, names
) -> SplitFiles:
    sizes, problems = read_sizes(pictures)
    raw = yolo.read_labels(label_files, sizes, names, spec.row_rule)
    return SplitFiles(pictures, picture_ids_of(pictures), label_files, sizes, raw, problems, NO_IDS)


def _read_voc(
    spec: DataSpec, split: str, pictures: list[str], label_files: list[str], *, names
) -> SplitFiles:
    sizes, problems = read_sizes(pictures)
    raw, stated = voc.read_labels(label_files, names, offset=spec.voc_offset)
    unit = unit_of(raw.boxes, sizes[raw.pictures])
    if unit:
        example = show_problem(raw.fault_at(0, " ".join(f"{side:g}" for side in raw.boxes[0]), ""))
        text = f"split {split!r}: the boxes look like {unit} of the picture, where VOC has pixels: {example}"
        raise spec_error(spec.yaml, f"{text}\nWrite them in pixels, or export them again")
    raw = leave_out_fractions(raw, sizes)
    for place, problem in _disagreements(stated, sizes):
        raw.left_out[place] = True
        problems.append(Problem(label_files[place], 0, problem, "size"))
    return SplitFiles(pictures, picture_ids_of(pictures), label_files, sizes, raw, problems, NO_IDS)


def _read_coco(spec: DataSpec, split: str, pictures: None, label_files: list[str], *, names) -> SplitFiles:
    files = [coco.read_json(Path(path)) for path in label_files]
    folders = [
        coco_folder(spec, split, Path(file.path), names) if names else spec.root
        for file, names in ((file, coco.file_names(file)) for file in files)
    ]
    listed = coco.list_pictures(files, folders)
    if not listed.paths and not listed.problems:
        raise spec_error(spec.yaml, f"split {split!r} has no pictures in {', '.join(label_files)}")
    sizes, problems = read_sizes(listed.paths)
    raw = coco.read_labels(files, listed, names, spec.category_ids)
    raw = leave_out_fractions(coco.leave_out_other_units(raw, listed, sizes), sizes)
    for place, text in _disagreements(listed.stated, sizes):
        problems.append(coco.image_problem(*listed.entries[place], text, "size"))
        raw.left_out[place] = True
    ids, source_ids = number_pictures(listed.ids)
    problems = [*listed.problems, *problems]
    return SplitFiles(listed.paths, ids, label_files, sizes, raw, problems, source_ids)


def _disagreements(stated: list[tuple[int, int] | None], sizes: np.ndarray) -> list[tuple[int, str]]:
    """Pictures, and what to say, whose size is not what their labels were written for."""
    found = []
    for place, (said, (height, width)) in enumerate(zip(stated, sizes.tolist(), strict=True)):
        if said is None or not height or said == (height, width):
            continue
        turned = ": an EXIF orientation that the labels do not know?" if said == (width, height) else ""
        text = f"written for a picture of {said[1]} x {said[0]}, but the file is {width} x {height}{turned}"
        found.append((place, text))
    return found


def _no_labels_error(spec: DataSpec, split: str, files: SplitFiles) -> UserError:
    folders = sorted({os.path.dirname(path) for path in files.label_files})
    shown = [f"  {folder}" for folder in folders[:SHOWN_FOLDERS]]
    more = [f"  ... and {len(folders) - SHOWN_FOLDERS} more"] if len(folders) > SHOWN_FOLDERS else []
    rule = {
        "yolo": "The last folder images is replaced by labels; without one, labels lie beside the pictures.",
        "voc": "Name the folder of the XML files: annotations: {train: ..., val: ...}.",
    }
    count = f"none of the {len(files.pictures)} pictures of split {split!r} has a label file"
    lines = [
        f"{spec.yaml}: {count}; looked in:",
        *shown,
        *more,
        f"For example {files.pictures[0]} needs {files.label_files[0]}.",
        f"({rule[spec.format]})",
        printable(labels_elsewhere(spec.root, files.pictures, files.label_files)),
    ]
    return NothingThereError("\n".join(filter(None, lines)), DATA)
