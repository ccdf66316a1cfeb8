"""val.py: agreement with the training's own validation and between the evaluators, files, refusals."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from utils.metrics.coco import KEYS


def read_metrics(folder: str) -> dict:
    return json.loads(Path(folder, "metrics.json").read_text())


def test_agrees_with_the_last_validation_of_the_training(command, trained, shapes):
    arguments = ["--weights", trained / "weights" / "last.pt", "--data", shapes, "--workers", 0]
    assert command("val", *arguments, "--batch-size", 5, "--noplots").code == 0
    with open(trained / "results.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    metrics = read_metrics("runs/val/exp")
    for key in ("AP", "AP50", "AP75", "precision", "recall"):
        assert metrics[key] == pytest.approx(float(row[f"metrics/{key}"]), abs=1e-4), key


def test_evaluators_agree_to_the_last_bit_and_predictions_give_the_same_metrics(command, trained, shapes):
    arguments = ["--weights", trained / "weights" / "best.pt", "--data", shapes, "--workers", 0]
    for evaluator in ("hotcoco", "pycocotools"):
        result = command("val", *arguments, "--save-json", "--evaluator", evaluator, "--name", evaluator)
        assert result.code == 0
    ours, reference = (read_metrics(f"runs/val/{name}") for name in ("hotcoco", "pycocotools"))
    assert {key: ours[key] for key in KEYS} == {key: reference[key] for key in KEYS}
    assert ours["per_class"] == reference["per_class"]
    assert ours["AP50"] > 0  # the comparison is not one of zeros
    for name in ("val_batch0_labels.jpg", "val_batch0_pred.jpg", "PR_curve.png"):
        assert Path("runs/val/hotcoco", name).stat().st_size > 0

    truth = COCO(str(shapes.parent / "annotations" / "instances_val.json"))
    predictions = json.loads(Path("runs/val/hotcoco/predictions.json").read_text())
    for row in predictions:  # YOLO labels number the classes from 0, the generated JSON from 1
        row["category_id"] += 1
    Path("shifted.json").write_text(json.dumps(predictions))
    evaluation = COCOeval(truth, truth.loadRes("shifted.json"), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert ours["AP"] == pytest.approx(
        evaluation.stats[0], abs=2e-3
    )  # labels have six decimals, the JSON more
    assert ours["AP50"] == pytest.approx(evaluation.stats[1], abs=2e-3)


def test_rect_and_other_sizes_find_the_same_objects(command, trained, shapes):
    arguments = ["--weights", trained / "weights" / "best.pt", "--data", shapes, "--workers", 0, "--noplots"]
    square = command("val", *arguments)
    rect = command("val", *arguments, "--rect", "--img", 90)
    assert square.code == rect.code == 0
    assert "using 96x96" in rect.out
    first, second = read_metrics("runs/val/exp"), read_metrics("runs/val/exp2")
    assert second["AR100"] == pytest.approx(first["AR100"], abs=0.15)


def test_other_classes_are_refused_with_both_lists(command, trained, shapes, tmp_path):
    text = shapes.read_text().replace("circle", "disc").replace("path: .", f"path: {shapes.parent}")
    (tmp_path / "other.yaml").write_text(text)
    result = command("val", "--weights", trained / "weights" / "best.pt", "--data", "other.yaml")
    assert result.code == 2
    assert "circle" in result.err and "disc" in result.err and "Traceback" not in result.err
    assert not Path("runs").exists()


def test_a_missing_split_names_those_there(command, trained, shapes):
    result = command("val", "--weights", trained / "weights" / "best.pt", "--data", shapes, "--task", "test")
    assert result.code == 4 and "train, val" in result.err


def test_data_defaults_to_that_of_the_training(command, trained):
    assert command("val", "--weights", trained / "weights" / "best.pt", "--workers", 0, "--noplots").code == 0


def test_train_split_can_be_measured(command, trained, shapes, tmp_path):
    shutil.copy(trained / "weights" / "best.pt", tmp_path / "copy.pt")
    arguments = ["--weights", "copy.pt", "--data", shapes, "--task", "train", "--workers", 0, "--noplots"]
    result = command("val", *arguments, "--conf", 0.3, "--iou", 0.5, "--max-det", 5)
    assert result.code == 0 and "16" in result.out
