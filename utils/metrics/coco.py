"""COCO's metrics, computed by hotcoco (Rust) or pycocotools (the reference); both give the same bits.

N pictures, T true boxes, D detections, C classes; boxes xyxy px of the original picture.
"""

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from utils.errors import DATA, UserError
from utils.metrics.crowding import COUNTED, Beyond, crowding_of
from utils.structures import Detections

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
RECALLS = np.linspace(0, 1, 101)  # where COCO reads the precision
MAX_ID = 2**53  # rows of detections hold ids as float64
_NO_VALUE = -1.0  # COCO's where there is nothing to measure, such as small boxes: ours is None, no number
LIMITS = (1, 10, COUNTED)  # COCO's
_LARGEST = 1e10  # px^2; COCO counts no box of a larger area


class Metrics(NamedTuple):
    """``values`` by ``KEYS``; precision and recall at the confidence of the best mean F1, at IoU 0.5.

    What no truth is there to measure by is None, where COCO writes -1: a mean, a chart or an early stop would
    take -1 for a number.
    """

    values: dict[str, float | None]
    precision: float | None
    recall: float | None
    confidence: float | None
    per_class: dict[str, dict[str, float | None]]  # name -> AP, AP50, AP75, AR100, boxes
    curves: np.ndarray  # (C, 101) precision over RECALLS at IoU 0.5, nan for classes without truths
    beyond: Beyond | None = None  # without COCO's limit, where pictures hold more objects than it counts


