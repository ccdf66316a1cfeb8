"""The data-set YAML: where the pictures of each split lie, in which format, and the class names.

The keys are YOLOv5's (``path``, ``train``, ``val``, ``test``, ``names``, ``nc``), ``format``, ``images``,
``annotations``, ``voc_offset`` for COCO and VOC, and ``task``, ``kpt_shape``, ``flip_idx`` for the rows of
YOLO labels. Other keys are read over. What stands under ``download`` is fetched only by
``data.prepare.prepare_data``, and never run.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.cache import GONE, Column, is_json_of, is_list_of, load_arrays, save_arrays, stat_files
from data.download import DATA_ROOT, Download, download_state, folder_of, read_downloads
from data.formats.coco import Categories, read_categories
from data.formats.layouts import FORMATS, guess_content, read_darknet, recognise_format
from data.formats.listing import wrong_kind
from data.formats.nearby import other_yamls
from data.formats.readers import list_sources
from data.formats.sources import (
    SPLITS,
    DataSpec,
    check_reading,
    give_ids,
    join,
    paths_tried,
    show,
    show_names,
    show_tried,
    spec_error,
    split_sources,
)
from data.formats.task_keys import read_row_rule
from data.formats.voc import collect_names
from utils.config_files import read_yaml
from utils.errors import DATA, NotFoundError, UserError

REPOSITORY = Path(__file__).resolve().parents[1]
YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")  # of a folder
MAX_CLASSES = 100_000
SHOWN_REPEATED = 5
COLUMNS = {  # of a cache entry
    "stats": Column("int64", ("files", len(GONE))),
    "text": Column("uint8", ("bytes",)),
}


def load_data_spec(path: str | Path, *, root: str | Path = DATA_ROOT, single_cls: bool = False) -> DataSpec:
    """Read a data-set YAML; ``path`` may be a folder, with or without a data.yaml, or a name in our data/.

    ``root`` is the folder with a folder for each downloaded data set. With ``single_cls`` there is one class,
    "object", whatever the file names.
    """
    yaml = find_data_yaml(path)
    content = _read_content(yaml)
    splits = {key: _read_entries(yaml, key, content[key]) for key in SPLITS if not _is_absent(key, content)}
    if not splits:
        text = (
            f"none of the keys {', '.join(SPLITS)} is there; each names a folder, a list file or a JSON file"
        )
        there = ", ".join(show(key) for key in list(content)[:SHOWN_REPEATED])
        raise spec_error(yaml, text + f". There are {there}" * bool(there))
    place = find_place(yaml, content, root)
    if place.state == "partial" and place.search[0] == place.folder:
        raise spec_error(
            yaml, f"{place.folder}: not all of it has arrived; the same command with --download goes on"
        )
    offset = content.get("voc_offset", 0)
    if offset not in (0, 1) or isinstance(offset, bool):
        raise spec_error(
            yaml, f"voc_offset: {show(offset)} is neither 0 (coordinates as written) nor 1 (counted from 1)"
        )
    folders = [_read_folders(yaml, key, content.get(key), splits) for key in ("images", "annotations")]
    search = place.search
    spec = DataSpec(yaml, search[0], splits, ("object",), (0,), search, "yolo", *folders, offset, ())
    spec = spec._replace(folder=place.folder, has_download=bool(place.downloads))
    spec = spec._replace(format=_read_format(spec, content.get("format")))
    _check_kinds(spec)
    if spec.format == "yolo":
        spec = spec._replace(row_rule=read_row_rule(yaml, content))
    return spec if single_cls else _with_names(spec, content)


def _is_absent(key: str, content: dict) -> bool:
    """Whether the YAML has no such split; exports may leave the entry of ``test`` empty."""
    return content.get(key) is None or (key == "test" and content[key] in ("", []))


def _read_content(yaml: Path) -> dict:
    if os.path.isdir(yaml):
        return guess_content(yaml)
    return read_darknet(yaml) if yaml.suffix == ".data" else read_yaml(yaml, code=DATA)


def find_data_yaml(path: str | Path) -> Path:
    """The YAML file meant by a ``--data`` argument, absolute; a folder that has none is returned itself."""
    ours = REPOSITORY / "data"
    tried = [join(base, str(path)) for base in (Path.cwd(), ours, REPOSITORY)]
    if not Path(path).suffix:
        tried.append(ours / f"{path}.yaml")
    tried = list(dict.fromkeys(tried))
    for candidate in tried:
        if os.path.isdir(candidate):
            there = (candidate / name for name in YAMLS if os.path.isfile(candidate / name))
            return next(there, candidate)
        if os.path.isfile(candidate):
            return candidate
    check_reading(tried)
    if found := next(filter(os.path.exists, tried), None):
        raise UserError(f"data set {found}: this is neither a file nor a folder", DATA)
    raise NotFoundError(f"data set {show(str(path))} not found; tried:\n{show_tried(tried)}", DATA)


@contextmanager
def remembered(source: str) -> Iterator[None]:
    """Inside, data that is not there is told as the memory of ``source``, which no flag of today names.

    A path that nobody typed says nothing to a user; --data, which mends it, does. '' changes nothing.
    """
    try:
        yield
    except NotFoundError as error:
        if not source:
            raise
        raise NotFoundError(
            f"{error}\nNo flag gave this path: it is kept in {source}. Where the data set has moved, add "
            "--data <its YAML or folder>",
            error.code,
        ) from error


def check_there(spec: DataSpec, splits: Iterable[str]) -> None:
    """A ``NotFoundError`` if an entry of ``splits`` leads nowhere."""
    for split in spec.splits.keys() & set(splits):
        split_sources(spec, split)


class Place(NamedTuple):
    """Where a data set lies, or will lie."""

    search: tuple[Path, ...]  # where entries are looked up; the first is the data set's root
    folder: Path | None  # its own below the data-sets root; None without a YAML
    downloads: tuple[Download, ...]
    state: str  # of what a download left in ``folder``: see ``download_state``


def find_place(yaml: Path, content: Mapping, root: str | Path) -> Place:
    """Where a data set is looked up: in what was downloaded for this very YAML, below the folder of ``path``,
    beside the YAML, in the working directory.

    Where no folder ``path`` exists, the data set's own folder below ``root`` stands for it; where that does
    not exist either, all candidates do: a later error names them.
    """
    path, beside = content.get("path"), yaml if os.path.isdir(yaml) else yaml.parent
    if not isinstance(path, str | None):
        raise spec_error(yaml, f"path: {show(path)} is not the name of a folder")
    tried = [join(base, path) for base in (beside, Path.cwd())] if path is not None else []
    roots = [item for item in tried if os.path.isdir(item)][:1]
    if os.path.isdir(yaml):
        return Place(tuple(dict.fromkeys((*(roots or tried), beside, Path.cwd()))), None, (), "")
    folder, downloads = folder_of(yaml, path, root), read_downloads(yaml, content.get("download"))
    state = download_state(folder, downloads)
    there = [folder] if os.path.isdir(folder) and state in ("", "complete") else []
    roots = [*there, *roots] if state == "complete" else roots or (there if path is not None else []) or tried
    return Place(tuple(dict.fromkeys((*roots, beside, Path.cwd(), *there))), folder, downloads, state)


def _read_entries(yaml: Path, key: str, value) -> list[Path]:
    entries = value if isinstance(value, list) else [value]
    wrong = [entry for entry in entries if not isinstance(entry, str) or not entry]
    if wrong or not entries:
        raise spec_error(yaml, f"{key}: {show(value)} is not a folder, a list file, or a list of these")
    return [Path(entry) for entry in entries]


def _check_kinds(spec: DataSpec) -> None:
    """Raise ``UserError`` for an entry that is neither a folder nor a list, by its ending."""
    if spec.format == "coco":
        return
    for key, entry in ((key, entry) for key, entries in spec.splits.items() for entry in entries):
        kind = wrong_kind(entry.name)
        if kind and not any(map(os.path.isdir, paths_tried(spec.search, entry))):
            raise spec_error(spec.yaml, f"{key}: {show(str(entry))} is {kind}")


def _read_folders(yaml: Path, key: str, value, splits: dict) -> dict[str, list[str]]:
    """Folders by split: a map, or one entry for all splits."""
    if value is None:
        return {}
    value = value if isinstance(value, dict) else dict.fromkeys(splits, value)
    unknown = sorted(map(str, value.keys() - set(SPLITS)))
    if unknown:
        raise spec_error(yaml, f"{key}: {show(unknown[0])} is no split ({', '.join(SPLITS)})")
    found = {
        split: list(map(str, _read_entries(yaml, f"{key}.{split}", item))) for split, item in value.items()
    }
    for split, entry in ((split, entry) for split, entries in found.items() for entry in entries):
        if key == "annotations" and entry.lower().endswith(".json"):
            folder = show(str(splits[split][0])) if split in splits else "<folder>"
            text = f"annotations are folders of VOC's XML files. For COCO write {split}: {entry}"
            raise spec_error(yaml, f"{key}.{split}: {text} and images: {{{split}: {folder}}}")
    return found


def _read_format(spec: DataSpec, value) -> str:
    if value is None:
        return recognise_format(spec)
    if value not in FORMATS:
        raise spec_error(spec.yaml, f"format: {show(value)} is none of {', '.join(FORMATS)}")
    return value


def _with_names(spec: DataSpec, content: dict) -> DataSpec:
    """The classes: of the YAML, else of the label files (COCO, VOC)."""
    if spec.format == "coco":
        return _with_categories(spec, content)
    if spec.format == "voc" and content.get("names") is None and content.get("nc") is None:
        names = tuple(_collect(spec, "names", collect_names))
        if not names:
            raise spec_error(spec.yaml, "names: missing, and no XML file names an object; list them here")
    else:
        names = _read_names(spec.yaml, content)
    return spec._replace(names=names, category_ids=tuple(range(len(names))))


def _with_categories(spec: DataSpec, content: dict) -> DataSpec:
    """Ids by the JSON files of all splits that are there; ``names`` choose and order the classes."""
    ids, known, dropped, notes = _collect(spec, "categories", _list_categories)
    spec = spec._replace(notes=tuple(notes))
    if content.get("names") is None:
        if not known:
            text = (
                "the JSON files have no categories with names; list the names here, in the order of the ids"
            )
            raise spec_error(spec.yaml, f"names: missing, and {text}")
        return spec._replace(names=tuple(known), category_ids=tuple(ids), left_out=tuple(dropped))
    names = _read_names(spec.yaml, content)
    if not known:
        return spec._replace(names=names, category_ids=_ids_by_order(spec.yaml, names, ids))
    id_of = dict(zip(known, ids, strict=True))
    absent = [name for name in names if name not in id_of]
    # A set to measure on need not list a rare class. A name that is meant for one of its own is a mistake.
    if absent and not set(id_of) <= set(names):
        text = f"names: {show(absent[0])} is no category of the JSON files; they have: "
        raise spec_error(spec.yaml, text + show_names(list(id_of)))
    return spec._replace(names=names, category_ids=give_ids(names, id_of))


def _ids_by_order(yaml: Path, names: tuple[str, ...], ids: list) -> tuple:
    """Ids of the classes where the JSON files give no names: in ascending order, if none can be missing."""
    if len(ids) == len(names):
        return tuple(ids)
    for first in (0, 1):
        numbers = range(first, first + len(names))
        # the first or the last number shows from where they count
        if ids and set(ids) <= set(numbers) and (first if first == 0 else len(names)) in ids:
            return tuple(numbers)
    text = f"there are {len(names)}, but the JSON files, which name no categories, use the ids {show(ids)}"
    raise spec_error(yaml, f"names: {text}; add `categories` with ids and names to them")


def _collect(spec: DataSpec, kind: str, collect: Callable[[list[str]], object]):
    """What ``collect`` finds in the label files of the splits that are there, as JSON holds it.

    From the cache, where no file has changed: the files may be large, or many.
    """
    found = (_label_files_there(spec, split) for split in spec.splits)
    files = list(dict.fromkeys(file for part in found for file in part))
    files = files or list_sources(spec, next(iter(spec.splits)))[1]  # says what is not there
    key, stats = "\0".join([f"{kind} 4", *files]), stat_files(files)
    entry = load_arrays("classes", key, COLUMNS, name=kind, check=CHECKS[kind])
    if entry is not None and np.array_equal(entry["stats"], stats):
        return json.loads(entry["text"].tobytes())
    text = json.dumps(collect(files))
    save_arrays("classes", key, {"stats": stats, "text": np.frombuffer(text.encode(), np.uint8)})
    return json.loads(text)


def _bad_names(arrays: dict[str, np.ndarray]) -> str:
    return "" if is_json_of(arrays["text"], lambda value: is_list_of(value, str)) else "no names"


def _bad_categories(arrays: dict[str, np.ndarray]) -> str:
    def right(value: object) -> bool:
        ids, *texts = value
        fine = len(texts) == 3 and isinstance(ids, list) and all(type(key) in (int, str) for key in ids)
        return fine and all(is_list_of(part, str) for part in texts) and len(texts[0]) in (0, len(ids))

    return "" if is_json_of(arrays["text"], right) else "no categories"


CHECKS = {"names": _bad_names, "categories": _bad_categories}  # of a cache entry, by what it holds


def _label_files_there(spec: DataSpec, split: str) -> list[str]:
    try:
        return list_sources(spec, split)[1]
    except UserError:  # said where the split is needed
        return []


def _list_categories(files: list[str]) -> Categories:
    return read_categories(list(map(Path, files)))


def _read_names(yaml: Path, content: dict) -> tuple[str, ...]:
    """Class names in order of the class index, checked against ``nc``."""
    names, count = content.get("names"), content.get("nc")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise spec_error(yaml, f"nc: {show(count)} is not a number of classes")
    if count is not None and count > MAX_CLASSES:
        raise spec_error(yaml, f"nc: {count} is more than {MAX_CLASSES:,} classes; write their true number")
    if names is None and count is not None:
        names = [f"class{index}" for index in range(count)]
    if isinstance(names, dict):
        names = _names_of_map(yaml, names)
    if not names and os.path.isdir(yaml):
        remedy = "write classes.txt, one name a line, into the folder, or a data.yaml with names"
        raise spec_error(yaml, f"there are no class names: {other_yamls(yaml) or remedy}")
    if isinstance(names, str):
        raise spec_error(yaml, f"names: {show(names)} is text; write the names themselves, as a list")
    if not isinstance(names, list) or not names:
        raise spec_error(yaml, "names: needs a list of class names, or a map from 0, 1, 2, ... to names")
    names = tuple(_read_name(yaml, index, name) for index, name in enumerate(names))
    repeated = sorted(name for name, times in Counter(names).items() if times > 1)
    if repeated:
        shown = ", ".join(map(show, repeated[:SHOWN_REPEATED])) + ", ..." * (len(repeated) > SHOWN_REPEATED)
        raise spec_error(yaml, f"names: {shown} stands there more than once")
    if count is not None and count != len(names):
        raise spec_error(
            yaml, f"nc: {count}, but names has {len(names)} entries; drop nc or mend one of them"
        )
    return names


def _names_of_map(yaml: Path, names: dict) -> list:
    # JSON, from which some of these files are made, has no numbers as keys
    names = {int(key) if str(key).isascii() and str(key).isdigit() else key: names[key] for key in names}
    wrong = [key for key in names if not isinstance(key, int) or isinstance(key, bool)]
    if wrong:
        raise spec_error(yaml, f"names: key {show(wrong[0])} is not a class index (0, 1, 2, ...)")
    missing = sorted(set(range(len(names))) - names.keys())
    if missing:
        extra = sorted(names.keys() - set(range(len(names))))
        keys = f"{len(names)} classes need the keys 0..{len(names) - 1}"
        raise spec_error(yaml, f"names: {keys}; missing {show(missing)}, instead there are {show(extra)}")
    return [names[index] for index in range(len(names))]


def _read_name(yaml: Path, index: int, name) -> str:
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)  # digits as classes
    if not isinstance(name, str) or not name.strip():
        raise spec_error(yaml, f"names: class {index} is {show(name)}, not text; put the name in quotes")
    return name.strip()
