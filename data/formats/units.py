"""How the boxes of a label file are written, where it is plain from all of them: unit, corners or sizes.

T boxes.
"""

import numpy as np

from data.formats.labels import RawLabels
from data.formats.yolo_units import MANY_OUTSIDE, written_as_corners

SHARE = 0.01  # of the picture by which a box may overshoot
LEAST_SIDE = 8  # px: in smaller pictures a box below one pixel may be meant
LARGE_SIDE = 32  # px: the same where the other boxes are in px
ENOUGH, REACH = 10, 80  # boxes, and how far to the right and down they go, that percent are told by
NEAR = 950  # the same of thousandths
LIMITS = {"fractions": 1, "percent": 100, "thousandths": 1000}
FIRST_PIXEL = "the box lies in the first pixel: a fraction of the picture, where other boxes are in px?"
SEVERAL = 3  # boxes beyond the picture that make one ask what is meant
EXACT = 1e-3  # of the picture: right boxes keep within it
CHANCE = -5.0  # log10 of the chance that boxes in px all lie in the upper left 100 px


def unit_of(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """A key of ``LIMITS``, or "" for px; ``boxes`` (T, 4) xyxy, ``sizes`` (T, 2) of their pictures.

    Fractions are told by boxes that all lie in the first pixel; percent by boxes that all lie in the first
    hundred, and reach nearly to its end, where the pictures are so much larger that this is no accident.
    Thousandths, as language models write them, are whole numbers, and the pictures may be not much larger
    than a thousand px: these must reach still nearer to the end, and nowhere beyond.
    """
    solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (sizes >= LEAST_SIDE).all(axis=1)
    if not solid.any():
        return ""
    most = boxes[solid].max(axis=0)[2:]
    if (most <= 1 + SHARE).all():
        return "fractions"
    if solid.sum() < ENOUGH:
        return ""
    whole = (boxes[solid] == np.rint(boxes[solid])).all()
    for unit, least, limit in (("percent", REACH, 100 * (1 + SHARE)), ("thousandths", NEAR, 1000)):
        with np.errstate(divide="ignore"):
            chance = np.log10(np.minimum(limit / sizes[solid], 1)).sum()
        within = (most >= least).all() and (most <= limit).all()
        if within and chance < CHANCE and (whole or unit == "percent"):
            return unit
    return ""


def leave_out_fractions(raw: RawLabels, sizes: np.ndarray) -> RawLabels:
    """``raw`` without the boxes that lie in the first pixel of a picture: a problem each, nobody drew them.

    They are fractions among boxes in px, as where two exports were joined. ``sizes`` (N, 2) of the pictures.
    """
    boxes, sides = raw.boxes, sizes[raw.pictures]
    solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (sides >= LARGE_SIDE).all(axis=1)
    within = (boxes >= -1).all(axis=1) & (boxes <= 1 + SHARE).all(axis=1)  # -1: VOC counts from 1
    whole = (boxes == np.rint(boxes)).all(axis=1)  # the first pixel itself
    first = solid & within & ~whole
    problems = [raw.fault_at(row, FIRST_PIXEL, "first pixel") for row in np.flatnonzero(first)]
    return raw.keep(~first)._replace(problems=[*raw.problems, *problems]) if problems else raw


def xywh_unit(boxes: np.ndarray, sizes: np.ndarray) -> tuple[str, str]:
    """Unit as of ``unit_of``, and form as of ``xywh_form``, of boxes that were read from x, y, width, height.

    ``boxes`` (T, 4) xyxy, ``sizes`` (T, 2) width, height.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    ends = {
        "": boxes,
        "corners": np.hstack([boxes[:, :2], sides]),
        "centres": np.hstack([boxes[:, :2] - sides / 2, boxes[:, :2] + sides / 2]),
    }
    for unit, limit in LIMITS.items():
        form = xywh_form(boxes, np.full_like(sizes, limit))
        if unit_of(ends[form], sizes) == unit:
            return unit, form
    return "", xywh_form(boxes, sizes)


def xywh_form(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """What was written in place of x, y, width, height: "corners", "centres" (and sizes), or "" for neither.

    ``boxes`` (T, 4) xyxy as read, ``sizes`` (T, 2) the right and lower ends of the pictures.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    beyond = int((boxes[:, 2:] > sizes * (1 + SHARE)).any(axis=1).sum())
    # some annotators let boxes overshoot; corners, read so, do in many more places
    many = beyond if beyond >= MANY_OUTSIDE * len(boxes) else 0
    if written_as_corners(np.hstack([boxes[:, :2], sides]), many):
        return "corners"
    # Boxes by their upper left corner come nearer to that side than half of their size, centres never do.
    slack = sizes * EXACT
    low, high = boxes[:, :2] - sides / 2, boxes[:, :2] + sides / 2
    within = (low >= -slack).all() and (high <= sizes + slack).all()
    return "centres" if beyond >= SEVERAL and within else ""
