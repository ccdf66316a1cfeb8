"""The unit in which the boxes of a label file are written, where it is plain from all of them. T boxes."""

import numpy as np

SHARE = 0.01  # of the picture by which a box may overshoot
LEAST_SIDE = 8  # px: in smaller pictures a box below one pixel may be meant
ENOUGH, REACH = 10, 80  # boxes, and how far to the right and down they go, that percent are told by
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
