"""Re-weighted average precision against COCO's evaluators on repeated pictures, and numbers by hand."""

import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils.comparison import matching
from utils.comparison.matching import (
    calibration,
    match_detections,
    picture_scores,
    weighted_ap,
    weighted_class_ap,
    weighted_levels,
)
from utils.metrics.coco import evaluate_detections

NAMES = ("ant", "bee", "cat")
NOTHING = np.zeros((0, 7))
EVALUATORS = ("hotcoco", "pycocotools")


def truth_of(boxes: list, *, num_pictures: int = 2, ids=(1, 2, 3)) -> dict:
    """``boxes``: (picture, category id, x, y, width, height, crowd)."""
    return {
        "info": {},
        "images": [{"id": n, "height": 200, "width": 300} for n in range(1, num_pictures + 1)],
        "categories": [{"id": i, "name": name} for i, name in zip(ids, NAMES, strict=True)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": picture,
                "category_id": category,
                "bbox": [float(side) for side in box],
                "area": float(box[2] * box[3]),
                "iscrowd": int(crowd),
            }
            for row, (picture, category, *box, crowd) in enumerate(boxes)
        ],
    }


def random_scene(seed, *, num_pictures=12, crowds=0.2, ids=(1, 2, 3), spread=7.0):
    """Truths, and detections near and far from them; every score once."""
    rng = np.random.default_rng(seed)
    boxes, rows = [], [NOTHING]
    for picture in range(1, num_pictures + 1):
        number = rng.integers(0, 8)
        own = np.column_stack((rng.uniform(0, 150, (number, 2)), rng.uniform(8, 120, (number, 2))))
        labels = rng.choice(ids, number, p=(0.6, 0.3, 0.1))
        boxes += [
            (picture, int(label), *box, rng.random() < crowds) for label, box in zip(labels, own, strict=True)
        ]
        far = np.column_stack((rng.uniform(0, 150, (9, 2)), rng.uniform(8, 120, (9, 2))))
        near = [own + rng.normal(0, spread, own.shape) for _ in range(2)]
        found = np.concatenate((*near, far))
        found[:, 2:] = found[:, 2:].clip(1)
        guessed = np.concatenate((labels, labels, rng.choice(ids, 9)))
        scores = np.zeros(len(found))
        rows.append(np.column_stack((np.full(len(found), picture), found, scores, guessed)))
    stacked = np.concatenate(rows)
    stacked[:, 5] = rng.permutation(np.linspace(0.01, 0.99, len(stacked)))
    return truth_of(boxes, num_pictures=num_pictures, ids=ids), stacked


def repeat_pictures(truth: dict, rows: np.ndarray, weights: np.ndarray) -> tuple[dict, np.ndarray]:
    """The data set and its detections with every picture as often as its weight says, under new numbers."""
    images, annotations, found = [], [], [NOTHING]
    for image, weight in zip(truth["images"], weights, strict=True):
        for _ in range(weight):
            number = len(images) + 1
            images.append(image | {"id": number})
            for box in truth["annotations"]:
                if box["image_id"] == image["id"]:
                    annotations.append(box | {"id": len(annotations) + 1, "image_id": number})
            copied = rows[rows[:, 0] == image["id"]].copy()
            copied[:, 0] = number
            found.append(copied)
    return truth | {"images": images, "annotations": annotations}, np.concatenate(found)


