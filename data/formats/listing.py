"""Which pictures a folder or a list file holds, and what lies beside a data set that has no YAML."""

import os
from collections.abc import Iterator
from pathlib import Path

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
        beside = os.path.normpath(os.path.join(path.parent, line))
        if not os.path.exists(beside):
            below_root = os.path.normpath(os.path.join(root, line))
            beside = below_root if os.path.exists(below_root) else beside
        yield beside


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, stripped, without empty ones."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        text = f"{path}: cannot read this as a list of pictures (UTF-8, one path a line): {error}"
        raise UserError(text, DATA) from error
    return list(filter(None, map(str.strip, lines)))


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot list this folder: {error.strerror}", DATA) from error
