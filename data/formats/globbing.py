"""Files by a pattern with ``*``, ``?``, ``[...]`` and ``**``, in a number of looks that has an end.

Python's glob follows every link below ``**``: where two point at each other it never comes to an end.
"""

import fnmatch
import os
import re
from collections.abc import Iterator
from itertools import count

from utils.errors import DATA, UserError

MAGIC = re.compile(r"[*?[]")
MOST_LOOKS = 500_000  # entries of folders; seconds


def find_matching(pattern: str) -> list[str]:
    """The regular files that ``pattern`` means, sorted, each once; hidden ones only where it says so.

    ``**`` stands for folders to any depth, links followed, each real folder entered once. Folders that cannot
    be read are passed over. More than ``MOST_LOOKS`` entries are a ``UserError``.
    """
    parts = [part for part in pattern.split(os.sep) if part not in ("", ".")]
    base = os.sep if os.path.isabs(pattern) else ""
    return sorted(path for path in set(_expand(base, parts, count(1), pattern)) if os.path.isfile(path))


def _expand(base: str, parts: list[str], looks: count, pattern: str) -> Iterator[str]:
    """Paths of the rest of the pattern below ``base``."""
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for folder in _folders_below(base, set(), looks, pattern):
            yield from _expand(folder, rest or ["*"], looks, pattern)
    elif MAGIC.search(part):
        for entry in _entries(base, looks, pattern):
            shown = part.startswith(".") or not entry.name.startswith(".")
            if shown and fnmatch.fnmatchcase(entry.name, part):
                yield from _expand(os.path.join(base, entry.name), rest, looks, pattern)
    else:
        path = os.path.join(base, part)
        if not rest or os.path.isdir(path):
            yield from _expand(path, rest, looks, pattern)


def _folders_below(base: str, entered: set[str], looks: count, pattern: str) -> Iterator[str]:
    waiting = [base]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder or ".")
        if real in entered:
            continue
        entered.add(real)
        yield folder
        entries = _entries(folder, looks, pattern)
        waiting += [os.path.join(folder, e.name) for e in entries if e.name[0] != "." and _is_folder(e)]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: str, looks: count, pattern: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder or ".") as found:
            entries = []
            for entry in found:
                if next(looks) > MOST_LOOKS:
                    raise UserError(
                        f"--source {pattern}: more than {MOST_LOOKS:,} files and folders to look at; name a "
                        "folder that is nearer to the pictures",
                        DATA,
                    )
                entries.append(entry)
            return entries
    except OSError:
        return []
