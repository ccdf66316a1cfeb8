"""COCO JSON: pictures, boxes and categories in one file, or several. N pictures, T annotations.

Ids belong to their file: several files of a split may each count from 1. Classes of several files are the
same where their names are. ``iscrowd`` marks ignore regions; ``area`` is the mask's, which decides small,
medium, large.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np

from data.formats.coco_file import CocoFile, read_json
from data.formats.coco_values import (
    Fault,
    Ids,
    is_number,
    key_of,
    read_area,
    read_box,
    read_crowd,
    to_side,
)
from data.formats.labels import RawLabels
from data.formats.listing import say_once
from data.formats.nearby import path_tails
from data.formats.problems import Problem
from data.formats.units import xywh_unit
from utils.errors import DATA, UserError
from utils.wording import printable, show_value

LONG_NUMBER = re.compile(r"-?[1-9][0-9]{18,400}")  # which ``key_of`` keeps as text
ROBOFLOW = "_annotations.coco.json"  # the name of its JSON, which lies among the pictures


FORMS = {"corners": "corners x1, y1, x2, y2", "centres": "centres and sizes cx, cy, width, height"}


class Categories(NamedTuple):
    """The classes of the JSON files of all splits. Plain values: they are kept as JSON."""

    ids: list[int | str]  # as the first file that has the class writes them
    names: list[str]  # [] where the files have none
    left_out: list[str]  # names that are no classes
    notes: list[str]  # what there is to know, a line each


class CocoPictures(NamedTuple):
    """The pictures that the JSON files of a split list, sorted by path."""

    paths: list[str]  # (N,)
    ids: list[int | str]  # (N,) as the file has them
    stated: list[tuple[int, int] | None]  # (N,) height, width as the JSON says, None where it does not
    entries: list[tuple[CocoFile, int]]  # (N,) the file that lists it, and its place in that list
    problems: list[Problem]


def read_categories(paths: Sequence[Path]) -> Categories:
    """The classes of all files, ids ascending.

    Left out is a category that is used nowhere and only stands above others (Roboflow's umbrella class).
    Where no file names its categories, ``names`` is empty and ``ids`` are those in use.
    """
    files = [read_json(path) for path in paths]
    tables = [_names_of(file) for file in files]
    used = {name for file, table in zip(files, tables, strict=True) for name in _used_names(file, table)}
    above = {
        parent
        for file in files
        for category in file.categories
        if isinstance(parent := category.get("supercategory"), str) and parent != category.get("name")
    }
    found, notes = _join(paths, tables)
    dropped = [name for name in found if name not in used and name in above]
    names = [name for name in found if name not in dropped]
    if names:
        return Categories([found[name] for name in names], names, dropped, notes)
    if any(tables):
        raise UserError(f"{', '.join(map(str, paths))}: no category is a class: all stand above others", DATA)
    keys = {key_of(item.get("category_id")) for file in files for item in file.annotations}
    listed = {key_of(item.get("id")) for file in files for item in file.categories}
    return Categories(sorted((listed or keys) - {None}, key=_order), [], [], [])


def _order(key: int | str) -> tuple:
    """Numbers ascending, then text as it was listed: sorting is stable."""
    return (0, int(key)) if is_number(key) or LONG_NUMBER.fullmatch(str(key)) else (1, 0)


def _names_of(file: CocoFile) -> dict[int | str, str]:
    """Id, as it is compared, -> name, of the categories of one file; {} where none has a name."""
    if not any(map(_name_of, file.categories)):
        return {}
    names: dict[int | str, str] = {}
    for category in file.categories:
        key, name = key_of(category.get("id")), _name_of(category)
        if key is None or name is None:
            shown = show_value({"id": category.get("id"), "name": category.get("name")})
            raise UserError(f"{file.path}: category {shown}: needs an id and a name", DATA)
        if names.setdefault(key, name) != name:
            text = f"category id {show_value(category['id'])} is {name!r} here, but {names[key]!r} before"
            raise UserError(f"{file.path}: {text}; give every category its own id", DATA)
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    used = {key_of(item.get("category_id")) for item in file.annotations} if repeated else set()
    for name in repeated:
        # Roboflow names its umbrella after the project, which is often called like its only class
        keys = [key for key in names if names[key] == name]
        if sum(key in used for key in keys) > 1:
            raise UserError(
                f"{file.path}: the name {name!r} stands for several ids: {show_value(keys)}", DATA
            )
        kept = next((key for key in keys if key in used), keys[-1])
        names = {key: value for key, value in names.items() if value != name or key == kept}
    return names


def _name_of(category: dict) -> str | None:
    name = category.get("name")
    if type(name) in (int, float):
        return str(name)  # digits as classes
    return name.strip() or None if isinstance(name, str) else None


def _used_names(file: CocoFile, table: dict[int | str, str]) -> set[str]:
    keys = {key_of(item.get("category_id")) for item in file.annotations}
    return {name for key, name in table.items() if key in keys}


def _join(
    paths: Sequence[Path], tables: list[dict[int | str, str]]
) -> tuple[dict[str, int | str], list[str]]:
    """Name -> id, by ascending id, of all files; and a note where they number their classes differently.

    A class has the id of the first file that has it; where that stands for another class already, the next
    number above all.
    """
    found: dict[str, int | str] = {}
    owner: dict[str, Path] = {}
    odd = []
    for path, table in zip(paths, tables, strict=True):
        for key, name in table.items():
            if found.get(name, key) != key:
                odd.append(f"{name!r} is {found[name]!r} in {owner[name]} and {key!r} in {path}")
            elif name not in found:
                taken = key in found.values()
                numbers = [number for number in found.values() if type(number) is int]
                found[name] = max([0, *numbers]) + 1 if taken else key
                owner[name] = path
                odd += [f"{key!r} is {name!r} in {path}, another class before"] if taken else []
    notes = []
    if odd:
        rule = "classes are matched by name, and ids are those of the first file"
        notes = [f"the files number their classes differently: {odd[0]} ({len(odd)} such); {rule}"]
    return {name: found[name] for name in sorted(found, key=lambda name: _order(found[name]))}, notes


def list_pictures(files: list[CocoFile], folders: list[Path]) -> CocoPictures:
    """Pictures of a split; ``folders`` holds the picture folder of each file. Faulty entries are problems.

    Of an id that stands for several pictures of a file none is kept: whose its annotations are, nobody knows.
    """
    found, problems, owners = [], [], {}
    for file, paths in zip(files, _locate(files, folders), strict=True):
        repeated = file.image_ids.repeated()
        for number, (image, path) in enumerate(zip(file.images, paths, strict=True)):
            key = image.get("id")
            other = owners.get(path)
            fault = _image_fault(image) or _repeat_fault(file, repeated.get(number)) or _copy_fault(other)
            if fault:
                problems.append(image_problem(file, number, fault, "image entry"))
                continue
            owners[path] = (file, number)
            size = to_side(image.get("height")), to_side(image.get("width"))
            stated = size if size[0] and size[1] else None
            key = int(key) if type(key) is float else key
            found.append((path, key, stated, (file, number)))
    found.sort(key=lambda item: item[0])
    columns = [list(column) for column in zip(*found, strict=True)] or [[], [], [], []]
    return CocoPictures(*columns, problems)


def _locate(files: list[CocoFile], folders: list[Path]) -> list[list[str]]:
    """The path of every picture; as written, where the end of a path would fit several entries."""
    written = [
        [
            _join_path(folder, name) if _is_name(name := image.get("file_name")) else ""
            for image in file.images
        ]
        for file, folder in zip(files, folders, strict=True)
    ]
    found = [
        [
            path and find_picture(folder, image["file_name"])
            for image, path in zip(file.images, paths, strict=True)
        ]
        for file, folder, paths in zip(files, folders, written, strict=True)
    ]
    counts = Counter(path for paths in found for path in paths)
    located = [
        [path if path == plain or counts[path] == 1 else plain for path, plain in zip(*pair, strict=True)]
        for pair in zip(found, written, strict=True)
    ]
    for file, *pair in zip(files, located, written, strict=True):
        moved = [number for number, (path, plain) in enumerate(zip(*pair, strict=True)) if path != plain]
        if moved:  # said, as pictures of the same names may be others
            example = f"{file.images[moved[0]]['file_name']} taken for {pair[0][moved[0]]}"
            say_once(f"{file.path}: {len(moved)} pictures are listed in other folders; {example}")
    return located


def _join_path(folder: str | Path, name: str) -> str:
    return os.path.normpath(os.path.join(folder, name))


def find_picture(folder: str | Path, name: str) -> str:
    """Where the picture ``name`` lies below ``folder``: as written, else by the end of its path.

    Exporters write paths of their own machine, with either kind of slash, and addresses. A path that ends
    nowhere stays as written, for the error that names it.
    """
    path = _join_path(folder, name)
    if os.path.exists(path):
        return path
    address, _, asked = name.partition("?d=")  # Label Studio's address of a file on its own disk
    for spelled in dict.fromkeys((asked or address, unquote(asked or address))):  # a blank as %20
        for tail in path_tails(spelled.split("?")[0].replace("\0", "/")):
            near = os.path.join(folder, tail)
            if os.path.isfile(near):
                return near
    return path


def file_names(file: CocoFile) -> list[str]:
    """The names of pictures that a file lists, without what is none."""
    return [name for image in file.images if _is_name(name := image.get("file_name"))]


def _is_name(name: object) -> bool:
    """Whether a file could have this name."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _image_fault(image: dict) -> str:
    """What is wrong with an entry of ``images`` by itself, or ''."""
    if "file_name" not in image:
        return "it has no file_name"
    if not _is_name(image["file_name"]):
        return f"file_name is {show_value(image['file_name'])}, not the name of a file"
    if key_of(image.get("id")) is None:
        return f"id is {show_value(image.get('id'))}, not a number or a text"
    return ""


def _repeat_fault(file: CocoFile, other: int | None) -> str:
    if other is None:
        return ""
    shown = f"{_subject(file.images[other], 'picture')} (images[{other}])"
    return f"its id is also that of {shown}; every picture of a file needs its own"


def _copy_fault(owner: tuple[CocoFile, int] | None) -> str:
    if owner is None:
        return ""
    return f"this file is listed twice, before in {owner[0].path} (images[{owner[1]}]); keep one entry"


def image_problem(file: CocoFile, number: int, text: str, kind: str) -> Problem:
    """``picture a.jpg, id 3 (images[2]): ...``."""
    shown = _subject(file.images[number], "picture")
    return file.problem("images", number, f"{shown} ({{place}}): {text}", kind)


def _subject(item: dict, what: str) -> str:
    """``picture a.jpg, id 3``, as far as this is known."""
    name = item.get("file_name")
    shown = f" {printable(name)}" if isinstance(name, str) else ""
    return f"{what}{shown}" + (f", id {show_value(item['id'])}" if item.get("id") is not None else "")


def read_labels(
    files: list[CocoFile], pictures: CocoPictures, names: Sequence[str] | None, ids: Sequence[int | str] = ()
) -> RawLabels:
    """Annotations of the pictures; without ``names`` every class is taken for 0.

    ``ids`` are those of the classes where a file does not name its categories.
    """
    places: dict[CocoFile, dict[int, int]] = {file: {} for file in files}
    for place, (file, number) in enumerate(pictures.entries):
        places[file][number] = place
    rows, boxes, sources, problems, counts = [], [], [], [], Counter()
    for file in files:
        categories, classes = _classes_of(file, names, ids)
        own = places[file]
        for number, annotation in enumerate(file.annotations):
            try:
                image = _find_image(file.image_ids, annotation.get("image_id"))
                label = classes[_find_category(categories, annotation.get("category_id"))]
                box, area = read_box(annotation), read_area(annotation.get("area"))
                crowd = read_crowd(annotation.get("iscrowd"))
            except Fault as fault:
                problems.append(_annotation_problem(file, number, str(fault), fault.kind))
                continue
            if image not in own or label is None:
                counts["unplaced" if image not in own else "unlisted"] += 1
                continue
            rows.append((own[image], label, crowd, area))
            boxes.append(box)
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
        fault_at=lambda row, text, kind: _annotation_problem(*sources[order[row]], text, kind),
        problems=problems,
        left_out=np.zeros(len(pictures.ids), bool),
        num_unlisted=counts["unlisted"],
        num_unplaced=counts["unplaced"],
        keep_copies=True,  # COCO's evaluators do
    )


