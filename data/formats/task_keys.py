"""The task that YOLO labels were written for: ``task``, ``kpt_shape`` and ``flip_idx`` of the YAML."""

from pathlib import Path

from data.formats.sources import show, spec_error
from data.formats.yolo_rows import BOX_COLUMNS, UNSAID, RowRule

POLYGONS = ("segment", "obb")
DIMS = (2, 3)  # numbers of a keypoint: x y, or x y visible
MAX_KEYPOINTS = 10_000


def read_row_rule(yaml: Path, content: dict) -> RowRule:
    """The rule for rows longer than a box. Raises ``UserError`` for a task without boxes, or half described.

    Other tasks than the known ones are read over: the key may hold any description.
    """
    task = content.get("task")
    if task == "classify":
        raise spec_error(yaml, "task: classify has a class for each picture, but no boxes to learn from")
    if task in POLYGONS:
        return RowRule(polygons=True, source=f"task: {task}")
    if content.get("kpt_shape") is not None:
        return _by_shape(yaml, content["kpt_shape"])
    flipped = content.get("flip_idx")
    if isinstance(flipped, list) and flipped:  # one entry a keypoint
        columns = tuple(BOX_COLUMNS + len(flipped) * dims for dims in DIMS)
        return RowRule(columns, source=f"flip_idx with {len(flipped)} entries")
    if task == "pose":
        raise spec_error(yaml, "task: pose needs kpt_shape: [number of keypoints, 2 or 3], to find the boxes")
    return UNSAID


def _by_shape(yaml: Path, shape) -> RowRule:
    """Of ``[K, 2]`` (x y) or ``[K, 3]`` (x y visible)."""
    fine = isinstance(shape, list) and len(shape) == 2 and all(type(value) is int for value in shape)
    if not fine or not 0 <= shape[0] <= MAX_KEYPOINTS or shape[1] not in DIMS:
        text = f"kpt_shape: {show(shape)} is not [number of keypoints, 2 or 3]"
        raise spec_error(yaml, f"{text}: 2 for x y, 3 for x y visible")
    if not shape[0]:
        return UNSAID
    return RowRule((BOX_COLUMNS + shape[0] * shape[1],), source=f"kpt_shape: {shape}")
