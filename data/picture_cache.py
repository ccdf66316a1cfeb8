"""All pictures of a split decoded once: one packed array at training size, a file that every process maps.

Picture i has the size to which the letterbox fits it into the input. So validation sees the very pixels that
it would have without the cache; of training, tiles shown larger than fitted are enlarged from it, where
without the cache they would be cut from the larger original. Sizes are (height, width), amounts bytes.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.cache import cache_folder, stat_files
from data.index import Index, path_of, paths_of
from data.letterbox import resize
from data.pictures import DecodedPictures, fitted_sizes
from data.pixels import AS_STORED, Pixels
from utils.errors import UserError
from utils.files import open_regular
from utils.training.device import free_memory
from utils.training.distributed import barrier, on_each_node

CPU = torch.device("cpu")
SHARED_MEMORY = Path("/dev/shm")
VERSION = 4  # of the file's form, and of how its pixels are made
HEADER = 4096  # bytes before the pixels: the stamp, the SHA-256 of the sums behind them, then zeros
SUM = np.dtype("<u4")  # CRC-32 of each picture, behind the pixels: fast enough to be checked while training
CHUNK = 32  # pictures a task
SPARE = {"memory": 0.2, "disk": 0.05}  # share of what is free that stays so


class PackedPictures:
    """The pictures of a cache file, ``sizes`` (N, 2); a source of pixels as ``data.pictures`` describes.

    A picture's sum is checked when a process asks for it the first time. One that has become another on the
    disk is decoded from its file instead, with one line.
    """

    def __init__(self, path: str, sizes: np.ndarray, index: Index, pixels: Pixels = AS_STORED):
        self.path, self.sizes, self._offsets = path, sizes, _offsets(sizes)
        self._bytes, self._checked = _map(path), np.zeros(len(sizes), bool)
        self._files = DecodedPictures(index, sizes, keep=0, pixels=pixels)

    def __call__(self, i: int) -> np.ndarray:
        pixels = self._bytes[self._offsets[i] : self._offsets[i + 1]]
        size = tuple(self.sizes[i].tolist())
        if not self._checked[i]:
            sums = self._bytes[self._offsets[-1] :].view(SUM)
            if zlib.crc32(pixels) != sums[i]:
                path = path_of(self._files.index, i)
                print(
                    f"cache: {self.path} is damaged at {path}, which is decoded instead; delete it to have "
                    "it built anew",
                    file=sys.stderr,
                )
                return resize(self._files(i), size)
            self._checked[i] = True
        return pixels.reshape(*size, 3)

    def __getstate__(self) -> dict:
        """For processes that do not inherit memory: they map the file themselves."""
        return {**self.__dict__, "_bytes": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _bytes=_map(state["path"]))


class _Job(NamedTuple):
    """A split to be packed."""

    name: str
    index: Index
    shape: tuple[int, int]
    sizes: np.ndarray
    size: int  # of the file
    pixels: Pixels


def cache_pictures(
    indexes: Mapping[str, Index], shape: tuple[int, int], kind: str, *, pixels: Pixels = AS_STORED
) -> dict[str, PackedPictures | None]:
    """The pictures of each split, packed for an input of ``shape``; None for each where ``kind`` is "none".
    ``pixels``: how values become 0..255.

    A collective: the first rank of each machine builds, its others wait and map. "ram" is a file without a
    name in /dev/shm, which lives as long as a process maps it; "disk" is kept in the user's cache directory
    for the next run. Too little room, and a picture that cannot be read, is a ``UserError``.
    """
    if kind == "none":
        return dict.fromkeys(indexes)
    jobs = [_plan(name, index, shape, pixels) for name, index in indexes.items()]
    files: list[BinaryIO] = []

    def build() -> list[str]:
        files.extend(_pack_in_memory(jobs) if kind == "ram" else _pack_on_disk(jobs))
        return [_path_of(file) for file in files]

    paths = on_each_node(build)
    packed = {
        job.name: PackedPictures(path, job.sizes, job.index, job.pixels)
        for job, path in zip(jobs, paths, strict=True)
    }
    barrier("the pictures to be cached")  # files in memory have no name but that of the one who holds them
    for file in files:
        file.close()
    return packed


def _plan(name: str, index: Index, shape: tuple[int, int], pixels: Pixels) -> _Job:
    sizes = fitted_sizes(index.sizes, shape)
    size = int(_offsets(sizes)[-1]) + SUM.itemsize * len(sizes)
    return _Job(name, index, shape, sizes, size, pixels)


def _offsets(sizes: np.ndarray) -> np.ndarray:
    """(N + 1,) where each picture begins in the file, and where their sums do."""
    return HEADER + np.concatenate(([0], np.cumsum(3 * sizes.astype(np.int64).prod(1))))


def _map(path: str) -> np.ndarray:
    return np.asarray(np.memmap(path, np.uint8, mode="r"))


def _path_of(file: BinaryIO) -> str:
    """A path by which another process of the same user can open the file, also where it has no name."""
    return file.name if isinstance(file.name, str) else f"/proc/{os.getpid()}/fd/{file.fileno()}"


# memory


def _pack_in_memory(jobs: list[_Job]) -> list[BinaryIO]:
    if not SHARED_MEMORY.is_dir():
        raise UserError(f"--cache ram needs {SHARED_MEMORY}, which is not there: use --cache disk")
    needed, remedy = sum(job.size for job in jobs), "use --cache disk, a smaller --imgsz or no cache"
    _require(needed, free_memory(CPU), "--cache ram", "memory", remedy=remedy)
    free = shutil.disk_usage(SHARED_MEMORY).free
    _require(needed, free, "--cache ram", str(SHARED_MEMORY), remedy=remedy + " (docker: --shm-size)")
    files = [_open_nameless() for _ in jobs]
    for file, job in zip(files, jobs, strict=True):
        _fill(file, job, where=str(SHARED_MEMORY))
    return files


def _open_nameless() -> BinaryIO:
    """A file in shared memory without a name: it goes with the last process that has it open or mapped."""
    return tempfile.TemporaryFile(dir=SHARED_MEMORY)


# disk


def _pack_on_disk(jobs: list[_Job]) -> list[BinaryIO]:
    folder = cache_folder() / "pictures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stamps = [_stamp(job) for job in jobs]
        paths = [folder / f"{_key(job)}.pixels" for job in jobs]
        with _alone(folder):
            faults = [_find_fault(*item) for item in zip(jobs, paths, stamps, strict=True)]
            needed = sum(job.size for job, fault in zip(jobs, faults, strict=True) if fault is not None)
            remedy = f"free some, use a smaller --imgsz, or set LTRB_CACHE to a larger disk ({folder})"
            _require(needed, shutil.disk_usage(folder).free, "--cache disk", "disk", remedy=remedy)
            return [_open_or_build(*item) for item in zip(jobs, paths, stamps, faults, strict=True)]
    except OSError as error:
        raise UserError(
            f"--cache disk: {folder}: {error.strerror or error}; set LTRB_CACHE to a folder that can be "
            "written to, or leave the cache out"
        ) from error


def _key(job: _Job) -> str:
    """Names the file: the same pictures at the same size have the same."""
    paths = job.index.paths
    form = repr((paths.dtype.itemsize, len(paths), job.shape, *job.pixels)).encode()
    return hashlib.sha256(paths.tobytes() + form).hexdigest()[:32]


def _stamp(job: _Job) -> bytes:
    """What the pixels were made from: changes with any file's size or times, or picture size."""
    stats = stat_files(paths_of(job.index))
    content = stats.tobytes() + job.index.sizes.tobytes()
    return VERSION.to_bytes(4, "little") + hashlib.sha256(content).digest()


