"""What lies in a data set and is not looked at, or counts twice: label files, pictures, names of classes."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from data.doctor.findings import Finding
from data.formats import voc, yolo
from data.formats.listing import SUFFIXES, has_no_ending, walk_pictures
from data.formats.nearby import unread_labels
from data.formats.problems import Problem
from data.formats.sources import DataSpec, split_sources
from data.images import VIDEOS
from data.index import Found, paths_of

MANY = 0.01  # share of the pictures above which it is a warning
OTHER_PICTURES = tuple({
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".jpm", ".jph", ".jxl", ".jxr", ".wdp",
    ".heic", ".heif", ".hif", ".avif", ".pam", ".pgx", ".tga", ".exr", ".hdr", ".svg", ".psd", ".pcx",
    ".ico", ".xcf", ".qoi", ".sgi", ".ras", ".dcm", ".fits", ".fit",
    # cameras' own
    ".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".srf", ".raf", ".orf", ".rw2",
    ".rwl", ".pef", ".srw", ".x3f", ".3fr", ".iiq", ".mrw", ".kdc", ".dcr", ".erf", ".mos",
} - set(SUFFIXES))  # .avif, where Pillow reads it  # fmt: skip


def find_unread(spec: DataSpec, founds: Mapping[str, Found]) -> list[Finding]:
    """Label files that two pictures share, label files and pictures that are not read, and classes alike."""
    total = sum(len(found.index.sizes) for found in founds.values())
    findings = _alike(spec.names)
    for split in founds:
        others = list(_other_endings(spec, split))
        for code, kind, text in (
            ("picture-unread", "ending", OTHER_TEXT),
            ("video-unread", "video", VIDEO_TEXT),
        ):
            findings += _tell((item for item in others if item.kind == kind), total, code, split, text)
    if spec.format != "coco":
        findings += _tell(_shared(founds.values()), total, "label-shared", "", SHARED_TEXT)
        for split, found in founds.items():
            # of two reasons for one file the first is told
            places = {item.path: item for item in [*_far_labels(spec, found), *_other_labels(spec, found)]}
            findings += _tell(places.values(), total, "label-unread", split, UNREAD_TEXT)
    return findings


OTHER_TEXT = (
    "pictures of an ending that is not read",
    f"convert them; read are {' '.join(SUFFIXES)}",
)
VIDEO_TEXT = ("videos, which are not read yet", "take pictures out of them, with labels of their own")
SHARED_TEXT = (
    "pictures that share their label file with another one",
    "rename one of them, and write labels of its own; or take it out",
)
UNREAD_TEXT = (
    "label files that are not read",
    "move or convert them to what is read, or delete them",
)


def _tell(
    places: Iterable[Problem], total: int, code: str, split: str, texts: tuple[str, str]
) -> list[Finding]:
    places = sorted(places)
    if not places:
        return []
    severity = "warning" if len(places) > MANY * total else "note"
    text, remedy = texts
    return [Finding(severity, code, split, len(places), f"{text}: {len(places)}", remedy, tuple(places))]


def _shared(founds: Iterable[Found]) -> Iterator[Problem]:
    """Pictures whose label file was another one's before, as of p0.jpg and p0.png."""
    first: dict[str, str] = {}
    for found in founds:
        for picture, label in zip(paths_of(found.index), found.label_files, strict=True):
            other = first.setdefault(label, picture)
            if other != picture and os.path.exists(label):
                yield Problem(picture, 0, f"has the labels of {os.path.basename(other)}: {label}", "shared")


def _other_endings(spec: DataSpec, split: str) -> Iterator[Problem]:
    for source in split_sources(spec, split):
        if os.path.isdir(source):
            for path in walk_pictures(source, OTHER_PICTURES + VIDEOS, nameless=True):
                if path.lower().endswith(VIDEOS):
                    yield Problem(path, 0, "a video", "video")
                elif has_no_ending(path):
                    yield Problem(path, 0, "a picture whose name has no ending; give it one", "ending")
                else:
                    yield Problem(path, 0, f"{os.path.splitext(path)[1]} is not read", "ending")


def _other_labels(spec: DataSpec, found: Found) -> Iterator[Problem]:
    """Label files of our pictures in other places, or with an ending that is not looked for."""
    pictures: dict[tuple[str, str], set[str]] = defaultdict(set)  # folders of pictures, labels -> stems
    for picture, label in zip(paths_of(found.index), found.label_files, strict=True):
        folder, _, name = picture.rpartition(os.sep)
        pictures[folder, os.path.dirname(label)].add(os.path.splitext(name)[0])
    ours, theirs = (".txt", ".xml") if spec.format == "yolo" else (".xml", ".txt")
    for (folder, labels), stems in pictures.items():
        names = _names(labels)
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending != ours and ending.lower() == ours and stem in stems and stem + ours not in names:
                yield Problem(f"{labels}{os.sep}{name}", 0, f"its ending is not {ours}", "unread")
        for place in _places(spec.format, folder):
            if place != labels:
                text = f"labels are read from {labels}"
                yield from (_unread(place, name, text) for name in _of(stems, _names(place), ours))
        bare = {stem for stem in stems if stem + ours not in names}
        other = "voc" if spec.format == "yolo" else "yolo"
        for place in _places(other, folder) if bare else ():
            text = f"the data set is read as {spec.format}, where this picture has no labels"
            yield from (_unread(place, name, text) for name in _of(bare, _names(place), theirs))


def _far_labels(spec: DataSpec, found: Found) -> Iterator[Problem]:
    """Label files anywhere in the data set that look like those of pictures without one."""
    pairs = list(zip(paths_of(found.index), found.label_files, strict=True))
    bare = [pair for pair in pairs if not os.path.lexists(pair[1])] if found.report.num_missing else []
    read = set(found.label_files)
    pictures, labels = [picture for picture, _ in bare], [label for _, label in bare]
    for path, wanted in unread_labels(spec.root, pictures, labels) if bare else ():
        if path not in read:
            yield Problem(path, 0, f"looked for as {wanted}", "unread")


def _places(format: str, folder: str) -> list[str]:
    """Folders in which the labels of a folder of pictures are usual."""
    return yolo.label_folders(folder) if format == "yolo" else voc.folders_beside(folder)


def _of(stems: set[str], names: set[str], ending: str) -> list[str]:
    return [name for name in names if name.endswith(ending) and name[: -len(ending)] in stems]


def _unread(place: str, name: str, text: str) -> Problem:
    return Problem(f"{place}{os.sep}{name}", 0, text, "unread")


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:  # not there
        return set()


def _alike(names: Iterable[str]) -> list[Finding]:
    """Classes that are one to people: they differ in case, blanks, or in the code of a letter only."""
    groups = defaultdict(list)
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold()
        groups["".join(letter for letter in plain if not letter.isspace() and letter not in "_-")].append(
            name
        )
    alike = [group for group in groups.values() if len(group) > 1]
    if not alike:
        return []
    shown = "; ".join(" and ".join(map(repr, group)) for group in alike[:3])
    text = f"classes that differ in case or blanks only: {len(alike)} ({shown})"
    remedy = "if they are one, write one name in the labels (VOC) or in the JSON, or one number (YOLO)"
    return [Finding("warning", "class-alike", "", len(alike), text, remedy)]
