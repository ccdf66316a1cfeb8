"""What the doctor found: one ``Finding`` for all faults of a kind in a split, and how people see it."""

import os
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data.formats.problems import Policy, Problem, show_problem
from data.index import SYSTEM_ERRORS
from utils.wording import printable

SEVERITIES = ("error", "warning", "note")  # training refuses; the result will suffer; good to know
SHOWN = 3  # places of a finding in the table; --json has them all
WIDTH = 110  # characters

# kind of a ``Problem`` -> what, what to do
KINDS = {
    "picture": ("pictures that cannot be read", "replace or delete these files"),
    "picture bands": (
        "pictures that have fewer bands than data.bands asks for",
        "--set data.bands=[...] of bands that all pictures have (null: the first three), or take these out",
    ),
    "picture range": (
        "pictures whose values need a range",
        "--set data.pixel_range=auto finds it in the training pictures; or --set data.pixel_range=[low,high]",
    ),
    "picture folder": (
        "folders that a list names in place of pictures",
        "name these folders in the YAML in place of the list (train: [folder, ...]), or list their pictures",
    ),
    "picture access": (
        "pictures that the system does not let us read",
        "look at their rights and at the disk they are on; the files may be whole",
    ),
    "missing picture": (
        "pictures that are listed, but not there",
        "put them where the list says, or take them out of the list",
    ),
    "label file": (
        "label files that cannot be read",
        "mend or replace these files; a picture whose label file is deleted counts as background",
    ),
    "separator": (
        "label rows with commas or semicolons",
        "write `class cx cy w h` with spaces and decimal points",
    ),
    "columns": ("label rows with a wrong number of columns", "write `class cx cy w h`, or a polygon"),
    "not a number": ("label rows with text in place of a number", "mend or delete these rows"),
    "not finite": ("labels with NaN or infinity", "mend or delete these rows"),
    "class": (
        "labels of a class that the data set does not have",
        "mend these labels, or `names` in the YAML",
    ),
    "pixels": (
        "label rows in pixels or percent",
        "write fractions, 0..1: pixels by the picture's width or height, percent by 100",
    ),
    "fractions": (
        "label files in fractions of the picture, not in px",
        "multiply x and width by the picture's width, y and height by its height",
    ),
    "first pixel": (
        "boxes in the first pixel of their picture, as if in fractions of it",
        "multiply x and width by the picture's width, y and height by its height; or delete them",
    ),
    "thousandths": (
        "label files in thousandths of the picture, not in px",
        "multiply x and width by the picture's width / 1000, y and height by its height / 1000",
    ),
    "percent": (
        "label files in percent of the picture, not in px",
        "multiply x and width by the picture's width / 100, y and height by its height / 100",
    ),
    "corners": (
        "label files with corners, x1, y1, x2, y2, in place of x, y, width, height",
        "width = x2 - x1, height = y2 - y1; or export them again",
    ),
    "centres": (
        "label files with centres, cx, cy, in place of the upper left corner x, y",
        "x = cx - width / 2, y = cy - height / 2; or export them again",
    ),
    "negative": ("boxes of negative width or height", "check the order of the coordinates"),
    "outside": (
        "boxes that reach more than 1 % beyond their picture",
        "mend them; or cut them with --label-errors clip, or leave them out with --label-errors skip",
    ),
    "size": (
        "labels written for a picture of another size",
        "export the labels again, or put the original pictures back",
    ),
    "image entry": ("pictures that are listed wrongly", "mend these entries of `images`"),
    "keypoint columns": (
        "label rows that are not as kpt_shape says",
        "mend kpt_shape (or flip_idx) in the YAML, or these rows",
    ),
    "id": ("annotations without a proper image_id", "write the id of their picture"),
    "no picture": ("annotations of pictures that are not listed", "delete them, or list their pictures"),
    "bbox": ("annotations without a proper bbox", "write x, y, width, height in px, or a segmentation"),
    "difficult": ("objects with a senseless difficult", "write 0 or 1"),
    "bndbox": ("objects without a proper bndbox", "write xmin, ymin, xmax, ymax in px"),
    "area": ("annotations with a senseless area", "write the area of the mask in px^2, or leave it away"),
    "iscrowd": ("annotations with a senseless iscrowd", "write 0 or 1"),
}


# what a fault of a picture says -> its kind, where another file would not mend it
FAULTS = {"data.bands asks for": "bands", "data.pixel_range": "range", "but a directory;": "folder"}


class Finding(NamedTuple):
    """Something to know about a split, or about the data set as a whole."""

    severity: str  # one of SEVERITIES
    code: str  # for programs: stays the same from release to release
    split: str  # '' where several are meant
    count: int  # 0 where nothing is counted
    text: str  # says the count, too
    remedy: str = ""
    places: tuple[Problem, ...] = ()


def gather_problems(problems: Sequence[Problem], split: str, policy: Policy) -> list[Finding]:
    """One finding for each kind of problem. With the policy "skip" training leaves faulty labels out."""
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[_kind_of(problem)].append(problem)
    found = []
    for kind, members in kinds.items():
        text, remedy = KINDS.get(kind, (f"faulty labels ({kind})", "mend or delete them"))
        text = f"{text}: {len(members)}"
        severity = "warning" if policy == "skip" else "error"
        remedy = f"left out by --label-errors skip; to use them: {remedy}" if policy == "skip" else remedy
        places = tuple(sorted(members))
        found.append(Finding(severity, kind.replace(" ", "-"), split, len(members), text, remedy, places))
    return found


def _kind_of(problem: Problem) -> str:
    """Of a picture that cannot be read also why, where the remedy depends on it."""
    if problem.kind != "picture":
        return problem.kind
    if problem.text.endswith(SYSTEM_ERRORS):
        return "picture access"
    return next((f"picture {kind}" for part, kind in FAULTS.items() if part in problem.text), "picture")


def sort_findings(findings: Sequence[Finding]) -> list[Finding]:
    """By severity, else in the order they were made."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def show_finding(finding: Finding) -> str:
    """Some lines: severity, split, what; the first places; what to do."""
    return "\n".join(map(printable, _lines_of(finding)))


def _lines_of(finding: Finding) -> Iterator[str]:
    label = finding.severity.upper() if finding.severity == "error" else finding.severity
    first, *more = finding.text.splitlines()
    yield from _wrap(f"{label:<8}{finding.split:<7}{first}", 15)
    for line in more:
        yield from _wrap(" " * 15 + line, 17)
    for place in _choose(finding.places):
        yield from _wrap(" " * 17 + _near(show_problem(place)), 19)
    left = len(finding.places) - SHOWN
    if left > 0:
        yield " " * 17 + f"... and {left} more"
    if finding.remedy:
        yield from _wrap(" " * 15 + f"-> {finding.remedy}", 18)


def _choose(places: Sequence[Problem]) -> list[Problem]:
    """Some places, of different files as far as possible."""
    by_file = list({place.path: place for place in reversed(places)}.values())[::-1][:SHOWN]
    return (by_file + [place for place in places[: 2 * SHOWN] if place not in by_file])[:SHOWN]


def _wrap(text: str, indent: int) -> list[str]:
    options = {"break_long_words": False, "break_on_hyphens": False, "drop_whitespace": True}
    lead = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(text.strip(), WIDTH, initial_indent=lead, subsequent_indent=" " * indent, **options)


def _near(text: str) -> str:
    """Paths below the working directory without it."""
    return text.replace(os.getcwd() + os.sep, "")
