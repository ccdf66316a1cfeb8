"""Which files make the splits of a data set: the record of its YAML, and how entries become paths."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from data.formats.coco import ROBOFLOW
from data.formats.listing import SUFFIXES, read_lines, read_list, walk_pictures
from utils.errors import DATA, UserError

SPLITS = ("train", "val", "test")


class DataSpec(NamedTuple):
    """A data-set YAML, checked. Pictures are looked for later: ``list_pictures``, ``coco_files``."""

    yaml: Path  # the folder itself where a data set has no YAML
    root: Path  # the folder `path` names; the YAML's folder without `path`
    splits: dict[str, list[Path]]  # folders, list files or JSON files, as written
    names: tuple[str, ...]
    category_ids: tuple[int, ...]  # class index -> id in the source; the index itself where it has none
    search: tuple[Path, ...]  # where relative entries of `splits` are looked up, in this order
    format: str  # "yolo", "coco" or "voc"
    images: dict[str, list[str]]  # split -> folders of its pictures, as written (COCO, VOC)
    annotations: dict[str, list[str]]  # split -> folders of its XML files, as written (VOC)
    voc_offset: int  # subtracted from xmin and ymin: 1 for files that count pixels from 1


def format_classes(spec: DataSpec) -> str:
    """Id in the source -> class index -> name, as a table; one line where the ids are the indices."""
    pairs = list(zip(spec.category_ids, spec.names, strict=True))
    if spec.category_ids == tuple(range(len(spec.names))):
        return "classes: " + ", ".join(f"{key} {name}" for key, name in pairs)
    rows = [f"{key:>8}{index:>8}  {name}" for index, (key, name) in enumerate(pairs)]
    return "\n".join([f"{'id':>8}{'index':>8}  name", *rows])


def spec_error(yaml: Path, text: str) -> UserError:
    """An error in a data-set YAML."""
    return UserError(f"{yaml}: {text}", DATA)


def join(base: Path, entry: str) -> Path:
    """``entry`` as seen from ``base``, absolute, without ``..``."""
    return Path(os.path.abspath(base / os.path.expanduser(entry)))


def indent(paths: Sequence[Path]) -> str:
    """One path a line, for errors."""
    return "\n".join(f"  {path}" for path in paths)


def resolve_entry(spec: DataSpec, key: str, entry: str | Path) -> Path:
    """The file or folder that ``entry`` of ``key`` means; else an error names every path tried."""
    tried = [join(base, str(entry)) for base in spec.search]
    if str(entry).startswith("../"):  # Roboflow writes ../train/images for its train/images
        tried += [join(base, str(entry)[3:]) for base in spec.search]
    tried = list(dict.fromkeys(tried))
    for candidate in tried:
        if os.path.exists(candidate):
            return candidate
    text = f"{key}: {str(entry)!r} not found; tried:\n{indent(tried)}\n"
    remedy = (
        "Mend `path` or the entry, or get the data set first (--download, where the file says from where)."
    )
    raise spec_error(spec.yaml, text + remedy)


def split_sources(spec: DataSpec, split: str) -> list[Path]:
    """Folders, list files and JSON files of a split, absolute."""
    if split not in spec.splits:
        raise spec_error(spec.yaml, f"no split {split!r}; the file has: {', '.join(spec.splits)}")
    return [resolve_entry(spec, split, entry) for entry in spec.splits[split]]


def list_pictures(spec: DataSpec, split: str) -> list[str]:
    """Absolute paths of a split's pictures, sorted, each once (YOLO and VOC).

    Folders are searched to any depth for ``SUFFIXES``; hidden files and folders are left out. The pictures of
    a list file are taken as listed; the lists of VOC's ImageSets hold stems of pictures in its JPEGImages.
    """
    found: set[str] = set()
    sources = split_sources(spec, split)
    folders = [resolve_entry(spec, "images", entry) for entry in spec.images.get(split, [])]
    for source in sources:
        if os.path.isdir(source):
            found.update(walk_pictures(source))
        elif spec.format == "voc":
            found.update(_read_image_set(source, folders or _image_folders(source), spec.root))
        else:
            found.update(read_list(source, spec.root))
    if not found:
        text = f"split {split!r} has no pictures ({' '.join(SUFFIXES)}) in:\n{indent(sources)}"
        raise spec_error(spec.yaml, text)
    return sorted(found)


def xml_folders(spec: DataSpec, split: str) -> list[Path]:
    """Folders of a split's XML files where the YAML names them, else []."""
    return [resolve_entry(spec, "annotations", entry) for entry in spec.annotations.get(split, [])]


def coco_files(spec: DataSpec, split: str) -> list[Path]:
    """The JSON files of a split; of a folder, the one Roboflow puts there."""
    sources = split_sources(spec, split)
    files = [source / ROBOFLOW if os.path.isdir(source) else source for source in sources]
    for file in files:
        if not os.path.isfile(file):
            raise spec_error(spec.yaml, f"{split}: {file} not found; name the JSON file of the split")
    return files


def coco_folder(spec: DataSpec, split: str, file: Path, first: str) -> Path:
    """The folder of the pictures that a JSON file lists, ``first`` being one of them.

    ``images`` of the YAML names it; otherwise the usual places are tried.
    """
    folders = [resolve_entry(spec, "images", entry) for entry in spec.images.get(split, [])]
    stem = file.stem.removeprefix("instances_")
    below = [f"images/{split}", split, f"images/{stem}", stem, "images", "."]
    tried = folders or list(dict.fromkeys([file.parent, *(join(spec.root, name) for name in below)]))
    for folder in tried:
        if os.path.isfile(folder / first):
            return folder
    if folders and len(folders) == 1:
        return folders[0]  # its pictures are missing one by one, and reported so
    text = f"{split}: {first}, which {file.name} lists, is in none of:\n{indent(tried)}\n"
    raise spec_error(spec.yaml, text + f"Name the folder: images: {{{split}: <folder>}}")


def _image_folders(source: Path) -> list[Path]:
    """Where VOC keeps the pictures of ImageSets/Main/train.txt: JPEGImages, two folders up."""
    return [join(source.parent, "../../JPEGImages"), join(source.parent, "../JPEGImages")]


def _read_image_set(path: Path, folders: list[Path], root: Path) -> list[str]:
    """Pictures of a list of stems (with VOC's second column, -1 leaves a picture out) or of paths."""
    rows = [line.split() for line in read_lines(path)]
    if any(os.sep in row[0] or row[0].lower().endswith(SUFFIXES) for row in rows):
        return list(read_list(path, root))
    found = []
    for stem in (row[0] for row in rows if row[1:] != ["-1"]):
        tried = [f"{folder}{os.sep}{stem}{suffix}" for folder in folders for suffix in SUFFIXES]
        found.append(next((picture for picture in tried if os.path.exists(picture)), tried[0]))
    return found
