"""Stored values of any type -> 0..255: the one rule, the same in training, validation and detection.

Values of 8 bits are brightness as they stand. What is deeper is mapped by one line for the whole data set,
low..high -> 0..255, as ``data.pixel_range`` says: a range of each picture's own would show the same object
now bright, now dark.

(H, W, B) are height, width and bands.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from utils.config import DataConfig

FLOATS = "pixels are floating-point numbers, whose range must be known: set data.pixel_range to [low, high]"
WORST_BITS = 64
DARK = 24  # of 255: a picture without anything brighter is nearly black; with nothing below 255 - 24, white


class Pixels(NamedTuple):
    """How values become pixels."""

    range: tuple[float, float] | None = None  # mapped to 0..255; None: 16 bits whole, so the high byte
    bands: tuple[int, int, int] | None = None  # red, green and blue of the pictures' bands, counted from 1


AS_STORED = Pixels()


def pixels_of(cfg: DataConfig) -> Pixels:
    """The rule of a configuration; ``auto`` that nobody has resolved is the whole range of 16 bits."""
    given = cfg.pixel_range
    return Pixels(None if isinstance(given, str) else given, cfg.bands)


def choose_bands(values: np.ndarray, bands: tuple[int, int, int] | None) -> np.ndarray:
    """(H, W, B) -> (H, W, 3): the bands asked for; else the first three; of one or two the first, as grey."""
    count = values.shape[2]
    if bands is None:
        return values[..., :3] if count >= 3 else np.repeat(values[..., :1], 3, 2)
    check_bands(bands, count)
    return values[..., [band - 1 for band in bands]]


def check_bands(bands: tuple[int, int, int], count: int) -> None:
    """A picture of fewer bands than ``data.bands`` asks for is a ``ValueError``."""
    if max(bands) > count:
        raise ValueError(f"the picture has {count} bands, but data.bands asks for {list(bands)}")


def to_eight_bits(values: np.ndarray, span: tuple[float, float] | None) -> np.ndarray:
    """(H, W, B) values of any type -> uint8: ``span`` low..high to 0..255, rounded, cut at both ends.

    uint8 stays as it is. Without ``span`` integers within 0..65535 give their high byte; all else is a
    ``ValueError``, as are NaN and infinity.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        number = int((~np.isfinite(values).all(2)).sum())
        raise ValueError(f"{number} pixels are NaN or infinite; write a number there")
    if span is None:
        return _high_byte(values)
    if values.dtype == np.uint16:
        return _table(*span)[values]
    # float32 holds 16-bit values exactly, larger ones need float64
    exact = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    exact -= span[0]
    exact *= 255 / (span[1] - span[0])
    return np.rint(exact).clip(0, 255).astype(np.uint8)


def is_featureless(picture: np.ndarray) -> bool:
    """Whether a picture of 0..255 is nearly black, or nearly white."""
    return bool(picture.max() < DARK or picture.min() > 255 - DARK)


def _high_byte(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        raise ValueError(FLOATS)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"pixels range from {low} to {high}, more than 16 bits: set data.pixel_range to [low, high]"
        )
    return (values >> 8).astype(np.uint8)


@lru_cache(maxsize=4)
def _table(low: float, high: float) -> np.ndarray:
    """(65536,) what each 16-bit value becomes: looking it up is faster than the arithmetic."""
    values = (np.arange(65536) - low) * (255 / (high - low))
    return np.rint(values).clip(0, 255).astype(np.uint8)


class Measured(NamedTuple):
    """The values of the deep pictures of a split."""

    num_pictures: int  # of the split
    num_deep: int  # of them with more than 8 bits, signed or floating point
    num_read: int  # of the deep ones, those whose values were looked at
    types: tuple[str, ...]  # uint16, float32, ...
    low: float
    high: float
    whole: bool  # no value has a fraction
    inner: tuple[float, float] = (0.0, 0.0)  # least and greatest of the values that are not low, not high
    shares: tuple[float, float] = (0.0, 0.0)  # of the values, at low and at high


def choose_range(found: Measured) -> tuple[float, float] | None:
    """The range that ``auto`` stands for; None without deep pictures.

    Whole numbers from 0 on: 0 to the smallest 2^n - 1 (n = 8, 10, 12, ...) that holds the largest, as that is
    what the device could deliver. Floating point within 0..1: 0..1, also where all of it is 0 or 1. Else, as
    with negative numbers, kelvins or more than 64 bits: what was found.
    """
    if not found.num_read:
        return None
    fractions = not found.whole or all(kind.startswith("float") for kind in found.types)
    if fractions and found.low >= 0 and found.high <= 1:
        return 0.0, 1.0
    if found.whole and found.low >= 0 and found.high < 2**WORST_BITS:
        bits = next(bits for bits in range(8, WORST_BITS + 1, 2) if found.high < 2**bits)
        return 0.0, float(2**bits - 1)
    return (found.low, found.high) if found.low < found.high else (found.low, found.low + 1)


def describe_range(found: Measured | None, span: str | tuple[float, float]) -> str:
    """``12 bits in uint16 files (0..4095) -> 0..255``; ``found`` is None where nothing was measured."""
    if isinstance(span, str):
        deeper = "deeper ones" if found is None or not found.num_deep else f"{found.num_deep} deeper ones"
        return "pixels:   8 bits as stored" + (
            "" if found and not found.num_deep else f"; of {deeper} the high byte of 16 bits, 0..65535"
        )
    low, high = span
    if found is None:
        return f"pixels:   8 bits as stored; deeper ones {low:.10g}..{high:.10g} -> 0..255"
    kinds = " and ".join(found.types) or "deep"
    bits = int(high + 1).bit_length() - 1
    tidy = low == 0 and high == 2**bits - 1 and bits >= 8 and "float" not in kinds
    what = f"{bits} bits in {kinds} files" if tidy else f"{kinds} files"
    mixed = found.num_pictures - found.num_deep
    rest = f"; {mixed} pictures of 8 bits, as stored" if mixed else ""
    return f"pixels:   {what} ({low:.10g}..{high:.10g}) -> 0..255{rest}"
