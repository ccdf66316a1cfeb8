"""The data-set YAML: where the pictures of each split lie, and the class names.

The keys are YOLOv5's: ``path``, ``train``, ``val``, ``test``, ``names``, ``nc``. Other keys are read over; in
particular nothing written under ``download`` is ever run or fetched.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from utils.config_files import read_yaml
from utils.errors import DATA, UserError

SPLITS = ("train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
REPOSITORY = Path(__file__).resolve().parents[1]


class DataSpec(NamedTuple):
    """A data-set YAML, checked. Pictures are looked for later: ``split_sources`` and ``list_pictures``."""

    yaml: Path
    root: Path  # the folder `path` names; the YAML's folder without `path`
    splits: dict[str, list[Path]]  # folders or list files, as written
    names: tuple[str, ...]
    category_ids: tuple[int, ...]  # class index -> id in the source; for YOLO labels the index itself
    search: tuple[Path, ...]  # where relative entries of `splits` are looked up, in this order
    format: str  # "yolo", "coco" or "voc"
    images: dict[str, str]  # split -> folder of its pictures, as written (COCO, VOC)
    annotations: dict[str, str]  # split -> folder of its XML files, as written (VOC)
    voc_offset: int  # subtracted from xmin and ymin: 1 for files that count pixels from 1
    downloads: tuple  # of data.download.Download


def load_data_spec(path: str | Path, *, single_cls: bool = False) -> DataSpec:
    """Read a data-set YAML; ``path`` may be a folder with a data.yaml, or a name in our data/.

    With ``single_cls`` there is one class, "object", whatever the file names.
    """
    yaml = find_data_yaml(path)
    content = read_yaml(yaml, code=DATA)
    splits = {key: _read_entries(yaml, key, content[key]) for key in SPLITS if content.get(key) is not None}
    if not splits:
        raise _spec_error(
            yaml, f"none of the keys {', '.join(SPLITS)} is there; each names a folder or a list file"
        )
    names = ("object",) if single_cls else _read_names(yaml, content)
    roots = _find_roots(yaml, content.get("path"))
    search = tuple(dict.fromkeys((*roots, yaml.parent, Path.cwd())))
    return DataSpec(yaml, roots[0], splits, names, tuple(range(len(names))), search, "yolo", {}, {}, 0, ())


def find_data_yaml(path: str | Path) -> Path:
    """The YAML file meant by a ``--data`` argument, absolute."""
    tried = [_join(base, str(path)) for base in (Path.cwd(), REPOSITORY / "data", REPOSITORY)]
    tried = list(dict.fromkeys(item / "data.yaml" if os.path.isdir(item) else item for item in tried))
    for candidate in tried:
        if os.path.isfile(candidate):
            return candidate
    raise UserError(f"data set {str(path)!r} not found; tried:\n{_indent(tried)}", DATA)


def split_sources(spec: DataSpec, split: str) -> list[Path]:
    """Folders and list files of a split, absolute. A missing one is an error that names every path tried."""
    if split not in spec.splits:
        raise _spec_error(spec.yaml, f"no split {split!r}; the file has: {', '.join(spec.splits)}")
    return [_resolve(spec, split, entry) for entry in spec.splits[split]]


def list_pictures(spec: DataSpec, split: str) -> list[str]:
    """Absolute paths of a split's pictures, sorted, each once.

    Folders are searched to any depth for ``SUFFIXES``; hidden files and folders are left out. The pictures of
    a list file are taken as listed.
    """
    found: set[str] = set()
    sources = split_sources(spec, split)
    for source in sources:
        found.update(_walk(source) if os.path.isdir(source) else _read_list(source, spec.root))
    if not found:
        text = f"split {split!r} has no pictures ({' '.join(SUFFIXES)}) in:\n{_indent(sources)}"
        raise _spec_error(spec.yaml, text)
    return sorted(found)


def _spec_error(yaml: Path, text: str) -> UserError:
    return UserError(f"{yaml}: {text}", DATA)


def _join(base: Path, entry: str) -> Path:
    return Path(os.path.abspath(base / os.path.expanduser(entry)))


def _indent(paths: list[Path]) -> str:
    return "\n".join(f"  {path}" for path in paths)


def _find_roots(yaml: Path, path) -> list[Path]:
    """The folder that ``path`` names; where none exists, both candidates: a later error names them."""
    if path is None:
        return [yaml.parent]
    if not isinstance(path, str):
        raise _spec_error(yaml, f"path: {path!r} is not the name of a folder")
    tried = [_join(base, path) for base in (yaml.parent, Path.cwd())]
    return [item for item in tried if os.path.isdir(item)][:1] or tried


def _read_entries(yaml: Path, key: str, value) -> list[Path]:
    entries = value if isinstance(value, list) else [value]
    wrong = [entry for entry in entries if not isinstance(entry, str) or not entry]
    if wrong or not entries:
        raise _spec_error(yaml, f"{key}: {value!r} is not a folder, a list file, or a list of these")
    return [Path(entry) for entry in entries]


def _resolve(spec: DataSpec, split: str, entry: Path) -> Path:
    tried = list(dict.fromkeys(_join(base, str(entry)) for base in spec.search))
    for candidate in tried:
        if os.path.exists(candidate):
            return candidate
    text = f"{split}: {str(entry)!r} not found; tried:\n{_indent(tried)}\n"
    remedy = "Mend `path` or the entry, or get the data set first (`download` entries are never run)."
    raise _spec_error(spec.yaml, text + remedy)


def _read_names(yaml: Path, content: dict) -> tuple[str, ...]:
    """Class names in order of the class index, checked against ``nc``."""
    names, count = content.get("names"), content.get("nc")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise _spec_error(yaml, f"nc: {count!r} is not a number of classes")
    if names is None and count is not None:
        names = [f"class{index}" for index in range(count)]
    if isinstance(names, dict):
        names = _names_of_map(yaml, names)
    if not isinstance(names, list) or not names:
        raise _spec_error(yaml, "names: needs a list of class names, or a map from 0, 1, 2, ... to names")
    names = tuple(_read_name(yaml, index, name) for index, name in enumerate(names))
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise _spec_error(yaml, f"names: {', '.join(map(repr, repeated))} stands there more than once")
    if count is not None and count != len(names):
        raise _spec_error(
            yaml, f"nc: {count}, but names has {len(names)} entries; drop nc or mend one of them"
        )
    return names


def _names_of_map(yaml: Path, names: dict) -> list:
    wrong = [key for key in names if not isinstance(key, int) or isinstance(key, bool)]
    if wrong:
        raise _spec_error(yaml, f"names: key {wrong[0]!r} is not a class index (0, 1, 2, ...)")
    missing = sorted(set(range(len(names))) - names.keys())
    if missing:
        extra = sorted(names.keys() - set(range(len(names))))
        keys = f"{len(names)} classes need the keys 0..{len(names) - 1}"
        raise _spec_error(yaml, f"names: {keys}; missing {missing}, instead there are {extra}")
    return [names[index] for index in range(len(names))]


def _read_name(yaml: Path, index: int, name) -> str:
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)  # digits as classes
    if not isinstance(name, str) or not name.strip():
        raise _spec_error(yaml, f"names: class {index} is {name!r}, not text; put the name in quotes")
    return name.strip()


def _walk(folder: Path) -> Iterator[str]:
    """Pictures under a folder, links followed, each real folder entered once."""
    entered = set()
    for parent, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in entered else [name for name in folders if not name.startswith(".")]
        if real in entered:
            continue
        entered.add(real)
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def _raise_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot list this folder: {error.strerror}", DATA) from error


def _read_list(path: Path, root: Path) -> Iterator[str]:
    """Pictures of a list file: absolute, or relative to the file's folder, else to the data set's root."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        text = f"{path}: cannot read this as a list of pictures (UTF-8, one path a line): {error}"
        raise UserError(text, DATA) from error
    for line in filter(None, map(str.strip, lines)):
        beside = os.path.normpath(os.path.join(path.parent, line))
        if not os.path.exists(beside):
            below_root = os.path.normpath(os.path.join(root, line))
            beside = below_root if os.path.exists(below_root) else beside
        yield beside
