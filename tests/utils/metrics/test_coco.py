"""COCO's metrics: both evaluators bit for bit, the edges where nothing is measured, and figures by hand."""

import builtins
import contextlib
import io
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils.errors import UserError
from utils.metrics.coco import (
    KEYS,
    RECALLS,
    Metrics,
    evaluate_detections,
    from_results,
    is_measurable,
    make_ground_truth,
    pack_detections,
    to_results,
)
from utils.structures import Detections

EVALUATORS = ("hotcoco", "pycocotools")
NAMES = ("ant", "bee", "cat")
IDS = (1, 2, 3)
NOTHING = np.zeros((0, 7))


def truth_of(
    boxes, *, labels=None, ignore=None, ids=IDS, names=NAMES, areas=None, picture_ids=None, sources=()
) -> dict:
    """``boxes``: a list of boxes for each 200 x 300 picture."""
    counts = [len(rows) for rows in boxes]
    total = sum(counts)
    packed = np.concatenate([np.reshape(rows, (-1, 4)) for rows in boxes]).astype(np.float32)
    sides = packed[:, 2:] - packed[:, :2]
    return make_ground_truth(
        picture_ids=np.arange(len(boxes)) + 10 if picture_ids is None else picture_ids,
        sizes=np.tile((200, 300), (len(boxes), 1)),
        offsets=np.concatenate(([0], np.cumsum(counts))),
        boxes=packed,
        labels=np.zeros(total, int) if labels is None else np.array(labels),
        ignore=np.zeros(total, bool) if ignore is None else np.array(ignore),
        areas=sides.prod(1) if areas is None else areas,
        category_ids=ids,
        names=names,
        sources=sources,
    )


def detect(picture, boxes, scores, labels=None, *, ids=IDS) -> np.ndarray:
    """Rows of one picture, packed."""
    found = Detections(
        torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.zeros(len(scores), dtype=torch.int64) if labels is None else torch.tensor(labels),
        None,
        (200, 300),
    )
    return pack_detections(found, picture, ids)


def random_boxes(rng, count, low=4.0, high=150.0):
    corner = rng.uniform((0, 0), (250, 150), (count, 2))
    return np.concatenate((corner, corner + rng.uniform(low, high, (count, 2))), 1).astype(np.float32)


def random_scene(seed, *, pictures=12, classes=3, most=20, ids=IDS, crowds=0.15, coarse=False):
    """Truths, and detections near and far from them; ``coarse``: many equal scores."""
    rng = np.random.default_rng(seed)
    boxes = [random_boxes(rng, rng.integers(0, 8)) for _ in range(pictures)]
    total = sum(map(len, boxes))
    labels, ignore = rng.integers(0, classes, total), rng.random(total) < crowds
    truth = truth_of(boxes, labels=labels, ignore=ignore, ids=ids, areas=rng.uniform(10, 2e4, total))
    rows, start = [NOTHING], 0
    for picture, own in enumerate(boxes):
        near = own + rng.normal(0, 6, own.shape).astype(np.float32)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        far = random_boxes(rng, rng.integers(0, most))
        guess = np.where(
            rng.random(len(own)) < 0.8, labels[start : start + len(own)], rng.integers(0, classes, len(own))
        )
        found, named = np.concatenate((near, far)), [*guess, *rng.integers(0, classes, len(far))]
        scores = rng.random(len(found)).astype(np.float32)
        scores = np.round(scores, 1) if coarse else scores
        order = np.argsort(-scores, kind="stable")
        rows.append(
            detect(
                picture + 10,
                found[order].tolist(),
                scores[order].tolist(),
                np.array(named, int)[order],
                ids=ids,
            )
        )
        start += len(own)
    return truth, np.concatenate(rows)


def same_bits(first: Metrics, second: Metrics) -> bool:
    return (
        first.values == second.values
        and first[1:4] == second[1:4]
        and first.per_class == second.per_class
        and np.array_equal(first.curves, second.curves, equal_nan=True)
    )


