"""What has to be there before a data set can be read: pictures that are fetched, or drawn."""

import os
from pathlib import Path

from data.fetching.download import fetch_all, read_downloads
from data.formats.sources import SPLITS, join
from data.shapes import ensure_shapes
from data.spec import find_data_yaml, find_roots
from utils.config_files import read_yaml
from utils.errors import DATA


def prepare_data(path: str | Path, *, download: bool) -> None:
    """Draw the generated data set if ``path`` is its YAML; with ``download``, fetch what the YAML names.

    Nothing is fetched where all that ``train``, ``val``, ``test`` and ``images`` name exists. For one
    process, before ``load_data_spec``.
    """
    yaml = find_data_yaml(path)
    if yaml.is_file() and download:
        content = read_yaml(yaml, code=DATA)
        root = find_roots(yaml, content.get("path"))[0]
        if _is_there(root, [content.get(key) for key in (*SPLITS, "images")]):
            print(f"{yaml}: the data is there already: nothing to fetch")
        else:
            fetch_all(read_downloads(yaml, content.get("download")), root, where=yaml)
    ensure_shapes(yaml)


def _is_there(root: Path, value: object) -> bool:
    """Whether every path in nested lists and maps exists below ``root``."""
    if isinstance(value, dict | list):
        return all(_is_there(root, item) for item in (value.values() if isinstance(value, dict) else value))
    return value is None or os.path.exists(join(root, str(value)))
