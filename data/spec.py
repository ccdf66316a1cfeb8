"""The data-set YAML: where the pictures of each split lie, in which format, and the class names.

The keys are YOLOv5's (``path``, ``train``, ``val``, ``test``, ``names``, ``nc``), and ``format``, ``images``,
``annotations``, ``voc_offset`` for COCO and VOC. Other keys are read over. What stands under ``download`` is
fetched only by ``download_data``, and never run.
"""

import json
import os
from pathlib import Path

import numpy as np

from data.cache import load_arrays, save_arrays, stat_files
from data.formats.coco import read_categories
from data.formats.layouts import FORMATS, guess_content, recognise_format
from data.formats.sources import (
    SPLITS,
    DataSpec,
    coco_files,
    indent,
    join,
    list_pictures,
    spec_error,
    xml_folders,
)
from data.formats.voc import collect_names
from data.formats.voc import label_paths_of as xml_paths_of
from utils.config_files import read_yaml
from utils.errors import DATA, UserError

REPOSITORY = Path(__file__).resolve().parents[1]


def load_data_spec(path: str | Path, *, single_cls: bool = False) -> DataSpec:
    """Read a data-set YAML; ``path`` may be a folder, with or without a data.yaml, or a name in our data/.

    With ``single_cls`` there is one class, "object", whatever the file names.
    """
    yaml = find_data_yaml(path)
    content = guess_content(yaml) if yaml.is_dir() else read_yaml(yaml, code=DATA)
    splits = {key: _read_entries(yaml, key, content[key]) for key in SPLITS if content.get(key) is not None}
    if not splits:
        text = (
            f"none of the keys {', '.join(SPLITS)} is there; each names a folder, a list file or a JSON file"
        )
        raise spec_error(yaml, text)
    roots = find_roots(yaml, content.get("path"))
    folder = yaml if yaml.is_dir() else yaml.parent
    search = tuple(dict.fromkeys((*roots, folder, Path.cwd())))
    offset = content.get("voc_offset", 0)
    if offset not in (0, 1) or isinstance(offset, bool):
        raise spec_error(
            yaml, f"voc_offset: {offset!r} is neither 0 (coordinates as written) nor 1 (counted from 1)"
        )
    folders = [_read_folders(yaml, key, content.get(key), splits) for key in ("images", "annotations")]
    spec = DataSpec(yaml, roots[0], splits, ("object",), (0,), search, "yolo", *folders, offset)
    spec = spec._replace(format=_read_format(spec, content.get("format")))
    return spec if single_cls else _with_names(spec, content)


def find_data_yaml(path: str | Path) -> Path:
    """The YAML file meant by a ``--data`` argument, absolute; a folder that has none is returned itself."""
    ours = REPOSITORY / "data"
    tried = [join(base, str(path)) for base in (Path.cwd(), ours, REPOSITORY)]
    if not Path(path).suffix:
        tried.append(ours / f"{path}.yaml")
    tried = list(dict.fromkeys(tried))
    for candidate in tried:
        if os.path.isdir(candidate):
            return candidate / "data.yaml" if os.path.isfile(candidate / "data.yaml") else candidate
        if os.path.isfile(candidate):
            return candidate
    raise UserError(f"data set {str(path)!r} not found; tried:\n{indent(tried)}", DATA)


def find_roots(yaml: Path, path) -> list[Path]:
    """The folder that ``path`` names; where none exists, both candidates: a later error names them."""
    if path is None:
        return [yaml if yaml.is_dir() else yaml.parent]
    if not isinstance(path, str):
        raise spec_error(yaml, f"path: {path!r} is not the name of a folder")
    tried = [join(base, path) for base in (yaml.parent, Path.cwd())]
    return [item for item in tried if os.path.isdir(item)][:1] or tried


def _read_entries(yaml: Path, key: str, value) -> list[Path]:
    entries = value if isinstance(value, list) else [value]
    wrong = [entry for entry in entries if not isinstance(entry, str) or not entry]
    if wrong or not entries:
        raise spec_error(yaml, f"{key}: {value!r} is not a folder, a list file, or a list of these")
    return [Path(entry) for entry in entries]


def _read_folders(yaml: Path, key: str, value, splits: dict) -> dict[str, list[str]]:
    """Folders by split: a map, or one entry for all splits."""
    if value is None:
        return {}
    value = value if isinstance(value, dict) else dict.fromkeys(splits, value)
    unknown = sorted(map(str, value.keys() - set(SPLITS)))
    if unknown:
        raise spec_error(yaml, f"{key}: {unknown[0]!r} is no split ({', '.join(SPLITS)})")
    return {
        split: list(map(str, _read_entries(yaml, f"{key}.{split}", item))) for split, item in value.items()
    }


