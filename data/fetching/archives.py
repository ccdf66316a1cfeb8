"""Members of an archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz) as it describes them; nothing is written.

Nothing is believed: names must stay below a folder, the kind of each member is told, and a tar's stream is
read with bounds. Sizes are bytes.
"""

import bz2
import gzip
import lzma
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

CHUNK = 2**20  # read at a time; a tar header that wants more is refused, as tarfile would hold it in memory
MAX_DEPTH = 32  # folders in each other
STEERING = r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"  # in names: control, direction
TAR_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
}
ZIP_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


class Refused(Exception):
    """Something that is not unpacked; the text names the member."""


class Member(NamedTuple):
    """One entry of an archive."""

    name: str  # as it stands there, unchecked
    size: int  # as declared
    is_folder: bool
    refuse: str  # why it is not unpacked whatever its name ("is a device"), else ""
    open: Callable[[], IO[bytes]]


def split_name(name: str) -> tuple[str, ...]:
    """Parts of a relative path with forward slashes, ``.`` and empty ones left out; ``()`` is its folder.

    Raises ``Refused`` for a name that could lead elsewhere on any system: absolute, ``..``, drive letters,
    backslashes, control characters (NUL too, and marks that turn the direction of writing), parts that end in
    a dot or a blank (Windows drops these).
    """
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    faults = {
        "is an absolute path": name.startswith("/"),
        "has a backslash": "\\" in name,
        "has a control character": re.search(STEERING, name),
        "has a '..'": ".." in parts,
        "has a drive letter": any(re.match(r"[A-Za-z]:", part) for part in parts),
        "has a part that ends in a dot or a blank": any(part[-1] in ". " for part in parts),
        f"lies deeper than {MAX_DEPTH} folders": len(parts) > MAX_DEPTH,
    }
    for text, present in faults.items():
        if present:
            raise Refused(f"{show_name(name)} {text}")
    return parts


def show_name(name: str) -> str:
    """A member's name for messages: quoted, control characters spelled out, at most 100 characters."""
    return repr(name if len(name) <= 100 else name[:97] + "...")


@contextmanager
def open_members(archive: Path, limit: int) -> Iterator[Iterator[Member]]:
    """The members, in order; each may be opened only until the next is asked for.

    The format follows from the first bytes, as names lie. Not more than ``limit`` bytes of a tar's stream are
    read. Damage raises what the modules for archives raise, or ``Refused``.
    """
    with open(archive, "rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    opener = next((opener for magic, opener in openers.items() if start.startswith(magic)), None)
    if opener or start[257:262] == b"ustar":
        with (opener or open)(archive, "rb") as stream:
            yield _tar_members(_Tape(stream, limit))
    elif start.startswith(b"PK"):
        with zipfile.ZipFile(archive) as file:
            yield _zip_members(file)
    else:
        page = ", a web page: open the URL in a browser" if b"<html" in start.lower() else ""
        raise Refused(f"this is no .zip or .tar archive (it starts with {start[:16]!r}{page})")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        refuse = "is encrypted" if info.flag_bits & 1 else ""
        refuse = f"is {ZIP_KINDS[kind]}" if kind in ZIP_KINDS else refuse
        is_folder = info.is_dir() or kind == stat.S_IFDIR
        name = info.orig_filename  # `filename` is cut at the first NUL
        yield Member(name, info.file_size, is_folder, refuse, lambda info=info: archive.open(info))


def _tar_members(tape: "_Tape") -> Iterator[Member]:
    with tarfile.TarFile(fileobj=tape) as archive:
        for info in archive:
            refuse = (
                "" if info.isreg() or info.isdir() else f"is {TAR_KINDS.get(info.type, 'of an unknown kind')}"
            )
            refuse = "is a sparse file" if info.issparse() else refuse
            yield Member(
                info.name, info.size, info.isdir(), refuse, lambda info=info: archive.extractfile(info)
            )
    if tape.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise Refused(f"the archive breaks off after {tape.at:,} bytes: it has no end mark")
    while tape.read(CHUNK):  # to the end, where gzip and xz keep their check sums
        pass


class _Tape:
    """The stream of a tar archive: forwards only, a chunk at a time, ``limit`` bytes in all.

    tarfile by itself reads a header of any length into memory, and follows negative sizes backwards for ever.
    """

    def __init__(self, stream: IO[bytes], limit: int):
        self.stream, self.limit = stream, limit
        self.at, self.last = 0, b""  # bytes read, the latest of them

    def tell(self) -> int:
        return self.at

    def seek(self, position: int) -> None:
        if position < self.at:
            raise Refused("a header of the archive leads backwards")
        while self.at < position and self.read(min(CHUNK, position - self.at)):
            pass

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK:
            raise Refused(f"a header of the archive wants {size:,} bytes")
        self.last = self.stream.read(size)
        self.at += len(self.last)
        if self.at > self.limit:
            raise Refused(f"the archive's stream has more than {self.limit:,} bytes")
        return self.last
