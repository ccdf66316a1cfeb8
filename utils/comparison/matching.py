"""COCO's matching once, its accumulation many times: average precision of re-weighted pictures.

N pictures, D detections, C classes, B re-weightings, L = 10 IoU thresholds .5, .55, ..., .95.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask

from utils.metrics.coco import RECALLS, start_evaluation, with_ranks
from utils.metrics.crowding import COUNTED

MEASURES = ("AP", "AP50", "AP75")
_MEASURED_LEVELS = (slice(None), slice(0, 1), slice(5, 6))  # of the L thresholds, one for each measure
_EVERYWHERE = [[0.0, 1e10]]  # COCO's area range "all", px^2
_CHUNK = 1 << 22  # numbers in the largest intermediate array: 32 MB
_BINS = 10


class Matches(NamedTuple):
    """What COCO's matching of one run found: all areas, the best 100 detections of a class in a picture.

    Detections are sorted by class, then by falling score; equal scores by picture, as COCO has them.
    """

    picture_ids: np.ndarray  # (N,) in the order of the data set: the columns of ``weights``
    names: tuple[str, ...]  # C class names in the order of the data set
    offsets: np.ndarray  # (C + 1,) where the detections of each class begin
    picture: np.ndarray  # (D,) index into picture_ids
    true: np.ndarray  # (L, D) bool, matched to a truth that counts
    counted: np.ndarray  # (L, D) bool, neither matched to a crowd nor left out otherwise
    truths: np.ndarray  # (C, N) number of truths that count


def match_detections(truth: dict, rows: np.ndarray, evaluator: str = "hotcoco") -> Matches:
    """Match ``rows`` (D, 7) (``pack_detections``, stacked) to ``truth`` (``make_ground_truth``).

    ``evaluator`` as for ``evaluate_detections``. Without detections the arrays are empty.
    """
    own_ids = np.array([image["id"] for image in truth["images"]], np.int64)
    truth, rows = with_ranks(truth, rows)
    picture_ids = [image["id"] for image in truth["images"]]
    places = {int(picture): n for n, picture in enumerate(picture_ids)}
    classes = {category["id"]: k for k, category in enumerate(truth["categories"])}
    truths = np.zeros((len(classes), len(places)), np.int64)
    for box in truth["annotations"]:
        truths[classes[box["category_id"]], places[box["image_id"]]] += not box["iscrowd"]
    found = [entry for entry in _evaluate_pictures(truth, rows, evaluator) if entry and entry["dtIds"]]
    sizes = [len(entry["dtIds"]) for entry in found]
    label = np.repeat([classes[entry["category_id"]] for entry in found], sizes).astype(np.int64)
    picture_id = np.repeat([entry["image_id"] for entry in found], sizes).astype(np.int64)
    score = np.concatenate([np.zeros(0), *(entry["dtScores"] for entry in found)])
    order = np.lexsort((picture_id, -score, label))
    matched = _join([entry["dtMatches"] for entry in found])[:, order]
    ignored = _join([entry["dtIgnore"] for entry in found])[:, order]
    return Matches(
        picture_ids=own_ids,
        names=tuple(category["name"] for category in truth["categories"]),
        offsets=np.searchsorted(label[order], np.arange(len(classes) + 1)),
        picture=np.array([places[int(picture)] for picture in picture_id[order]], np.int64),
        true=matched & ~ignored,
        counted=~ignored,
        truths=truths,
    )


def _evaluate_pictures(truth: dict, rows: np.ndarray, evaluator: str) -> list:
    """COCO's record of each class in each picture, None or left out where there is nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = start_evaluation(truth, rows, evaluator)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = _EVERYWHERE, ["all"]
        evaluation.params.maxDets = [COUNTED]
        evaluation.evaluate()
    return evaluation.evalImgs


def _join(tables: list) -> np.ndarray:
    """(L, D) bool from the tables of the records, side by side in memory as rows are read."""
    levels = np.zeros((10, 0), bool)
    return np.concatenate([levels, *(np.asarray(table).astype(bool) for table in tables)], axis=1)


