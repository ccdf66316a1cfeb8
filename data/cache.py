"""Files in the user's cache directory: arrays of plain numbers and text, keyed by what they were made from.

Nothing is ever pickled, and nothing lies in the data set's own folder. A cache that cannot be read or written
costs time, never a run: readers get None, writers print one line.
"""

import hashlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

CHUNK = 4096  # files
GONE = (-1, -1)  # what stands for a file that is not there


def cache_folder() -> Path:
    """``$LTRB_CACHE``, else ``ltrb`` in the system's folder for caches (``~/.cache`` on Linux)."""
    if ours := os.environ.get("LTRB_CACHE"):
        return Path(ours).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ltrb"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "ltrb"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltrb"


def stat_files(paths: list[str]) -> np.ndarray:
    """(n, 2) int64 size and modification time (ns) of every file; ``GONE`` for one that is not there."""
    table = np.empty((len(paths), 2), np.int64)
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        try:
            states = list(map(os.stat, chunk))
        except (OSError, ValueError):  # one is not there: each by itself
            table[start : start + CHUNK] = [_stat_file(path) for path in chunk]
        else:
            table[start : start + CHUNK, 0] = [state.st_size for state in states]
            table[start : start + CHUNK, 1] = [state.st_mtime_ns for state in states]
    return table


def _stat_file(path: str) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return GONE
    return state.st_size, state.st_mtime_ns


def load_arrays(kind: str, key: str) -> dict[str, np.ndarray] | None:
    """The arrays saved under ``key``, or None where there are none, or none that can be read."""
    try:
        with np.load(_path_of(kind, key), allow_pickle=False) as file:
            return {name: file[name] for name in file.files} or None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save_arrays(kind: str, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep ``arrays`` under ``key``: the old file stays whole until the new one is complete."""
    path = _path_of(kind, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            np.savez(part, **arrays)
    except OSError as error:
        print(
            f"cache not written: {path}: {error.strerror or error} (LTRB_CACHE chooses the folder)",
            file=sys.stderr,
        )


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when complete; else nothing is left of it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        part = Path(folder, path.name)
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)


def _path_of(kind: str, key: str) -> Path:
    return (
        cache_folder()
        / kind
        / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"
    )
