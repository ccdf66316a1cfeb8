"""Boxes of a split as its files have them, of whatever format, and what is kept of them.

N pictures, T boxes. Boxes are xyxy in pixels of the picture as it is shown (EXIF orientation applied), edges:
pixel i covers [i, i + 1).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data.formats.problems import Policy, Problem

TOLERANCE = 0.01  # a box may overshoot the picture by this share of the picture's side; it is clipped
ROUNDING = 1e-6  # overshoot that six decimals explain: clipped without being counted
SIDES = ("left", "upper", "right", "lower")


class RawLabels(NamedTuple):
    """What the label files of a split say. ``read_labels`` of each format makes it."""

    boxes: np.ndarray  # (T, 4) float64, unclipped
    labels: np.ndarray  # (T,) int64 class index
    ignore: np.ndarray  # (T,) bool, crowd or difficult
    areas: np.ndarray  # (T,) float64 px^2, nan where it is the box's own
    pictures: np.ndarray  # (T,) int64, ascending
    fault_at: Callable[[int, str, str], Problem]  # (row, text, kind) -> that fault with its file and line
    problems: list[Problem]  # of rows and files that gave no box
    left_out: np.ndarray  # (N,) bool, pictures whose labels could not be read at all
    num_missing: int = 0  # pictures without a label file
    num_unlisted: int = 0  # boxes of classes that the YAML's names leave out
    num_unplaced: int = 0  # boxes of pictures whose entry is faulty
    keep_copies: bool = False  # whether equal boxes are all meant
    num_polygons: int = 0  # rows of which the bounds of a polygon are taken
    num_four_points: int = 0  # of these, polygons of four points, as rotated boxes are
    num_keypoint_rows: int = 0  # rows of which the keypoints are left out

    def keep(self, rows: np.ndarray) -> "RawLabels":
        """Of the rows those where ``rows`` (T,) bool is true; all else as it is."""
        kept, columns = np.flatnonzero(rows), ("boxes", "labels", "ignore", "areas", "pictures")
        return self._replace(
            **{field: getattr(self, field)[kept] for field in columns},
            fault_at=lambda row, text, kind: self.fault_at(kept[row], text, kind),
        )


class LabelReport(NamedTuple):
    """What reading the labels of a split came to."""

    num_pictures: int
    num_background: int  # pictures without a box
    num_boxes: int  # with the ignored ones
    num_ignored: int = 0  # crowd or difficult
    num_clipped: int = 0  # kept, but reached beyond the picture
    num_empty: int = 0  # dropped: no width or no height
    num_duplicate: int = 0  # dropped: same box and class as an earlier row of the picture
    num_skipped: int = 0  # faulty rows left out, by data.label_errors skip
    num_left_out: int = 0  # pictures left out, likewise
    num_missing: int = 0  # pictures without a label file
    num_unlisted: int = 0  # left out: boxes of classes that the YAML's names do not list
    num_polygons: int = 0  # rows of which the bounds of a polygon were taken
    num_four_points: int = 0  # of these, polygons of four points, as rotated boxes are
    num_keypoint_rows: int = 0  # rows of which the keypoints were left out
    num_unplaced: int = 0  # left out: boxes of pictures that are listed wrongly
    num_renumbered: int = 0  # pictures whose ids are not those of the source


class KeptLabels(NamedTuple):
    """The boxes that are kept, clipped to their pictures, and why others are not."""

    boxes: np.ndarray  # (T, 4) float64
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    pictures: np.ndarray
    num_clipped: int
    num_empty: int
    num_duplicate: int
    problems: list[Problem]  # rows that reach too far beyond the picture


def format_report(report: LabelReport) -> str:
    """One line for people; counts of what was mended or left out only where there are any."""
    four = " of 4 points or of rotated boxes" * (report.num_four_points == report.num_polygons)
    parts = [
        f"{report.num_pictures} pictures ({report.num_background} background)",
        f"{report.num_boxes} boxes"
        + f" ({report.num_ignored} ignored: crowd or difficult)" * (report.num_ignored > 0),
        f"{report.num_clipped} clipped to the picture" * (report.num_clipped > 0),
        f"{report.num_empty} of no size dropped" * (report.num_empty > 0),
        f"{report.num_duplicate} duplicates dropped" * (report.num_duplicate > 0),
        f"{report.num_skipped} faulty labels skipped" * (report.num_skipped > 0),
        f"{report.num_left_out} pictures left out" * (report.num_left_out > 0),
        f"{report.num_missing} pictures without a label file" * (report.num_missing > 0),
        f"{report.num_unlisted} boxes of classes that names leaves out" * (report.num_unlisted > 0),
        f"{report.num_polygons} are the bounds of polygons{four}" * (report.num_polygons > 0),
        f"keypoints of {report.num_keypoint_rows} left out" * (report.num_keypoint_rows > 0),
        f"{report.num_unplaced} boxes of wrongly listed pictures left out" * (report.num_unplaced > 0),
        f"{report.num_renumbered} pictures numbered anew, by path, as files share ids"
        * (report.num_renumbered > 0),
    ]
    return ", ".join(filter(None, parts))


def clean_labels(raw: RawLabels, sizes: np.ndarray, *, policy: Policy) -> KeptLabels:
    """Boxes clipped to their pictures, those of no size and repeated ones dropped.

    ``sizes`` (N, 2) height, width; boxes of a picture of no size, which cannot be read, are dropped
    uncounted. A box that overshoots by more than ``TOLERANCE`` of the picture's side is a problem, unless the
    ``policy`` is "clip". Sides are judged in float32, in which batches hold them.
    """
    rows = np.flatnonzero((sizes[raw.pictures] > 0).all(axis=1))
    extents = sizes[raw.pictures[rows]][:, [1, 0, 1, 0]].astype(np.float64)
    given = raw.boxes[rows]
    overshoot = np.hstack([-given[:, :2], (given - extents)[:, 2:]]) / extents
    worst = overshoot.max(axis=1, initial=0)
    far = (worst > TOLERANCE + 1e-9) & (policy != "clip")
    boxes = given.clip(0, extents)
    rounded = boxes.astype(np.float32)
    solid = (rounded[:, 2:] > rounded[:, :2]).all(axis=1)
    fine = np.flatnonzero(solid & ~far)
    columns = (raw.labels, raw.ignore, raw.pictures)
    kept = fine
    if not raw.keep_copies:
        kept = fine[_first_of_equals((*boxes[fine].T, *(column[rows[fine]] for column in columns)))]
    labels, ignore, pictures = (column[rows[kept]] for column in columns)
    own, areas = (boxes[kept, 2:] - boxes[kept, :2]).prod(axis=1), raw.areas[rows[kept]]
    return KeptLabels(
        boxes=boxes[kept],
        labels=labels,
        ignore=ignore,
        areas=np.where(np.isnan(areas), own, areas),
        pictures=pictures,
        num_clipped=int((worst[kept] > ROUNDING).sum()),
        num_empty=int((~solid & ~far).sum()),
        num_duplicate=len(fine) - len(kept),
        problems=[
            raw.fault_at(rows[row], _explain_overshoot(given[row], overshoot[row], extents[row]), "outside")
            for row in np.flatnonzero(far)
        ],
    )


def _explain_overshoot(box: np.ndarray, overshoot: np.ndarray, extent: np.ndarray) -> str:
    left, top, right, bottom = (f"{value:.6g}" for value in box)
    width, height = extent[:2].astype(int)
    edge, place = SIDES[int(overshoot.argmax())], "left, top, right, bottom"
    return (
        f"the box {left} {top} {right} {bottom} ({place} in px) reaches {overshoot.max():.2%} "
        f"beyond the {edge} edge of its picture, {width} x {height}; at most {TOLERANCE:.0%} can be clipped"
    )


def _first_of_equals(columns: tuple[np.ndarray, ...]) -> np.ndarray:
    """Ascending indices of the rows that repeat no earlier row."""
    order = np.lexsort(columns)  # stable: of equal rows the earliest comes first
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    return np.sort(np.concatenate([order[:1], order[1:][~same]]))