def _read_format(spec: DataSpec, value) -> str:
    if value is None:
        return recognise_format(spec)
    if value not in FORMATS:
        raise spec_error(spec.yaml, f"format: {value!r} is none of {', '.join(FORMATS)}")
    return value


def _with_names(spec: DataSpec, content: dict) -> DataSpec:
    """The classes: of the YAML, else of the label files (COCO, VOC)."""
    if spec.format == "coco":
        return _with_categories(spec, content)
    if spec.format == "voc" and content.get("names") is None and content.get("nc") is None:
        names = _collected_names(spec)
    else:
        names = _read_names(spec.yaml, content)
    return spec._replace(names=names, category_ids=tuple(range(len(names))))


def _with_categories(spec: DataSpec, content: dict) -> DataSpec:
    """Ids by the JSON files of all splits that are there; ``names`` choose and order the classes."""
    files = list(dict.fromkeys(file for split in spec.splits for file in _files_there(spec, split)))
    known, dropped = _cached_categories(files or coco_files(spec, next(iter(spec.splits))))
    if content.get("names") is None:
        if dropped:
            print(f"{spec.yaml}: left out, as no box has it: {', '.join(dropped)}")
        return spec._replace(names=tuple(known.values()), category_ids=tuple(known))
    names, id_of = _read_names(spec.yaml, content), {name: key for key, name in known.items()}
    absent = [name for name in names if name not in id_of]
    if absent:
        text = f"names: {absent[0]!r} is no category of the JSON files; they have: {', '.join(id_of)}"
        raise spec_error(spec.yaml, text)
    return spec._replace(names=names, category_ids=tuple(id_of[name] for name in names))


def _files_there(spec: DataSpec, split: str) -> list[Path]:
    try:
        return coco_files(spec, split)
    except UserError:  # said where the split is needed
        return []


def _cached_categories(files: list[Path]) -> tuple[dict[int, str], list[str]]:
    """``read_categories``, whose files may be large, from the cache where they have not changed."""
    paths = list(map(str, files))
    key, stats = "\0".join(["categories 1", *paths]), stat_files(paths)
    found = load_arrays("categories", key)
    if found is not None and np.array_equal(found["stats"], stats):
        names, dropped = json.loads(found["names"].tobytes())
        return {int(number): name for number, name in names}, dropped
    names, dropped = read_categories(files)
    text = json.dumps([list(names.items()), dropped]).encode()
    save_arrays("categories", key, {"stats": stats, "names": np.frombuffer(text, np.uint8)})
    return names, dropped


def _collected_names(spec: DataSpec) -> tuple[str, ...]:
    """The names in the XML files of all splits, sorted."""
    files = []
    for split in spec.splits:
        files += xml_paths_of(list_pictures(spec, split), xml_folders(spec, split))
    names = collect_names(files)
    if not names:
        raise spec_error(
            spec.yaml, f"names: missing, and no XML file names an object, for example {files[0]}"
        )
    return names


def _read_names(yaml: Path, content: dict) -> tuple[str, ...]:
    """Class names in order of the class index, checked against ``nc``."""
    names, count = content.get("names"), content.get("nc")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise spec_error(yaml, f"nc: {count!r} is not a number of classes")
    if names is None and count is not None:
        names = [f"class{index}" for index in range(count)]
    if isinstance(names, dict):
        names = _names_of_map(yaml, names)
    if not isinstance(names, list) or not names:
        raise spec_error(yaml, "names: needs a list of class names, or a map from 0, 1, 2, ... to names")
    names = tuple(_read_name(yaml, index, name) for index, name in enumerate(names))
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise spec_error(yaml, f"names: {', '.join(map(repr, repeated))} stands there more than once")
    if count is not None and count != len(names):
        raise spec_error(
            yaml, f"nc: {count}, but names has {len(names)} entries; drop nc or mend one of them"
        )
    return names


def _names_of_map(yaml: Path, names: dict) -> list:
    wrong = [key for key in names if not isinstance(key, int) or isinstance(key, bool)]
    if wrong:
        raise spec_error(yaml, f"names: key {wrong[0]!r} is not a class index (0, 1, 2, ...)")
    missing = sorted(set(range(len(names))) - names.keys())
    if missing:
        extra = sorted(names.keys() - set(range(len(names))))
        keys = f"{len(names)} classes need the keys 0..{len(names) - 1}"
        raise spec_error(yaml, f"names: {keys}; missing {missing}, instead there are {extra}")
    return [names[index] for index in range(len(names))]


def _read_name(yaml: Path, index: int, name) -> str:
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)  # digits as classes
    if not isinstance(name, str) or not name.strip():
        raise spec_error(yaml, f"names: class {index} is {name!r}, not text; put the name in quotes")
    return name.strip()
