"""Which files make the splits of a data set: the record of its YAML, and how entries become paths."""

import errno
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from data.formats.coco import ROBOFLOW, find_picture
from data.formats.listing import SUFFIXES, find_listed, read_lines, read_list, walk_pictures
from data.formats.nearby import tail_below
from data.formats.yolo_rows import UNSAID, RowRule
from utils.errors import DATA, NotFoundError, NothingThereError, UserError
from utils.wording import printable, show_class

SPLITS = ("train", "val", "test")
SHOWN_VALUE, SHOWN_PATH = 80, 500  # characters in errors
SHOWN_NAMES = 100
TRIED = 8  # pictures of a JSON file that are looked for, to find the folder of all
MARKS = ("-1", "0", "1")  # VOC, in its lists of one class: absent, difficult, present
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)  # what a path that leads nowhere fails with


class DataSpec(NamedTuple):
    """A data-set YAML, checked. Pictures are looked for later: ``list_pictures``, ``coco_files``."""

    yaml: Path  # the folder itself where a data set has no YAML
    root: Path  # the folder `path` names; the YAML's folder without `path`
    splits: dict[str, list[Path]]  # folders, list files or JSON files, as written
    names: tuple[str, ...]
    category_ids: tuple[int | str, ...]  # class index -> id in the source; the index itself without any
    search: tuple[Path, ...]  # where relative entries of `splits` are looked up, in this order
    format: str  # "yolo", "coco" or "voc"
    images: dict[str, list[str]]  # split -> folders of its pictures, as written (COCO, VOC)
    annotations: dict[str, list[str]]  # split -> folders of its XML files, as written (VOC)
    voc_offset: int  # subtracted from xmin and ymin: 1 for files that count pixels from 1
    left_out: tuple[str, ...]  # categories that are no classes: no box has them, and others stand below them
    row_rule: RowRule = UNSAID  # what the YAML says of label rows that are longer than a box (YOLO)
    folder: Path | None = None  # below the data-sets root: where a download would go
    has_download: bool = False
    notes: tuple[str, ...] = ()  # what the categories of several files made necessary, a line each


def format_classes(spec: DataSpec) -> str:
    """Id in the source -> class index -> name, as a table; one line where the ids are the indices."""
    pairs = list(zip(spec.category_ids, map(show_class, spec.names), strict=True))
    pairs = [(printable(key), name) for key, name in pairs]
    lines = [f"left out, as no box has it: {show_names(spec.left_out)}"] if spec.left_out else []
    lines += map(printable, spec.notes)
    if spec.category_ids == tuple(range(len(spec.names))):
        return "\n".join(["classes: " + ", ".join(f"{key} {name}" for key, name in pairs), *lines])
    rows = [f"{key:>8}{index:>8}  {name}" for index, (key, name) in enumerate(pairs)]
    return "\n".join([f"{'id':>8}{'index':>8}  name", *rows, *lines])


def give_ids(names: Sequence[str], id_of: Mapping[str, int]) -> tuple[int, ...]:
    """Ids of the classes ``names``; one that has none, as no JSON file lists it, gets a number of its own."""
    used = set(id_of.values())
    free = (number for number in itertools.count(1) if number not in used)
    return tuple(id_of[name] if name in id_of else next(free) for name in names)


def spec_error(yaml: Path, text: str) -> UserError:
    """An error in a data-set YAML."""
    return UserError(f"{yaml}: {text}", DATA)


def join(base: Path, entry: str) -> Path:
    """``entry`` as seen from ``base``, absolute, without ``..``."""
    return Path(os.path.abspath(base / os.path.expanduser(entry)))


def indent(paths: Sequence[Path]) -> str:
    """One path a line, for errors."""
    return "\n".join(f"  {_cut(printable(path), SHOWN_PATH)}" for path in paths)


def show(value: object) -> str:
    """A value of a YAML in one short line, for errors."""
    return _cut(repr(value), SHOWN_VALUE)


def show_names(names: Sequence[str]) -> str:
    """Names in one line, for errors: not all of very many."""
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(map(show_class, names[:SHOWN_NAMES])) + more


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def paths_tried(search: Sequence[Path], entry: str | Path) -> list[Path]:
    """Every path that an entry of a YAML may mean, in the order in which they are looked for."""
    tried = [join(base, str(entry)) for base in search]
    if "\\" in str(entry):  # written on Windows
        entry = str(entry).replace("\\", "/")
        tried += [join(base, entry) for base in search]
    if str(entry).startswith("../"):  # Roboflow writes ../train/images for its train/images
        tried += [join(base, str(entry)[3:]) for base in search]
    return list(dict.fromkeys(tried))