def make_ground_truth(
    *,
    picture_ids,
    sizes,
    offsets,
    boxes,
    labels,
    ignore,
    areas,
    category_ids: Sequence[int | str],
    names: Sequence[str],
    sources: Sequence[dict] = (),
) -> dict:
    """A COCO data set in memory, from packed arrays (``data.index.Index``); ignored boxes become crowds.

    All its ids are numbers. Where the source has others, pictures and categories keep them as ``source_id``;
    ``sources`` (N,) are added to the pictures.
    """
    images = [
        {"id": int(number), "height": int(height), "width": int(width), "file_name": str(number)}
        for number, (height, width) in zip(picture_ids, sizes, strict=True)
    ]
    images = [image | source for image, source in zip(images, sources, strict=True)] if sources else images
    numbers = category_ids
    if not all(isinstance(number, int) and abs(number) <= MAX_ID for number in category_ids):
        numbers = range(1, len(category_ids) + 1)
    owner = np.repeat(picture_ids, np.diff(offsets))
    annotations = [
        {
            "id": row + 1,
            "image_id": int(owner[row]),
            "category_id": int(numbers[labels[row]]),
            "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)],
            "area": float(areas[row]),
            "iscrowd": int(ignore[row]),
        }
        for row, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    categories = [
        {"id": int(number), "name": name} | ({} if number == source else {"source_id": source})
        for number, source, name in zip(numbers, category_ids, names, strict=True)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def to_results(truth: dict, rows: np.ndarray) -> list[dict]:
    """Detections in COCO's result form, unrounded, with the ids of the source.

    A picture that has no id of its own there is also named by its file.
    """
    pictures = {image["id"]: {"image_id": image["id"]} for image in truth["images"]}
    for image in truth["images"]:
        if image.get("source_id") is not None:
            pictures[image["id"]] = {"image_id": image["source_id"]}
        elif "source_id" in image:
            pictures[image["id"]] |= {"file_name": image["file_name"]}
    categories = {item["id"]: item.get("source_id", item["id"]) for item in truth["categories"]}
    return [
        pictures[int(row[0])]
        | {"category_id": categories[int(row[6])], "bbox": row[1:5].tolist(), "score": float(row[5])}
        for row in rows
    ]


def from_results(truth: dict, results: Sequence[dict]) -> np.ndarray:
    """(D, 7) rows of what ``to_results`` gave for the same truth."""
    pictures, categories = (
        {
            item["id"] if item.get("source_id") is None else item["source_id"]: item["id"]
            for item in truth[key]
        }
        for key in ("images", "categories")
    )
    try:
        rows = [
            [pictures[d["image_id"]], *d["bbox"], d["score"], categories[d["category_id"]]] for d in results
        ]
    except KeyError as error:
        raise UserError(
            f"there are detections of {error.args[0]!r}, an id that the data set does not have", DATA
        ) from error
    return np.array(rows, np.float64).reshape(-1, 7)


def with_ranks(truth: dict, detections: np.ndarray) -> tuple[dict, np.ndarray]:
    """``truth`` and ``detections`` with the ranks 1, 2, ... of their picture and category ids as ids.

    Ids are whatever the data set has, hashes and time stamps too, and an evaluator may take one for the
    length of an array. Ranks keep the order of the ids, by which evaluators sort, so the metrics are the same
    to the bit. A detection of a picture or a category that the truth does not have is a ``UserError``.
    """
    ranks, rows = {}, detections.copy()
    for key, column in (("images", 0), ("categories", 6)):
        ids = np.sort(np.array([item["id"] for item in truth[key]], np.float64))
        ranks[key] = {int(number): rank for rank, number in enumerate(ids, 1)}
        if not np.isin(rows[:, column], ids).all():
            text = f"there are detections of {key} that the data set does not have; measure on its own data"
            raise UserError(text, DATA)
        rows[:, column] = np.searchsorted(ids, rows[:, column]) + 1
    images = [item | {"id": ranks["images"][item["id"]]} for item in truth["images"]]
    annotations = [
        item
        | {
            "image_id": ranks["images"][item["image_id"]],
            "category_id": ranks["categories"][item["category_id"]],
        }
        for item in truth["annotations"]
    ]
    categories = [item | {"id": ranks["categories"][item["id"]]} for item in truth["categories"]]
    return truth | {"images": images, "annotations": annotations, "categories": categories}, rows


def is_measurable(truth: dict) -> bool:
    """Whether ``truth`` holds a box that COCO counts: none is a crowd's, or of an area beyond its range."""
    return any(not box["iscrowd"] and box["area"] <= _LARGEST for box in truth["annotations"])


def pack_detections(detections: Detections, picture_id: int, category_ids: Sequence[int]) -> np.ndarray:
    """(D, 7) float64: picture id, x, y, width, height, score, category id, as COCO's evaluators take them."""
    boxes = detections.boxes.double().numpy()
    ids = np.full(len(boxes), picture_id, np.float64)
    categories = np.asarray(category_ids, np.float64)[detections.labels.numpy()]
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.column_stack((ids, boxes[:, :2], sides, detections.scores.double().numpy(), categories))


def evaluate_detections(
    truth: dict, detections: np.ndarray, evaluator: str = "hotcoco", *, max_det: int | None = None
) -> Metrics:
    """All metrics of ``detections`` (``pack_detections``, stacked) against ``truth`` (``make_ground_truth``).

    ``evaluator`` is "hotcoco" or "pycocotools"; without hotcoco the latter takes over with one line. COCO
    counts the 100 best detections of a class in a picture. Where a picture holds more objects of a class,
    ``beyond`` has the figures at ``max_det``, the most detections that were kept of a picture (None: all);
    everything else stays COCO's.
    """
    truth, detections = with_ranks(truth, detections)
    max_det = max_det or int(np.unique(detections[:, 0], return_counts=True)[1].max(initial=0))
    crowded = max_det > COUNTED and (crowding_of(truth).largest > COUNTED).any()
    # A detection is matched before all worse ones: one more limit changes nothing below the others.
    limits = [*LIMITS, max_det] if crowded else LIMITS
    precision, recall, scores = _accumulate(truth, detections, evaluator, limits)
    categories = sorted(truth["categories"], key=lambda category: category["id"])  # the evaluators' order
    counts = Counter(a["category_id"] for a in truth["annotations"] if not a["iscrowd"])
    per_class = {
        category["name"]: {
            "AP": _mean(precision[:, :, k, 0, 2]),
            "AP50": _mean(precision[0, :, k, 0, 2]),
            "AP75": _mean(precision[5, :, k, 0, 2]),
            "AR100": _mean(recall[:, k, 0, 2]),
            "boxes": counts[category["id"]],
        }
        for k, category in enumerate(categories)
    }
    curves, best = _curves(precision, scores, 2)
    beyond = _beyond(precision, recall, scores, max_det) if crowded else None
    given = np.argsort(np.argsort([category["id"] for category in truth["categories"]]))
    per_class = {category["name"]: per_class[category["name"]] for category in truth["categories"]}
    return Metrics(_summary(precision, recall), *best, per_class, curves[given], beyond)


def _curves(precision: np.ndarray, scores: np.ndarray, limit: int) -> tuple[np.ndarray, tuple]:
    """(C, 101) precision at IoU 0.5 under the limit of that place, and ``_best_f1`` of it."""
    curves = precision[0, :, :, 0, limit].T
    curves = np.where(curves < 0, np.nan, curves)
    return curves, _best_f1(curves, scores[0, :, :, 0, limit].T)


def _beyond(precision: np.ndarray, recall: np.ndarray, scores: np.ndarray, max_det: int) -> Beyond:
    """The figures under the last limit, ``max_det``."""
    _, best = _curves(precision, scores, -1)
    values = [_mean(precision[level, :, :, 0, -1]) for level in (slice(None), 0, 5)]
    return Beyond(max_det, *values, _mean(recall[:, :, 0, -1]), *best[:2])


def _accumulate(
    truth: dict, detections: np.ndarray, evaluator: str, limits: Sequence[int]
) -> tuple[np.ndarray, ...]:
    """COCO's arrays: precision (10, 101, C, 4, L), recall (10, C, 4, L), scores like precision.

    L ``limits``, ascending: the most detections of a class in a picture that count.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = start_evaluation(truth, detections, evaluator)
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return tuple(np.asarray(evaluation.eval[key]) for key in ("precision", "recall", "scores"))


def start_evaluation(truth: dict, detections: np.ndarray, evaluator: str):
    """The evaluator's ``COCOeval``, before ``evaluate()``; both evaluators have the same methods.

    Its ids should be ranks, see ``with_ranks``.
    """
    truth = truth | {
        "images": [_without_texts(image) for image in truth["images"]],
        "categories": [_without_texts(category) for category in truth["categories"]],
    }
    evaluation = _run_hotcoco(truth, detections) if evaluator == "hotcoco" else None
    return evaluation or _run_pycocotools(truth, detections)


def _without_texts(item: dict) -> dict:
    """A picture or category by number: hotcoco refuses texts that cannot be UTF-8, as names may be."""
    numbers = {key: item[key] for key in ("id", "height", "width") if key in item}
    return numbers | {"file_name" if "height" in item else "name": str(item["id"])}


def _run_hotcoco(truth: dict, detections: np.ndarray):
    try:
        import hotcoco
    except ImportError:
        print("hotcoco cannot be imported: pycocotools computes the metrics, more slowly", file=sys.stderr)
        return None
    ground_truth = hotcoco.COCO(truth)
    return hotcoco.COCOeval(ground_truth, ground_truth.load_res(detections), "bbox")


def _run_pycocotools(truth: dict, detections: np.ndarray):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ground_truth = COCO()
    ground_truth.dataset = truth
    ground_truth.createIndex()
    if len(detections):
        found = ground_truth.loadRes(detections)
    else:  # loadRes reads the first row
        found = COCO()
        found.dataset = {**truth, "annotations": []}
        found.createIndex()
    return COCOeval(ground_truth, found, "bbox")


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float | None]:
    """The twelve figures, by the selections of COCO's ``summarize``."""
    values = (
        *(_mean(precision[level, :, :, 0, 2]) for level in (slice(None), 0, 5)),
        *(_mean(precision[:, :, :, area, 2]) for area in (1, 2, 3)),
        *(_mean(recall[:, :, 0, most]) for most in (0, 1, 2)),
        *(_mean(recall[:, :, area, 2]) for area in (1, 2, 3)),
    )
    return dict(zip(KEYS, values, strict=True))


def _mean(values: np.ndarray) -> float | None:
    measured = values[values > _NO_VALUE]
    return float(np.mean(measured)) if measured.size else None


def _best_f1(precision: np.ndarray, scores: np.ndarray) -> tuple[float | None, ...]:
    """Mean precision and recall over the classes at the confidence of best mean F1, and that confidence.

    ``precision`` and ``scores`` are (C, 101) over RECALLS: at confidence c a class reaches the last recall
    whose score is at least c. So recall is exact to a hundredth, and precision is COCO's envelope. None where
    no class has truths.
    """
    measured = ~np.isnan(precision[:, 0])
    if not measured.any():
        return None, None, None
    grid = np.linspace(0.001, 0.999, 999)
    reached = [np.searchsorted(-row, -grid, side="right") - 1 for row in scores[measured]]
    recall = np.stack([np.where(last >= 0, RECALLS[last.clip(0)], 0) for last in reached])
    rows = precision[measured]
    exact = np.stack(
        [np.where(last >= 0, row[last.clip(0)], 0) for row, last in zip(rows, reached, strict=True)]
    )
    f1 = (2 * recall * exact / (recall + exact + 1e-16)).mean(0)
    best = len(f1) - 1 - int(f1[::-1].argmax())  # of equals the highest confidence
    return float(exact.mean(0)[best]), float(recall.mean(0)[best]), float(grid[best])
