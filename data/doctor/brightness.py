"""What training will see of the pictures: range of the values, dark pictures, pages and bands left aside."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from data.cache import stat_files
from data.doctor.findings import Finding
from data.doctor.inspect_pictures import Inspection
from data.doctor.measure_pixels import measure_pixels, resolve_range
from data.formats.problems import Problem
from data.formats.sources import DataSpec
from data.index import Found, paths_of
from data.pixels import DARK, Measured, choose_range, describe_range, pixels_of
from utils.config import Config

MANY = 0.01  # share of the pictures above which dark ones are a warning
NARROW = 0.25  # share of the range below which the values leave pictures flat
WHOLE = (0.0, 65535.0)  # 16 bits, of which the high byte is the picture
ENDS = 0.95  # share of the values at both ends of a measured range above which little else is left
ONE_END = 0.9  # at one end of any range
NO_VALUE = 0.01  # share of the values at one number above which it may stand for no value
ONE_SCALE = "bring the splits to one scale: no range suits them all"
RANGE_REMEDY = "--set data.pixel_range=[low,high] says which values become 0 and 255"


class Brightness(NamedTuple):
    """Of the decoded pictures of a split."""

    mean: float  # of 255; NaN where none was decoded
    black: float  # share of the values at 0
    white: float  # at 255
    dark: int  # pictures that are nearly black


def check_range(
    spec: DataSpec, config: Config, founds: Mapping[str, Found]
) -> tuple[Config, str, list[Finding]]:
    """The configuration with a range in place of ``auto``; that range in words; what is to be said about it.

    It is measured on the training pictures; where these are not among the splits, on the first that is.
    """
    if config.data.pixel_range != "auto" or not founds:
        return config, describe_range(None, config.data.pixel_range), []
    first = "train" if "train" in founds else next(iter(founds))
    measured = {}
    for split, found in founds.items():
        paths = paths_of(found.index)
        key = f"{spec.yaml}\0{split}"
        measured[split] = measure_pixels(paths, stat_files(paths), key, bands=config.data.bands)
    config = resolve_range(config, measured[first])
    setting, findings = _common_setting(measured), []
    for split, found in sorted(measured.items(), key=lambda item: item[0] != first):
        findings += (
            _check_no_value(found, config, split, setting)
            or _check_span(found, config, split, setting)
            or (_check_beyond(found, config, split, first, setting) if split != first else [])
        )
    return config, describe_range(measured[first], config.data.pixel_range), findings


def _span_of_rest(found: Measured) -> tuple[float, float]:
    """The values without a number that may stand for no value.

    Such a number is at an end, holds many of the pixels, and all others use little of what it spans.
    """
    low, high = found.low, found.high
    rests = [(found.inner[0], high), (low, found.inner[1]), found.inner]
    often = [share > NO_VALUE for share in found.shares]
    for rest, possible in zip(rests, (*often, all(often)), strict=True):
        if possible and 0 < rest[1] - rest[0] < NARROW * (high - low):
            return rest
    return low, high


def _common_setting(measured: Mapping[str, Measured]) -> str:
    """The range that holds the values of all splits; '' where it would leave those of one flat."""
    spans = [_span_of_rest(found) for found in measured.values() if found.num_read]
    low, high = min((span[0] for span in spans), default=0), max((span[1] for span in spans), default=0)
    suits = low < high and all(span[1] - span[0] >= NARROW * (high - low) for span in spans)
    return f"--set data.pixel_range=[{low:.10g},{high:.10g}]" if suits else ""


def _check_no_value(found: Measured, config: Config, split: str, setting: str) -> list[Finding]:
    """Numbers at an end of the range that hold many pixels, and leave little of the range to all others."""
    span, rest = pixels_of(config.data).range, _span_of_rest(found)
    if span is None or rest == (found.low, found.high) or rest[1] - rest[0] >= NARROW * (span[1] - span[0]):
        return []
    ends = zip((found.low, found.high), rest, found.shares, strict=True)
    told = [f"{share:.1%} of the values are {end:.10g}" for end, kept, share in ends if end != kept]
    part = (rest[1] - rest[0]) / (span[1] - span[0])
    text = (
        f"{' and '.join(told)}, all others {rest[0]:.10g}..{rest[1]:.10g}, {part:.1%} of the range "
        f"{span[0]:.10g}..{span[1]:.10g}: do they stand for no value? pictures are flat"
    )
    return [Finding("warning", "range-ends", split, 0, text, setting or ONE_SCALE)]


def _check_beyond(found: Measured, config: Config, split: str, first: str, setting: str) -> list[Finding]:
    """Whether a split has values that the range, which is that of the split ``first``, does not hold."""
    span = pixels_of(config.data).range
    if span is None:
        return _check_only_deep(found, split, first)
    rest = _span_of_rest(found)  # a number for no value may well become black or white
    low, high = min(rest[0], span[0]), max(rest[1], span[1])
    if not found.num_read or high - low - (span[1] - span[0]) <= NARROW * (span[1] - span[0]):
        return []
    text = (
        f"values {rest[0]:.10g}..{rest[1]:.10g} reach beyond the range of {first}, "
        f"{span[0]:.10g}..{span[1]:.10g}: they become black or white"
    )
    remedy = f"bring both to one scale, or {setting}" if setting else ONE_SCALE
    return [Finding("warning", "beyond-range", split, 0, text, remedy)]


def _check_only_deep(found: Measured, split: str, first: str) -> list[Finding]:
    """Deep pictures where ``first`` has none: that their high byte is meant is so of 16 whole bits only."""
    if not found.num_read or choose_range(found) == WHOLE:
        return []
    values = f"{found.low:.10g}..{found.high:.10g} in {' and '.join(found.types)} files"
    text = (
        f"{found.num_deep} pictures of more than 8 bits ({values}), {first} has none: their high byte is used"
    )
    return [Finding("warning", "beyond-range", split, found.num_deep, text, RANGE_REMEDY)]


def _check_span(found: Measured, config: Config, split: str, setting: str) -> list[Finding]:
    span = pixels_of(config.data).range
    if span is None or not found.num_read or found.high - found.low >= NARROW * (span[1] - span[0]):
        return []
    low, high = f"{found.low:.10g}", f"{found.high:.10g}"
    share = (found.high - found.low) / (span[1] - span[0])
    text = (
        f"values {low}..{high} are {share:.1%} of the range {span[0]:.10g}..{span[1]:.10g}: pictures are flat"
    )
    return [Finding("warning", "narrow-range", split, 0, text, setting or ONE_SCALE)]


def measure_brightness(look: Inspection) -> Brightness:
    """Means over the pictures that could be read."""
    seen = look.known & (np.array(look.faults, str) == "")
    facts = look.facts[seen]
    means = [float(facts[name].mean()) if len(facts) else 0.0 for name in ("brightness", "black", "white")]
    return Brightness(*(round(value, 4) for value in means), int(_dark(look).sum()))


def show_brightness(split: str, found: Brightness) -> str:
    """One line for people."""
    dark = f"; nearly black pictures: {found.dark}" if found.dark else ""
    ends = f"{found.black:.1%} of the values at 0, {found.white:.1%} at 255"
    return f"          {split}: mean brightness {found.mean:.0f} of 255, {ends}{dark}"


def check_looks(
    look: Inspection, paths: list[str], split: str, bands: tuple[int, int, int] | None
) -> list[Finding]:
    """Dark pictures, and what of the files is not looked at."""
    return [
        *_check_mostly(look, paths, split, "dark", "black"),
        *_check_mostly(look, paths, split, "pale", "white"),
        *_check_parts(look, paths, split, bands),
    ]


def check_ends(
    seen: Brightness, config: Config, split: str, told: list[Finding], *, measured: bool
) -> list[Finding]:
    """A range with hardly a value between its ends, as where one number in it means that there is no value.

    Of a range that was measured on zeros and ones there is nothing between. That the values of a split lie at
    both ends is told of ``train`` alone, whose range it is; that they lie at one end, of every split. Nothing
    is said where ``told`` has it.
    """
    if any((finding.code, finding.split) == ("range-ends", split) for finding in told):
        return []
    span = pixels_of(config.data).range
    share, one = seen.black + seen.white, max(seen.black, seen.white)
    if span is None or (measured and span[1] - span[0] <= 1):
        return []
    ends = f"{span[0]:.10g}..{span[1]:.10g}"
    if one > ONE_END:
        end = span[0] if seen.black == one else span[1]
        way = "below" if seen.black == one else "above"
        text = f"{one:.1%} of the values are {end:.10g} or {way}, an end of the range {ends}: does it suit?"
        return [Finding("warning", "range-ends", split, 0, text, RANGE_REMEDY)]
    if split != "train" or not share > ENDS:
        return []
    text = f"{share:.1%} of the values are at the ends of the range {ends}: does one stand for no value?"
    return [Finding("warning", "range-ends", split, 0, text, RANGE_REMEDY)]


def _dark(look: Inspection) -> np.ndarray:
    return look.known & (np.array(look.faults, str) == "") & (look.thumbnails.max((1, 2), initial=0) < DARK)


def _pale(look: Inspection) -> np.ndarray:
    seen = look.known & (np.array(look.faults, str) == "")
    return seen & (look.thumbnails.min((1, 2), initial=255) > 255 - DARK)


def _check_mostly(look: Inspection, paths: list[str], split: str, code: str, what: str) -> list[Finding]:
    numbers = np.flatnonzero(_dark(look) if code == "dark" else _pale(look))
    if not len(numbers):
        return []
    severity = "warning" if len(numbers) > MANY * look.known.sum() else "note"
    places = [Problem(paths[i], 0, f"mean {look.facts['brightness'][i]:.0f} of 255", code) for i in numbers]
    text = f"pictures that are nearly {what}: {len(numbers)}"
    return [Finding(severity, code, split, len(numbers), text, RANGE_REMEDY, tuple(places))]


def _check_parts(
    look: Inspection, paths: list[str], split: str, bands: tuple[int, int, int] | None
) -> list[Finding]:
    pages, channels = look.facts["pages"], look.facts["bands"]
    tiff = np.array([path.lower().endswith((".tif", ".tiff")) for path in paths], bool)
    several, many = pages > 1, channels > 4
    used = f"bands {', '.join(map(str, bands))} are used" if bands else "the first three bands are used"
    first = f"the bands of all pages counted on, {used}" if bands else "the first page is used"
    choose = "" if bands else "--set data.bands=[3,2,1] chooses red, green and blue, counted from 1"
    rows = [
        ("pages", several & tiff, "files of several pages", first, pages, "pages", choose),
        ("frames", several & ~tiff, "files of several pictures", "the first is used", pages, "pictures", ""),
        ("bands", many & ~several, "files of many bands", used, channels, "bands", choose),
    ]  # fmt: skip
    found = []
    for code, mask, what, how, counts, unit, remedy in rows:
        numbers = np.flatnonzero(mask).tolist()
        if numbers:
            places = tuple(Problem(paths[i], 0, f"{counts[i]} {unit}", code) for i in numbers)
            text, severity = f"{what}: {len(numbers)}; {how}", "warning" if remedy else "note"
            found.append(Finding(severity, code, split, len(numbers), text, remedy, places))
    return found