def summarised(truth, rows, only=None) -> list[float | None]:
    """The twelve figures of pycocotools' own ``summarize``, driven without our code, of one class or all.

    None for its -1.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(rows), "bbox")
        evaluation.params.catIds = [only] if only else evaluation.params.catIds
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else value for value in evaluation.stats.tolist()]


SCENES = {
    "ordinary": {},
    "crowds": {"crowds": 0.6},
    "equal scores": {"coarse": True},
    "one class": {"classes": 1},
    "more than 100 detections": {"pictures": 3, "most": 400},
    "ids with gaps": {"ids": (3, 17, 90)},
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("seed", range(3))
def test_evaluators_agree_bit_for_bit_and_with_summarize(scene, seed):
    truth, rows = random_scene(seed, **SCENES[scene])
    fast, slow = (evaluate_detections(truth, rows, evaluator) for evaluator in EVALUATORS)
    assert same_bits(fast, slow)
    assert list(fast.values) == list(KEYS)
    assert list(fast.values.values()) == summarised(truth, rows)
    assert 0 < fast.values["AP"] < 1  # a scene that measures something


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_each_class_is_that_of_an_evaluation_of_its_own(evaluator):
    truth, rows = random_scene(7, ids=(3, 17, 90))
    found = evaluate_detections(truth, rows, evaluator).per_class
    for name, number in zip(NAMES, (3, 17, 90), strict=True):
        stats = dict(zip(KEYS, summarised(truth, rows, number), strict=True))
        assert {key: found[name][key] for key in ("AP", "AP50", "AP75", "AR100")} == {
            key: stats[key] for key in ("AP", "AP50", "AP75", "AR100")
        }
        own = [a for a in truth["annotations"] if a["category_id"] == number and not a["iscrowd"]]
        assert found[name]["boxes"] == len(own) > 0


def test_more_than_100_detections_are_cut():
    """COCO counts the 100 best of a picture: a truth found by the 101st is missed."""
    far = [[250.0, 150, 260, 160]] * 100
    for count, ap in ((99, 1 / 100), (100, 0)):
        boxes, scores = [*far[:count], [10.0, 10, 60, 60]], np.linspace(0.9, 0.1, count + 1).tolist()
        for evaluator in EVALUATORS:
            metrics = evaluate_detections(
                truth_of([[(10, 10, 60, 60)]]), detect(10, boxes, scores), evaluator
            )
            assert metrics.values["AP"] == pytest.approx(ap)
            assert metrics.values["AR100"] == (1 if ap else 0)


# nothing to measure


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_detections(evaluator):
    truth = truth_of([[(10, 10, 60, 60)], [(20, 20, 40, 40)]], labels=[0, 1])
    metrics = evaluate_detections(truth, NOTHING, evaluator)
    assert metrics.values["AP"] == metrics.values["AR100"] == 0
    assert metrics.values["APl"] is None  # 50 x 50 is medium, 20 x 20 small, none is large
    assert (metrics.precision, metrics.recall) == (0, 0)
    assert metrics.per_class["cat"] == dict.fromkeys(("AP", "AP50", "AP75", "AR100")) | {"boxes": 0}
    assert np.isnan(metrics.curves[2]).all() and not np.isnan(metrics.curves[:2]).any()


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("kind", ["no truths", "crowds", "larger than COCO counts"])
def test_no_truths(evaluator, kind):
    """There is nothing to measure: no number, neither -1 nor 0."""
    truth = {
        "no truths": lambda: truth_of([[], []]),
        "crowds": lambda: truth_of([[(10, 10, 60, 60)]], ignore=[True]),
        "larger than COCO counts": lambda: truth_of([[(10, 10, 60, 60)]], areas=[1.1e10]),
    }[kind]()
    assert not is_measurable(truth)
    for rows in (NOTHING, detect(10, [[10.0, 10, 60, 60]], [0.9])):
        metrics = evaluate_detections(truth, rows, evaluator)
        assert set(metrics.values.values()) == {None}
        assert metrics[1:4] == (None, None, None)
        assert np.isnan(metrics.curves).all() and metrics.curves.shape == (3, 101)
        assert all(row["AP"] is None for row in metrics.per_class.values())


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_pictures_without_truth_count_their_false_detections(evaluator):
    boxes, both = [[10.0, 10, 60, 60]], truth_of([[(10, 10, 60, 60)], []])
    right, wrong = detect(10, boxes, [0.5]), detect(11, boxes, [0.9])
    assert evaluate_detections(both, right, evaluator).values["AP"] == pytest.approx(1)
    # The false one comes first: the precision at every recall is 1/2.
    metrics = evaluate_detections(both, np.concatenate((right, wrong)), evaluator)
    assert metrics.values["AP"] == pytest.approx(0.5)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_classes_without_truth_do_not_count(evaluator):
    truth = truth_of([[(10, 10, 60, 60)]])
    rows = detect(10, [[10.0, 10, 60, 60], [10, 10, 60, 60]], [0.5, 0.9], [0, 1])
    metrics = evaluate_detections(truth, rows, evaluator)
    assert metrics.values["AP"] == pytest.approx(1)
    assert [row["AP"] for row in metrics.per_class.values()] == [pytest.approx(1), None, None]


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_ignored_boxes_are_neither_hit_nor_miss(evaluator):
    truth = truth_of([[(10, 10, 60, 60), (100, 100, 200, 180)]], ignore=[False, True])
    rows = detect(10, [[110.0, 110, 130, 130], [10, 10, 60, 60], [140, 120, 160, 160]], [0.9, 0.8, 0.7])
    metrics = evaluate_detections(truth, rows, evaluator)
    assert (metrics.values["AP"], metrics.values["AR100"]) == pytest.approx((1, 1))
    assert metrics.per_class["ant"]["boxes"] == 1


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_perfect_detections(evaluator):
    truth, _ = random_scene(5, crowds=0)
    rows = []
    for image in truth["images"]:
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        xyxy = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        rows.append(detect(image["id"], xyxy, [0.9] * len(own), [a["category_id"] - 1 for a in own]))
    metrics = evaluate_detections(truth, np.concatenate(rows), evaluator)
    assert is_measurable(truth)
    measured = [metrics.values[key] for key in KEYS if not key.startswith("AR1") or key == "AR100"]
    assert measured == pytest.approx([1] * len(measured))
    assert (metrics.precision, metrics.recall) == pytest.approx((1, 1))


# ids


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_category_ids_are_the_sources(evaluator):
    """COCO's ids have gaps: the rows carry them, and each name gets its own figures."""
    ids = (3, 17, 90)
    truth = truth_of([[(10, 10, 60, 60), (100, 100, 150, 150)]], labels=[0, 2], ids=ids)
    assert [(c["id"], c["name"]) for c in truth["categories"]] == [(3, "ant"), (17, "bee"), (90, "cat")]
    assert [a["category_id"] for a in truth["annotations"]] == [3, 90]
    rows = detect(10, [[10.0, 10, 60, 60], [100, 100, 150, 150]], [0.9, 0.8], [2, 2], ids=ids)
    assert rows[:, 6].tolist() == [90, 90]
    metrics = evaluate_detections(truth, rows, evaluator)
    assert metrics.per_class["ant"] == {"AP": 0, "AP50": 0, "AP75": 0, "AR100": 0, "boxes": 1}
    assert metrics.per_class["bee"] == dict.fromkeys(("AP", "AP50", "AP75", "AR100")) | {"boxes": 0}
    # The false one comes first: precision 1/2 at every recall.
    assert metrics.per_class["cat"]["AP"] == pytest.approx(0.5) and metrics.per_class["cat"]["boxes"] == 1
    assert np.isnan(metrics.curves[1]).all() and metrics.curves[2] == pytest.approx(np.full(101, 0.5))


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_category_ids_in_another_order_than_the_names(evaluator):
    ids = (90, 3, 17)
    truth = truth_of([[(10, 10, 60, 60), (100, 100, 150, 150)]], labels=[0, 1], ids=ids)
    rows = detect(10, [[10.0, 10, 60, 60]], [0.9], [0], ids=ids)
    per_class = evaluate_detections(truth, rows, evaluator).per_class
    assert [row["AP"] for row in per_class.values()] == [pytest.approx(1), 0, None]