def leave_out_other_units(raw: RawLabels, pictures: CocoPictures, sizes: np.ndarray) -> RawLabels:
    """``raw`` without the files whose boxes are no x, y, width, height in px: one problem each.

    ``sizes`` (N, 2) height, width.

    Their pictures are left out, too: without their boxes they would count as background.
    """
    files = list(dict.fromkeys(file for file, _ in pictures.entries))
    owner = np.array([files.index(file) for file, _ in pictures.entries], np.int64)
    keep, problems, left_out = np.ones(len(raw.boxes), bool), [], raw.left_out.copy()
    for number, file in enumerate(files):
        rows = owner[raw.pictures] == number
        boxes = raw.boxes[rows]
        unit, form = xywh_unit(boxes, sizes[raw.pictures[rows]][:, ::-1])
        if unit or form:
            text = f"all {rows.sum()} boxes look like " + _written(boxes, unit, form)
            problems.append(Problem(file.path, 0, text, unit or form))
            keep &= ~rows
            left_out |= owner == number
    return raw.keep(keep)._replace(problems=[*raw.problems, *problems], left_out=left_out)


def _written(boxes: np.ndarray, unit: str, form: str) -> str:
    """How (T, 4) boxes, read from x, y, width, height, look to be written."""
    most = max(boxes[:, :2].max(), (boxes[:, 2:] - boxes[:, :2]).max())
    texts = [f"{unit} of the picture (largest value {most:.6g}), not px" if unit else ""]
    texts += [f"{FORMS[form]}, not x, y, width, height" if form else ""]
    return ", and like ".join(filter(None, texts))


