"""Files in the user's cache directory: arrays of plain numbers and text, keyed by what they were made from.

Nothing is ever pickled, and nothing lies in the data set's own folder. A cache that cannot be read or written
costs time, never a run: readers get None, writers print one line. An entry is complete or not there: it is
renamed into place, and ends with the SHA-256 of all that stands before, which is checked before anything is
parsed; then its arrays must have the types and shapes that their reader declares.
"""

import hashlib
import io
import json
import os
import stat
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from utils.files import open_regular, replacing

CHUNK = 4096  # files
BLOCK = 1 << 20  # bytes hashed at a time: memory does not grow with a file that is no cache of ours
SUM_LENGTH = 64  # hexadecimal digits of SHA-256, as the zip file's comment, which is its end
# What numpy and zipfile raise on content that is none of ours; MemoryError: a shape that cannot be.
UNREADABLE = (ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile)
GONE = (-1, -1, -1, -1)  # what stands for a file that is not there


class Column(NamedTuple):
    """What an array of an entry must be."""

    dtype: str  # numpy's name, "int64"; "S" and "U" stand for text of any length
    shape: tuple[int | str, ...]  # a letter stands for one number, wherever the entry has it


def is_json_of(text: np.ndarray, right: Callable[[object], bool]) -> bool:
    """Whether bytes of an entry are JSON, and ``right`` of its value."""
    try:
        return right(json.loads(text.tobytes().decode("utf-8", "surrogateescape")))
    except (ValueError, TypeError, RecursionError):
        return False


def is_list_of(value: object, *types: type) -> bool:
    """Whether ``value`` is a list of lists of these types; with one type, a list of it."""
    if not isinstance(value, list):
        return False
    if len(types) == 1:
        return all(type(item) is types[0] for item in value)
    return all(isinstance(item, list) and tuple(map(type, item)) == types for item in value)


class DamagedError(Exception):
    """Why an entry cannot be used."""


def cache_folder() -> Path:
    """``$LTRB_CACHE``, else ``ltrb`` in the system's folder for caches (``~/.cache`` on Linux)."""
    if ours := os.environ.get("LTRB_CACHE"):
        return Path(os.path.expanduser(ours))
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "ltrb"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "ltrb"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "ltrb"


def _home() -> Path:
    """The home folder; for a user without one, as in containers, a folder of theirs among temporary files."""
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and the user is not in the system's list
        return _own_temporary(Path(tempfile.gettempdir()) / f"ltrb-{os.getuid()}")


def _own_temporary(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        ours = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022
    except OSError:
        ours = False
    if ours:
        return folder
    # Anybody may have put it there, with what they want us to read: this process gets a fresh one.
    return Path(tempfile.mkdtemp(prefix="ltrb-"))


def stat_files(paths: list[str]) -> np.ndarray:
    """(n, 4) int64 size, times of modification and change (ns) and mode of every file; ``GONE``: not there.

    The time of change (ctime), because rsync -t, cp -p, unzip and mv put another file of the same size there
    under the old time of modification; a program cannot choose this one. The mode is for Windows, where it is
    the time of creation: whoever lifts a "Permission denied" changes nothing else.
    """
    table = np.empty((len(paths), 4), np.int64)
    for start in range(0, len(paths), CHUNK):
        chunk = paths[start : start + CHUNK]
        try:
            states = list(map(os.stat, chunk))
        except (OSError, ValueError):  # one is not there: each by itself
            table[start : start + CHUNK] = [_stat_file(path) for path in chunk]
        else:
            table[start : start + CHUNK, 0] = [state.st_size for state in states]
            table[start : start + CHUNK, 1] = [state.st_mtime_ns for state in states]
            table[start : start + CHUNK, 2] = [state.st_ctime_ns for state in states]
            table[start : start + CHUNK, 3] = [state.st_mode for state in states]
    return table


def _stat_file(path: str) -> tuple[int, int, int, int]:
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return GONE
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_mode


def load_arrays(
    kind: str,
    key: str,
    columns: Mapping[str, Column],
    *,
    name: str,
    check: Callable[[dict[str, np.ndarray]], str] = lambda arrays: "",
) -> dict[str, np.ndarray] | None:
    """The arrays saved under ``key``, or None where there are none.

    Also None, and one line that calls the entry ``name``, where it is not exactly what ``save_arrays`` wrote,
    its arrays are not ``columns``, or ``check`` gives a reason against them.
    """
    path = _path_of(kind, key)
    try:
        with open_regular(path) as file:
            _check_sum(file)
            with np.load(file, allow_pickle=False) as content:
                arrays = {column: content[column] for column in content.files}
        if reason := _misfit(arrays, columns) or check(arrays):
            raise DamagedError(reason)
    except (FileNotFoundError, NotADirectoryError):  # the latter: who writes will say so
        return None
    except (OSError, *UNREADABLE, DamagedError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        print(f"{name}: cached file {path} cannot be used ({reason}): made again")
        return None
    return arrays


def _check_sum(file: BinaryIO) -> None:
    """Raise unless ``file`` ends with the sum of what stands before it, and go back to its start."""
    length = file.seek(0, os.SEEK_END) - SUM_LENGTH
    if length < 0:
        raise DamagedError("it is cut short")
    file.seek(length)
    found = file.read(SUM_LENGTH)
    if not found.isalnum():
        raise DamagedError("no sum at its end: cut short, or of an older version")
    file.seek(0)
    digest, left = hashlib.sha256(), length
    while left and (block := file.read(min(BLOCK, left))):
        digest.update(block)
        left -= len(block)
    if digest.hexdigest().encode() != found:
        raise DamagedError("its sum is wrong: damaged, or of an older version")
    file.seek(0)


def _misfit(arrays: dict[str, np.ndarray], columns: Mapping[str, Column]) -> str:
    """Which array is not as declared, or ''."""
    if arrays.keys() != columns.keys():
        return f"it holds {', '.join(sorted(arrays)) or 'nothing'}"
    known: dict[str, int] = {}
    for name, column in columns.items():
        found = arrays[name]
        text = column.dtype in ("S", "U")
        right = found.dtype.kind == column.dtype if text else found.dtype == np.dtype(column.dtype)
        if not right or found.ndim != len(column.shape):
            return f"{name} is {found.dtype} of {found.shape}"
        for side, wanted in zip(found.shape, column.shape, strict=True):
            if side != (known.setdefault(wanted, side) if isinstance(wanted, str) else wanted):
                return f"{name} has the shape {found.shape}"
    return ""


def save_arrays(kind: str, key: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep ``arrays`` under ``key``: the old file stays whole until the new one is complete."""
    path = _path_of(kind, key)
    content = io.BytesIO()
    np.savez(content, **arrays)
    with zipfile.ZipFile(content, "a") as archive:
        archive.comment = b"0" * SUM_LENGTH  # room for the sum
    whole = content.getbuffer()
    whole[-SUM_LENGTH:] = hashlib.sha256(whole[:-SUM_LENGTH]).hexdigest().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write(whole)
    except OSError as error:
        _tell_unwritten(path.parent.parent, error.strerror or str(error))


@cache  # one line, not one an entry
def _tell_unwritten(folder: Path, reason: str) -> None:
    print(f"cache not written: {folder}: {reason} (LTRB_CACHE chooses the folder)", file=sys.stderr)


def _path_of(kind: str, key: str) -> Path:
    return (
        cache_folder()
        / kind
        / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"
    )
