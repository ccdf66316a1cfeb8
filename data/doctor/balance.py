"""How the boxes of a data set are spread: over classes, and over sizes at the input. C classes, T boxes."""

from collections.abc import Mapping, Sequence

import numpy as np

from data.doctor.bins import letterboxed_boxes, share
from data.doctor.findings import Finding
from data.formats.labels import LabelReport
from data.index import Found

SIDES = (2, 8, 32, 96)  # px at the input: limits of the shorter side
LOST, TINY = SIDES[:2]  # below the first a box is hardly a pixel, below the second less than a cell
MANY_LOST, MANY_TINY = 0.001, 0.1  # shares from which it is said
FEW = 10  # boxes of a class
UNEVEN = 100  # most over fewest boxes of a class
NAMED = 8  # classes in a sentence


def count_classes(founds: Mapping[str, Found], num_classes: int) -> dict[str, np.ndarray]:
    """Split -> (C,) boxes of each class, those to be ignored left out."""
    return {
        split: np.bincount(found.index.labels[~found.index.ignore], minlength=num_classes)
        for split, found in founds.items()
    }


def count_sides(found: Found, shape: tuple[int, int]) -> np.ndarray:
    """(5,) boxes by their shorter side in an input of ``shape``: below each of ``SIDES``, and above all."""
    boxes = letterboxed_boxes(found.index, shape)
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf)
    return np.bincount(np.searchsorted(SIDES, shorter, side="right"), minlength=len(SIDES) + 1)


def check_classes(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> list[Finding]:
    """Classes that cannot be learned or measured, and how uneven they are."""
    train = counts.get("train")
    if train is None:
        return []
    if not train.sum():
        text = "no picture has a box: there is nothing to learn"
        return [Finding("error", "no-boxes", "train", 0, text, "check where the labels lie, and their names")]
    found = []
    measured = sum(count for split, count in counts.items() if split != "train")
    others = measured if isinstance(measured, np.ndarray) else np.zeros_like(train)
    unseen, unused = (train == 0) & (others > 0), (train == 0) & (others == 0)
    if unseen.any():
        text = f"classes with boxes elsewhere, but none in train: {_name(unseen, names)}"
        remedy = "move some of their pictures to train"
        found.append(Finding("warning", "class-not-in-train", "", int(unseen.sum()), text, remedy))
    if unused.any():
        text = f"classes without any box: {_name(unused, names)}"
        found.append(Finding("note", "class-unused", "", int(unused.sum()), text))
    unmeasured = (train > 0) & (counts["val"] == 0) if "val" in counts else np.zeros(len(train), bool)
    if unmeasured.any() and counts["val"].any():  # else ``check_measurable`` says it
        text = f"classes without boxes in val (no AP of theirs): {_name(unmeasured, names)}"
        found.append(Finding("note", "class-not-in-val", "", int(unmeasured.sum()), text))
    return found + _check_evenness(train, names)


def check_measurable(report: LabelReport, split: str) -> list[Finding]:
    """A split in which no box counts measures nothing; ``report`` tells why."""
    counted = report.num_boxes - report.num_ignored
    if counted or split != "val":
        return []
    reasons = [
        (report.num_ignored, "are ignored (crowd or difficult)"),
        (report.num_unlisted, "are of classes that `names` leaves out"),
        (report.num_skipped, "are faulty and left out"),
        (report.num_empty, "have no width or no height"),
    ]
    known = [f"{count} boxes {reason}" for count, reason in reasons if count]
    if report.num_missing:
        known.append(f"{report.num_missing} of {report.num_pictures} pictures have no label file")
    text = f"no box counts, so AP cannot be measured: {'; '.join(known) or 'the label files hold no box'}"
    remedy = (
        "label some pictures of val; without it training never stops early and writes no best.pt: last.pt "
        "is what counts"
    )
    return [Finding("warning", "nothing-to-measure", split, 0, text, remedy)]


def _check_evenness(train: np.ndarray, names: Sequence[str]) -> list[Finding]:
    found, few = [], (train > 0) & (train < FEW)
    if few.any():
        text = f"classes with fewer than {FEW} boxes to learn from: {_name(few, names)}"
        found.append(Finding("note", "class-rare", "train", int(few.sum()), text))
    most, fewest = int(train.argmax()), int(np.where(train > 0, train, train.max() + 1).argmin())
    ratio = train[most] / train[fewest]
    if ratio >= UNEVEN:
        text = f"{names[most]} has {ratio:.0f} times as many boxes as {names[fewest]}"
        found.append(Finding("note", "class-balance", "train", 0, text, "add pictures of the rare classes"))
    return found


def check_sides(sides: np.ndarray, split: str, shape: tuple[int, int]) -> list[Finding]:
    """Boxes too small to be seen at this input; ``sides`` as of ``count_sides``."""
    total, height_width = max(int(sides.sum()), 1), f"{shape[0]}x{shape[1]}"
    lost, tiny = int(sides[0]), int(sides[:2].sum())
    remedy = "raise --imgsz, or cut the pictures into tiles"
    if lost >= MANY_LOST * total and lost:
        text = f"boxes with a side below {LOST} px at {height_width}, too small to learn"
        text += f": {lost} ({share(lost, total)})"
        return [Finding("warning", "boxes-lost", split, lost, text, remedy)]
    if tiny >= MANY_TINY * total and tiny:
        text = f"boxes with a side below {TINY} px at {height_width}, less than one cell"
        text += f": {tiny} ({share(tiny, total)})"
        return [Finding("note", "boxes-tiny", split, tiny, text, remedy)]
    return []


def _name(chosen: np.ndarray, names: Sequence[str]) -> str:
    listed = [names[index] for index in np.flatnonzero(chosen)]
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return f"{len(listed)} ({', '.join(listed[:NAMED])}{more})"
