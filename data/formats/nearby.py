"""What lies near where nothing was found, for the one line that says what to do."""

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

LOOKED_AT = 50  # pictures whose labels are looked for
MOST = 20_000  # files of the data set that are looked through
SPLIT_NAMES = {"train", "val", "valid", "validation", "test", "train2017", "val2017", "test2017"}
OTHERS = {  # ending of label files that are not of the format -> what to do
    ".txt": "write format: yolo, if these are YOLO labels",
    ".xml": "write format: voc and annotations: {folder}, if these are VOC files",
    ".json": "convert them to YOLO, COCO or VOC, if these are the labels",
}


def labels_elsewhere(root: Path, pictures: Sequence[str], label_files: Sequence[str]) -> str:
    """What to do about files below ``root`` that look like the labels of ``pictures``; '' where none does.

    They lie in another folder, are spelled otherwise (capitals, composed letters, p0.jpg.txt), or are of
    another format.
    """
    far = ""
    for path, wanted, other in _near(root, pictures[:LOOKED_AT], label_files[:LOOKED_AT]):
        if wanted:
            return f"{path} is there: put these files where they are looked for, as {wanted}"
        far = far or f"{path} is there: {OTHERS[other].format(folder=os.path.dirname(path))}"
    return far


def unread_labels(
    root: Path, pictures: Sequence[str], label_files: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """(file, where it is looked for) of files below ``root`` that look like the labels of ``pictures``."""
    for path, wanted, _ in _near(root, pictures, label_files):
        if wanted:
            yield path, wanted


def _near(
    root: Path, pictures: Sequence[str], label_files: Sequence[str]
) -> Iterator[tuple[str, str | None, str]]:
    """File, the place where it is looked for, else its ending, that is of another format."""
    ending = os.path.splitext(label_files[0])[1] if label_files else ""
    ours, theirs, owner = {}, {}, {}
    for picture, label in zip(pictures, label_files, strict=True):
        stem, name = os.path.splitext(os.path.basename(label))[0], os.path.basename(picture)
        owner |= dict.fromkeys((_plain(stem), _plain(name)), picture)
        ours |= dict.fromkeys((_plain(stem + ending), _plain(name + ending)), label)
        theirs |= {_plain(stem + other): other for other in OTHERS if other != ending}
    for folder, names in _walk(root):
        for name in names:
            wanted, other = ours.get(_plain(name)), theirs.get(_plain(name))
            picture = owner.get(_plain(os.path.splitext(name)[0]))
            if picture and (wanted or other) and not _is_of_another(folder, picture):
                yield os.path.join(folder, name), wanted, other or ""


def _is_of_another(folder: str, picture: str) -> bool:
    """Whether labels in ``folder`` belong to a picture of the same name elsewhere, as of another split."""
    own, name = os.path.split(picture)
    parts = folder.split(os.sep)
    splits = SPLIT_NAMES.intersection(own.split(os.sep))
    if splits and SPLIT_NAMES.intersection(parts) - splits:
        return True
    swapped = [
        os.sep.join([*parts[:place], pictures, *parts[place + 1 :]])
        for place, part in enumerate(parts)
        if part.lower() in ("labels", "annotations")
        for pictures in ("images", "Images", "JPEGImages")
    ]
    return any(item != own and os.path.exists(os.path.join(item, name)) for item in (folder, *swapped))


def other_yamls(folder: Path) -> str:
    """What to do about other YAML files in ``folder``, or a data.yaml one level below; '' without any."""
    found = sorted(path for pattern in ("*.y*ml", "*/data.y*ml") for path in folder.glob(pattern))
    found = [path for path in found if os.path.isfile(path)]
    return f"{found[0]} is there: give it as --data, if it is the data set's" if found else ""


def tail_below(folders: Sequence[Path], entry: str) -> tuple[Path, str] | None:
    """Folder and longest end of the path ``entry``, of another machine or place, that is there in it."""
    for tail in path_tails(entry)[1:]:
        for folder in folders:
            if os.path.exists(folder / tail):
                return folder, tail
    return None


def path_tails(path: str) -> list[str]:
    """``a\\b/c`` -> ``a/b/c``, ``b/c``, ``c``: what a path of another place may be called here."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    seen = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, sorted(names)
        seen += len(names)
        if seen > MOST:
            return


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