def resolve_entry(spec: DataSpec, key: str, entry: str | Path) -> Path:
    """The file or folder that ``entry`` of ``key`` means; else a ``NotFoundError`` names every path tried."""
    tried = paths_tried(spec.search, entry)
    for candidate in tried:
        if os.path.exists(candidate):
            return candidate
    check_reading(tried)
    text = f"{key}: {show(str(entry))} not found; tried:\n{show_tried(tried)}\n"
    near = tail_below(spec.search, str(entry))
    remedy = (
        f"{printable(near[0] / near[1])} is there: write {key}: {printable(near[1])}"
        if near
        else _remedy(spec)
    )
    raise NotFoundError(f"{spec.yaml}: {text}{remedy}", DATA)


def _remedy(spec: DataSpec) -> str:
    """What to do where data is not found."""
    if spec.has_download:
        fetch = f"The same command with --download fetches it into {spec.folder}"
        return f"{fetch}. Where it lies elsewhere, --data-root names the folder around {spec.folder.name}."
    around = f", or name the folder around {spec.folder.name} by --data-root" if spec.folder else ""
    return f"Mend `path` or the entry{around}."


def check_reading(tried: Sequence[Path]) -> None:
    """Of paths that Python finds not to exist: a ``UserError`` for the first that is there but out of reach.

    ``os.path.exists`` says no in both cases, but only one of them is mended by another path.
    """
    for path in tried:
        try:
            os.stat(path)
        except OSError as error:
            if error.errno not in NOT_THERE:
                reason = f"cannot be looked into ({error.strerror}): check its rights, and the disk it is on"
                raise UserError(f"{path}: {reason}", DATA) from error
        except ValueError:  # a NUL in the name: no file can have it
            continue


def show_tried(tried: Sequence[Path]) -> str:
    """Paths where nothing was found, one a line; a link that leads nowhere says so."""
    lines = indent(tried).split("\n")
    for place, path in enumerate(tried):
        if "\0" not in str(path) and os.path.islink(path):
            lines[place] += f" (a link to {printable(os.readlink(path))}, where nothing is)"
    return "\n".join(lines)


def split_sources(spec: DataSpec, split: str) -> list[Path]:
    """Folders, list files and JSON files of a split, absolute."""
    if split not in spec.splits:
        raise spec_error(spec.yaml, f"no split {split!r}; the file has: {', '.join(spec.splits)}")
    return [resolve_entry(spec, split, entry) for entry in spec.splits[split]]


def list_pictures(spec: DataSpec, split: str) -> list[str]:
    """Absolute paths of a split's pictures, sorted, each once (YOLO and VOC).

    Folders are searched to any depth for ``SUFFIXES``; hidden files and folders are left out. The pictures of
    a list file are taken as listed; the lists of VOC's ImageSets name pictures in its JPEGImages.
    """
    found: set[str] = set()
    sources = split_sources(spec, split)
    folders = [resolve_entry(spec, "images", entry) for entry in spec.images.get(split, [])]
    for source in sources:
        if os.path.isdir(source):
            found.update(walk_pictures(source))
        elif spec.format == "voc":
            found.update(_read_image_set(source, folders or _image_folders(source), spec.root))
        else:
            found.update(read_list(source, spec.root))
    if not found:
        text = f"split {split!r} has no pictures ({' '.join(SUFFIXES)}) in:\n{indent(sources)}"
        raise NothingThereError(f"{spec.yaml}: {text}", DATA)
    return sorted(found)


def xml_folders(spec: DataSpec, split: str) -> list[Path]:
    """Folders of a split's XML files where the YAML names them, else []."""
    return [resolve_entry(spec, "annotations", entry) for entry in spec.annotations.get(split, [])]


def coco_files(spec: DataSpec, split: str) -> list[Path]:
    """The JSON files of a split; of a folder, the one Roboflow puts there."""
    sources = split_sources(spec, split)
    files = [source / ROBOFLOW if os.path.isdir(source) else source for source in dict.fromkeys(sources)]
    for file in files:
        if not os.path.isfile(file):
            text = f"{split}: {file} not found; name the JSON file of the split"
            raise NotFoundError(f"{spec.yaml}: {text}", DATA)
    return files


