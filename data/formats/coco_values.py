"""Values of COCO JSON as exporters write them: ids and numbers also as text, boxes also as outlines.

What can mean one thing only is read; all else is a ``Fault``. Boxes are x, y, width, height in px.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from utils.wording import show_value

MAX = 2**53  # numbers are held as float64
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # as a program writes it: "7" is 7, "007" may be another name
PADDED = re.compile(r"-?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
CROWD = {"0": False, "1": True, "false": False, "true": True, "": False}
MOST_PIXELS = 2**40  # of a mask
BITS, MORE, SIGN = 5, 0x20, 0x10  # of a character of COCO's compressed counts


class Fault(Exception):
    """Why a value is none; ``kind`` as of a ``Problem``."""

    def __init__(self, text: str, kind: str):
        super().__init__(text)
        self.kind = kind


def key_of(value: object) -> int | str | None:
    """An id as it is compared: 7, 7.0 and "7" are one. None for what is no id.

    Numbers beyond 64 bits are compared as text: a file may choose them so that all have one hash as numbers,
    and a million of them would be looked up for hours.
    """
    if type(value) is int:
        return value if abs(value) < 2**63 else str(value)
    if type(value) is str:
        text = value.strip()
        return int(text) if WHOLE.fullmatch(text) else text or None
    return key_of(int(value)) if type(value) is float and value.is_integer() else None


def is_number(key: int | str) -> bool:
    """Whether an id is a number, also one with zeros before it."""
    return type(key) is int or PADDED.fullmatch(key) is not None


class Ids:
    """Ids of one list of one file -> their places in it.

    A reference may be written otherwise than the id: 7 for "7", and for "007" where nothing else has this
    number.
    """

    def __init__(self, values: Iterable[object]):
        self.places: dict[int | str, list[int]] = defaultdict(list)
        for place, value in enumerate(values):
            key = key_of(value)
            if key is not None:
                self.places[key].append(place)
        self._first = {key: found[0] for key, found in self.places.items()}
        self._padded: dict[int, list[int]] = defaultdict(list)
        for key in self.places:
            if type(key) is str and PADDED.fullmatch(key):
                self._padded[int(key)].append(self._first[key])

    def find(self, value: object) -> int | None:
        """The place of the (first) element with the id ``value``, None where there is none."""
        key = key_of(value)
        place = self._first.get(key)
        if place is not None or key is None or not is_number(key):
            return place
        near = self._padded.get(int(key), []) + self.places.get(int(key), [])
        return near[0] if len(near) == 1 else None

    def repeated(self) -> dict[int, int]:
        """Place of an element whose id stands there more than once -> another place of the same id."""
        several = [found for found in self.places.values() if len(found) > 1]
        return {place: found[place == found[0]] for found in several for place in found}


def to_number(value: object) -> float | None:
    """A number, also in digits as text; None for anything else. May be nan or infinite."""
    if type(value) is float:
        return value if not MAX < abs(value) < math.inf else None
    if type(value) is int:
        return value if abs(value) <= MAX else None
    if type(value) is str and len(value) < 40 and NUMBER.fullmatch(value.strip()):
        return to_number(float(value))
    return None


def to_side(value: object) -> int | None:
    """The width or height of a picture, None where none is stated that could be one."""
    number = to_number(value)
    whole = number is not None and math.isfinite(number) and number == int(number)
    return int(number) if whole and number > 0 else None


def read_box(annotation: dict) -> tuple[float, float, float, float]:
    """The bbox, else, also where it is all zeros, the bounds of the segmentation."""
    bbox = annotation.get("bbox")
    blank = bbox == [0, 0, 0, 0] and annotation.get("segmentation")
    if bbox is None or bbox == [] or blank:
        return _box_of_segmentation(annotation.get("segmentation"), bbox)
    numbers = [to_number(value) for value in bbox] if type(bbox) is list and len(bbox) == 4 else [None]
    if None in numbers:
        raise Fault(f"bbox is {show_value(bbox)}, not four numbers x, y, width, height in px", "bbox")
    if not all(map(math.isfinite, numbers)):
        raise Fault(f"bbox is {show_value(bbox)}, not four finite numbers", "not finite")
    if numbers[2] < 0 or numbers[3] < 0:
        text = "width or height is negative (COCO has x, y, width, height)"
        raise Fault(f"bbox is {show_value(bbox)}: {text}", "negative")
    return tuple(numbers)


def read_area(value: object) -> float:
    """The area in px^2, nan where there is none."""
    if value is None:
        return math.nan
    area = to_number(value)
    if area is None or area < 0 or math.isinf(area):
        raise Fault(f"area is {show_value(value)}, not a number of px^2", "area")
    return area


def read_crowd(value: object) -> bool:
    """Whether an annotation marks a crowd."""
    if value is None or type(value) is bool:
        return bool(value)
    if type(value) in (int, float) and value in (0, 1):
        return value == 1
    if type(value) is str and value.strip().lower() in CROWD:
        return CROWD[value.strip().lower()]
    raise Fault(f"iscrowd is {show_value(value)}, not 0 or 1", "iscrowd")


def _box_of_segmentation(segmentation: object, bbox: object) -> tuple[float, float, float, float]:
    if not segmentation:
        text = "and there is no segmentation to take the box from"
        raise Fault(f"bbox is {show_value(bbox)}, {text}", "bbox")
    if isinstance(segmentation, dict):
        return _box_of_mask(segmentation)
    numbers = list(_flatten(segmentation))
    if len(numbers) < 6 or len(numbers) % 2 or None in numbers or not all(map(math.isfinite, numbers)):
        text = "not polygons of three and more points x, y in px, nor a mask"
        raise Fault(f"there is no bbox, and segmentation is {show_value(segmentation)}, {text}", "bbox")
    left, top, right, bottom = (pick(numbers[start::2]) for pick in (min, max) for start in (0, 1))
    return left, top, right - left, bottom - top


def _flatten(segmentation: object, depth: int = 0):
    """The numbers of [x, y, ...], [[x, y, ...], ...] or [[[x, y], ...], ...] in turn; None for others."""
    if isinstance(segmentation, list) and depth < 4:
        for item in segmentation:
            yield from _flatten(item, depth + 1)
    else:
        yield to_number(segmentation)


def _box_of_mask(mask: dict) -> tuple[float, float, float, float]:
    """The bounds of a run-length mask, found from its runs: nothing of its size is ever allocated."""
    size, counts = mask.get("size"), mask.get("counts")
    sides = [to_side(side) for side in size] if type(size) is list and len(size) == 2 else [None]
    runs = _decompress(counts) if type(counts) is str else counts
    fine = None not in sides and math.prod(sides) <= MOST_PIXELS and type(runs) is list
    fine = fine and all(type(run) is int and 0 <= run <= MOST_PIXELS for run in runs)
    if not fine or sum(runs) != math.prod(sides):
        text = f"no mask whose counts add up to its size {show_value(size)}"
        raise Fault(f"there is no bbox, and segmentation is {text}", "bbox")
    height = sides[0]
    ends = np.cumsum(np.array(runs, np.int64))  # runs go down the columns, background first
    starts, stops = ends[::2][: len(ends) // 2], ends[1::2]
    starts, stops = starts[stops > starts], stops[stops > starts]
    if not len(starts):
        raise Fault("there is no bbox, and the mask of the segmentation is empty", "bbox")
    first, last = starts // height, (stops - 1) // height
    whole = (first < last).any()  # a run over the end of a column touches both edges
    top = 0 if whole else int((starts % height).min())
    bottom = height if whole else int(((stops - 1) % height).max()) + 1
    left, right = int(first.min()), int(last.max()) + 1
    return left, top, right - left, bottom - top


def _decompress(text: str) -> list[int]:
    """Counts of COCO's compressed form: six bits a character, low ones first; to the last but one.

    What is not in that form gives counts that do not add up.
    """
    runs, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return []
        value |= (bits & 0x1F) << shift
        shift += BITS
        if bits & MORE:
            continue
        value -= (1 << shift) if bits & SIGN else 0
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs
