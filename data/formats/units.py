"""How the boxes of a label file are written, where it is plain from all of them: unit, corners or sizes.

T boxes.
"""

import numpy as np

from data.formats.yolo_units import MANY_OUTSIDE, written_as_corners

SHARE = 0.01  # of the picture by which a box may overshoot
LEAST_SIDE = 8  # px: in smaller pictures a box below one pixel may be meant
ENOUGH, REACH = 10, 80  # boxes, and how far to the right and down they go, that percent are told by
SEVERAL = 3  # boxes beyond the picture that make one ask what is meant
EXACT = 1e-3  # of the picture: right boxes keep within it
CHANCE = -5.0  # log10 of the chance that boxes in px all lie in the upper left 100 px


def unit_of(boxes: np.ndarray, sizes: np.ndarray) -> str:
    """ "fractions", "percent", or "" for px; ``boxes`` (T, 4) xyxy, ``sizes`` (T, 2) of their pictures.

    Fractions are told by boxes that all lie in the first pixel; percent by boxes that all lie in the first
    hundred, and reach nearly to its end, where the pictures are so much larger that this is no accident.
    """
    solid = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (sizes >= LEAST_SIDE).all(axis=1)
    if not solid.any():
        return ""
    most = boxes[solid].max(axis=0)[2:]
    if (most <= 1 + SHARE).all():
        return "fractions"
    limit = 100 * (1 + SHARE)
    with np.errstate(divide="ignore"):
        chance = np.log10(np.minimum(limit / sizes[solid], 1)).sum()
    far = (most >= REACH).all() and solid.sum() >= ENOUGH
    return "percent" if far and (most <= limit).all() and chance < CHANCE else ""


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
    for limit, unit in ((1, "fractions"), (100, "percent")):
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