def reference(truth: dict, rows: np.ndarray) -> np.ndarray:
    """(10, 101, C) precision at all areas and 100 detections, straight from pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = truth
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, :, 0, 2]


def ones(matches) -> np.ndarray:
    return np.ones((1, len(matches.picture_ids)))


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("seed", range(8))
def test_unweighted_is_coco(seed, evaluator):
    truth, rows = random_scene(seed, ids=(7, 3, 90), crowds=0.4 * (seed % 2))
    matches = match_detections(truth, rows, evaluator)
    metrics = evaluate_detections(truth, rows)
    expected = [metrics.values[key] for key in matching.MEASURES]
    assert weighted_ap(matches, ones(matches))[0] == pytest.approx(expected, abs=1e-12)
    by_class = [metrics.per_class[name]["AP"] for name in matches.names]
    by_class = [math.nan if value is None else value for value in by_class]
    assert weighted_class_ap(matches, ones(matches))[0] == pytest.approx(by_class, abs=1e-12, nan_ok=True)


def test_equal_scores_are_ordered_as_coco_does():
    truth, rows = random_scene(3, num_pictures=30)
    rows[:, 5] = rows[:, 5].round(1).clip(0.1)
    matches = match_detections(truth, rows)
    expected = [evaluate_detections(truth, rows).values[key] for key in matching.MEASURES]
    assert weighted_ap(matches, ones(matches))[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_whole_weights_repeat_pictures(seed):
    truth, rows = random_scene(seed, crowds=0.3)
    weights = np.random.default_rng(seed).integers(0, 4, (3, 12)) * (np.arange(12) % 3 > seed % 2)
    weights[:, 0] += 1  # pycocotools does not take a data set without detections
    found = weighted_levels(match_detections(truth, rows), weights)
    for own, row in zip(found, weights, strict=True):
        precision = reference(*repeat_pictures(truth, rows, row))
        expected = np.where(precision < 0, np.nan, precision).mean(1).T
        assert own == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_the_mean_is_over_classes_that_have_truths():
    # The bee is in picture 2 only. Ant: found in picture 1, in picture 2 behind a false one: 1/2 there.
    truth = truth_of([(1, 1, 10, 10, 50, 50, 0), (2, 1, 10, 10, 50, 50, 0), (2, 2, 99, 9, 50, 50, 0)])
    hits = [[1, 10, 10, 50, 50, 0.5, 1], [2, 10, 10, 50, 50, 0.4, 1], [2, 200, 99, 50, 50, 0.6, 1]]
    matches = match_detections(truth, np.array(hits))
    weights = np.array([[1, 0], [0, 1], [0, 0], [0.5, 0.5], [2, 2]])
    by_class = weighted_class_ap(matches, weights)
    # Both pictures: recall 1/2 with precision 1/2, recall 1 with 2/3; the envelope is 2/3 everywhere.
    assert by_class[:, 0] == pytest.approx([1, 0.5, math.nan, 2 / 3, 2 / 3], nan_ok=True)
    assert by_class[:, 1] == pytest.approx([math.nan, 0, math.nan, 0, 0], nan_ok=True)
    assert np.isnan(by_class[:, 2]).all()
    mean = [1, 0.25, math.nan, 1 / 3, 1 / 3]
    assert weighted_ap(matches, weights)[:, 0] == pytest.approx(mean, nan_ok=True)


def test_only_proportions_of_weights_count():
    matches = match_detections(*random_scene(1))
    weights = np.random.default_rng(0).random((4, 12))
    found = weighted_levels(matches, 8 * weights)  # a power of two: no rounding
    assert found == pytest.approx(weighted_levels(matches, weights), abs=1e-12, nan_ok=True)


def test_order_of_pictures_does_not_matter():
    truth, rows = random_scene(2)
    rng = np.random.default_rng(0)
    weights, order = rng.integers(0, 3, (5, 12)), rng.permutation(12)
    turned = truth | {"images": [truth["images"][n] for n in order]}
    found = weighted_ap(match_detections(turned, rows[rng.permutation(len(rows))]), weights[:, order])
    assert found == pytest.approx(weighted_ap(match_detections(truth, rows), weights), abs=1e-12)


def test_parts_of_bounded_size_give_the_same(monkeypatch):
    matches = match_detections(*random_scene(4))
    weights = np.random.default_rng(0).integers(0, 3, (50, 12))
    expected = weighted_levels(matches, weights)
    monkeypatch.setattr(matching, "_CHUNK", 500)
    assert np.array_equal(weighted_levels(matches, weights), expected, equal_nan=True)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_nothing_found_and_nothing_there(evaluator):
    truth, _ = random_scene(0)
    matches = match_detections(truth, NOTHING, evaluator)
    assert weighted_ap(matches, ones(matches)) == pytest.approx(np.zeros((1, 3)))
    rows = np.array([[1, 10, 10, 50, 50, 0.5, 1]])
    matches = match_detections(truth_of([]), rows, evaluator)
    assert np.isnan(weighted_ap(matches, ones(matches))).all()
    assert np.isnan(picture_scores(matches)).all()
    assert weighted_ap(matches, np.ones((0, 2))).shape == (0, 3)


def test_a_picture_is_scored_as_a_data_set_of_its_own():
    truth, rows = random_scene(5, crowds=0.1)
    matches = match_detections(truth, rows)
    by_class, number = weighted_class_ap(matches, np.eye(12)), matches.truths.T
    expected = np.nansum(by_class * number, axis=1) / np.where(number.any(1), number.sum(1), np.nan)
    assert picture_scores(matches) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert np.nanmin(expected) > 0 and np.nanmax(expected) <= 1


def test_picture_scores_by_hand():
    # Picture 1: one of two ants and the only bee are found, at every threshold. Picture 2: no truth.
    truth = truth_of([(1, 1, 10, 10, 50, 50, 0), (1, 1, 90, 10, 50, 50, 0), (1, 2, 10, 90, 50, 50, 0)])
    rows = np.array([[1, 10, 10, 50, 50, 0.9, 1], [1, 10, 90, 50, 50, 0.2, 2], [2, 9, 9, 9, 9, 0.9, 1.0]])
    # The ant reaches recall 1/2, 51 of the 101 recalls, and counts twice; the bee has 1 and counts once.
    expected = (2 * 51 / 101 + 1) / 3
    assert picture_scores(match_detections(truth, rows)) == pytest.approx([expected, math.nan], nan_ok=True)


# calibration


def test_calibration_by_hand():
    # Overlaps: 1; 25 of 50 px in width: 1/2; none with the own class: 0.
    truth = truth_of([(1, 1, 0, 0, 50, 50, 0), (2, 1, 0, 0, 50, 50, 0)])
    rows = np.array(
        [
            [1, 0, 0, 50, 50, 0.95, 1],
            [2, 0, 0, 25, 50, 0.91, 1],
            [1, 0, 0, 50, 50, 0.05, 2],
            [2, 0, 0, 50, 50, 1.00, 1],
        ]
    )
    found = calibration(truth, [rows])
    assert calibration(truth, [rows[:1], rows[1:]]) == found  # of several runs
    high = {"score": (0.95 + 0.91 + 1) / 3, "iou": 2.5 / 3, "count": 3}
    low = {"score": 0.05, "iou": 0, "count": 1}
    assert found["bins"] == [pytest.approx(low), pytest.approx(high)]
    assert found["error"] == pytest.approx((3 * (high["score"] - high["iou"]) + 0.05) / 4)


def test_calibration_leaves_crowds_out():
    truth = truth_of([(1, 1, 0, 0, 100, 100, 1), (1, 1, 0, 0, 20, 20, 0)])
    inside, half_outside, on_truth = (50, 50, 20, 20), (90, 0, 20, 20), (0, 0, 20, 20)
    outside, other_class = (81, 81, 40, 40), (50, 50, 20, 20)
    rows = [[1, *box, 0.5, 1] for box in (inside, half_outside, on_truth, outside)]
    found = calibration(truth, [np.array([*rows, [1, *other_class, 0.5, 2]], float)])
    # Left: the one on the truth (IoU 1), the one mostly outside and that of another class (0).
    assert found["bins"] == [pytest.approx({"score": 0.5, "iou": 1 / 3, "count": 3})]


def test_calibration_of_nothing():
    assert calibration(truth_of([]), [NOTHING]) == {"bins": [], "error": 0.0}
