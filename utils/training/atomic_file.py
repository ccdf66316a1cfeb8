"""Replacing a file whole or not at all, the old one kept until the new one is verified.

A save of last.pt goes through these files of its folder; killed anywhere, one of the last two is whole:

    .last.pt.X.part     the new content, until it is on disk; X is another one for each save
    last.previous.pt    the old file, from before the new one takes its name until that one is verified
    last.pt             the old file, then the new one

Two processes that save at once, which only a failing lock lets happen, leave the file of one of them.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path

_PIECE = 2**22  # bytes read at once
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of file systems that know no fsync of folders


def previous_generation(path: Path) -> Path:
    """Where the old file of ``path`` stands while a new one is written and verified."""
    return path.parent / f"{path.stem}.previous{path.suffix}"


def replace_file(path: Path, data: memoryview, *, is_whole: Callable[[Path], bool]) -> None:
    """Put ``data`` in the place of the file ``path``; on any error it is as it was, and no other is left.

    ``is_whole`` says whether a file is sound. It is asked only where a killed save left a previous
    generation, which must not give way to a damaged file.
    """
    part, previous = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part"), previous_generation(path)
    written, done = None, False
    try:
        written = _write(part, data)
        _keep(path, previous, is_whole)
        os.replace(part, path)
        _sync_folder(path.parent)
        _verify(path, data)
        done = True
    finally:
        if written and not done:
            _roll_back(path, previous, written=None if part.exists() else written)
        if not done:
            discard(part)
    discard(previous)


def discard(path: Path) -> None:
    """Remove a file that is of no more use; one that cannot be removed does no harm."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def parts_of_killed_saves(folder: Path, suffix: str) -> list[Path]:
    """The new contents of files ``*suffix`` in ``folder`` that never took their names."""
    return [path for path in folder.glob(".*.part") if f"{suffix}." in path.name]


def _write(path: Path, data: memoryview) -> os.stat_result:
    """A new file with ``data``, on disk when this returns its state."""
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        while data:
            data = data[os.write(number, data) :]  # the kernel takes at most 2 GiB at once
        os.fsync(number)
        return os.fstat(number)
    finally:
        os.close(number)


def _keep(path: Path, previous: Path, is_whole: Callable[[Path], bool]) -> None:
    """Give the old file the name ``previous`` too; without links on the file system, instead.

    A ``previous`` that a killed save left gives way, unless it is the only sound one of the two.
    """
    if previous.exists():
        if not is_whole(path):
            return
        previous.unlink(missing_ok=True)
    if not os.path.lexists(path):
        return
    try:
        os.link(path, previous)
    except (FileExistsError, FileNotFoundError):
        pass  # another process saves, too, and keeps a generation itself
    except OSError:
        os.replace(path, previous)


def _roll_back(path: Path, previous: Path, *, written: os.stat_result | None) -> None:
    """The state before the save: the old file at ``path``, or none. ``written``: what took its place."""
    there = os.path.lexists(path)
    if written and there and not os.path.samestat(os.stat(path), written):
        return  # another process has saved meanwhile: that file is not ours to remove
    if written or not there:
        if previous.exists():
            os.replace(previous, path)
        else:
            discard(path)
    elif previous.exists() and os.path.samefile(previous, path):
        discard(previous)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(number)


def _verify(path: Path, data: memoryview) -> None:
    """Read the file back, from the disk where the system can be asked to forget it, and compare."""
    number, place = os.open(path, os.O_RDONLY), 0
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        same = True
        while same and (piece := os.read(number, _PIECE)):
            same = piece == data[place : place + len(piece)].tobytes()
            place += len(piece)
    finally:
        os.close(number)
    if not same or place != len(data):
        raise OSError(errno.EIO, f"what was read back differs from what was written, before byte {place}")
