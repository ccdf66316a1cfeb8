"""Which boxes the bins can express, at an input size, before anything is trained. T boxes, L levels.

A level can express a box if one of its anchor points lies inside it and none of the four distances exceeds
``reg_max`` strides; a side below the smallest stride counts as that long (utils/assigners/candidates.py). The
axes are independent, and the cell centre nearest the box's centre is the best there is, so one division a
box and level answers it. Boxes are xyxy px of the letterboxed input, without augmentation.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.index import Index
from data.letterbox import input_shape, plan_letterbox

MAX_REG_MAX = 64  # of the configuration
CHEAP = 2.0  # a reg_max up to this factor higher is a smaller change than one more level
NEXT_LEVEL = 6  # the only coarser level a model can have
NEARLY_ALL = 0.999
ROUNDING = 1e-5  # strides; the assigner computes in float32


class BinAudit(NamedTuple):
    """What the bins make of the boxes of a split, those to be ignored left out."""

    shape: tuple[int, int]  # height, width of the input
    levels: tuple[int, ...]  # log2 of the strides
    reg_max: int
    num_boxes: int
    finest: tuple[int, ...]  # (L,) boxes of which this is the finest level that can express them
    able: tuple[int, ...]  # (L,) boxes this level can express at all
    none: int  # boxes no level can express
    least: int  # reg_max that expresses every box
    least_nearly: int  # reg_max that expresses 99.9 % of them
    none_with_level: int | None  # as ``none``, with level 6 added; None where it is there already


def audit_bins(
    index: Index, imgsz: int | tuple[int, int], *, levels: Sequence[int], reg_max: int
) -> BinAudit:
    """Count the boxes of ``index`` that each level, and no level, can express at ``imgsz``."""
    shape = input_shape(imgsz, 2 ** max(levels))
    needs = needed_reg_max(letterboxed_boxes(index, shape), shape, levels)
    able = needs <= reg_max
    finest = np.where(able.any(0), able.argmax(0), len(levels))
    least = np.sort(np.ceil(needs.min(0))) if needs.size else np.ones(1)
    nearly = least[math.ceil(NEARLY_ALL * len(least)) - 1]
    more = None
    if NEXT_LEVEL not in levels:
        wider = (*levels, NEXT_LEVEL)
        larger = input_shape(imgsz, 2**NEXT_LEVEL)
        needs_wider = needed_reg_max(letterboxed_boxes(index, larger), larger, wider)
        more = int((~(needs_wider <= reg_max).any(0)).sum())
    return BinAudit(
        shape=shape,
        levels=tuple(levels),
        reg_max=reg_max,
        num_boxes=needs.shape[1],
        finest=tuple((finest == level).sum().item() for level in range(len(levels))),
        able=tuple(able.sum(1).tolist()),
        none=int((finest == len(levels)).sum()),
        least=max(1, int(least[-1])),
        least_nearly=max(1, int(nearly)),
        none_with_level=more,
    )


def letterboxed_boxes(index: Index, shape: tuple[int, int]) -> np.ndarray:
    """(T, 4) float64: the boxes that are not to be ignored, in an input of ``shape``."""
    # unreadable pictures have no size; one number a picture, as np.unique is slow on rows
    packed = np.maximum(index.sizes, 1).astype(np.int64) @ (1 << 32, 1)
    sizes, which = np.unique(packed, return_inverse=True)
    plans = [plan_letterbox(divmod(size, 1 << 32), shape) for size in sizes.tolist()]
    scales = np.array([plan.scale * 2 for plan in plans]).reshape(-1, 4)
    offsets = np.array([plan.offset * 2 for plan in plans], np.float64).reshape(-1, 4)
    kept = ~index.ignore
    row = np.repeat(which, np.diff(index.offsets))[kept]
    return index.boxes[kept] * scales[row] + offsets[row]


def needed_reg_max(boxes: np.ndarray, shape: tuple[int, int], levels: Sequence[int]) -> np.ndarray:
    """(L, T) the largest of the four distances, in strides, from the best point of each level; else inf."""
    low, high = _enlarge(boxes[:, :2], boxes[:, 2:], 2 ** min(levels))
    needs = np.empty((len(levels), len(boxes)))
    for row, level in zip(needs, levels, strict=True):
        stride = 2**level
        cells = np.array(shape[::-1]) // stride
        cell = np.floor((low + high) / (2 * stride)).clip(0, cells - 1)
        point = (cell + 0.5) * stride
        inside = (np.minimum(point - low, high - point) >= -ROUNDING * stride).all(1)
        reach = np.maximum(point - low, high - point).max(1, initial=0) / stride
        row[:] = np.where(inside, np.maximum(reach - ROUNDING, 0), np.inf)
    return needs


class Remedy(NamedTuple):
    """A setting that helps."""

    setting: str  # key=value
    effect: str


def find_remedies(audit: BinAudit) -> list[Remedy]:
    """Settings with which the bins express every box, the smallest change first; [] if they do already.

    Where that takes more than ``CHEAP`` times the bins, also the one for 99.9 % of the boxes.
    """
    if not audit.none:
        return []
    options = []
    if audit.least <= MAX_REG_MAX:
        options.append((audit.least / audit.reg_max, f"model.reg_max={audit.least}", "all"))
    if audit.none_with_level == 0:
        levels = ",".join(map(str, (*audit.levels, NEXT_LEVEL)))
        options.append((CHEAP, f"model.levels=[{levels}]", "all"))
    dear = min((option[0] for option in options), default=CHEAP + 1) > CHEAP
    if dear and audit.reg_max < audit.least_nearly <= min(audit.least - 1, MAX_REG_MAX):
        options.append((audit.least_nearly / audit.reg_max, f"model.reg_max={audit.least_nearly}", "99.9 %"))
    return [Remedy(setting, f"expresses {effect}") for _, setting, effect in sorted(options)]


def format_audit(audit: BinAudit) -> str:
    """One line for people."""
    height, width = audit.shape
    text = f"bins: {share(audit.none, audit.num_boxes)} of {audit.num_boxes} boxes cannot be expressed"
    text += f" at {height}x{width} with reg_max {audit.reg_max}"
    remedies = [f"--set {remedy.setting} {remedy.effect}" for remedy in find_remedies(audit)]
    return "; ".join([text, *remedies])


def share(part: int, whole: int) -> str:
    """Per cent; something is never shown as 0, nor nearly all as 100."""
    share = part / max(whole, 1)
    return f"{share:.1%}" if part in (0, whole) or 0.0005 <= share < 0.9995 else f"{share:.3%}"


def _enlarge(low: np.ndarray, high: np.ndarray, shortest: float) -> tuple[np.ndarray, np.ndarray]:
    half = np.maximum(high - low, shortest) / 2
    centre = (low + high) / 2
    return centre - half, centre + half
