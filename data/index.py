"""Every picture and box of a data-set split in packed arrays: N pictures, T boxes.

Packed, because loader workers share these arrays without copying: a Python object a picture would be copied,
one reference count at a time, into every worker.
"""

import errno
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.cache import GONE, Column, is_json_of, is_list_of, load_arrays, save_arrays, stat_files
from data.formats.labels import LabelReport, clean_labels
from data.formats.problems import MISSING_PICTURE, Policy, Problem, check_problems
from data.formats.readers import NO_IDS, list_sources, read_files
from data.formats.sources import DataSpec
from utils.errors import DATA, UserError

# of a cache entry: the index, and what it was made from
COLUMNS = {
    "paths": Column("S", ("pictures",)),
    "sizes": Column("int32", ("pictures", 2)),
    "offsets": Column("int64", ("pictures + 1",)),
    "boxes": Column("float64", ("boxes", 4)),
    "labels": Column("int64", ("boxes",)),
    "ignore": Column("bool", ("boxes",)),
    "areas": Column("float64", ("boxes",)),
    "picture_ids": Column("int64", ("pictures",)),
    "source_ids": Column("S", ("source ids",)),
    "stats": Column("int64", ("files", len(GONE))),
    "pictures": Column("uint8", ("bytes of pictures",)),
    "label_files": Column("uint8", ("bytes of label files",)),
    "report": Column("int64", (len(LabelReport._fields),)),
    "problems": Column("uint8", ("bytes of problems",)),
}
SYSTEM_ERRORS = tuple(map(os.strerror, errno.errorcode))
VERSION = 5  # of what the label cache holds; goes up whenever reading labels gives something else


class Index(NamedTuple):
    """One split of a data set."""

    paths: np.ndarray  # (N,) bytes, absolute; see path_of
    sizes: np.ndarray  # (N, 2) int32 height, width, EXIF orientation applied
    offsets: np.ndarray  # (N + 1,) int64; the boxes of picture i are the rows offsets[i]:offsets[i + 1]
    boxes: np.ndarray  # (T, 4) float64 xyxy, pixels of the original picture
    labels: np.ndarray  # (T,) int64 class index
    ignore: np.ndarray  # (T,) bool, crowd or difficult
    areas: np.ndarray  # (T,) float64 px^2, the area that decides COCO's small, medium, large
    picture_ids: np.ndarray  # (N,) int64, no two are equal
    source_ids: np.ndarray = NO_IDS  # (N,) bytes, JSON of the ids in the source; (0,) where they are the same


class Found(NamedTuple):
    """What the files of a split came to."""

    index: Index
    report: LabelReport
    problems: list[Problem]  # faulty rows are not in the index; pictures that cannot be read have no size
    label_files: list[str]  # all that were looked for, once each


def path_of(index: Index, i: int) -> Path:
    """Path of picture ``i``."""
    return Path(os.fsdecode(index.paths[i]))


def paths_of(index: Index) -> list[str]:
    """(N,) the paths of all pictures."""
    return [os.fsdecode(path) for path in index.paths.tolist()]


def fingerprint(index: Index, classes: Sequence[str]) -> str:
    """SHA-256 of all that decides a measurement but the pixels: pictures by name and size, boxes, classes.

    The same wherever the data set lies; the name of a picture is its file's.
    """
    names = [os.path.basename(path) for path in index.paths.tolist()]
    digest = hashlib.sha256(json.dumps([len(names), *classes]).encode() + b"\0".join(names))
    kinds = {
        "sizes": "<i8",
        "offsets": "<i8",
        "boxes": "<f8",
        "labels": "<i8",
        "ignore": "u1",
        "areas": "<f8",
    }
    for field, kind in kinds.items():
        digest.update(getattr(index, field).astype(kind).tobytes())
    return digest.hexdigest()


def load_split(
    spec: DataSpec,
    split: str,
    *,
    single_cls: bool = False,
    label_errors: Policy = "stop",
    broken: Collection[str] = (),
) -> tuple[Index, LabelReport]:
    """Read the headers of all pictures of a split and their labels; faults are gathered into one error.

    With ``single_cls`` every box gets class 0, whatever its class. ``label_errors`` "skip" leaves faulty rows
    out, and pictures that cannot be read, and counts both; "clip" cuts boxes however far they reach beyond
    the picture. ``broken``: paths of pictures whose header is fine, but not what follows; they are left out
    too.
    """
    found = read_split(spec, split, single_cls=single_cls, label_errors=label_errors)
    if label_errors == "skip" and (found.index.sizes > 0).any():
        index, report = _without_unreadable(found, broken)
        if not len(index.paths):
            text = f"{spec.yaml}, split {split!r}: not one picture can be read; python -m data.check says why"
            raise UserError(text, DATA)
        return index, report
    check_problems(found.problems, f"{spec.yaml}, split {split!r}")
    return found.index, found.report


