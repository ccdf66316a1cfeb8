"""Archives from the network (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz), unpacked into an empty folder.

Nothing is believed. Only files of a data set come out (``is_data``), without modes, owners and times; others
are counted. The whole archive is refused for a name that could lead elsewhere, a link, a device, two members
of one name, and for bombs: more than ``MAX_MEMBERS`` members, a file of more than ``MAX_FILE`` bytes, in all
more than ``MAX_RATIO`` times the archive's own size (``SMALL`` bytes are always allowed), or more than the
disk has free less ``RESERVE``. Memory is that of one member. Sizes are bytes.
"""

import bz2
import errno
import gzip
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from data.formats.listing import SUFFIXES

CHUNK = 2**20  # read at a time
CHUNK_PACKED = 2**12  # of what zipfile unpacks without a limit: bzip2 makes 80 MB of it at most
MAX_HEADER = 2**16  # of one member of a tar, with its long name and pax records: tarfile holds them in memory
MAX_GLOBAL = 100  # pax records for all members that follow
MAX_MEMORY = 2**29  # for an .xz; xz -9 takes 65 MiB
MAX_DEPTH = 32  # folders in each other
MAX_MEMBERS = 1_000_000
MAX_FILE = 16 * 2**30
MAX_RATIO = 200  # deflate can reach 1,032; pictures reach 1, label files in a .tar.gz about 25
SMALL = 64 * 2**20
RESERVE = 256 * 2**20
# What comes out of an archive: nothing that Python, a shell or a linker would ever run or read on its own.
KEPT = (*SUFFIXES, ".txt", ".md", ".names", ".data", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml")
KEPT_NAMES = ("readme", "license", "licence", "copying", "notice")  # files that have no ending
SPECIAL = "is a link, a device, a pipe or a sparse file"
STEERING = r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"  # in names: control, direction
# What the modules for archives raise for damaged input. RuntimeError: a compression that zipfile does not
# know.
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error)
BROKEN = (*BROKEN, EOFError, RuntimeError, ValueError, OverflowError)


class Refused(Exception):
    """Something that is not taken from a network; the text says what."""


class Unpacked(NamedTuple):
    """What came out of an archive."""

    num_files: int
    left_out: int  # files that are no data
    example: str  # one of them


class Member(NamedTuple):
    """One entry of an archive."""

    name: str  # as it stands there, unchecked
    size: int  # as declared
    is_folder: bool
    refuse: str  # why it is not unpacked whatever its name ("is a device"), else ""
    open: Callable[[], IO[bytes]]
    chunk: int = CHUNK  # to be read at a time


def unpack(archive: Path, folder: Path) -> Unpacked:
    """Unpack into ``folder``, which is empty and of nobody else; after an error it holds a part.

    Raises ``Refused`` for a hostile, damaged or too large archive and for one without any data, ``OSError``
    where the disk does not take it.
    """
    try:
        return _write_members(archive, folder)
    except (*BROKEN, OSError) as error:
        # Of the disk, and not of the archive: bz2 and gzip raise OSError without a number, and EINVAL is a
        # place before the file's beginning, to which a spoilt zip directory leads.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise Refused(f"the archive is damaged: {error}. Fetch it again") from error
    except MemoryError as error:
        raise Refused("the archive takes more memory to unpack than there is") from error


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


def is_data(parts: tuple[str, ...]) -> bool:
    """Whether a file is a picture, label or text, by its ending, and not hidden."""
    name = PurePosixPath(parts[-1].lower()) if parts else PurePosixPath("")
    ours = name.suffix in KEPT or str(name) in KEPT_NAMES
    return ours and not any(part.startswith(".") for part in parts)


def show_name(name: str) -> str:
    """A member's name for messages: quoted, control characters spelled out, at most 100 characters."""
    return repr(name if len(name) <= 100 else name[:97] + "...")


def show_size(size: int) -> str:
    """``980 bytes``, ``7.0 MB``, ``19.3 GB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _write_members(archive: Path, folder: Path) -> Unpacked:
    limit, why = _limit_of(archive, folder)
    num_files, left, left_out, example = 0, limit, 0, ""
    with _open_members(archive, limit) as members:
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
            if member.is_folder:
                continue
            if is_data(parts):
                _write_file(member, folder.joinpath(*parts))
                num_files += 1
            else:
                left_out, example = left_out + 1, example or show_name(member.name)
    if not num_files:
        more = f"; left out: {left_out:,}, such as {example}" if left_out else ""
        raise Refused(f"the archive holds no files of a data set{more}")
    return Unpacked(num_files, left_out, example)


def _limit_of(archive: Path, folder: Path) -> tuple[int, str]:
    """The most bytes that an archive may unpack to, and what is wrong with more."""
    size = os.path.getsize(archive)
    most, free = max(SMALL, MAX_RATIO * size), max(0, shutil.disk_usage(folder).free - RESERVE)
    if free < most:
        return free, f"the archive needs more than the {show_size(free)} that are free on the disk"
    return most, f"{show_size(size)} unpack to more than {show_size(most)}, as bombs do"


def _write_file(member: Member, path: Path) -> None:
    """Two files of one name clash; so do ``A`` and ``a`` on a disk that takes them for one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, open(path, "xb") as file:
            while (data := source.read(member.chunk)) and file.tell() <= member.size:
                file.write(data)
            written = file.tell()
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise Refused(f"{show_name(member.name)} clashes with an earlier member") from error
    if written != member.size:
        raise Refused(f"{show_name(member.name)} does not have the {member.size:,} bytes it claims")