def weighted_levels(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """(B, C, L) average precision with picture n counted ``weights[b, n]`` times, weights >= 0.

    Whole weights give what COCO finds in a data set that holds picture n ``weights[b, n]`` times (but for the
    order of equal scores). nan where the class has no truths in the re-weighting.
    """
    weights = np.asarray(weights, np.float64)
    result = np.full((len(weights), len(matches.names), 10), np.nan)
    for k, (start, stop) in enumerate(zip(matches.offsets[:-1], matches.offsets[1:], strict=True)):
        rows = max(1, _CHUNK // max(1, stop - start))
        for first in range(0, len(weights), rows):
            part = weights[first : first + rows]
            result[first : first + rows, k] = _average_precision(
                matches.true[:, start:stop],
                matches.counted[:, start:stop],
                np.take(part, matches.picture[start:stop], axis=1),
                part @ matches.truths[k],
            )
    return result


def weighted_ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """(B, 3) AP, AP50, AP75 with picture n counted ``weights[b, n]`` times; nan where no class has truths.

    A class that loses all its truths in a re-weighting is left out of that re-weighting's mean.
    """
    return mean_levels(weighted_levels(matches, weights))


def weighted_class_ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """(B, C) AP of each class in ``matches.names``' order; nan where it has no truths in the re-weighting."""
    return weighted_levels(matches, weights).mean(2)


def mean_levels(levels: np.ndarray) -> np.ndarray:
    """(B, 3) AP, AP50, AP75 from ``weighted_levels`` (B, C, L), over the classes with truths."""
    measured = ~np.isnan(levels[:, :, 0])
    number = np.where(measured.any(1), measured.sum(1), np.nan)
    by_class = [levels[:, :, part].mean(2) for part in _MEASURED_LEVELS]
    return np.stack([np.where(measured, values, 0).sum(1) / number for values in by_class], axis=1)


def _average_precision(true, counted, weights, number) -> np.ndarray:
    """(B, L) average precision of one class from ``true``, ``counted`` (L, D) and ``weights`` (B, D).

    ``number`` (B,) of truths. The precision that COCO reads at a recall is the best at or after the detection
    that reaches it, and both are attained at true positives: only there is anything computed. There
    the n-th recall of ``RECALLS`` up to the reached one is new, and adds the precision / 101.
    """
    result = np.zeros((len(weights), len(true)))
    always = counted.all(0)
    total = np.cumsum(weights * always, axis=1)
    varying = np.flatnonzero(~always)  # those matched to a crowd at some thresholds: few
    extra = np.zeros((len(weights), len(varying) + 1))
    for level in range(len(true)):
        at = np.flatnonzero(true[level])
        hits = np.cumsum(np.take(weights, at, axis=1), axis=1)
        np.cumsum(weights[:, varying] * counted[level, varying], axis=1, out=extra[:, 1:])
        before = np.searchsorted(varying, at, side="right")
        found = np.take(total, at, axis=1) + np.take(extra, before, axis=1)
        best = np.maximum.accumulate((hits / (found + np.spacing(1)))[:, ::-1], axis=1)[:, ::-1]
        recalls = _recalls_up_to(hits / np.maximum(number, np.spacing(1))[:, None])
        result[:, level] = (best * np.diff(recalls, axis=1, prepend=0)).sum(1)
    return np.where(number[:, None] > 0, result / len(RECALLS), np.nan)


def _recalls_up_to(recall: np.ndarray) -> np.ndarray:
    """How many of ``RECALLS`` are <= ``recall``; exact: only the nearest of them needs a comparison."""
    nearest = np.rint(recall * (len(RECALLS) - 1)).astype(np.int64)
    return nearest + (recall >= RECALLS[nearest])


def picture_scores(matches: Matches) -> np.ndarray:
    """(N,) how good the run is on each picture alone, in [0, 1]; nan where it has no truths that count.

    The AP of the classes in the picture, over COCO's ten thresholds, each class counted as often as it has
    truths there. AP and not F1 at a confidence, because losses differ in the scale of their scores: AP asks
    for their order only. Averaged over pictures it is not the AP of the data set.
    """
    total = np.zeros(len(matches.picture_ids))
    for k, (start, stop) in enumerate(zip(matches.offsets[:-1], matches.offsets[1:], strict=True)):
        order = start + np.argsort(matches.picture[start:stop], kind="stable")  # by falling score inside
        bounds = np.searchsorted(matches.picture[order], np.arange(len(total) + 1))
        for n in np.flatnonzero(matches.truths[k]):
            rows, number = order[bounds[n] : bounds[n + 1]], matches.truths[k, n : n + 1]
            true, once = matches.true[:, rows], np.ones((1, len(rows)))
            if true.any():
                found = _average_precision(true, matches.counted[:, rows], once, number)
                total[n] += number[0] * found.mean()
    number = matches.truths.sum(0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def calibration(truth: dict, runs: Sequence[np.ndarray]) -> dict:
    """Do scores tell the IoU?  ``{"bins": [{"score", "iou", "count"}], "error"}`` of ``runs``' (D, 7) rows.

    Ten bins of equal width over the score, empty ones left out: mean score, and mean of the detections' best
    IoU with a truth of their class (0 without one). ``error`` is the mean of |score - iou| of the bins, each
    counted as often as it has detections; 0 without detections. Those that COCO would ignore at IoU 0.5 are
    left out: half of them or more lies in a crowd, and no truth has an IoU of 0.5 with them.
    """
    overlap, crowded = np.concatenate([_best_overlaps(truth, rows) for rows in runs], axis=1)
    kept = (crowded < 0.5) | (overlap >= 0.5)
    scores, overlap = np.concatenate([rows[:, 5] for rows in runs])[kept], overlap[kept]
    place = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    count = np.bincount(place, minlength=_BINS)
    used = np.flatnonzero(count)
    score, iou = (np.bincount(place, values, _BINS)[used] / count[used] for values in (scores, overlap))
    error = float(np.abs(score - iou) @ count[used] / max(1, len(scores)))
    bins = [
        {"score": float(a), "iou": float(b), "count": int(c)}
        for a, b, c in zip(score, iou, count[used], strict=True)
    ]
    return {"bins": bins, "error": error}


def _best_overlaps(truth: dict, rows: np.ndarray) -> np.ndarray:
    """(2, D) best IoU with a truth of the class, and the largest share of the box in one of its crowds."""
    boxes = {}
    for box in truth["annotations"]:
        boxes.setdefault((box["image_id"], box["category_id"]), []).append((*box["bbox"], box["iscrowd"]))
    keys, group = np.unique(rows[:, [0, 6]].astype(np.int64), axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    bounds = np.searchsorted(group.ravel()[order], np.arange(len(keys) + 1))
    best = np.zeros((2, len(rows)))  # truths, crowds
    for key, start, stop in zip(keys.tolist(), bounds[:-1], bounds[1:], strict=True):
        if own := boxes.get(tuple(key)):
            own, members = np.array(own), order[start:stop]
            overlaps = mask.iou(rows[members, 1:5], own[:, :4], own[:, 4].astype(np.uint8))
            for kind in (0, 1):
                best[kind, members] = overlaps[:, own[:, 4] == kind].max(1, initial=0)
    return best
