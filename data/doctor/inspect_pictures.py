"""Every picture decoded once, whole: can it be read; a grey thumbnail, a digest of the file. N pictures.

What was found is kept in the user's cache, by path, size and time of change: only new and changed pictures
are decoded again.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from data.cache import GONE, Column, load_arrays, save_arrays, stat_files
from data.formats.labels import LabelReport
from data.formats.sources import DataSpec
from data.images import decode_image, read_header
from data.index import Index, load_split, paths_of
from data.pixels import AS_STORED, Pixels, pixels_of
from utils.config import DataConfig
from utils.errors import UserError

VERSION = 4  # goes up whenever decoding or the thumbnails change
SIDE = 32  # px of a thumbnail
MANY_PICTURES = 10_000  # above, headers only
MAX_THREADS = 8  # each holds one decoded picture
CHUNK = 8  # pictures a task: few, so that an interrupt does not wait long for those at work
EVERY = 4  # pixels, along rows and columns, between those that are counted at the ends of the range
FACTS = np.dtype(
    [
        ("brightness", np.float32),  # mean, of 255
        ("black", np.float32),  # share of values at 0
        ("white", np.float32),  # at 255
        ("pages", np.int32),  # pictures in the file
        ("bands", np.int32),
    ]
)
COLUMNS = {  # of a cache entry, whose rows are whole pictures: also the work of an interrupted run counts
    "paths": Column("S", ("pictures",)),
    "stats": Column("int64", ("pictures", len(GONE))),
    "faults": Column("U", ("pictures",)),
    "thumbnails": Column("uint8", ("pictures", SIDE, SIDE)),
    "digests": Column("uint64", ("pictures", 2)),
} | {name: Column(FACTS[name].name, ("pictures",)) for name in FACTS.names}


class Inspection(NamedTuple):
    """What decoding the pictures gave."""

    known: np.ndarray  # (N,) bool, decoded now or at an earlier time; the other fields are empty where not
    faults: list[str]  # (N,) why a picture cannot be read, '' for one that can
    thumbnails: np.ndarray  # (N, SIDE, SIDE) uint8 grey
    digests: np.ndarray  # (N, 2) uint64 of the file's bytes
    facts: np.ndarray  # (N,) FACTS


def inspect_pictures(
    paths: Sequence[str], key: str, *, decode: bool = True, pixels: Pixels = AS_STORED
) -> Inspection:
    """Decode the pictures, in threads; with ``decode`` False only tell what is known from earlier times.

    ``key`` names the data set and split in the cache, ``pixels`` says how values become 0..255. Done work is
    kept also when it is interrupted.
    """
    paths, key = list(paths), f"{key}\0inspection {VERSION} {tuple(pixels)}"
    stats = stat_files(paths)
    name = f"pictures inspected before ({len(paths):,})"
    found = _from_cache(load_arrays("pictures", key, COLUMNS, name=name), paths, stats)
    todo = np.flatnonzero(~found.known).tolist() if decode else []
    if todo:
        try:
            _fill(found, paths, stats, todo, pixels)
        finally:
            _to_cache(found, paths, stats, key)
    return found


def key_of(spec: DataSpec, split: str) -> str:
    """Names a split in the cache."""
    return f"{spec.yaml}\0{split}"


def broken_of(paths: Sequence[str], look: Inspection) -> list[str]:
    """Those of the pictures that cannot be decoded whole."""
    return [path for path, fault in zip(paths, look.faults, strict=True) if fault]


def load_sound_split(spec: DataSpec, split: str, cfg: DataConfig) -> tuple[Index, LabelReport]:
    """``load_split`` by the settings; where faulty ones are skipped, without pictures that are cut short.

    Of more than 10,000 pictures only those are known that were decoded before; another one ends the run.
    """
    options = {"single_cls": cfg.single_cls, "label_errors": cfg.label_errors}
    index, report = load_split(spec, split, **options)
    if cfg.label_errors != "skip":
        return index, report
    paths, decode = paths_of(index), len(index.paths) <= MANY_PICTURES
    look = inspect_pictures(paths, key_of(spec, split), decode=decode, pixels=pixels_of(cfg))
    broken = broken_of(paths, look)
    return load_split(spec, split, **options, broken=broken) if broken else (index, report)


def _fill(found: Inspection, paths: list[str], stats: np.ndarray, todo: list[int], pixels: Pixels) -> None:
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    threads = min(
        MAX_THREADS, len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    )
    pool = ThreadPoolExecutor(threads)
    try:
        bar = tqdm(total=len(todo), desc="decoding pictures", unit="", leave=False, disable=None)
        for chunk, results in zip(chunks, pool.map(_mapper(paths, pixels), chunks), strict=True):
            for number, (fault, thumbnail, digest, facts, lasting) in zip(chunk, results, strict=True):
                found.faults[number], found.thumbnails[number], found.facts[number] = fault, thumbnail, facts
                if not lasting:
                    stats[number] = GONE
                found.digests[number], found.known[number] = digest, True
            bar.update(len(chunk))
        bar.close()
    finally:
        pool.shutdown(cancel_futures=True)


def _mapper(paths: list[str], pixels: Pixels) -> Callable[[list[int]], list[tuple]]:
    return lambda chunk: [_inspect(paths[number], pixels) for number in chunk]


def _inspect(path: str, pixels: Pixels) -> tuple[str, np.ndarray, np.ndarray, tuple, bool]:
    """Fault or '', thumbnail, digest, facts of one picture, and whether that lasts until the file changes."""
    try:
        picture, header = decode_image(path, pixels=pixels), read_header(path)
        thumbnail, fault = make_thumbnail(picture), ""
        some = picture[::EVERY, ::EVERY]
        ends = [float((some == end).mean()) for end in (0, 255)]
        facts = (float(thumbnail.mean()), *ends, header.pages, header.bands)
        digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
    except (UserError, OSError) as error:  # OSError: gone between the two readings
        fault = str(error).removeprefix(f"{path}: ").removeprefix("cannot read this picture: ")
        cause = error.__cause__ or error
        # An error of the system (too many open files, a disk that is away) says nothing of the picture.
        lasting = not (isinstance(cause, OSError) and cause.errno)
        return fault, np.zeros((SIDE, SIDE), np.uint8), np.zeros(2, np.uint64), (0, 0, 0, 1, 3), lasting
    return fault, thumbnail, np.frombuffer(digest, np.uint64), facts, True


def make_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB -> (SIDE, SIDE) uint8 grey, the aspect not kept."""
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)


