"""The three formats by their looks: which one a YAML means, and what a folder without a YAML holds."""

import os
from pathlib import Path

from data.formats.coco import ROBOFLOW
from data.formats.listing import read_lines
from data.formats.nearby import other_yamls, path_tails
from data.formats.sources import SPLITS, DataSpec, list_pictures, resolve_entry, spec_error
from data.formats.voc import label_paths_of as xml_paths_of
from data.formats.yolo import label_paths_of
from utils.errors import UserError

FORMATS = ("yolo", "coco", "voc")
LOOKED_AT = 50  # pictures whose label files decide between YOLO and VOC
ALIASES = {"train": ("train", "train2017"), "val": ("val", "valid", "val2017"), "test": ("test",)}
CLASS_LISTS = ("classes.txt", "labels/classes.txt", "obj.names")
DARKNET = {"train": "train", "valid": "val", "val": "val", "test": "test", "names": "names"}


def recognise_format(spec: DataSpec) -> str:
    """The format of a data set whose YAML names none: by its entries, else by its labels."""
    entries = [entry for entries in spec.splits.values() for entry in entries]
    if any(entry.suffix.lower() == ".json" for entry in entries):
        return "coco"
    if spec.annotations or any("ImageSets" in entry.parts for entry in entries):
        return "voc"
    for split, entry in [(split, entry) for split, found in spec.splits.items() for entry in found]:
        try:
            source = resolve_entry(spec, split, entry)
            if os.path.isfile(source / ROBOFLOW):
                return "coco"
            pictures = list_pictures(spec, split)[:LOOKED_AT]
        except UserError:
            continue  # said where it is needed
        if any(map(os.path.exists, label_paths_of(pictures))):
            return "yolo"
        if any(map(os.path.exists, xml_paths_of(pictures, None))):
            return "voc"
    return "yolo"


def guess_content(folder: Path) -> dict:
    """What the YAML of a folder without one would say, by the usual layouts of the three formats."""
    for look in (_roboflow_coco, _coco, _voc, _yolo, _lists):
        content = look(folder)
        if content.keys() & set(SPLITS):
            return content
    if _find_darknet(folder):
        return read_darknet(_find_darknet(folder))
    text = (
        "there is no data.yaml, and the folder has none of the usual layouts: train/_annotations.coco.json, "
        "annotations/instances_train*.json, ImageSets/Main/train.txt, images/train with labels/train, "
        "obj.data, train.txt. " + (other_yamls(folder) or "Write a data.yaml with train, val and names")
    )
    raise spec_error(folder, text)


def read_darknet(path: Path) -> dict:
    """What the YAML in place of Darknet's .data file would say: CVAT's YOLO 1.1 is a folder with one.

    Its paths begin in the folder that Darknet was to be started from, which is not the file's.
    """
    content = {"format": "yolo"}
    for line in read_lines(path):
        key, _, value = (part.strip() for part in line.partition("="))
        if key in DARKNET and value:
            content[DARKNET[key]] = _tail_in(path.parent, value)
    if isinstance(content.get("names"), str):
        listed = path.parent / content["names"]
        content["names"] = read_lines(listed) if os.path.isfile(listed) else None
    return content


def _tail_in(folder: Path, name: str) -> str:
    """The longest end of a path that is in ``folder``, else the path."""
    return next((tail for tail in path_tails(name) if os.path.exists(folder / tail)), name)


def _find_darknet(folder: Path) -> Path | None:
    found = [folder / "obj.data", *sorted(folder.glob("*.data"))]
    return next(filter(os.path.isfile, found), None)


def _first(folder: Path, names: list[str]) -> str | None:
    return next((name for name in names if os.path.exists(folder / name)), None)


def _each_split(folder: Path, patterns: tuple[str, ...]) -> dict:
    """Split -> the first of ``patterns``, filled with the split's usual names, that exists in ``folder``."""
    found = {
        split: _first(folder, [pattern.format(name) for name in names for pattern in patterns])
        for split, names in ALIASES.items()
    }
    return {split: name for split, name in found.items() if name}


def _roboflow_coco(folder: Path) -> dict:
    return {"format": "coco"} | _each_split(folder, ("{}/" + ROBOFLOW,))


def _coco(folder: Path) -> dict:
    return {"format": "coco"} | _each_split(folder, ("annotations/instances_{}.json",))


def _voc(folder: Path) -> dict:
    return {"format": "voc"} | _each_split(folder, ("ImageSets/Main/{}.txt",))


def _yolo(folder: Path) -> dict:
    return _with_class_list(folder, _each_split(folder, ("images/{}", "{}/images")))


def _lists(folder: Path) -> dict:
    """Lists without a .data file."""
    if _find_darknet(folder):
        return {}
    return _with_class_list(folder, _each_split(folder, ("{}.txt",)))


def _with_class_list(folder: Path, content: dict) -> dict:
    listed = _first(folder, list(CLASS_LISTS))
    return content | ({"names": read_lines(folder / listed)} if listed else {})
