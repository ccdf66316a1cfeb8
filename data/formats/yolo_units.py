"""The unit in which the YOLO labels of a split are written, and whether they are corners, as a whole.

Fractions of the picture (0..1), percent (0..100), thousandths (0..1000) or pixels. T boxes.
"""

from typing import NamedTuple

import numpy as np

FEW, ENOUGH = 5, 20  # rows: fewer say nothing of the unit; of corners that all lie inside
NEARLY_ALL = 0.99
OUTSIDE = 0.1  # share of rows beyond the picture, read as centre and size, that betrays corners
MANY_OUTSIDE = 0.25  # the same where nothing but the rows themselves is asked
TIED = 0.9  # correlation of a corner with its opposite, which a centre and a size do not have
SEVERAL = 3  # rows beyond the left or upper edge that make one ask for the upper left corner
EXACT = 1e-3  # of the limit: right boxes keep within it
STEEP = 1.5  # size for place: a corner that is one further has its opposite about one further
OVER = 1.01  # boxes may reach so far beyond their limit
REACH = 0.7  # of the limit that some box reaches in its unit
LARGER = 1.3  # times the limit: pictures of which somewhere a box would lie beyond it, in pixels
ABOVE_ONE = 2.0  # no fraction is larger

REMEDY = {
    "fractions": "x by the picture's width, y by its height",
    "percent (0..100)": "divide all four by 100",
    "thousandths (0..1000)": "divide all four by 1000",
    "pixels": "divide x and w by the picture's width, y and h by its height",
    "pixels of larger pictures than these": "divide by the size of the pictures they were made for",
    "percent or pixels": "divide all four by 100, or x and w by the picture's width, y and h by its height",
}

LIMITS = {"percent (0..100)": 100, "thousandths (0..1000)": 1000}


class Written(NamedTuple):
    """How the boxes of a split are written."""

    unit: str  # a key of REMEDY
    corners: bool  # x1 y1 x2 y2, of four numbers that should be a centre and a size
    upper_left: bool = False  # x y w h of the upper left corner


def written_as_corners(values: np.ndarray, num_outside: int) -> bool:
    """Whether (T, 4) rows that should be xywh hold x1, y1, x2, y2; ``num_outside`` reach beyond the picture.

    In corners the second pair exceeds the first. So it does in large boxes near the left upper corner; but
    they lie inside of the picture, and their sizes do not follow their places.
    """
    low, high = values[:, :2], values[:, 2:]
    if len(values) < FEW or (high > low).all(1).mean() < NEARLY_ALL:
        return False
    if num_outside >= OUTSIDE * len(values):
        return True
    if len(values) < ENOUGH:
        return False
    with np.errstate(invalid="ignore", divide="ignore"):
        ties = [np.corrcoef(low[:, axis], high[:, axis])[0, 1] for axis in (0, 1)]
    if not np.min(ties) >= TIED:  # NaN, of sides that are all alike, is no tie
        return False
    # boxes that all begin at one place, as in the left upper corner: their size grows twice as fast
    slopes = [np.polyfit(low[:, axis], high[:, axis], 1)[0] for axis in (0, 1)]
    return bool(np.max(slopes) <= STEEP)


def centres_unit(values: np.ndarray, sizes: np.ndarray) -> Written:
    """Of (T, 4) rows that should be cx cy w h as fractions, in pictures of (T, 2) height, width."""
    fine = np.isfinite(values).all(1) & (values >= 0).all(1) & (sizes > 0).all(1)
    values, sizes = values[fine], sizes[fine]
    if len(values) < FEW:
        return Written("fractions", False)
    centre, half = values[:, :2], values[:, 2:] / 2
    large = (values > ABOVE_ONE).any(1).mean() >= 0.5
    # beyond the left or upper edge a box lies in any unit, beyond the others by the unit of fractions alone
    beyond = (half > centre * OVER + 0.01).any(1) | ((centre + half > OVER).any(1) & (not large))
    # some annotators let boxes overshoot: corners, read as centre and size, do so in every third place
    num_outside = int(beyond.sum()) if beyond.mean() >= MANY_OUTSIDE else 0
    corners = written_as_corners(values, num_outside)
    # a centre lies nearer to the right edge than half of a size now and then, a left upper corner never
    with np.errstate(over="ignore"):  # a size of 1e308 is told as a row
        ends = centre + 2 * half
    left = (half > centre * OVER + 0.01).any(1) & (half > 0).all(1)  # a box without a side is none
    upper_left = not corners and left.sum() >= SEVERAL
    if not large:
        return Written("fractions", corners, bool(upper_left and ends.max() <= 1 + EXACT))
    unit = find_unit(values[:, 2:] if corners else centre + half, sizes)
    limit = LIMITS.get(unit, sizes[:, ::-1])
    return Written(unit, corners, bool(upper_left and (ends <= limit * (1 + EXACT)).all()))


def find_unit(ends: np.ndarray, sizes: np.ndarray) -> str:
    """A key of ``REMEDY``, by (T, 2) right and lower ends of boxes in pictures of (T, 2) height, width."""
    extents = sizes[:, ::-1]
    in_pixels = (ends <= extents * OVER + 1).all(1).mean() >= NEARLY_ALL
    for limit, unit in (
        (1, "fractions"),
        *((limit, unit) for unit, limit in LIMITS.items()),
    ):
        if ends.max() > limit * OVER:
            continue
        if not in_pixels:
            return unit
        # In pixels, some box of a wide picture would lie beyond the limit; those that are there come near it.
        wide = (extents > LARGER * limit).any(1).mean() >= NEARLY_ALL
        if wide and len(ends) >= FEW and ends.max() >= REACH * limit:
            return unit
        if limit == 100 and ends.max() >= REACH * limit:
            return "percent or pixels"
    return "pixels" if in_pixels else "pixels of larger pictures than these"
