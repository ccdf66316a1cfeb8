"""What has to be there before a data set can be read: pictures that are fetched, or drawn."""

import os
from collections.abc import Sequence
from pathlib import Path

from data.download import DATA_ROOT, fetch_all
from data.formats.sources import SPLITS, paths_tried
from data.shapes import ensure_shapes
from data.spec import find_data_yaml, find_place
from utils.config_files import read_yaml
from utils.errors import DATA

ENTRIES = (*SPLITS, "images", "annotations")


def prepare_data(path: str | Path, *, root: str | Path = DATA_ROOT, download: bool) -> None:
    """Draw the generated data set if ``path`` is its YAML; with ``download``, fetch what the YAML names.

    ``root`` is the user's folder for data sets: it may come from a flag or a default, never from a file of
    strangers. Nothing is fetched where ``load_data_spec`` would find all that ``ENTRIES`` name. For one
    process, before ``load_data_spec``.
    """
    yaml = find_data_yaml(path)
    if download and os.path.isdir(yaml):
        print(f"{yaml}: the folder has no data.yaml that would say from where: nothing to fetch")
    elif download:
        _fetch_missing(yaml, root)
    ensure_shapes(yaml)


def _fetch_missing(yaml: Path, root: str | Path) -> None:
    content = read_yaml(yaml, code=DATA)
    place = find_place(yaml, content, root)
    if place.state != "partial" and _is_there(place.search, [content.get(key) for key in ENTRIES]):
        where = f" in {place.folder}" if place.state == "complete" else ""
        print(f"{yaml}: the data is there already{where}: nothing to fetch")
    else:
        top = Path(content.get("path") or "").name  # the folder that its archives are packed in, often
        fetch_all(place.downloads, place.folder, where=yaml, tops=(top,))


def _is_there(search: Sequence[Path], value: object) -> bool:
    """Whether every path in nested lists and maps exists where ``load_data_spec`` looks."""
    if isinstance(value, dict | list):
        return all(_is_there(search, item) for item in (value.values() if isinstance(value, dict) else value))
    return value is None or any(map(os.path.exists, paths_tried(search, str(value))))