def _classes_of(
    file: CocoFile, names: Sequence[str] | None, ids: Sequence[int | str]
) -> tuple[Ids | None, list[int | None]]:
    """Categories of a file by their ids, and the class of each, None of one that is no class.

    Without categories and ``names`` any id will do, for class 0.
    """
    if names is None:
        keys = [category.get("id") for category in file.categories]
        return Ids(keys) if keys else None, [0] * max(1, len(keys))
    table, class_of = _names_of(file), {name: index for index, name in enumerate(names)}
    if not table:
        return Ids(ids), list(range(len(ids)))
    return Ids(table), [class_of.get(name) for name in table.values()]


def _find_image(images: Ids, value: object) -> int:
    place = images.find(value)
    if place is None:
        known = key_of(value) is not None
        text = "no picture has this id" if known else "not the id of a picture"
        raise Fault(f"image_id is {show_value(value)}; {text}", "no picture" if known else "id")
    return place


def _find_category(categories: Ids | None, value: object) -> int:
    place = 0 if categories is None else categories.find(value)
    if place is None:
        shown = show_value(sorted(categories.places, key=_order))
        raise Fault(f"category_id is {show_value(value)}; the categories have the ids {shown}", "class")
    return place


def _annotation_problem(file: CocoFile, number: int, text: str, kind: str) -> Problem:
    """``annotation id 17 of picture a.jpg (annotations[3]): ...``."""
    annotation = file.annotations[number]
    known = annotation.get("id")
    shown = "annotation" if known is None else f"annotation id {show_value(known)}"
    image = file.image_ids.find(annotation.get("image_id"))
    name = file.images[image].get("file_name") if image is not None else None
    shown += f" of picture {printable(name)}" * isinstance(name, str)
    return file.problem("annotations", number, f"{shown} ({{place}}): {text}", kind)