def read_split(
    spec: DataSpec, split: str, *, single_cls: bool = False, label_errors: Policy = "stop"
) -> Found:
    """As ``load_split``, but faults are listed; from the user's cache where no file has changed."""
    sources = list_sources(spec, split)
    options = {"single_cls": single_cls, "clip": label_errors == "clip", "version": VERSION}
    key = repr((spec._replace(search=(), folder=None, has_download=False), split, options))
    num_classes = 1 if single_cls else len(spec.names)
    entry = load_arrays(
        "labels",
        key,
        COLUMNS,
        name=f"labels of split {split}",
        check=lambda arrays: _contradiction(arrays, num_classes),
    )
    reason = "" if entry is None else _what_changed(entry, sources)
    if entry is not None and not reason:
        return _from_entry(entry)
    if reason:
        print(f"{split}: labels read again, {reason}")
    known = sources[1] + (sources[0] or [])  # the pictures of COCO are known only afterwards
    before = stat_files(known)
    found = _read(spec, split, sources, single_cls=single_cls, policy=label_errors)
    after = stat_files(found.label_files + paths_of(found.index))
    if np.array_equal(before, after[: len(before)]):  # nobody wrote while we read
        after[_may_pass(found)] = GONE  # asked again by the next run
        save_arrays("labels", key, _to_entry(found, after))
    return found


def _may_pass(found: Found) -> np.ndarray:
    """(files,) bool: whose reading ended in an error of the system, which says nothing of the file.

    Too many open files or a disk that is away pass without a trace in the file's size and time.
    """
    kinds = ("picture", "label file")
    failed = {
        item.path for item in found.problems if item.kind in kinds and item.text.endswith(SYSTEM_ERRORS)
    }
    return np.array([path in failed for path in [*found.label_files, *paths_of(found.index)]], bool)


def report_of(found: Found, label_errors: Policy, broken: Collection[str] = ()) -> LabelReport:
    """The report of what ``load_split`` returns under the policy."""
    return _without_unreadable(found, broken)[1] if label_errors == "skip" else found.report


def _read(spec: DataSpec, split: str, sources, *, single_cls: bool, policy: Policy) -> Found:
    files = read_files(spec, split, *sources, names=None if single_cls else spec.names)
    raw = files.raw
    sizes = np.where(raw.left_out[:, None], 0, files.sizes).astype(np.int32)
    kept = clean_labels(raw, sizes, policy=policy)
    counts = np.bincount(kept.pictures, minlength=len(sizes))
    index = Index(
        paths=np.array([os.fsencode(picture) for picture in files.pictures], "S"),
        sizes=sizes,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=kept.boxes,
        labels=kept.labels,
        ignore=kept.ignore,
        areas=kept.areas,
        picture_ids=files.picture_ids,
        source_ids=files.source_ids,
    )
    problems = sorted([*files.problems, *raw.problems, *kept.problems])
    report = LabelReport(
        num_pictures=len(sizes),
        num_background=int((counts == 0).sum()),
        num_boxes=len(index.boxes),
        num_ignored=int(index.ignore.sum()),
        num_clipped=kept.num_clipped,
        num_empty=kept.num_empty,
        num_duplicate=kept.num_duplicate,
        num_missing=raw.num_missing,
        num_unlisted=raw.num_unlisted,
        num_polygons=raw.num_polygons,
        num_four_points=raw.num_four_points,
        num_keypoint_rows=raw.num_keypoint_rows,
        num_unplaced=raw.num_unplaced,
        num_renumbered=int((index.source_ids == b"null").sum()),
    )
    return Found(index, report, problems, files.label_files)


def _without_unreadable(found: Found, broken: Collection[str]) -> tuple[Index, LabelReport]:
    """The index without pictures of no size and without the ``broken``; problems only counted."""
    index, keep = found.index, (found.index.sizes > 0).all(1)
    if broken:
        keep &= ~np.isin(index.paths, np.array([os.fsencode(path) for path in broken], "S"))
    counts = np.diff(index.offsets)
    of_kept = np.repeat(keep, counts)
    rows = {field: getattr(index, field)[of_kept] for field in ("boxes", "labels", "ignore", "areas")}
    kept = index._replace(
        paths=index.paths[keep],
        sizes=index.sizes[keep],
        offsets=np.concatenate([[0], np.cumsum(counts[keep])]).astype(np.int64),
        picture_ids=index.picture_ids[keep],
        source_ids=index.source_ids[keep] if len(index.source_ids) else NO_IDS,
        **rows,
    )
    files = {"picture", MISSING_PICTURE, "label file", "size"}
    report = found.report._replace(
        num_pictures=int(keep.sum()),
        num_background=int((counts[keep] == 0).sum()),
        num_skipped=sum(problem.kind not in files for problem in found.problems),
        num_left_out=int((~keep).sum()),
        num_boxes=len(kept.boxes),
        num_ignored=int(kept.ignore.sum()),
    )
    return kept, report


