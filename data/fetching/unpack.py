"""Archives from the network, unpacked so that nothing goes wrong outside of their folder.

Everything first lands in a temporary folder on the target's file system and moves into place once the whole
archive has been read. Only files and folders are unpacked, without their modes, owners and times; a file that
is already there is never replaced. What is refused beside hostile names and kinds
(``data.fetching.archives``):

- more than ``MAX_MEMBERS`` members, or a file of more than ``MAX_FILE`` bytes;
- in all more than ``MAX_RATIO`` times the archive's own size (``SMALL`` bytes are always allowed);
- more than the free space of the disk less ``RESERVE``.
"""

import filecmp
import lzma
import os
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from data.fetching.archives import CHUNK, Member, Refused, open_members, show_name, split_name
from utils.errors import DATA, UserError

MAX_MEMBERS = 1_000_000
MAX_FILE = 16 * 2**30
MAX_RATIO = 200  # deflate can reach 1,032; pictures reach 1, label files in a .tar.gz about 25
SMALL = 64 * 2**20
RESERVE = 256 * 2**20
LEFT_OUT = "__MACOSX"  # where Apple's archiver keeps what is no data, under the names of the pictures
PREFIX = ".unpacking-"
# What the modules for archives raise for damaged input. RuntimeError: a compression that zipfile does not
# know.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error)
BROKEN = (*BROKEN, EOFError, RuntimeError, ValueError, OverflowError)


def unpack(archive: Path, target: Path, *, label: str) -> list[str]:
    """Unpack into ``target``, made where it is not there; its files, sorted, as paths relative to ``target``.

    An archive whose only top entry is a folder named like ``target`` unpacks as that folder. Files that are
    there already with the same bytes stay; with other bytes the archive is refused, as it is where a link is
    in the way. After any error, or Ctrl-C, the target is as it was. A killed process may leave a folder
    ``.unpacking-*`` in the target or, where there was none, in the closest folder above it.

    ``label`` opens the message of the ``UserError`` for a hostile, damaged or too large archive, or a full
    disk.
    """
    name, target = target.name, Path(os.path.realpath(target))
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=existing_parent(target)) as work:
            content = Path(work) / "content"
            content.mkdir()
            files = _write_members(archive, content)
            if os.listdir(content) == [name] and (content / name).is_dir():
                content /= name
                files = [file.removeprefix(f"{name}/") for file in files]
            _move_into(content, target)
        return sorted(files)
    except Refused as error:
        text = f"{label}: {error}. Nothing was unpacked. If you trust this archive, unpack it yourself."
        raise UserError(text, DATA) from error
    except (*BROKEN, OSError) as error:
        damaged = not isinstance(error, OSError) or error.errno is None  # bz2, gzip: OSError without a number
        what = "the archive is damaged" if damaged else f"cannot be unpacked into {target}"
        text = f"{label}: {what}: {error}. Nothing was unpacked."
        raise UserError(f"{text} Fetch it again." if damaged else text, DATA) from error


def existing_parent(path: Path) -> Path:
    """An absolute path, or the closest folder above it that exists: on the disk where the path will be."""
    return next(folder for folder in (path, *path.parents) if os.path.lexists(folder))


def show_size(size: int) -> str:
    """``980 bytes``, ``7.0 MB``, ``19.3 GB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _write_members(archive: Path, folder: Path) -> list[str]:
    """Write every member below ``folder``; the names of the files."""
    limit, why = _limit_of(archive, folder)
    files, left = [], limit
    with open_members(archive, limit + MAX_MEMBERS * tarfile.BLOCKSIZE) as members:
        bar = tqdm(members, desc="unpacking", unit=" files", leave=False, disable=None)
        for number, member in enumerate(bar, 1):
            parts = split_name(member.name)
            if member.refuse:
                raise Refused(f"{show_name(member.name)} {member.refuse}")
            if number > MAX_MEMBERS:
                raise Refused(f"it has more than {MAX_MEMBERS:,} members")
            if not 0 <= member.size <= min(MAX_FILE, left):
                cause = why if member.size > left else f"the limit for one file is {show_size(MAX_FILE)}"
                raise Refused(f"{show_name(member.name)} has {show_size(member.size)}: {cause}")
            left -= member.size
            if parts[:1] != (LEFT_OUT,) and _write_member(member, folder.joinpath(*parts)):
                files.append("/".join(parts))
    if not files:
        raise Refused("the archive holds no files")
    return files


def _limit_of(archive: Path, folder: Path) -> tuple[int, str]:
    """The most bytes that an archive may unpack to, and what is wrong with more."""
    size = os.path.getsize(archive)
    most, free = max(SMALL, MAX_RATIO * size), max(0, shutil.disk_usage(folder).free - RESERVE)
    if free < most:
        return free, f"the archive needs more than the {show_size(free)} that are free on the disk"
    return most, f"{show_size(size)} unpack to more than {show_size(most)}, as bombs do"


def _write_member(member: Member, path: Path) -> bool:
    """Write a folder or a file; whether it was a file.

    Two files of one name clash; so do ``A`` and ``a`` on a disk that takes them for one.
    """
    try:
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, open(path, "xb") as file:
            while (data := source.read(CHUNK)) and file.tell() <= member.size:
                file.write(data)
            written = file.tell()
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise Refused(f"{show_name(member.name)} clashes with an earlier member") from error
    if written != member.size:
        raise Refused(f"{show_name(member.name)} does not have the {member.size:,} bytes it claims")
    return True


def _move_into(source: Path, target: Path) -> None:
    """Move a tree into place, also into folders that are there; all of it or, after an error, nothing."""
    moves, done = list(_plan_moves(source, target)), []
    try:
        for new, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(new, place)
            done.append((new, place))
    except (OSError, KeyboardInterrupt):
        for new, place in reversed(done):
            os.rename(place, new)
        raise


def _plan_moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """(from, to) of the largest trees and of the files that are not there yet; equal files need no move."""
    if not os.path.lexists(target):
        yield source, target
    elif source.is_dir() and target.is_dir() and not target.is_symlink():
        for path in sorted(source.iterdir()):
            yield from _plan_moves(path, target / path.name)
    elif source.is_dir() or target.is_symlink() or not target.is_file():
        raise Refused(f"{target} is in the way")
    elif not filecmp.cmp(source, target, shallow=False):
        raise Refused(f"{target} is there already, with other content, and is never replaced; move it away")
