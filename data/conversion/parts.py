"""What of a data set becomes what of a new one: its pictures and their label files. N pictures.

Paths below a split's folder are kept, so equal names in different folders stay apart.
"""

import os
from pathlib import Path
from typing import NamedTuple

from data.formats import voc, yolo
from data.formats.listing import SUFFIXES
from data.formats.readers import list_sources
from data.formats.sources import DataSpec, resolve_entry, split_sources
from data.index import Index, path_of
from utils.errors import DATA, USAGE, UserError

PICTURES = {"yolo": "images", "coco": "images", "voc": "JPEGImages"}  # format -> folder of the pictures


class Part(NamedTuple):
    """One split of the new data set."""

    split: str
    index: Index
    base: str  # folder of the source that all its pictures lie below
    files: list[str]  # (N,) paths of the pictures below ``base``, and below the new folder, with slashes


def label_paths_of(root: Path, part: Part, format: str) -> list[str]:
    """(N,) the file that holds the labels of each picture in the data set ``root``."""
    if format == "coco":
        return [str(root / "annotations" / f"instances_{part.split}.json")] * len(part.files)
    pictures = [str(root / PICTURES[format] / part.split / file) for file in part.files]
    return yolo.label_paths_of(pictures) if format == "yolo" else voc.label_paths_of(pictures, None)


def plan_part(spec: DataSpec, split: str, index: Index) -> Part:
    """Paths are kept below the folder that the YAML names, else below what all pictures have in common."""
    paths = [str(path_of(index, i)) for i in range(len(index.paths))]
    parents = sorted({os.path.dirname(path) for path in paths})
    base = os.path.commonpath(_named_folders(spec, split) or parents)
    if os.path.commonpath([base, *parents]) != base:
        base = os.path.commonpath(parents)
    return Part(split, index, base, [Path(os.path.relpath(path, base)).as_posix() for path in paths])


def check_place(spec: DataSpec, part: Part, out: Path) -> None:
    """Refuse an ``out`` (resolved) in a folder that holds pictures or labels of the source."""
    files = [os.path.join(part.base, file) for file in part.files] + list_sources(spec, part.split)[1]
    for folder in sorted({*map(os.path.dirname, files), *_named_folders(spec, part.split)}):
        if out.is_relative_to(os.path.realpath(folder)):
            text = f"--out {out}: lies in {folder}, which belongs to the data set {spec.yaml}"
            raise UserError(f"{text}; nothing is written there, so name a folder elsewhere", USAGE)


def check_files(part: Part, format: str, out: Path) -> None:
    """Refuse pictures that a folder of the format would not show, and two that would share a label file."""
    if format == "coco":
        return  # its JSON lists the pictures, and none twice
    first: dict[str, str] = {}
    for file, label in zip(part.files, label_paths_of(out, part, format), strict=True):
        if not file.lower().endswith(SUFFIXES) or any(name.startswith(".") for name in file.split("/")):
            text = f"{part.base}/{file}: {format} finds pictures by {' '.join(SUFFIXES)}, none that is hidden"
            raise UserError(f"{text}; rename it in the source, or choose --to coco", DATA)
        if label in first:
            text = f"{part.base}/{first[label]} and {part.base}/{file} would share the label file {label}"
            raise UserError(f"{text}; rename one of them in the source, or choose --to coco", DATA)
        first[label] = file


def _named_folders(spec: DataSpec, split: str) -> list[str]:
    """The folders that the YAML names for the pictures of a split; [] where it names lists or JSON only."""
    named = [resolve_entry(spec, "images", entry) for entry in spec.images.get(split, [])]
    return [str(folder) for folder in named or split_sources(spec, split) if os.path.isdir(folder)]
