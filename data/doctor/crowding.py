"""Pictures with more objects than are counted, kept, or could be told apart."""

import numpy as np

from data.doctor.findings import Finding
from data.index import Index
from utils.config import Config
from utils.metrics.crowding import COUNTED, count_objects

MANY = 0.01  # share of a split's objects from which what is lost is a warning


def check_crowding(index: Index, split: str, config: Config, shape: tuple[int, int]) -> list[Finding]:
    """What a perfect detector would lose, as pictures hold too many objects for COCO, max_det or the head.

    ``shape`` (height, width) of the input. Measured are val and test; each object needs an anchor point of
    its own in every split.
    """
    owners = np.repeat(np.arange(len(index.sizes)), np.diff(index.offsets))[~index.ignore]
    objects = count_objects(owners, index.labels[~index.ignore], len(index.sizes))
    points = sum((shape[0] >> level) * (shape[1] >> level) for level in config.model.levels)
    most, largest = int(objects.totals.max(initial=0)), int(objects.largest.max(initial=0))
    size, max_det = f"{shape[0]}x{shape[1]}", config.val.max_det
    found = [
        _find(
            "crowded-points",
            objects.totals - points,
            f"pictures with more objects than the {points} anchor points at {size} (one holds {most})",
            "raise --imgsz, or cut the pictures into tiles",
        )
    ]
    if split != "train":
        found += [
            _find(
                "crowded",
                objects.largest - COUNTED,
                f"pictures with more than {COUNTED} objects of a class, of which COCO's AP counts {COUNTED} "
                f"detections (one holds {largest})",
                "nothing to mend: val.py and the end of a training show AP at max_det beside it",
            ),
            _find(
                "crowded-max-det",
                objects.totals - max_det,
                f"pictures with more objects than the {max_det} boxes that max_det keeps (one holds {most})",
                f"--set val.max_det={most} (val.py, detect.py: --max-det {most})",
            ),
        ]
    total = objects.totals.sum()
    return [
        Finding("warning" if lost >= MANY * total else "note", code, split, count, f"{text}: {count}", remedy)
        for code, count, lost, text, remedy in found
        if count
    ]


def _find(code: str, surplus: np.ndarray, text: str, remedy: str) -> tuple[str, int, int, str, str]:
    """``surplus`` (N,): objects of each picture beyond a limit, negative below it."""
    return code, int((surplus > 0).sum()), int(surplus.clip(0).sum()), text, remedy
