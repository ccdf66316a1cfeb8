"""One COCO JSON file as three lists of objects, whatever shape its writer gave them.

Lists may be objects keyed by id (LIVECell), annotations may lie by picture, in ``annotations`` or in the
picture's own entry. Every element keeps its place in the file, for errors.
"""

import json
import re
from functools import cached_property
from json import JSONDecodeError, JSONDecoder
from pathlib import Path

from data.formats.coco_values import Ids
from data.formats.problems import Problem
from utils.errors import DATA, UserError
from utils.files import open_regular

LISTS = ("images", "annotations", "categories")
BEFORE = 20  # characters before an error that may hold its cause

Places = list[tuple[str, int]]  # of each element: as jq spells it, and the number of the top-level entry


class CocoFile:
    """One JSON file. Its three lists are known to be lists of objects."""

    def __init__(self, path: Path, text: str, content: dict):
        self.path, self.text = str(path), text
        self._places: dict[str, Places | None] = {}
        self._top = {key: key for key in LISTS}  # the list that is really in the file
        self.images = self._take(content, "images")
        self.categories = self._take(content, "categories")
        self.annotations = self._take(content, "annotations")
        self._lines: dict[str, list[int]] = {}

    @cached_property
    def image_ids(self) -> Ids:
        """Places of ``images`` by their ids."""
        return Ids(image.get("id") for image in self.images)

    def problem(self, key: str, number: int, text: str, kind: str) -> Problem:
        """A fault of element ``number`` of the list ``key``; ``text`` has ``{place}`` where its place goes.

        The line is named where there are lines: many exporters write one, of megabytes.
        """
        places = self._places[key]
        place, entry = places[number] if places else (f"{key}[{number}]", number)
        return Problem(self.path, self._line_of(self._top[key], entry), text.replace("{place}", place), kind)

    def _line_of(self, key: str, entry: int) -> int:
        if key not in self._lines:  # finding lines parses the text once more
            self._lines[key] = _find_lines(self.text, key) if self.text.strip().count("\n") else []
        lines = self._lines[key]
        return lines[entry] if len(lines) == 1 or len(set(lines)) > 1 else 0

    def _take(self, content: dict, key: str) -> list[dict]:
        part = content.get(key)
        if key == "annotations" and part is None:  # published test sets have none
            return self._take_from_pictures()
        if part is None and key == "categories":
            return []
        if isinstance(part, list) and all(isinstance(item, dict) for item in part):
            self._places[key] = None
            return part
        elements, self._places[key] = _elements_of(part, key) or ([], None)
        if not elements and part not in ({}, []):
            text = f"{key} is missing or no list of objects; is this an object-detection file?"
            raise UserError(f"{self.path}: {text}", DATA)
        return elements

    def _take_from_pictures(self) -> list[dict]:
        found, places = [], []
        for number, image in enumerate(self.images):
            own = image.get("annotations")
            for place, item in enumerate(own if isinstance(own, list) else ()):
                if isinstance(item, dict):
                    found.append({"image_id": image.get("id")} | item)
                    places.append((f"images[{number}].annotations[{place}]", number))
        self._places["annotations"], self._top["annotations"] = places, "images"
        return found


def _elements_of(part: object, key: str) -> tuple[list[dict], Places] | None:
    """Elements and places of an object keyed by id, or, of annotations by picture; None for anything else."""
    if not isinstance(part, dict):
        return None
    found, places = [], []
    for entry, (name, value) in enumerate(part.items()):
        place = f"{key}[{json.dumps(name)}]"
        if key == "categories" and isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict):
            found.append({"id": name} | value)
            places.append((place, entry))
        elif key == "annotations" and isinstance(value, list):
            if not all(isinstance(item, dict) for item in value):
                return None
            found += [{"image_id": name} | item for item in value]
            places += [(f"{place}[{number}]", entry) for number in range(len(value))]
        else:
            return None
    return found, places


def read_json(path: Path) -> CocoFile:
    """Parse and check the outline; a ``UserError`` names the line, or the key that is not as it should be."""
    text = None
    try:
        with open_regular(path) as file:
            data = file.read()
        text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
        content = json.loads(text)
    except JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not valid JSON (column {error.colno}): {_explain(error, text)}", DATA
        ) from error
    except UnicodeDecodeError as error:
        text = f"byte {error.start + 1} is not {error.encoding.upper()}; save the file as UTF-8"
        raise UserError(f"{path}: cannot read this as COCO JSON: {text}", DATA) from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: a pipe, or a number of 5,000 digits
        reason = "it holds a number of thousands of digits" if text and type(error) is ValueError else error
        raise UserError(f"{path}: cannot read this as COCO JSON: {reason}", DATA) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a COCO file is an object with {', '.join(LISTS)}; this is none", DATA)
    twice = _repeated_list(text)
    if twice:
        text = f"{path}: the key {twice!r} stands there twice, and all but the last would be lost; join them"
        raise UserError(text, DATA)
    return CocoFile(path, text, content)


def _explain(error: JSONDecodeError, text: str) -> str:
    """What is wrong, in words of somebody who exported a file, where it is one of the usual things."""
    before = text[max(0, error.pos - BEFORE) : error.pos].rstrip()
    if error.msg == "Extra data" and text[error.pos : error.pos + 1] == "{":
        return "one object ends and another begins; JSON Lines is not read, write one object with the lists"
    if before.endswith(",") and text[error.pos : error.pos + 1] in ("]", "}"):
        return f"a comma before {text[error.pos]!r}; delete it"
    if error.pos >= len(text.rstrip()):
        return f"the file ends too early ({error.msg}); was it copied or written to its end?"
    return error.msg


def _repeated_list(text: str) -> str:
    """One of ``LISTS`` that the top-level object of valid JSON has twice, or ''."""
    if all(len(re.findall(f'"{key}"\\s*:', text)) < 2 for key in LISTS):
        return ""  # the usual case: no second parsing
    names = [name for name, _ in _entries(text, text.index("{"))]
    return next((key for key in LISTS if names.count(key) > 1), "")


def _find_lines(text: str, key: str) -> list[int]:
    """The line, from 1, on which each element of the top-level list or object ``key`` begins."""
    start = next(start for name, start in _entries(text, text.index("{")) if name == key)
    lines, line, counted = [], 1, 0
    for _, position in _entries(text, start):
        line, counted = line + text.count("\n", counted, position), position
        lines.append(line)
    return lines


def _entries(text: str, start: int):
    """Name (None in a list) and position of each value of the list or object at ``start`` of valid JSON."""
    decode, named = JSONDecoder().raw_decode, text[start] == "{"
    position, name = _skip(text, start + 1), None
    while text[position] not in "]}":
        if named:
            name, position = decode(text, position)
            position = _skip(text, position)
        yield name, position
        position = _skip(text, decode(text, position)[1])


def _skip(text: str, position: int) -> int:
    """The next place that holds neither white space nor a separator."""
    while text[position] in " \t\r\n,:":
        position += 1
    return position
