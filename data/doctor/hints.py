"""Faults that many labels show together, as classes counted from 1.

Also label files that belong to no picture. T rows of labels as written, class and four coordinates.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from data.doctor.findings import Finding
from data.formats.listing import SUFFIXES
from data.formats.problems import Problem
from data.formats.sources import DataSpec
from data.formats.yolo_rows import RowRule, box_of, parse_labels
from data.index import Found, path_of
from utils.files import open_regular

FILES = 400  # label files of a split that are looked at, evenly spread
FEW_UNLISTED = 0.01  # share of pictures that is only noted
ENOUGH = 20  # rows: fewer say nothing
NO_LABELS = ("classes.txt", "labels.txt", "names.txt", "notes.txt", "readme.txt", "requirements.txt")
SUFFIX = {"yolo": ".txt", "voc": ".xml"}


class Rows(NamedTuple):
    """Labels as written."""

    values: np.ndarray  # (T, 5) class and four coordinates
    files: tuple[str, ...]  # of which they come
    with_bom: int  # files that begin with a byte order mark


def find_hints(spec: DataSpec, founds: Mapping[str, Found]) -> list[Finding]:
    """All hints for the splits that were read."""
    hints = []
    yolo, rule = founds if spec.format == "yolo" else {}, spec.row_rule
    sample = {split: _sample_rows(found, rule) for split, found in yolo.items()}
    for split, rows in sample.items():
        if rows.with_bom:
            text = f"label files that begin with a byte order mark (read all the same): {rows.with_bom}"
            hints.append(Finding("note", "bom", split, rows.with_bom, text))
    if sample:
        hints += _hint_classes(np.concatenate([rows.values[:, 0] for rows in sample.values()]), spec, founds)
    if spec.format in SUFFIX:
        hints += find_orphans(spec, founds)
    if spec.format == "coco":
        hints += find_unlisted(spec, founds)
    return hints


def _hint_classes(classes: np.ndarray, spec: DataSpec, founds: Mapping[str, Found]) -> list[Finding]:
    names, count = spec.names, len(spec.names)
    used = np.zeros(count, bool)
    for found in founds.values():
        used[found.index.labels] = True
    if len(classes) < ENOUGH or used[0] or (classes == 0).any():
        return []
    remedy = "subtract 1 from the class of every row, if they were written from 1"
    if classes.max() == count:
        text = f"classes run from {classes.min():g} to {count}: counted from 1, where they count from 0"
        return [Finding("error", "classes-from-1", "", 0, text, remedy)]
    if count > 2 and used[1:].all():
        text = f"class 0 ({names[0]}) is never used, all others are: were the labels written from 1?"
        return [Finding("warning", "class-0-unused", "", 0, text, f"look at some pictures; {remedy}")]
    return []


def find_unlisted(spec: DataSpec, founds: Mapping[str, Found]) -> list[Finding]:
    """Pictures in the folders of the splits that no JSON file lists.

    Only where all splits of the YAML were read: splits may share a folder.
    """
    if founds.keys() != spec.splits.keys():
        return []
    listed = {
        str(path_of(found.index, i)) for found in founds.values() for i in range(len(found.index.paths))
    }
    folders = sorted({os.path.dirname(path) for path in listed})
    paths = [f"{folder}{os.sep}{name}" for folder in folders for name in _list(folder)]
    places = [
        Problem(path, 0, "no JSON file lists this picture", "unlisted")
        for path in paths
        if path.lower().endswith(SUFFIXES) and path not in listed
    ]
    if not places:
        return []
    severity = "warning" if len(places) > FEW_UNLISTED * len(listed) else "note"
    text = f"pictures that no JSON file lists (not used): {len(places)}, beside {len(listed)} that are listed"
    remedy = "export the labels again, or move these pictures elsewhere, if they are not meant"
    return [Finding(severity, "unlisted", "", len(places), text, remedy, tuple(places))]


def find_orphans(spec: DataSpec, founds: Mapping[str, Found]) -> list[Finding]:
    """Label files beside those of the splits that no picture belongs to."""
    suffix, folders, expected = SUFFIX[spec.format], {}, set()
    for split, found in founds.items():
        expected.update(found.label_files)
        for number, label in enumerate(found.label_files):
            folder = os.path.dirname(label)
            if (folder, split) not in folders:
                folders[folder, split] = os.path.dirname(str(path_of(found.index, number)))
    places = []
    for folder in dict.fromkeys(folder for folder, _ in folders):
        beside = {pictures for (labels, _), pictures in folders.items() if labels == folder}
        places += _orphans_in(folder, beside, suffix, expected)
    if not places:
        return []
    text = f"label files without a picture (not used): {len(places)}"
    remedy = "look for their pictures: another name, another ending, another folder?"
    return [Finding("warning", "orphan", "", len(places), text, remedy, tuple(sorted(places)))]


def _orphans_in(folder: str, picture_folders: set[str], suffix: str, expected: set[str]) -> list[Problem]:
    names = [name for name in _list(folder) if name.lower().endswith(suffix)]
    names = [
        name for name in names if name.lower() not in NO_LABELS and f"{folder}{os.sep}{name}" not in expected
    ]
    if not names:
        return []
    others = [name for beside in sorted(picture_folders) for name in _list(beside)]
    others = [name for name in others if not name.lower().endswith(suffix)]
    known = {os.path.splitext(name)[0] for name in others if name.lower().endswith(SUFFIXES)}
    similar = {os.path.splitext(name)[0].lower(): name for name in others}
    found = []
    for name in names:
        stem = os.path.splitext(name)[0]
        if stem in known:  # a picture that the lists of the splits leave out
            continue
        near = similar.get(stem.lower())
        text = f"no picture of this name, but there is {near}" if near else "no picture of this name"
        found.append(Problem(f"{folder}{os.sep}{name}", 0, text, "orphan"))
    return found


def _list(folder: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return []


def _sample_rows(found: Found, rule: RowRule) -> Rows:
    """Rows of some of the label files, whatever their values."""
    step = max(1, len(found.label_files) // FILES)
    rows, files, with_bom = [], [], 0
    for path in found.label_files[::step]:
        try:
            with open_regular(path) as file:
                data = file.read()
        except (OSError, ValueError):  # told by the reader, or a picture without labels
            continue
        rows += [box_of(row, rule) for row in parse_labels(data, path, rule).rows]
        files.append(path)
        with_bom += data.startswith(b"\xef\xbb\xbf")
    return Rows(np.array(rows, np.float64).reshape(-1, 5), tuple(files), with_bom)
