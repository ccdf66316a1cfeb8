"""Pictures with more objects than COCO counts: the figures beside COCO's, and when there are any."""

import numpy as np
import pytest

from tests.utils.metrics.test_coco import EVALUATORS, KEYS, detect, random_scene, summarised, truth_of
from utils.metrics.coco import evaluate_detections
from utils.metrics.crowding import Beyond, Crowding, count_objects, crowding_of, describe_crowding

GRID = [(x, y, x + 8.0, y + 8.0) for y in range(0, 120, 10) for x in range(0, 100, 10)]  # 120 boxes


def perfect(boxes, labels=None, most=1000) -> np.ndarray:
    """Rows of a detector that finds all ``boxes`` of picture 10, but the last ones beyond ``most``."""
    boxes, labels = boxes[:most], labels[:most] if labels is not None else None
    return detect(10, boxes, np.linspace(0.99, 0.5, len(boxes)).tolist(), labels)


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize(("max_det", "share"), [(300, 1.0), (110, 110 / 120)])
def test_a_perfect_detector_is_perfect_at_max_det(evaluator, max_det, share):
    truth, rows = truth_of([GRID]), perfect(GRID, most=max_det)
    found = evaluate_detections(truth, rows, evaluator, max_det=max_det)
    assert found.beyond.max_det == max_det and pytest.approx(share) == found.beyond.AR
    assert found.beyond.AP == found.beyond.AP50 == pytest.approx(share, abs=0.01)  # 101 recalls
    assert found.beyond.recall == pytest.approx(share, abs=0.01) and found.beyond.precision == pytest.approx(
        1
    )
    assert found.values["AR100"] == pytest.approx(100 / 120)  # COCO's own stays as it is
    assert [found.values[key] for key in KEYS] == summarised(truth, rows)
    assert evaluate_detections(truth, rows, evaluator).beyond == found.beyond._replace(max_det=len(rows))


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("seed", range(2))
def test_one_more_limit_changes_nothing_of_cocos(evaluator, seed):
    truth, rows = random_scene(seed, pictures=3, most=400, coarse=True)
    corners = np.random.default_rng(seed).uniform(0, 150, (150, 2))
    more = truth_of([np.hstack((corners, corners + 9))], labels=[1] * 150)["annotations"]
    truth["annotations"] += [box | {"id": 1000 + box["id"]} for box in more]
    found = evaluate_detections(truth, rows, evaluator, max_det=400)
    assert list(found.values.values()) == summarised(truth, rows) and found.values["AR100"] <= found.beyond.AR
    assert found.beyond == evaluate_detections(truth, rows, "pycocotools", max_det=400).beyond


@pytest.mark.parametrize(
    ("boxes", "labels", "ignore", "max_det"),
    [
        (GRID[:100], None, None, 300),
        (GRID, [n % 3 for n in range(120)], None, 300),  # 40 of each class: COCO counts by class
        (GRID, None, [True] * 20 + [False] * 100, 300),
        (GRID, None, None, 100),  # no more are kept than COCO counts
    ],
    ids=["100 objects", "three classes", "crowds", "max_det 100"],
)
def test_nothing_is_said_where_coco_counts_all(boxes, labels, ignore, max_det):
    truth = truth_of([boxes], labels=labels, ignore=ignore)
    found = evaluate_detections(truth, perfect(boxes, labels, most=max_det), max_det=max_det)
    assert found.beyond is None
    lines = describe_crowding(crowding_of(truth), 300)
    assert bool(lines) == (max_det == 100)  # the objects are there, whatever is kept


def test_objects_are_counted_by_picture_and_class():
    found = count_objects([0, 0, 0, 2, 2, 2, 2], [1, 1, 0, 2, 2, 2, 0], 4)
    assert found.totals.tolist() == [3, 0, 4, 0] and found.largest.tolist() == [2, 0, 3, 0]
    nothing = count_objects([], [], 2)
    assert nothing.totals.tolist() == nothing.largest.tolist() == [0, 0]
    truth = truth_of([GRID[:3], [], GRID[:4]], labels=[1, 1, 0, 2, 2, 2, 0], ignore=[False] * 6 + [True])
    assert crowding_of(truth).totals.tolist() == [3, 0, 3]
    assert crowding_of(truth).largest.tolist() == [2, 0, 3]


def test_the_lines():
    found = Crowding(np.array([3, 150, 412, 100]), np.array([3, 100, 230, 100]))
    beyond = Beyond(300, AP=0.91, AP50=0.95, AP75=0.9, AR=0.93, precision=0.99, recall=None)
    coco, kept = describe_crowding(found, 300, beyond)
    assert coco == (
        "1 of 4 pictures hold more than 100 objects of a class: COCO's figures count 100 detections of it; "
        "at max_det 300: AP 0.910, AP50 0.950, P 0.990, R -"
    )
    assert kept == (
        "1 of 4 pictures hold more than max_det, 300: no more boxes of a picture are kept. The largest holds "
        "412: raise it by --max-det 412 (train.py: --set val.max_det=412)"
    )
    assert describe_crowding(Crowding(np.array([100]), np.array([100])), 100) == []
    assert describe_crowding(Crowding(np.zeros(0, int), np.zeros(0, int)), 300) == []
