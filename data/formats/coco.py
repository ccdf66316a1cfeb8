"""COCO JSON: pictures, boxes and categories in one file, or several. N pictures, T annotations.

Ids are the source's all the way: category ids may have gaps and come in any order, class indices follow their
ascending order. ``iscrowd`` marks ignore regions; ``area`` is the mask's, which decides small, medium, large.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from io import TextIOWrapper
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.formats.labels import RawLabels
from data.formats.problems import Problem
from utils.errors import DATA, UserError
from utils.files import open_regular
from utils.wording import show_value

LISTS = ("images", "annotations", "categories")
ROBOFLOW = "_annotations.coco.json"  # the name of its JSON, which lies among the pictures
MAX_ID = 2**53  # evaluators hold ids as float64


class CocoFile:
    """One JSON file. Its three lists are known to be lists of objects."""

    def __init__(self, path: Path, text: str, content: dict):
        self.path, self.text = str(path), text
        self.images, self.annotations, self.categories = (content[key] for key in LISTS)
        self._lines: dict[str, list[int]] = {}

    def problem(self, key: str, number: int, text: str, kind: str) -> Problem:
        """A fault of element ``number`` of the list ``key``; finding its line parses the text once more."""
        if key not in self._lines:
            self._lines[key] = _find_lines(self.text, key)
        return Problem(self.path, self._lines[key][number], text, kind)


class CocoPictures(NamedTuple):
    """The pictures that the JSON files of a split list, sorted by path."""

    paths: list[str]  # (N,)
    ids: list[int]  # (N,)
    stated: list[tuple[int, int] | None]  # (N,) height, width as the JSON says, None where it does not
    entries: list[tuple[CocoFile, int]]  # (N,) the file that lists it, and its place in that list
    problems: list[Problem]


def read_json(path: Path) -> CocoFile:
    """Parse and check the outline; a ``UserError`` names the line, or the key that is not as it should be."""
    try:
        with open_regular(path) as file:
            text = TextIOWrapper(file, encoding="utf-8-sig").read()
        content = json.loads(text)
    except JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not valid JSON (column {error.colno}): {error.msg}", DATA
        ) from error
    except (
        OSError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: a pipe, not UTF-8, or a number of 5,000 digits
        raise UserError(f"{path}: cannot read this as COCO JSON: {error}", DATA) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a COCO file is an object with {', '.join(LISTS)}; this is none", DATA)
    for key in LISTS:
        if key == "annotations" and content.get(key) is None:
            content[key] = []  # published test sets have none
        part = content.get(key)
        if not isinstance(part, list) or not all(isinstance(item, dict) for item in part):
            raise UserError(
                f"{path}: {key} is missing or no list of objects; is this an object-detection file?", DATA
            )
    return CocoFile(path, text, content)


def read_categories(paths: Sequence[Path]) -> tuple[dict[int, str], list[str]]:
    """Id -> name by ascending id, over all files, and the names left out.

    Left out is a category that is used nowhere and only stands above others (Roboflow's umbrella class).
    """
    found: dict[int, str] = {}
    used, above = set(), set()
    for path in paths:
        file = read_json(path)
        for category in file.categories:
            number, name = _whole(category.get("id")), category.get("name")
            if number is None or not isinstance(name, str) or not name.strip():
                shown = show_value({"id": category.get("id"), "name": name})
                raise UserError(f"{path}: category {shown}: needs a whole number as id and a name", DATA)
            if found.setdefault(number, name.strip()) != name.strip():
                text = f"category id {number} is {name.strip()!r} here, but {found[number]!r} before"
                raise UserError(f"{path}: {text}; give every category one id in all files", DATA)
            parent = category.get("supercategory")
            if isinstance(parent, str) and parent != name:
                above.add(parent)
        used.update(_whole(annotation.get("category_id")) for annotation in file.annotations)
    dropped = [number for number, name in found.items() if number not in used and name in above]
    names = {number: found[number] for number in sorted(found) if number not in dropped}
    repeated = sorted(name for name, count in Counter(names.values()).items() if count > 1)
    if repeated or not names:
        text = f"the name {repeated[0]!r} stands for several ids" if repeated else "there are no categories"
        raise UserError(f"{', '.join(map(str, paths))}: {text}", DATA)
    return names, [found[number] for number in dropped]


def list_pictures(files: list[CocoFile], folders: list[Path]) -> CocoPictures:
    """Pictures of a split; ``folders`` holds the picture folder of each file. Faulty entries are problems."""
    found, problems, ids, paths = [], [], set(), set()
    for file, folder in zip(files, folders, strict=True):
        for number, image in enumerate(file.images):
            name, key = image.get("file_name"), _whole(image.get("id"))
            path = os.path.normpath(os.path.join(folder, name)) if isinstance(name, str) else ""
            fault = _image_fault(image, known_path=path in paths, known_id=key in ids)
            if fault:
                problems.append(file.problem("images", number, fault, "image entry"))
                continue
            ids.add(key)
            paths.add(path)
            size = _whole(image.get("height")), _whole(image.get("width"))
            stated = size if size[0] and size[1] else None
            found.append((path, key, stated, (file, number)))
    found.sort(key=lambda item: item[0])
    columns = [list(column) for column in zip(*found, strict=True)] or [[], [], [], []]
    return CocoPictures(*columns, problems)


def read_labels(files: list[CocoFile], pictures: CocoPictures, ids: Sequence[int] | None) -> RawLabels:
    """Annotations of the pictures; ``ids``: class index -> category id, None to take every class for 0."""
    place_of = {key: place for place, key in enumerate(pictures.ids)}
    class_of = {key: index for index, key in enumerate(ids)} if ids is not None else None
    rows, boxes, sources, problems, unlisted = [], [], [], [], 0
    for file in files:
        faulty = {_whole(image.get("id")) for image in file.images} - place_of.keys()
        known = {_whole(category.get("id")) for category in file.categories}
        for number, annotation in enumerate(file.annotations):
            fault, kind = _annotation_fault(annotation, place_of, known)
            if fault:
                if kind != "no picture" or _whole(annotation["image_id"]) not in faulty:
                    problems.append(file.problem("annotations", number, fault, kind))
                continue
            label = class_of.get(_whole(annotation["category_id"])) if class_of else 0
            if label is None:
                unlisted += 1
                continue
            area, crowd = annotation.get("area"), annotation.get("iscrowd") == 1
            place = place_of[_whole(annotation["image_id"])]
            rows.append((place, label, crowd, math.nan if area is None else area))
            boxes.append(annotation["bbox"])
            sources.append((file, number))
    table, xywh = np.array(rows, np.float64).reshape(-1, 4), np.array(boxes, np.float64).reshape(-1, 4)
    order = np.argsort(table[:, 0], kind="stable")
    table, xywh = table[order], xywh[order]
    return RawLabels(
        boxes=np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
        labels=table[:, 1].astype(np.int64),
        ignore=table[:, 2] > 0,
        areas=table[:, 3],
        pictures=table[:, 0].astype(np.int64),
        fault_at=lambda row, text, kind: sources[order[row]][0].problem(
            "annotations", sources[order[row]][1], text, kind
        ),
        problems=problems,
        left_out=np.zeros(len(pictures.ids), bool),
        num_unlisted=unlisted,
        keep_copies=True,  # COCO's evaluators do
    )


def _whole(value: object) -> int | None:
    """A number from 0 to ``MAX_ID``, also where an exporter wrote 3.0 for 3; None for anything else."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_ID:
        value = int(value)
    return value if type(value) is int and 0 <= value <= MAX_ID else None


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and not abs(value) > MAX_ID  # nan passes


def _image_fault(image: dict, *, known_path: bool, known_id: bool) -> str:
    """What is wrong with an entry of ``images``, or ''."""
    name, key = image.get("file_name"), image.get("id")
    if not isinstance(name, str) or not name or "\0" in name:
        return f"file_name is {show_value(name)}, not the name of a file"
    if _whole(key) is None:
        return f"id of {show_value(name)} is {show_value(key)}, not a whole number from 0 to 2^53"
    if known_id:
        shown = f"id {show_value(key)} of {show_value(name)}"
        return f"{shown} stands for another picture too; every picture needs its own"
    return f"{show_value(name)} is listed twice" if known_path else ""


def _annotation_fault(annotation: dict, place_of: dict, known: set) -> tuple[str, str]:
    """What is wrong with an annotation, and the kind of it; '' where nothing is."""
    image, category, bbox = (annotation.get(key) for key in ("image_id", "category_id", "bbox"))
    if _whole(image) is None:
        return f"image_id is {show_value(image)}, not a whole number", "id"
    if _whole(image) not in place_of:
        return f"image_id is {show_value(image)}; no picture has this id", "no picture"
    if _whole(category) is None or _whole(category) not in known:
        ids = show_value(sorted(number for number in known if number is not None))
        return f"category_id is {show_value(category)}; the categories have the ids {ids}", "class"
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"bbox is {show_value(bbox)}, not four numbers x, y, width, height in px", "bbox"
    if not all(map(math.isfinite, bbox)):
        return f"bbox is {show_value(bbox)}, not four finite numbers", "not finite"
    if bbox[2] < 0 or bbox[3] < 0:
        return (
            f"bbox is {show_value(bbox)}: width or height is negative (COCO has x, y, width, height)",
            "negative",
        )
    area, crowd = annotation.get("area"), annotation.get("iscrowd", 0)
    if area is not None and not (_is_number(area) and area >= 0):
        return f"area is {show_value(area)}, not a number of px^2", "area"
    return ("", "") if crowd in (0, 1, None) else (f"iscrowd is {show_value(crowd)}, not 0 or 1", "iscrowd")


def _find_lines(text: str, key: str) -> list[int]:
    """The line, from 1, on which each element of the top-level list ``key`` of valid JSON begins.

    Of a key that stands there twice, the last counts, as for ``json.loads``.
    """
    decode, position, start = JSONDecoder().raw_decode, _skip(text, text.index("{") + 1), 0
    while text[position] != "}":
        name, position = decode(text, position)
        position = _skip(text, position)
        start = position if name == key else start
        position = _skip(text, decode(text, position)[1])
    lines, line, counted = [], 1, 0
    position = _skip(text, start + 1)  # behind the bracket
    while text[position] != "]":
        line, counted = line + text.count("\n", counted, position), position
        lines.append(line)
        position = _skip(text, decode(text, position)[1])
    return lines


def _skip(text: str, position: int) -> int:
    """The next place that holds neither white space nor a separator."""
    while text[position] in " \t\r\n,:":
        position += 1
    return position
