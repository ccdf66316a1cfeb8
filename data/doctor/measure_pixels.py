"""The range of the values of pictures deeper than 8 bits: ``data.pixel_range: auto``. N pictures.

Of many deep pictures a fixed sample is looked at, so that the answer is the same each time; what other
pictures hold beyond it is cut off.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data.cache import Column, load_arrays, save_arrays
from data.images import is_deep, read_stored
from data.pixels import Measured, choose_range
from utils.config import Config
from utils.errors import UserError
from utils.files import read_many

VERSION = 2  # goes up whenever reading stored values gives something else
MOST_READ = 500  # deep pictures whose values are read
THREADS = 4  # that decode
COLUMNS = {  # of a cache entry
    "state": Column("uint8", (32,)),  # digest of paths and stats
    "counts": Column("int64", (3,)),
    "types": Column("U", ("types",)),
    "range": Column("float64", (2,)),
    "whole": Column("bool", ()),
}


def measure_pixels(
    paths: Sequence[str], stats: np.ndarray, key: str, *, bands: tuple[int, int, int] | None
) -> Measured:
    """The values of the pictures ``paths`` (N,), whose sizes and times are ``stats``, of ``stat_files``.

    From the user's cache, under ``key``, while no picture has changed. Pictures that cannot be read, or hold
    NaN, are passed over: the doctor names them.
    """
    paths, key = list(paths), f"{key}\0values {VERSION} {bands}"
    text = "\0".join(paths).encode("utf-8", "surrogateescape")
    state = np.frombuffer(hashlib.sha256(text + stats.tobytes()).digest(), np.uint8)
    entry = load_arrays("values", key, COLUMNS, name="range of pixels", check=_contradiction)
    if entry is not None and np.array_equal(entry["state"], state):
        low, high = entry["range"].tolist()
        return Measured(
            *entry["counts"].tolist(), tuple(entry["types"].tolist()), low, high, bool(entry["whole"])
        )
    deep = [path for part in read_many(_deep_ones, paths) for path in part]
    chosen = [deep[i] for i in _spread(len(deep), MOST_READ)]
    with ThreadPoolExecutor(THREADS) as pool:
        read = [values for values in pool.map(lambda path: _extremes(path, bands), chosen) if values]
    found = Measured(
        num_pictures=len(paths),
        num_deep=len(deep),
        num_read=len(read),
        types=tuple(sorted({item[0] for item in read})),
        low=min((item[1] for item in read), default=0.0),
        high=max((item[2] for item in read), default=0.0),
        whole=all(item[3] for item in read),
    )
    arrays = {"state": state, "counts": np.array(found[:3], np.int64), "types": np.array(found.types, "U")}
    save_arrays("values", key, arrays | {"range": np.array(found[4:6]), "whole": np.array(found.whole)})
    return found


def resolve_range(config: Config, found: Measured) -> Config:
    """The configuration with the range that ``auto`` stands for: ``full`` where no picture is deep."""
    span = choose_range(found) or "full"
    return config.model_copy(update={"data": config.data.model_copy(update={"pixel_range": span})})


def _deep_ones(paths: list[str]) -> list[str]:
    return [path for path in paths if is_deep(path)]


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` numbers, evenly spread."""
    return list(range(count)) if count <= most else [number * count // most for number in range(most)]


def _extremes(path: str, bands: tuple[int, int, int] | None) -> tuple[str, float, float, bool] | None:
    """Type, least and greatest value, whether all are whole numbers."""
    try:
        values = read_stored(path, bands)
    except UserError:
        return None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return None
    whole = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
    return values.dtype.name, float(values.min()), float(values.max()), whole


def _contradiction(arrays: dict[str, np.ndarray]) -> str:
    low, high = arrays["range"].tolist()
    return "" if np.isfinite([low, high]).all() and low <= high else "its range is none"