@contextmanager
def _open_members(archive: Path, limit: int) -> Iterator[Iterator[Member]]:
    """The members, in order; each may be opened only until the next is asked for.

    The format follows from the first bytes, as names lie. Of a tar's stream not more than ``limit`` bytes and
    a block for each of its members are read.
    """
    with open(archive, "rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    openers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": _open_xz}
    opener = next((opener for magic, opener in openers.items() if start.startswith(magic)), None)
    if opener or start[257:262] == b"ustar":
        with (opener or open)(archive, "rb") as stream:
            yield _tar_members(_Tape(stream, limit + MAX_MEMBERS * tarfile.BLOCKSIZE, headers=limit))
    elif start.startswith(b"PK"):
        with zipfile.ZipFile(archive) as file:
            yield _zip_members(file)
    else:
        page = ", a web page: open the URL in a browser" if b"<html" in start.lower() else ""
        raise Refused(f"this is no .zip or .tar archive (it starts with {start[:16]!r}{page})")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        refuse = "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else SPECIAL
        refuse = "is encrypted" if info.flag_bits & 1 else refuse
        name = info.orig_filename  # `filename` is cut at the first NUL
        is_folder = name.endswith("/") or kind == stat.S_IFDIR
        chunk = CHUNK if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else CHUNK_PACKED
        yield Member(name, info.file_size, is_folder, refuse, lambda info=info: archive.open(info), chunk)


def _tar_members(tape: "_Tape") -> Iterator[Member]:
    with tarfile.TarFile(fileobj=tape) as archive:
        while info := _next_info(archive, tape):
            plain = (info.isreg() or info.isdir()) and not info.issparse()
            refuse, read = "" if plain else SPECIAL, lambda info=info: archive.extractfile(info)
            yield Member(info.name, info.size, info.isdir(), refuse, read)
    if tape.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
        raise Refused(f"the archive breaks off after {tape.at:,} bytes: it has no end mark")
    while tape.read(CHUNK):  # to the end, where gzip and xz keep their check sums
        pass


def _next_info(archive: tarfile.TarFile, tape: "_Tape") -> tarfile.TarInfo | None:
    """The next member of a tar, of which nothing is kept."""
    tape.header_left = MAX_HEADER
    info = archive.next()
    tape.header_left = None
    archive.members.clear()
    if len(archive.pax_headers) > MAX_GLOBAL:
        raise Refused(f"the archive has more than {MAX_GLOBAL} pax records for all of its members")
    return info


def _open_xz(path: Path, _: str) -> IO[bytes]:
    return io.BufferedReader(_Xz(open(path, "rb")))


class _Xz(io.RawIOBase):
    """The content of an .xz; unlike ``lzma.open`` with a limit to its memory, as a file may ask for 4 GiB."""

    def __init__(self, file: IO[bytes]):
        self.file, self.decoder = file, lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = b""
        while not data:
            packed = b""
            if self.decoder.eof:  # another stream may follow, after zeros
                packed = self.decoder.unused_data
                while not (packed := packed.lstrip(b"\0")):
                    if not (packed := self.file.read(CHUNK)):
                        return 0
                self.decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_MEMORY)
            elif self.decoder.needs_input and not (packed := self.file.read(CHUNK)):
                raise EOFError("it is cut short")
            data = self._decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _decompress(self, packed: bytes, most: int) -> bytes:
        try:
            return self.decoder.decompress(packed, most)
        except lzma.LZMAError as error:
            if "limit" not in str(error):
                raise
            text = f"the archive takes more than {show_size(MAX_MEMORY)} of memory to unpack"
            raise Refused(f"{text}; unpack it yourself") from error

    def close(self) -> None:
        self.file.close()
        super().close()


class _Tape:
    """The stream of a tar archive: forwards only, a chunk at a time, ``limit`` bytes in all, ``headers`` of
    them for headers.

    tarfile by itself reads a header of any length into memory, and follows negative sizes backwards for ever.
    """

    def __init__(self, stream: IO[bytes], limit: int, *, headers: int):
        self.stream, self.limit = stream, limit
        self.headers_left = headers
        self.header_left: int | None = MAX_HEADER  # None: no header is read now
        self.at, self.last = 0, b""  # bytes read, the latest of them

    def tell(self) -> int:
        return self.at

    def seek(self, position: int) -> None:
        if position < self.at:
            raise Refused("a header of the archive leads backwards")
        while self.at < position and self._read(min(CHUNK, position - self.at)):
            pass

    def read(self, size: int) -> bytes:
        if self.header_left is not None:
            if not 0 <= size <= self.header_left:
                most = f"; a member's may have {show_size(MAX_HEADER)} in all"
                raise Refused(f"a header of the archive wants {size:,} bytes{most}")
            self.header_left -= size
            self.headers_left -= max(0, size - tarfile.BLOCKSIZE)  # the one that each member has
            if self.headers_left < 0:
                raise Refused(
                    "the headers of the archive are longer than what it holds, as those of bombs are"
                )
        elif not 0 <= size <= CHUNK:
            raise Refused(f"a member of the archive wants {size:,} bytes at once")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        self.last = self.stream.read(size)
        self.at += len(self.last)
        if self.at > self.limit:
            raise Refused(f"the archive's stream has more than {self.limit:,} bytes")
        return self.last