def _from_cache(entry: dict[str, np.ndarray] | None, paths: list[str], stats: np.ndarray) -> Inspection:
    count = len(paths)
    found = Inspection(
        known=np.zeros(count, bool),
        faults=[""] * count,
        thumbnails=np.zeros((count, SIDE, SIDE), np.uint8),
        digests=np.zeros((count, 2), np.uint64),
        facts=np.zeros(count, FACTS),
    )
    if entry is None or not len(entry["paths"]):
        return found
    row_of = {path: row for row, path in enumerate(entry["paths"].tolist())}
    rows = np.array([row_of.get(os.fsencode(path), -1) for path in paths], np.int64)
    same = (rows >= 0) & (entry["stats"][rows] == stats).all(1) & (stats[:, 0] >= 0)
    rows = rows[same]
    found.known[:] = same
    found.thumbnails[same], found.digests[same] = entry["thumbnails"][rows], entry["digests"][rows]
    for name in FACTS.names:
        found.facts[name][same] = entry[name][rows]
    for number, fault in zip(np.flatnonzero(same).tolist(), entry["faults"][rows].tolist(), strict=True):
        found.faults[number] = fault
    return found


def _to_cache(found: Inspection, paths: list[str], stats: np.ndarray, key: str) -> None:
    """Keep what is known. A file that changed while it was read has another time by the next call."""
    known = found.known
    arrays = {
        "paths": np.array([os.fsencode(path) for path in paths], "S")[known],
        "stats": stats[known],
        "faults": np.array(found.faults, str)[known],
        "thumbnails": found.thumbnails[known],
        "digests": found.digests[known],
    } | {name: found.facts[name][known] for name in FACTS.names}
    save_arrays("pictures", key, arrays)
