"""Pictures with more objects than are counted: COCO's limit of 100 detections, and our own ``max_det``.

N pictures, T objects; those to be ignored (crowd, difficult) are not among them.
"""

from typing import NamedTuple

import numpy as np

from utils.wording import figure

COUNTED = 100  # detections of a class in a picture that COCO's figures count, the best ones


class Crowding(NamedTuple):
    """How many objects the pictures of a split hold."""

    totals: np.ndarray  # (N,) objects of each picture
    largest: np.ndarray  # (N,) objects of its most frequent class


class Beyond(NamedTuple):
    """What COCO's figures are without its limit: counted are the ``max_det`` best detections of a picture."""

    max_det: int
    AP: float | None
    AP50: float | None
    AP75: float | None
    AR: float | None
    precision: float | None  # with recall, at the confidence of the best mean F1, as in ``Metrics``
    recall: float | None


def count_objects(owners, labels, num_pictures: int) -> Crowding:
    """The objects of N pictures; ``owners`` (T,) are their pictures, 0 .. N - 1, ``labels`` (T,) classes."""
    owners, labels = np.asarray(owners, np.int64), np.asarray(labels, np.int64)
    totals, largest = np.bincount(owners, minlength=num_pictures), np.zeros(num_pictures, np.int64)
    num_classes = int(labels.max(initial=0)) + 1
    pairs, counts = np.unique(owners * num_classes + labels, return_counts=True)
    np.maximum.at(largest, pairs // num_classes, counts)
    return Crowding(totals, largest)


def crowding_of(truth: dict) -> Crowding:
    """The same of a ground truth, ``utils.metrics.coco.make_ground_truth``'s."""
    places = {image["id"]: place for place, image in enumerate(truth["images"])}
    classes = {category["id"]: place for place, category in enumerate(truth["categories"])}
    boxes = [box for box in truth["annotations"] if not box["iscrowd"]]
    owners = [places[box["image_id"]] for box in boxes]
    return count_objects(owners, [classes[box["category_id"]] for box in boxes], len(places))


def describe_crowding(found: Crowding, max_det: int, beyond: Beyond | None = None) -> list[str]:
    """Lines about what the figures do not count; none where no picture holds so many objects."""
    pictures = f"of {len(found.totals)} pictures hold more than"
    lines, most = [], found.totals.max(initial=0)
    if crowded := int((found.largest > COUNTED).sum()):
        line = f"{crowded} {pictures} {COUNTED} objects of a class: COCO's figures count {COUNTED} detections"
        lines.append(f"{line} of it{_show_beyond(beyond)}")
    if full := int((found.totals > max_det).sum()):
        lines.append(
            f"{full} {pictures} max_det, {max_det}: no more boxes of a picture are kept. The largest holds "
            f"{most}: raise it by --max-det {most} (train.py: --set val.max_det={most})"
        )
    return lines


def _show_beyond(beyond: Beyond | None) -> str:
    if beyond is None:
        return ""
    shown = {"AP": beyond.AP, "AP50": beyond.AP50, "P": beyond.precision, "R": beyond.recall}
    figures = ", ".join(f"{key} {figure(value)}" for key, value in shown.items())
    return f"; at max_det {beyond.max_det}: {figures}"
