"""The range of the values of pictures deeper than 8 bits: ``data.pixel_range: auto``. N pictures.

Of many deep pictures a fixed sample is looked at, so that the answer is the same each time; what other
pictures hold beyond it is cut off.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data.cache import Column, load_arrays, save_arrays
from data.images import is_deep, read_stored
from data.pixels import Measured, choose_range
from utils.config import Config
from utils.errors import UserError
from utils.files import read_many

VERSION = 3  # goes up whenever reading stored values gives something else
MOST_READ = 500  # deep pictures whose values are read
FINE = 500  # rows or columns of a picture from which on not every one is counted at the ends
THREADS = 4  # that decode
COLUMNS = {  # of a cache entry
    "state": Column("uint8", (32,)),  # digest of paths and stats
    "counts": Column("int64", (3,)),
    "types": Column("U", ("types",)),
    "range": Column("float64", (2,)),
    "whole": Column("bool", ()),
    "inner": Column("float64", (2,)),
    "shares": Column("float64", (2,)),
}


class _Values(NamedTuple):
    """Of one picture."""

    type: str
    low: float
    high: float
    whole: bool  # all are whole numbers
    inner: tuple[float, float]  # the least above low, the greatest below high
    counts: tuple[int, int]  # values at low, at high, of those that are counted
    size: int  # values that are counted


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
        types, ends = tuple(entry["types"].tolist()), entry["range"].tolist()
        inner, shares = tuple(entry["inner"].tolist()), tuple(entry["shares"].tolist())
        return Measured(*entry["counts"].tolist(), types, *ends, bool(entry["whole"]), inner, shares)
    deep = [path for part in read_many(_deep_ones, paths) for path in part]
    chosen = [deep[i] for i in _spread(len(deep), MOST_READ)]
    with ThreadPoolExecutor(THREADS) as pool:
        read = [values for values in pool.map(lambda path: _extremes(path, bands), chosen) if values]
    found = _gather(len(paths), len(deep), read)
    arrays = {"state": state, "counts": np.array(found[:3], np.int64), "types": np.array(found.types, "U")}
    arrays |= {"range": np.array(found[4:6]), "whole": np.array(found.whole)}
    save_arrays(
        "values", key, arrays | {"inner": np.array(found.inner), "shares": np.array(found.shares, np.float64)}
    )
    return found


def _gather(num_pictures: int, num_deep: int, read: list[_Values]) -> Measured:
    """All pictures as one; a picture's end that is not the end of all is one of the values within."""
    low = min((item.low for item in read), default=0.0)
    high = max((item.high for item in read), default=0.0)
    least = [item.inner[0] if item.low == low else item.low for item in read]
    greatest = [item.inner[1] if item.high == high else item.high for item in read]
    total = sum(item.size for item in read)
    return Measured(
        num_pictures,
        num_deep,
        num_read=len(read),
        types=tuple(sorted({item.type for item in read})),
        low=low,
        high=high,
        whole=all(item.whole for item in read),
        inner=(min(least, default=0.0), max(greatest, default=0.0)),
        shares=(
            sum(item.counts[0] for item in read if item.low == low) / max(total, 1),
            sum(item.counts[1] for item in read if item.high == high) / max(total, 1),
        ),
    )


def resolve_range(config: Config, found: Measured) -> Config:
    """The configuration with the range that ``auto`` stands for: ``full`` where no picture is deep."""
    span = choose_range(found) or "full"
    return config.model_copy(update={"data": config.data.model_copy(update={"pixel_range": span})})


def _deep_ones(paths: list[str]) -> list[str]:
    return [path for path in paths if is_deep(path)]


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` numbers, evenly spread."""
    return list(range(count)) if count <= most else [number * count // most for number in range(most)]


def _extremes(path: str, bands: tuple[int, int, int] | None) -> _Values | None:
    """None for a picture that cannot be read, or holds NaN."""
    try:
        values = read_stored(path, bands)
    except UserError:
        return None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return None
    whole = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
    low, high = values.min(), values.max()
    step = 1 + min(values.shape[:2]) // FINE  # counting all values would take longer than decoding them
    values = values[::step, ::step]
    inner = (
        float(values.min(where=values > low, initial=high)),
        float(values.max(where=values < high, initial=low)),
    )
    counts = int((values == low).sum()), int((values == high).sum())
    return _Values(values.dtype.name, float(low), float(high), whole, inner, counts, values.size)


def _contradiction(arrays: dict[str, np.ndarray]) -> str:
    low, high = arrays["range"].tolist()
    return "" if np.isfinite([low, high]).all() and low <= high else "its range is none"
