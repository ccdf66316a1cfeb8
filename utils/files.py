"""Files of a user's, of which one may be a pipe or a device; results, whole; names that fit a disk."""

import codecs
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

FILES = 256  # a call of what ``read_many`` is given
THREADS = 4
Read = TypeVar("Read")
PART = re.compile(r"\.[0-9a-f]{12}\.part")  # a file that ``replacing`` has not finished


def open_regular(path: str | Path, *, most: float = float("inf")) -> BinaryIO:
    """Open a file, never a pipe, which would wait for a writer, or a device, which may never end.

    Raises ``ValueError`` for these, for folders and for files of more than ``most`` bytes, else what ``open``
    raises.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("not a regular file (a directory, a pipe or a device)")
    if state.st_size > most:
        raise ValueError(f"{state.st_size:,} bytes are more than the limit of {most:,}")
    return open(path, "rb")


def read_many(read: Callable[[Sequence[str]], Read], paths: Sequence[str]) -> Iterator[Read]:
    """``read`` of ``FILES`` paths at a time, in order; by threads from where the disk is waited for.

    Not before: files in memory leave threads nothing to wait for but each other, as Python runs one at a
    time. Four of them took 2.4 times as long as one for 100,000 label files (``benchmarks/indexing.py``).
    """
    parts = [paths[start : start + FILES] for start in range(0, len(paths), FILES)]
    waited = False
    while parts and not waited:
        begun, busy = time.perf_counter(), time.thread_time()
        found = read(parts.pop(0))
        busy = time.thread_time() - busy
        waited = time.perf_counter() - begun > 2 * busy
        yield found  # after the clocks were read: what the caller does meanwhile is not of the disk
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(read, parts)


def plain_text(data: bytes) -> bytes:
    """The bytes of a text file as UTF-8 without a byte order mark; Windows' shells write UTF-16 with one.

    What begins with such a mark, but is no UTF-16, stays as it is.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16").encode()
        except UnicodeError:
            return data
    return data.removeprefix(codecs.BOM_UTF8)


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``path`` when complete; else nothing is left of it.

    Whatever stood there is replaced, never written into: a pipe would be waited for, a link leads anywhere.
    An ``OSError`` where nothing can be written, or a folder has the name.
    """
    path = Path(path)
    part = path.with_name(f".{os.urandom(6).hex()}.part")  # shorter than many a name, which may fill its room
    try:
        with open(part, "xb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:  # said of the file that was asked for, not of the part
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def discard_parts(folder: Path) -> None:
    """Remove what killed processes left of results in a folder that nobody else writes into now."""
    for part in folder.glob(".*.part"):
        if not PART.fullmatch(part.name):
            continue  # a user's, who may keep what they like in a run's folder
        with suppress(OSError):
            part.unlink()


def write_whole(path: str | Path, content: str | bytes, *, executable: bool = False) -> None:
    """Write a result, text as UTF-8: whole or not at all, so that who finds the file can read it."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if executable:
            os.chmod(file.name, 0o755)


def fit_name(name: str, most: int) -> str:
    """``name`` if it has at most ``most`` bytes; a longer one is cut and ends in a digest of the whole.

    The ending stays. Two different names come out different, and the same one always the same.
    """
    whole = os.fsencode(name)
    if len(whole) <= most:
        return name
    stem, ending = os.path.splitext(name)
    if len(os.fsencode(ending)) > most // 4:  # it is no ending
        stem, ending = name, ""
    mark = f"-{hashlib.sha256(whole).hexdigest()[:12]}{ending}"
    room = most - len(os.fsencode(mark))
    while len(os.fsencode(stem)) > room:  # by letters: half of one is none
        stem = stem[: max(0, min(len(stem) - 1, room))]
    return stem + mark


def longest_name(folder: str | Path) -> int:
    """Bytes that a file's name may have in ``folder``."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):  # Windows; a disk that does not say
        return 255


def write_to(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to a file, or to a pipe that somebody reads; else an ``OSError``.

    Otherwise the writing would wait for a reader for ever.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NONBLOCK", 0)
    number = os.open(path, flags, 0o666)
    with open(number, "w", encoding="utf-8") as file:
        os.set_blocking(number, True)
        file.write(text)
