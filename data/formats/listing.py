"""Which pictures a folder or a list file holds."""

import os
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

from data.files import open_regular
from utils.errors import DATA, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def walk_pictures(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[str]:
    """Files below a folder by ending, hidden ones left out; links followed, each real folder entered once."""
    entered = set()
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in entered else [name for name in folders if not name.startswith(".")]
        if real in entered:
            continue
        entered.add(real)
        prefix = os.path.join(parent, "")
        yield from [prefix + name for name in files if name.lower().endswith(suffixes) and name[0] != "."]


def read_list(path: Path, root: Path) -> Iterator[str]:
    """Pictures of a list file: absolute, or relative to the file's folder, else to the data set's root."""
    for line in read_lines(path):
        yield find_listed(line, path, root) or os.path.normpath(os.path.join(path.parent, line))


def find_listed(line: str, path: Path, root: Path) -> str | None:
    """The file that a line of the list file ``path`` names, where there is one; see ``read_list``."""
    tried = (os.path.normpath(os.path.join(base, line)) for base in (path.parent, root))
    return next(filter(os.path.exists, tried), None)


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, stripped, without empty ones. A line with a NUL is an error."""
    try:
        with open_regular(path) as file:
            lines = TextIOWrapper(file, encoding="utf-8-sig").read().splitlines()
    except (OSError, ValueError) as error:  # ValueError: a pipe, or not UTF-8
        text = f"{path}: cannot read this as a list of pictures (UTF-8, one path a line): {error}"
        raise UserError(text, DATA) from error
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(f"{path}:{number}: holds a NUL character; save the file as UTF-8 text", DATA)
    return list(filter(None, map(str.strip, lines)))


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot list this folder: {error.strerror}", DATA) from error