def _find_fault(job: _Job, path: Path, stamp: bytes) -> str | None:
    """Why the file at ``path`` cannot serve: '' where there is none yet, None where it can."""
    try:
        with open_regular(path) as file:
            found, digest = file.read(len(stamp)), file.read(hashlib.sha256().digest_size)
            size = file.seek(0, os.SEEK_END)
            file.seek(_offsets(job.sizes)[-1])
            sums = file.read(SUM.itemsize * len(job.sizes))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return str(error)
    if found[:4] != stamp[:4]:
        return "it is of another version"
    if found != stamp:
        return "pictures have changed"
    if size != job.size:
        return f"it is cut short: {size:,} of {job.size:,} bytes"
    return None if hashlib.sha256(sums).digest() == digest else "it is damaged"


def _open_or_build(job: _Job, path: Path, stamp: bytes, fault: str | None) -> BinaryIO:
    if fault is None:
        print(f"cache: {_amount(job)} from {path}")
        return open(str(path), "rb")
    if fault:
        print(f"cache: {path} is built anew, {fault}")
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)  # what a killed run left
    try:
        with open(part, "x+b") as file:
            _fill(file, job, where=str(path), stamp=stamp)
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return open(str(path), "rb")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other run builds in ``folder``; where there are no file locks, whoever ends last wins."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    # Opened for reading, too: for a pipe of that name nobody has to be waited for.
    with os.fdopen(os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"cache: waiting for another run that builds in {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# both


def _fill(file: BinaryIO, job: _Job, *, where: str, stamp: bytes = b"") -> None:
    """Reserve the room, decode every picture into it, and print one line."""
    begun, offsets = time.perf_counter(), _offsets(job.sizes)
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, job.size)  # a full disk is an error here; later, a crash
    else:
        file.truncate(job.size)
    packed = np.memmap(file, np.uint8, mode="r+")
    source = DecodedPictures(job.index, job.sizes, keep=0, pixels=job.pixels)
    sums = packed[offsets[-1] :].view(SUM)

    def pack(first: int) -> int:
        last = min(first + CHUNK, len(job.sizes))
        for i in range(first, last):
            size = tuple(job.sizes[i].tolist())
            pixels = packed[offsets[i] : offsets[i + 1]]
            pixels.reshape(*size, 3)[:] = resize(source(i), size)
            sums[i] = zlib.crc32(pixels)
        return last - first

    _run_threads(pack, range(0, len(job.sizes), CHUNK), len(job.sizes), job.name)
    head = stamp + hashlib.sha256(sums).digest()
    packed[: len(head)] = np.frombuffer(head, np.uint8)
    packed.flush()
    print(f"cache: {_amount(job)} in {where}, {time.perf_counter() - begun:.1f} s")


def _run_threads(task: Callable[[int], int], items: range, total: int, name: str) -> None:
    """Run ``task``, which returns how many pictures it did, on all items; the first error ends it."""
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        with tqdm(total=total, desc=f"caching {name} pictures", leave=False, disable=None) as bar:
            for done in pool.map(task, items):
                bar.update(done)
    finally:
        pool.shutdown(cancel_futures=True)


def _require(needed: int, free: float, flag: str, what: str, *, remedy: str) -> None:
    """Refuse where ``needed`` bytes would leave less than a share of what is free."""
    spare = SPARE.get(what, SPARE["memory"])
    if needed > free * (1 - spare):
        raise UserError(
            f"{flag}: the pictures take {needed / 1e9:.3g} GB; {what} has {free / 1e9:.3g} GB free, of which "
            f"{spare:.0%} must stay free: {remedy}"
        )


def _amount(job: _Job) -> str:
    return f"{len(job.sizes):,} {job.name} pictures, {job.size / 1e9:.3g} GB"
