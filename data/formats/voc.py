"""Pascal VOC: one XML file a picture. N pictures, T objects.

Coordinates are taken as written, as edges; ``offset`` 1 is for files that count pixels from 1 and name the
first and the last one (VOC itself): xmin and ymin go down by it. ``difficult`` objects become ignore regions.
"""

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from data.formats.labels import RawLabels
from data.formats.problems import Problem, dangling_link, show_problem
from data.formats.xml_text import read_encoded
from utils.errors import DATA, UserError
from utils.files import open_regular

CORNERS = ("xmin", "ymin", "xmax", "ymax")
DIFFICULT = {
    "1": True,
    "true": True,
    "yes": True,
    **dict.fromkeys(("", "0", "false", "no", "unspecified"), False),
}
MAX_BYTES = 5_000_000
FOLDERS = ("Annotations", "annotations")  # in place of JPEGImages, or images
SHOWN = 40  # characters of a name in an error
DEPTH = 32  # of elements within elements


class VocObject(NamedTuple):
    """One ``object`` as text, with the lines on which its parts stand."""

    line: int
    fields: dict[str, tuple[str, int]]  # name, difficult, xmin, ... -> text, line


class VocFile(NamedTuple):
    """One XML file."""

    objects: list[VocObject]
    size: dict[str, str]  # width, height -> text


class _Reader:
    """Handlers of one expat run: text by its path of elements, with lines."""

    def __init__(self):
        self.parser = expat.ParserCreate("utf-8")  # whatever is declared: read_encoded has seen to it
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        # A DOCTYPE line is harmless. What it may declare is not: entities that grow a thousandfold, or that
        # hold other files. Expat opens no file by itself, and reads over references to what it did not read.
        self.parser.EntityDeclHandler = self._entity
        self.parser.SkippedEntityHandler = self._entity
        self.path: list[str] = []
        self.text, self.line = "", 0
        self.found = VocFile([], {})

    def _start(self, tag: str, _: dict) -> None:
        self.path.append(tag)
        self.text, self.line = "", self.parser.CurrentLineNumber
        if len(self.path) == 1 and tag != "annotation":
            raise ValueError(f"the file holds <{tag}>, not <annotation>: no VOC file")
        if self.path[1:] == ["object", "bndbox"] and "bndbox" in self.found.objects[-1].fields:
            raise ValueError("an object has two <bndbox>: give each box an <object> of its own")
        if len(self.path) > DEPTH:
            raise ValueError(f"elements lie more than {DEPTH} deep in each other")
        if self.path == ["annotation", "object"]:
            self.found.objects.append(VocObject(self.line, {}))

    def _end(self, tag: str) -> None:
        if self.path[1:-1] == ["size"]:
            self.found.size[tag] = self.text.strip()
        if self.path[1:-1] in (["object"], ["object", "bndbox"]):  # not the boxes of an object's parts
            self.found.objects[-1].fields.setdefault(tag, (self.text.strip(), self.line))
        self.path.pop()
        self.text = ""

    def _text(self, text: str) -> None:
        self.text += text

    def _entity(self, name: str, *_) -> None:
        raise ValueError(f"the entity {name[:SHOWN]!r} is not read: write the text itself in its place")


def parse_xml(data: bytes) -> VocFile:
    """The objects of one file. Raises ``ValueError`` or ``expat.ExpatError``, with a ``lineno``."""
    text, reader = read_encoded(data), _Reader()
    try:
        reader.parser.Parse(text, True)
    except ValueError as error:
        error.lineno = reader.parser.CurrentLineNumber
        raise
    return reader.found


def read_labels(
    files: list[str], names: Sequence[str] | None, *, offset: int
) -> tuple[RawLabels, list[tuple[int, int] | None]]:
    """The XML ``files`` of the pictures, and the (height, width) they state; without ``names`` one class."""
    class_of = {name: index for index, name in enumerate(names)} if names else None
    rows, lines, stated, problems, left_out, missing = [], [], [], [], [], 0
    for place, path in enumerate(files):
        found, problem = _read_file(path)
        problems += [problem] if problem else []
        left_out.append(problem is not None)
        missing += found is None and problem is None
        stated.append(_stated_size(found) if found else None)
        for item in found.objects if found else ():
            try:
                label, corners = _read_object(item, class_of, offset)
                difficult = _read_difficult(item)
            except _Fault as fault:
                problems.append(Problem(path, fault.line, str(fault), fault.kind))
                continue
            rows.append((place, label, difficult, *corners))
            lines.append(item.line)
    table = np.array(rows, np.float64).reshape(-1, 7)
    pictures = table[:, 0].astype(np.int64)
    raw = RawLabels(
        boxes=table[:, 3:] - np.array((offset, offset, 0, 0)),
        labels=table[:, 1].astype(np.int64),
        ignore=table[:, 2] > 0,
        areas=np.full(len(table), np.nan),
        pictures=pictures,
        fault_at=lambda row, text, kind: Problem(files[pictures[row]], lines[row], text, kind),
        problems=problems,
        left_out=np.array(left_out, bool),
        num_missing=missing,
    )
    return raw, stated