@pytest.mark.parametrize("evaluator", EVALUATORS)
@pytest.mark.parametrize("ids", [(10**12 + 7, 10**12 + 8, 1_699_999_999_999), (-5, 0, 2**53 - 1)])
def test_ids_of_any_size_give_the_same_bits(evaluator, ids):
    """Hashes and time stamps as ids: an evaluator that took one for a length would ask for terabytes."""
    small, rows = random_scene(5, coarse=True)
    expected = evaluate_detections(small, rows, evaluator)
    truth, large = random_scene(5, coarse=True, ids=ids)
    for item, key in [(i, "id") for i in truth["images"]] + [(a, "image_id") for a in truth["annotations"]]:
        item[key] = 2**53 - 1000 + item[key]
    large[:, 0] += 2**53 - 1000
    assert same_bits(evaluate_detections(truth, large, evaluator), expected)
    assert expected.values["AP"] > 0


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_names_and_text_ids_that_cannot_be_utf8(evaluator):
    names, ids = ("\ud800", "b\x00", "cat"), ("x", "\udfff", "z")
    truth = truth_of(
        [[(10, 10, 60, 60)]],
        ids=ids,
        names=names,
        sources=[{"source_id": "\ud800", "file_name": "a"}],
        picture_ids=np.array([1]),
    )
    rows = detect(1, [[10.0, 10, 60, 60]], [0.5], ids=(1, 2, 3))
    assert evaluate_detections(truth, rows, evaluator).per_class["\ud800"]["AP"] == pytest.approx(1)
    (result,) = to_results(truth, rows)
    assert (result["image_id"], result["category_id"]) == ("\ud800", "x")
    assert np.array_equal(from_results(truth, [result]), rows)


