"""Rows of YOLO label files: which numbers of columns are meant, and the box that each row stands for.

A row is a box ``class cx cy w h``, a polygon ``class x1 y1 x2 y2 x3 y3 ...``, or, where the data set's YAML
says so, a pose row: a box followed by K keypoints ``x y`` or ``x y visible``, which a detector leaves out.
"""

import math
from typing import NamedTuple

from data.formats.problems import Problem
from utils.files import plain_text

BOX_COLUMNS = 5
MIN_POLYGON_COLUMNS = 7  # class and three points
SHOWN_CHARACTERS = 40
KITTI_COLUMNS = (15, 16)  # without and with a score


class RowRule(NamedTuple):
    """What the data set's YAML says of the rows that are longer than a box."""

    pose_columns: tuple[int, ...] = ()  # numbers of columns of pose rows; empty where there are none
    polygons: bool = False  # they are polygons, whatever they look like
    source: str = ""  # the entry of the YAML that says so

    def allows(self, count: int) -> bool:
        """Whether a row of ``count`` columns, more than a box has, is one of this data set."""
        if self.pose_columns:
            return count in self.pose_columns
        return count >= MIN_POLYGON_COLUMNS and count % 2 == 1


UNSAID = RowRule()


class ParsedRows(NamedTuple):
    """One label file, values unchecked but for the finiteness of long rows."""

    rows: list[list[float]]  # of 5 columns, or as many as the rule allows
    lines: list[int]  # from 1
    problems: list[Problem]  # lines that are no rows


def parse_labels(data: bytes, path: str, rule: RowRule = UNSAID) -> ParsedRows:
    """Split a label file into rows of numbers."""
    rows, lines, problems = [], [], []
    data = plain_text(data)
    if b"\0" in data:
        text = "binary data, not a plain text file"
        return ParsedRows(rows, lines, [Problem(path, 0, text, "label file")])
    for line, text in enumerate(data.splitlines(), 1):
        tokens = text.split()
        if not tokens:
            continue
        try:
            row = [float(token) for token in tokens]
        except ValueError:
            row = None
        if row is None or b"_" in text:  # float() takes 1_0 for 10
            problems.append(Problem(path, line, *_explain_text(text, tokens)))
            continue
        if len(row) != BOX_COLUMNS:
            fault = _long_fault(row, rule)
            if fault:
                problems.append(Problem(path, line, *fault))
                continue
        rows.append(row)
        lines.append(line)
    return ParsedRows(rows, lines, problems)


def box_of(row: list[float], rule: RowRule) -> list[float]:
    """Class, cx, cy, w, h of a row: of a pose row its own, of a polygon the bounds of its points."""
    if len(row) == BOX_COLUMNS or rule.pose_columns:
        return row[:BOX_COLUMNS]
    x, y = row[1::2], row[2::2]
    left, top, right, bottom = min(x), min(y), max(x), max(y)
    return [row[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top]


def _long_fault(row: list[float], rule: RowRule) -> tuple[str, str] | None:
    """Text and kind of the fault of a row that is no plain box."""
    if not rule.allows(len(row)):
        return _explain_columns(len(row), rule), "keypoint columns" if rule.pose_columns else "columns"
    # keypoints are not read, so what they hold is no fault of the box's
    read = row[:BOX_COLUMNS] if rule.pose_columns else row
    wrong = next((column for column, value in enumerate(read) if not math.isfinite(value)), None)
    if wrong is None:
        return None
    return f"column {wrong + 1} of this row is {row[wrong]}, not a finite number", "not finite"


def _explain_columns(count: int, rule: RowRule) -> str:
    if rule.pose_columns:
        wanted = " or ".join(map(str, rule.pose_columns))
        text = f"{count} columns, not 5 (class cx cy w h) nor {wanted}, as {rule.source} in the YAML says"
        more = count - BOX_COLUMNS
        fitting = " or ".join(f"[{more // dims}, {dims}]" for dims in (3, 2) if more > 0 and not more % dims)
        return text + (f"; kpt_shape: {fitting} would fit" if fitting else "")
    text = (
        f"{count} columns, not 5 (class cx cy w h) nor a polygon of 3 or more points (class x1 y1 x2 y2 ...)"
    )
    if count == BOX_COLUMNS + 1:
        return text + "; with a confidence as sixth column these are predictions, with a number tracks"
    if count > BOX_COLUMNS and (count - BOX_COLUMNS) % 3 == 0:
        keypoints = (count - BOX_COLUMNS) // 3
        return (
            f"{text}; pose rows with {keypoints} keypoints (x y visible) have as many: "
            f"if these are, write kpt_shape: [{keypoints}, 3] in the data set's YAML"
        )
    if count > BOX_COLUMNS:
        text += "; with a confidence or a track's number as last column these are no labels"
    return text


def _explain_text(text: bytes, tokens: list[bytes]) -> tuple[str, str]:
    """The text and the kind of the problem."""
    if b"," in text or b";" in text:
        if 8 <= text.count(b",") + 1 - text.rstrip().endswith(b",") <= 10 and len(tokens) == 1:
            hint = "left, top, width, height, score, class, ... in px, as VisDrone has them?"
            return f"{_show(text)}: {hint} Convert them to YOLO, COCO or VOC", "separator"
        return (
            f"{_show(text)} has commas or semicolons; YOLO labels need spaces and decimal points",
            "separator",
        )
    wrong = next(index for index, token in enumerate(tokens) if not _is_number(token))
    if wrong == 0 and len(tokens) in KITTI_COLUMNS:
        hint = "Convert them to YOLO, COCO or VOC"
        return f"class {_show(tokens[0])} and {len(tokens) - 1} numbers, as KITTI has them? {hint}", "class"
    if wrong == 0:
        hint = "not a whole number; labels hold the index of the class in names"
        return f"class {_show(tokens[0])} is {hint}", "class"
    if wrong == 8 and len(tokens) in (9, 10):
        text = "x1 y1 x2 y2 x3 y3 x4 y4 class, as DOTA has them"
        return f"column 9, {_show(tokens[8])}, is not a number: {text}? YOLO has the class first", "class"
    return f"column {wrong + 1}, {_show(tokens[wrong])}, is not a number", "not a number"


def _is_number(token: bytes) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return b"_" not in token


def _show(token: bytes) -> str:
    text = token.decode("utf-8", "backslashreplace").strip()
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "...")