def _contradiction(arrays: dict[str, np.ndarray], num_classes: int) -> str:
    """What in a cache entry cannot be true, or ''. Whatever training indexes by lies in its range."""
    entry = Index(*(arrays[field] for field in Index._fields))
    counts, sizes = np.diff(entry.offsets), entry.sizes
    boxes, paths = entry.boxes, entry.paths.tolist()
    if len(entry.offsets) != len(paths) + 1 or entry.offsets[0] or (counts < 0).any():
        return "offsets are not ascending"
    if entry.offsets[-1] != len(boxes):
        return f"offsets end at {entry.offsets[-1]} of {len(boxes)} boxes"
    if len(boxes) and not 0 <= entry.labels.min() <= entry.labels.max() < num_classes:
        return f"labels outside 0..{num_classes - 1}"
    if (sizes < 0).any() or not np.isfinite(entry.areas).all():
        return "sizes or areas are out of range"
    extents = np.repeat(sizes[:, ::-1], counts, axis=0)
    if not ((boxes[:, :2] >= 0).all() and (boxes[:, :2] <= boxes[:, 2:]).all()):
        return "boxes are no boxes"
    if not (boxes[:, 2:] <= extents).all():
        return "boxes reach beyond their pictures"
    label_files = arrays["label_files"]
    num_files = len(paths) + (np.count_nonzero(label_files == 0) + 1 if len(label_files) else 0)
    if b"\0".join(paths) != arrays["pictures"].tobytes() or len(arrays["stats"]) != num_files:
        return "its lists of files do not agree"
    if arrays["report"][:1].tolist() != [len(paths)]:
        return "its counts do not agree"
    if len(entry.source_ids) not in (0, len(paths)):
        return "its ids do not agree"
    if not is_json_of(arrays["problems"], lambda value: is_list_of(value, str, int, str, str)):
        return "its problems are none"
    return ""


def _what_changed(entry: dict[str, np.ndarray], sources: tuple[list[str] | None, list[str]]) -> str:
    """Why a cache entry no longer holds, or ''."""
    pictures, label_files = sources
    known = _unpack_paths(entry["pictures"])
    if pictures is not None and not np.array_equal(_pack_paths(pictures), entry["pictures"]):
        new, gone = len(set(pictures) - set(known)), len(set(known) - set(pictures))
        return f"as {new} pictures are new and {gone} gone"
    if not np.array_equal(_pack_paths(label_files), entry["label_files"]):
        return "as they lie elsewhere now"
    paths = label_files + known
    changed = np.flatnonzero((stat_files(paths) != entry["stats"]).any(axis=1))
    if not len(changed):
        return ""
    others = f" and {len(changed) - 1} others" if len(changed) > 1 else ""
    return f"as {paths[changed[0]]}{others} changed"


def _to_entry(found: Found, stats: np.ndarray) -> dict[str, np.ndarray]:
    problems = json.dumps(found.problems).encode("utf-8", "surrogateescape")
    return found.index._asdict() | {
        "stats": stats,
        "pictures": _pack_paths(paths_of(found.index)),
        "label_files": _pack_paths(found.label_files),
        "report": np.array(found.report, np.int64),
        "problems": np.frombuffer(problems, np.uint8),
    }


def _from_entry(entry: dict[str, np.ndarray]) -> Found:
    problems = json.loads(entry["problems"].tobytes().decode("utf-8", "surrogateescape"))
    return Found(
        Index(*(entry[field] for field in Index._fields)),
        LabelReport(*entry["report"].tolist()),
        [Problem(*problem) for problem in problems],
        _unpack_paths(entry["label_files"]),
    )


def _pack_paths(paths: list[str]) -> np.ndarray:
    return np.frombuffer("\0".join(paths).encode("utf-8", "surrogateescape"), np.uint8)


def _unpack_paths(packed: np.ndarray) -> list[str]:
    return packed.tobytes().decode("utf-8", "surrogateescape").split("\0") if len(packed) else []
