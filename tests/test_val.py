"""val.py: agreement with the training's own validation and between the evaluators, files, refusals."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from utils.metrics.coco import KEYS
from utils.training.checkpoint import load_checkpoint, save_checkpoint


def read_metrics(folder: str) -> dict:
    return json.loads(Path(folder, "metrics.json").read_text())


def read_predictions(folder: str) -> dict[int, list[dict]]:
    """The rows of predictions.json by picture, best first."""
    found: dict[int, list[dict]] = {}
    for row in json.loads(Path(folder, "predictions.json").read_text()):
        found.setdefault(row["image_id"], []).append(row)
    return found


def overlaps(rows: list[dict], others: list[dict]) -> Tensor:
    """(N, M) IoU, 0 between different classes."""
    boxes, other_boxes = (
        box_convert(torch.tensor([row["bbox"] for row in some]), "xywh", "xyxy") for some in (rows, others)
    )
    labels, other_labels = (torch.tensor([row["category_id"] for row in some]) for some in (rows, others))
    return box_iou(boxes, other_boxes) * (labels[:, None] == other_labels)


@pytest.fixture(scope="module")
def lively(trained, tmp_path_factory) -> Path:
    """Weights whose boxes depend on the picture: after four epochs they hardly do, so these are amplified.

    By 20; by 30 what the padding at the border changes is amplified to more than a pixel, too.
    """
    content = load_checkpoint(trained / "weights" / "best.pt")
    for name, tensor in content["ema"].items():
        if name.startswith(("head.cls_outputs", "head.box_outputs")) and name.endswith("weight"):
            tensor *= 20
    path = tmp_path_factory.mktemp("lively") / "lively.pt"
    save_checkpoint(path, content)
    return path


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


def test_rect_finds_the_same_boxes(command, lively, shapes):
    """Only the padding differs: --img 90 is rounded up to 96, and a batch of one has its own shape."""
    arguments = ["--weights", lively, "--data", shapes, "--workers", 0, "--noplots", "--batch", 1]
    square = command("val", *arguments, "--save-json")
    rect = command("val", *arguments, "--save-json", "--rect", "--img", 90)
    assert square.code == rect.code == 0
    assert rect.out.count("using 96x96") == 1 and "using" not in square.out
    first, second = read_predictions("runs/val/exp"), read_predictions("runs/val/exp2")
    assert first != second and first.keys() == second.keys() and len(first) == 6
    for picture, rows in first.items():
        found_again = overlaps(rows[:5], second[picture][:5]).amax(1)
        assert found_again[0] > 0.95 and found_again.min() > 0.6, picture


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


def test_classes_are_compared_before_the_labels_are_read(command, trained, shapes, tmp_path):
    shutil.copytree(shapes.parent, tmp_path / "set")
    yaml, label = tmp_path / "set" / "data.yaml", next((tmp_path / "set" / "labels" / "val").glob("*.txt"))
    label.write_text("faulty\n")
    arguments = ["--weights", trained / "weights" / "best.pt", "--data", yaml]
    assert command("val", *arguments).code == 4
    yaml.write_text(yaml.read_text().replace("circle", "disc"))
    result = command("val", *arguments)
    assert result.code == 2 and "disc" in result.err and "faulty" not in result.err


def test_data_defaults_to_that_of_the_training(command, trained, shapes):
    arguments = ["--weights", trained / "weights" / "best.pt", "--workers", 0, "--noplots"]
    assert command("val", *arguments).code == command("val", *arguments, "--data", shapes).code == 0
    ours, explicit = read_metrics("runs/val/exp"), read_metrics("runs/val/exp2")
    assert ours.pop("seconds").keys() == {"load", "forward", "postprocess", "evaluation_total"}
    explicit.pop("seconds")
    assert ours == explicit


def test_train_split_can_be_measured(command, trained, shapes, tmp_path):
    shutil.copy(trained / "weights" / "best.pt", tmp_path / "copy.pt")
    arguments = ["--weights", "copy.pt", "--data", shapes, "--task", "train", "--workers", 0, "--noplots"]
    result = command("val", *arguments, "--save-json")
    assert result.code == 0 and len(read_predictions("runs/val/exp")) == 16


def test_thresholds_take_effect(command, lively, shapes):
    arguments = ["--weights", lively, "--data", shapes, "--workers", 0, "--noplots", "--save-json"]
    assert command("val", *arguments).code == 0
    plain = read_predictions("runs/val/exp")
    scores = sorted(row["score"] for rows in plain.values() for row in rows)
    middle = scores[len(scores) // 2]

    assert command("val", *arguments, "--conf", middle).code == 0
    sure = read_predictions("runs/val/exp2")
    good = {picture: [row for row in rows if row["score"] > middle] for picture, rows in plain.items()}
    assert sure == {picture: rows for picture, rows in good.items() if rows}  # what NMS keeps looks up only

    assert command("val", *arguments, "--conf", middle, "--iou", 0.2).code == 0
    apart = read_predictions("runs/val/exp3")
    assert 0 < sum(map(len, apart.values())) < sum(map(len, sure.values()))

    assert command("val", *arguments, "--max-det", 5).code == 0
    assert read_predictions("runs/val/exp4") == {picture: rows[:5] for picture, rows in plain.items()}


def test_crowded_pictures_are_measured_at_max_det_too(command, trained, shapes, tmp_path):
    shutil.copytree(shapes.parent, tmp_path / "set")
    first = sorted((tmp_path / "set" / "labels" / "val").iterdir())[0]
    places = [(x / 12 + 0.05, y / 12 + 0.05) for x in range(11) for y in range(11)]
    first.write_text("".join(f"0 {x:.3f} {y:.3f} 0.05 0.05\n" for x, y in places))
    asked = [
        "--weights",
        trained / "weights" / "best.pt",
        "--data",
        tmp_path / "set" / shapes.name,
        "--noplots",
    ]
    result = command("val", *asked, "--max-det", 110)
    assert result.code == 0 and "note: 1 of 6 pictures hold more than 100 objects of a class" in result.out
    assert "at max_det 110: AP 0." in result.out and "raise it by --max-det 121" in result.out
    found = read_metrics("runs/val/exp")
    assert found.keys() >= {"AP_max_det", "AP50_max_det", "AP75_max_det", "AR_max_det", "recall_max_det"}
    assert found["AR_max_det"] >= found["AR100"] and found["protocol"]["max_det"] == 110
    assert command("val", *asked, "--max-det", 100).code == 0
    assert not any(key.endswith("_max_det") for key in read_metrics("runs/val/exp2"))


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--conf", 25], "val.conf"),
        (["--iou", -0.1], "val.iou"),
        (["--max-det", 0], "val.max_det"),
        (["--batch", 0], "val.batch_size"),
        (["--img", 0], "data.imgsz"),
        (["--device", "0,1"], "torchrun --nproc_per_node 2 val.py"),
    ],
)
def test_bad_values_are_refused(command, trained, flags, key):
    result = command("val", "--weights", trained / "weights" / "best.pt", *flags)
    assert result.code == 2 and key in result.err and flags[0] in result.err
    assert "Traceback" not in result.err and not Path("runs").exists()


def test_weights_of_one_class_are_measured_as_one_class(command, shapes, tiny):
    data = ["--data", shapes, "--noplots"]
    assert command("train", *data, *tiny, "--single-cls", "--epochs", 1).code == 0
    result = command("val", "--weights", "runs/train/exp/weights/best.pt", *data, "--single-cls")
    assert result.code == 0 and "--single-cls is not needed" in result.err
    assert list(read_metrics("runs/val/exp")["per_class"]) == ["object"]


def test_the_weights_decide_the_model(command, trained, shapes):
    weights = ("--weights", trained / "weights" / "best.pt", "--data", shapes)
    result = command("val", *weights, "--set", "model.reg_max=7")
    assert result.code == 2 and "model.reg_max=7" in result.err and not Path("runs").exists()