def test_results_of_pictures_without_an_id_name_their_file():
    truth = truth_of([[(0, 0, 9, 9)]], sources=[{"source_id": None, "file_name": "a.jpg"}])
    (result,) = to_results(truth, detect(10, [[1.0, 2, 4, 6]], [0.5]))
    expected = {"image_id": 10, "file_name": "a.jpg", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    assert result == expected and from_results(truth, [result]).tolist() == [[10, 1, 2, 3, 4, 0.5, 1]]
    with pytest.raises(UserError, match="11, an id that the data set does not have"):
        from_results(truth, [expected | {"image_id": 11}])


@pytest.mark.parametrize(("column", "what"), [(0, "images"), (6, "categories")])
def test_detections_of_something_else_are_refused(column, what):
    truth, rows = random_scene(0)
    rows[-1, column] += 1000
    with pytest.raises(UserError, match=f"detections of {what} that the data set does not have"):
        evaluate_detections(truth, rows)


def test_ground_truth_by_hand():
    truth = truth_of(
        [[(10, 20, 40, 60)], [], [(0, 0, 5, 5)]], labels=[2, 0], ignore=[0, 1], areas=[700.0, 25.0]
    )
    assert [image["id"] for image in truth["images"]] == [10, 11, 12]
    assert truth["images"][0] == {"id": 10, "height": 200, "width": 300, "file_name": "10"}
    first = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [10, 20, 30, 40], "area": 700, "iscrowd": 0}
    second = {"id": 2, "image_id": 12, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 1}
    assert truth["annotations"] == [first, second]


def test_packed_detections_by_hand():
    rows = detect(12, [[10.0, 20, 40, 60], [1, 2, 3, 4]], [0.5, 0.25], [2, 0], ids=(7, 8, 9))
    assert rows.tolist() == [[12, 10, 20, 30, 40, 0.5, 9], [12, 1, 2, 2, 2, 0.25, 7]]
    assert detect(12, [], []).shape == (0, 7)


