"""Which pictures a folder or a list file holds."""

import itertools
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from data.images import SUFFIXES, is_picture
from utils.errors import DATA, UserError
from utils.files import open_regular, plain_text
from utils.wording import printable, show_value

EXPORT = "export the labels as YOLO, COCO or VOC, and name what comes of it"
ARCHIVE = "an archive; unpack it, and name the folder of its pictures"
WRONG_KINDS = {  # given where a list is expected
    ".json": "a JSON file; if it is COCO's, write format: coco",
    ".xml": "an XML file; name the folder of the pictures here, and that of VOC's files: annotations: ...",
    ".csv": f"a table; {EXPORT}, or a text file with the path of one picture a line",
    **dict.fromkeys((".tsv", ".xlsx", ".xls", ".parquet"), f"a table; {EXPORT}"),
    **dict.fromkeys((".tfrecord", ".tfrecords", ".record"), f"a TFRecord; {EXPORT}"),
    **dict.fromkeys((".pkl", ".pickle", ".npy", ".npz", ".mat", ".h5", ".db"), f"no text; {EXPORT}"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar"), ARCHIVE),
    **dict.fromkeys((".yaml", ".yml"), "a YAML file; give it as --data"),
}


def walk_pictures(
    folder: Path,
    suffixes: tuple[str, ...] = SUFFIXES,
    *,
    most_idle: float = float("inf"),
    nameless: bool = False,
) -> Iterator[str]:
    """Files below a folder by ending, hidden ones left out; links followed, each real folder entered once.

    With ``nameless`` also pictures, by their first bytes, whose name has no ending, or a number for one.
    A folder that cannot be read, and more than ``most_idle`` files and folders since the last folder with
    such a file, are a ``UserError``: somebody named a whole disk.
    """
    entered, idle = set(), 0
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        real = os.path.realpath(parent)
        looks = len(folders) + len(files)
        folders[:] = [] if real in entered else [name for name in folders if not name.startswith(".")]
        if real in entered:
            continue
        entered.add(real)
        prefix = os.path.join(parent, "")
        found = [prefix + name for name in files if name.lower().endswith(suffixes) and name[0] != "."]
        if nameless:
            bare = [prefix + name for name in files if name[0] != "." and has_no_ending(name)]
            found += filter(is_picture, bare)
        idle = 0 if found else idle + looks
        if idle > most_idle:
            text = (
                f"{folder}: {idle:,} files and folders, up to {parent}, without a picture among them; name a "
            )
            raise UserError(f"{text}folder that is nearer to the pictures", DATA)
        yield from found


def has_no_ending(name: str) -> bool:
    """Whether nothing in a file's name says of what kind it is: ``frame``, ``frame.0001``."""
    ending = os.path.splitext(name)[1][1:]
    return not ending or ending.isdigit()


def read_list(path: Path, root: Path) -> list[str]:
    """Pictures of a list file: absolute, or relative to the file's folder, else to the data set's root.

    Windows' separators, quotes and lines that begin with # are understood. Where the pictures are named by
    the folders of another machine, see ``_find_moved``. Raises ``UserError`` for a file of another kind.
    """
    lines = read_lines(path)
    found = {line: find_listed(line, path, root) for line in lines}
    missing = [line for line in found if found[line] is None and not line.startswith("#")]
    if missing and len(missing) == len(found):
        _check_looks_like_list(path, missing)
    taken = {os.path.realpath(place) for place in found.values() if place}
    found |= _find_moved(missing, path, root, taken)
    return [
        found[line] or os.path.normpath(os.path.join(path.parent, _clean(line)))
        for line in lines
        if found[line] or not line.startswith("#")
    ]


def find_listed(line: str, path: Path, root: Path) -> str | None:
    """The file that a line of the list file ``path`` names, where there is one; see ``read_list``."""
    names = (line,) if line == (clean := _clean(line)) else (line, clean)  # a name may hold a backslash
    tried = (os.path.normpath(os.path.join(base, name)) for name in names for base in (path.parent, root))
    return next(filter(os.path.exists, tried), None)


def wrong_kind(name: str) -> str:
    """What to do about a file that is no list by its ending, '' where it may be one."""
    ending = os.path.splitext(name)[1].lower()
    if set(name) & set("*?[") and ending != ".txt":  # a list may be called train[1].txt
        return "a pattern, and these are not read here; name the folder of the pictures, or a list of them"
    return WRONG_KINDS.get(ending, "a picture; name its folder" if ending in SUFFIXES else "")


def _clean(line: str) -> str:
    return line.strip("'\" \t").replace("\\", "/")


def _find_moved(lines: list[str], path: Path, root: Path, taken: set[str]) -> dict[str, str]:
    """Line -> picture, of lines that name a folder of another machine: the part of the path that is here.

    Only where there is no doubt: one folder stands for one of ours in all lines, no two become the same, and
    none becomes one of ``taken``, which other lines name. It is stated, as pictures of the same names may be
    others.
    """
    found, places = {}, set()
    for line in lines:
        parts = _clean(line).split("/")
        tails = ((place, "/".join(parts[place:])) for place in range(1, len(parts)))
        for (place, tail), base in itertools.product(tails, dict.fromkeys((path.parent, root))):
            if ".." not in parts[place:] and tail and os.path.exists(os.path.join(base, tail)):
                found[line] = os.path.normpath(os.path.join(base, tail))
                places.add(("/".join(parts[:place]), str(base)))
                break
    became = {os.path.realpath(place) for place in found.values()}
    if len(places) != 1 or len(became) < len(found) or became & taken:
        return {}
    ((there, here),) = places
    say_once(f"{path}: {len(found)} pictures are listed below {there or '/'}; taken for {here}")
    return found


@cache  # lists and JSON files are read several times
def say_once(text: str) -> None:
    """Print what was taken for what."""
    print(printable(text))


def _check_looks_like_list(path: Path, lines: list[str]) -> None:
    """Raise ``UserError`` where a file of which no line is a file's path is something else."""
    pictures = sum(_clean(line).lower().endswith(SUFFIXES) for line in lines)
    if pictures or not any(set(line) & set(",;<{\t") for line in lines):
        return
    raise UserError(
        f"{path}: this is no list of pictures (line 1: {show_value(lines[0])}); a list has the path of one "
        "picture a line and nothing else: write one, or name the folder of the pictures, and convert the "
        "labels to YOLO, COCO or VOC",
        DATA,
    )


def read_lines(path: Path) -> list[str]:
    """The lines of UTF-8 (or marked UTF-16) text, stripped, without empty ones. A NUL is an error."""
    try:
        with open_regular(path) as file:
            lines = plain_text(file.read()).decode().splitlines()
    except (OSError, ValueError) as error:  # ValueError: a pipe, or not UTF-8
        text = f"{path}: cannot read this as a list of pictures (UTF-8, one path a line): {error}"
        raise UserError(text, DATA) from error
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(f"{path}:{number}: holds a NUL character; save the file as UTF-8 text", DATA)
    return list(filter(None, map(str.strip, lines)))


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot list this folder: {error.strerror}", DATA) from error