def collect_names(files: list[str]) -> tuple[str, ...]:
    """The names of all objects, sorted: the classes of a data set that does not list them.

    Raises ``UserError`` where no name is found because files cannot be read; other faults are told with the
    labels.
    """
    found, problems = set(), []
    for path in files:
        content, problem = _read_file(path)
        problems += [problem] if problem else []
        found.update(
            item.fields["name"][0] for item in (content.objects if content else ()) if "name" in item.fields
        )
    if problems and not found - {""}:
        count = f"{len(problems)} of {len(files)} XML files cannot be read, and no other names an object"
        raise UserError(f"{count}:\n  {show_problem(problems[0])}", DATA)
    return tuple(sorted(found - {""}))


class _Fault(Exception):
    """Why an object is none."""

    def __init__(self, line: int, text: str, kind: str):
        super().__init__(text)
        self.line, self.kind = line, kind


def _read_file(path: str) -> tuple[VocFile | None, Problem | None]:
    try:
        with open_regular(path, most=MAX_BYTES) as file:
            return parse_xml(file.read()), None
    except (FileNotFoundError, NotADirectoryError):
        return None, dangling_link(path)
    except OSError as error:
        return None, Problem(path, 0, f"cannot read this label file: {error.strerror}", "label file")
    except (expat.ExpatError, ValueError) as error:  # ValueError: also a pipe, a NUL in the path
        text = expat.errors.messages.get(getattr(error, "code", None), str(error))
        return None, Problem(
            path, getattr(error, "lineno", 0), f"cannot read this as VOC XML: {text}", "label file"
        )


def _stated_size(file: VocFile) -> tuple[int, int] | None:
    """Height and width, None where they are missing, zero or no numbers (all seen in the wild)."""
    texts = file.size.get("height", ""), file.size.get("width", "")
    if not all(text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0 for text in texts):
        return None
    return int(texts[0]), int(texts[1])


def _read_object(item: VocObject, class_of: dict[str, int] | None, offset: int) -> tuple[int, list[float]]:
    name, line = item.fields.get("name", ("", item.line))
    if not name:
        raise _Fault(line, "this object has no name", "class")
    if class_of is not None and name not in class_of:
        near = difflib.get_close_matches(name, class_of, 1)
        hint = (
            f"; did you mean {near[0]!r}?" if near else f"; the classes are {', '.join(list(class_of)[:20])}"
        )
        raise _Fault(line, f"{name!r} is none of the names of the data set{hint}", "class")
    corners = []
    for key in CORNERS:
        text, line = item.fields.get(key, ("", item.line))
        try:
            corners.append(float(text))
        except ValueError:
            shown = repr(text) if text else "missing"
            raise _Fault(line, f"{key} is {shown}, not a number", "bndbox") from None
        if not math.isfinite(corners[-1]) or "_" in text:
            raise _Fault(line, f"{key} is {text}, not a finite number", "not finite")
    left, top, right, bottom = corners
    if right < left - offset or bottom < top - offset:
        low, high = ("xmin", "xmax") if right < left - offset else ("ymin", "ymax")
        values = f"{low} is {item.fields[low][0]} and {high} is {item.fields[high][0]}"
        raise _Fault(item.fields[high][1], f"{values}: the box is turned over", "negative")
    return 0 if class_of is None else class_of[name], corners


def _read_difficult(item: VocObject) -> bool:
    text, line = item.fields.get("difficult", ("", item.line))
    if text.lower() not in DIFFICULT:
        raise _Fault(line, f"difficult is {text!r}, not 0 or 1", "difficult")
    return DIFFICULT[text.lower()]


def label_paths_of(pictures: list[str], folders: Sequence[Path] | None) -> list[str]:
    """The XML file of every picture; without ``folders`` by VOC's layout, else beside the picture.

    VOC's layout: the last folder JPEGImages (or images) becomes Annotations (or annotations). With
    ``folders`` a picture's file lies in the first of them that has it, else it belongs into the first.
    """
    paths = []
    for picture in pictures:
        folder, _, name = picture.rpartition(os.sep)
        stem = os.path.splitext(name)[0] + ".xml"
        places = [str(item) for item in folders] if folders else folders_beside(folder)
        tried = [f"{place}{os.sep}{stem}" for place in places]
        paths.append(next((path for path in tried if os.path.exists(path)), tried[0]))
    return paths


def folders_beside(folder: str) -> list[str]:
    """Folders where the XML files of a folder of pictures may lie, by rank; the last is the folder itself."""
    parts = folder.split(os.sep)
    places = [place for place, name in enumerate(parts) if name in ("JPEGImages", "images")]
    found = (
        [os.sep.join([*parts[: places[-1]], name, *parts[places[-1] + 1 :]]) for name in FOLDERS]
        if places
        else []
    )
    return [*found, folder]