# precision and recall at the best mean F1


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_best_f1_by_hand(evaluator):
    # One class, two truths. Hit at 0.9, false at 0.6, hit at 0.3. From confidence 0.9 down: precision 1,
    # recall 1/2, F1 2/3; from 0.6: 1/2 and 1/2; from 0.3: precision 2/3, recall 1, F1 4/5, the best.
    truth = truth_of([[(10, 10, 60, 60), (100, 100, 150, 150)]])
    boxes = [[10.0, 10, 60, 60], [200, 20, 260, 60], [100, 100, 150, 150]]
    metrics = evaluate_detections(truth, detect(10, boxes, [0.9, 0.6, 0.3]), evaluator)
    assert (metrics.precision, metrics.recall) == pytest.approx((2 / 3, 1))
    assert metrics.confidence <= 0.3
    # With three false ones before the last hit its precision is 2/5, its F1 4/7: now the first hit alone is
    # best, precision 1 and recall 1/2.
    boxes[2:2] = [[200, 100, 260, 140], [10, 100, 60, 140]]
    metrics = evaluate_detections(truth, detect(10, boxes, [0.9, 0.6, 0.5, 0.4, 0.3]), evaluator)
    assert (metrics.precision, metrics.recall) == pytest.approx((1, 0.5))
    assert 0.3 < metrics.confidence <= 0.9


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_best_f1_is_that_of_the_mean_over_classes(evaluator):
    # Class ant: one truth, hit at 0.8. Class bee: two truths, hits at 0.4 and 0.2, three false ones between.
    # F1 from 0.8: 1 and 0, mean 1/2; from 0.4: 1 and 2/3 (precision 1, recall 1/2), mean 5/6; from 0.2: 1 and
    # 4/7 (precision 2/5, recall 1), mean 11/14. Best from 0.4: mean precision 1, mean recall 3/4.
    truth = truth_of([[(10, 10, 60, 60), (100, 100, 150, 150), (200, 20, 260, 60)]], labels=[0, 1, 1])
    false = [[10.0, 100, 60, 140]] * 3
    boxes = [[10.0, 10, 60, 60], [100, 100, 150, 150], *false, [200, 20, 260, 60]]
    rows = detect(10, boxes, [0.8, 0.4, 0.35, 0.3, 0.25, 0.2], [0, 1, 1, 1, 1, 1])
    metrics = evaluate_detections(truth, rows, evaluator)
    assert (metrics.precision, metrics.recall) == pytest.approx((1, 0.75))
    assert 0.2 < metrics.confidence <= 0.4


def test_precision_and_recall_hold_at_the_confidence_that_is_named():
    # A hit at 0.9, nine false ones at 0.8: precision 1 and recall 1 hold in (0.8, 0.9] only, at 0.8 it is
    # 1/10.
    boxes = [[10.0, 10, 60, 60], *[[200.0, 20, 260, 60]] * 9]
    metrics = evaluate_detections(truth_of([[(10, 10, 60, 60)]]), detect(10, boxes, [0.9] + [0.8] * 9))
    assert (metrics.precision, metrics.recall) == pytest.approx((1, 1))
    assert 0.8 < metrics.confidence <= 0.9


def test_curves_are_precision_over_recall():
    truth = truth_of([[(10, 10, 60, 60), (100, 100, 150, 150)]])
    boxes = [[10.0, 10, 60, 60], [200, 20, 260, 60], [100, 100, 150, 150]]
    metrics = evaluate_detections(truth, detect(10, boxes, [0.9, 0.6, 0.3]))
    assert metrics.curves.shape == (3, 101)
    assert metrics.curves[0] == pytest.approx(np.where(RECALLS <= 0.5, 1, 2 / 3))


# the evaluator


def test_pycocotools_takes_over_without_hotcoco(monkeypatch):
    truth, rows = random_scene(0)
    expected, load = evaluate_detections(truth, rows), builtins.__import__

    def load_all_but_hotcoco(name, *args, **options):
        if name == "hotcoco":
            raise ImportError(name)
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", load_all_but_hotcoco)
    assert same_bits(evaluate_detections(truth, rows), expected)


def test_pycocotools_takes_over_with_one_line(monkeypatch, capsys):
    load = builtins.__import__

    def load_all_but_hotcoco(name, *args, **options):
        if name == "hotcoco":
            raise ImportError(name)
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", load_all_but_hotcoco)
    evaluate_detections(truth_of([[(10, 10, 60, 60)]]), NOTHING)
    printed = capsys.readouterr()
    assert len((printed.out + printed.err).strip().splitlines()) == 1


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_quiet(evaluator, capfd):
    evaluate_detections(*random_scene(1), evaluator)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_inputs_are_not_changed(evaluator):
    truth, rows = random_scene(2)
    copy = rows.copy()
    first = evaluate_detections(truth, rows, evaluator)
    assert np.array_equal(rows, copy)
    assert same_bits(evaluate_detections(truth, rows, evaluator), first)


def test_values_are_plain_and_finite():
    metrics = evaluate_detections(*random_scene(3))
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values.values())
    assert all(type(value) is float for value in metrics[1:4])