def coco_folder(spec: DataSpec, split: str, file: Path, names: Sequence[str]) -> Path:
    """The folder of the pictures that a JSON file lists, ``names`` being at least one of them.

    ``images`` of the YAML names it; otherwise the usual places are tried, for a few of the pictures.
    """
    folders = [resolve_entry(spec, "images", entry) for entry in spec.images.get(split, [])]
    stem = file.stem.removeprefix("instances_")
    below = [f"images/{split}", split, f"images/{stem}", stem, "images", "."]
    tried = folders or list(dict.fromkeys([file.parent, *(join(spec.root, name) for name in below)]))
    sample = names[:: max(1, len(names) // TRIED)]
    if len(folders) > 1 and (chosen := _own_folder(spec, split, file, folders, sample)):
        return chosen
    for find in (os.path.join, find_picture):  # what is there as written goes before what only ends alike
        for name, folder in itertools.product(sample, tried):
            if os.path.isfile(find(folder, name)):
                return folder
    if folders and len(folders) == 1:
        return folders[0]  # its pictures are missing one by one, and reported so
    text = f"{split}: {printable(names[0])}, which {file.name} lists, is in none of:\n{indent(tried)}\n"
    raise NotFoundError(f"{spec.yaml}: {text}Name the folder: images: {{{split}: <folder>}}", DATA)


def _own_folder(
    spec: DataSpec, split: str, file: Path, folders: list[Path], names: Sequence[str]
) -> Path | None:
    """Of several ``folders`` that hold the same ``names``, as of two cameras, the one of this JSON file.

    That is the one at its place, where each file of the split has a folder; else nobody knows: an error.
    None where at most one of the folders holds these pictures.
    """
    there = [
        folder
        for folder in dict.fromkeys(folders)
        if any(os.path.isfile(join(folder, name)) for name in names)
    ]
    files = coco_files(spec, split)
    own = folders[files.index(file)] if len(files) == len(folders) and file in files else None
    if len(there) < 2 or own in there:
        return own if own in there else None
    text = f"{split}: {printable(names[0])}, which {file.name} lists, may be in any of:\n{indent(there)}\n"
    raise spec_error(spec.yaml, f"{text}Name one folder for each JSON file of the split, in their order")


def _image_folders(source: Path) -> list[Path]:
    """Where VOC keeps the pictures of ImageSets/Main/train.txt: JPEGImages, two folders up."""
    return [join(source.parent, "../../JPEGImages"), join(source.parent, "../JPEGImages")]


def _read_image_set(path: Path, folders: list[Path], root: Path) -> list[str]:
    """Pictures of a list of paths, or of names in ``folders``, with or without ending; they may hold spaces.

    A last column of -1, 0 or 1 is VOC's mark of a class in the picture; -1 leaves the picture out.
    """
    known, found = _pictures_by_name(folders), []
    for line in read_lines(path):
        whole = _find_named(line, known, path, root)
        *name, mark = line.rsplit(None, 1)
        if whole or not name or mark not in MARKS:
            found.append(whole or _missing_place(line, folders, path))
        elif mark != "-1":
            found.append(_find_named(name[0], known, path, root) or _missing_place(name[0], folders, path))
    return found


def _pictures_by_name(folders: list[Path]) -> dict[str, str]:
    """Path below a folder, with and without its ending, -> picture; the first folder and ending win."""
    names, stems = {}, {}
    for folder in filter(os.path.isdir, folders):
        start = len(os.path.join(folder, ""))
        for picture in sorted(walk_pictures(folder), key=_rank_of_ending):
            name = picture[start:]
            names.setdefault(name, picture)
            stems.setdefault(os.path.splitext(name)[0], picture)
    return stems | names


def _rank_of_ending(picture: str) -> int:
    return SUFFIXES.index(os.path.splitext(picture)[1].lower())


def _find_named(name: str, known: dict[str, str], path: Path, root: Path) -> str | None:
    return (find_listed(name, path, root) if _is_path(name) else None) or known.get(name)


def _is_path(name: str) -> bool:
    return os.sep in name or name.lower().endswith(SUFFIXES)


def _missing_place(name: str, folders: list[Path], path: Path) -> str:
    """Where a picture that is nowhere should lie, for the error that names it."""
    if _is_path(name):
        return os.path.normpath(os.path.join(path.parent, name))
    return f"{folders[0]}{os.sep}{name}{SUFFIXES[0]}"
