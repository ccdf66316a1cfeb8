"""One data set in three formats through check, train and val: the same training, untouched files."""

import csv
import hashlib
import json
import os
from pathlib import Path

import pytest

from data.check import main as check
from data.convert import convert
from data.spec import load_data_spec
from utils.errors import OK, run_main
from utils.metrics.coco import KEYS


def tree_of(folder: Path) -> dict[str, str]:
    """Path -> hash of every file, and the names of all folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return found


@pytest.fixture(scope="module")
def formats(shapes, tmp_path_factory) -> dict[str, Path]:
    """The generated pictures as YOLO, COCO and VOC, in folders that cannot be written to."""
    base = tmp_path_factory.mktemp("formats")
    spec = load_data_spec(shapes)
    for format in ("yolo", "coco", "voc"):
        convert(spec, format, base / format, pictures="copy")
    for parent, folders, files in os.walk(base):
        for name in files:
            os.chmod(Path(parent, name), 0o444)
        for name in folders:
            os.chmod(Path(parent, name), 0o555)
    return {format: base / format / "data.yaml" for format in ("yolo", "coco", "voc")}


def losses_of(run: str) -> list[str]:
    with open(Path(run) / "results.csv", newline="") as file:
        return [row["train/quality"] for row in csv.DictReader(file)]


def test_three_formats_one_training(command, formats, tiny, monkeypatch):
    before = {format: tree_of(yaml.parent) for format, yaml in formats.items()}
    figures = []
    for format, yaml in formats.items():
        monkeypatch.setattr("sys.argv", ["check", "--data", str(yaml), "--imgsz", "96"])
        with pytest.raises(SystemExit) as ended:
            run_main(check)
        assert ended.value.code == OK
        flags = ["--data", yaml, *tiny, "--epochs", 1, "--noplots", "--name", format]
        result = command("train", *flags, *(["--cache", "ram"] if os.path.isdir("/dev/shm") else []))
        assert result.code == OK, result.err
        figures.append(
            (
                losses_of(f"runs/train/{format}"),
                json.loads(Path(f"runs/train/{format}/metrics.json").read_text()),
            )
        )
        metrics = figures[-1][1]
        assert metrics["data"].pop("path") == str(yaml) and format in metrics["protocol"].pop("weights")
        for key in ("seconds", "training"):
            metrics.pop(key)
        metrics["data"].pop("fingerprint")  # fractions and pixels differ in the last bits of a box
    assert figures[0] == figures[1] == figures[2]
    assert {format: tree_of(yaml.parent) for format, yaml in formats.items()} == before


IDS = {  # of categories and pictures
    "as they are": int,
    "gaps": lambda number: 10 * number + 1000,
    "13 digits": lambda number: 10**12 + number,
    "text": lambda number: f"n{number:03}",
}


def test_predictions_hold_the_ids_of_the_source(command, formats, trained, tmp_path):
    """The metrics are the same to the bit, whatever the ids, and with both evaluators."""
    root, weights = formats["coco"].parent, trained / "weights" / "best.pt"
    folder = root / load_data_spec(formats["coco"]).images["val"][0]
    (tmp_path / "data.yaml").write_text(f"val: val.json\nimages: {folder}\n")
    flags = ["--data", tmp_path / "data.yaml", "--save-json", "--noplots", "--workers", 0]
    figures = []
    for number, (kind, spell) in enumerate(IDS.items()):
        content = json.loads((root / "annotations" / "instances_val.json").read_text())
        for key, fields in {
            "categories": ["id"],
            "images": ["id"],
            "annotations": ["category_id", "image_id"],
        }.items():
            for item in content[key]:
                item |= {field: spell(item[field]) for field in fields}
        (tmp_path / "val.json").write_text(json.dumps(content))
        evaluator = ("hotcoco", "pycocotools")[number % 2]
        result = command("val", "--weights", weights, *flags, "--name", kind, "--evaluator", evaluator)
        assert result.code == OK, result.err
        rows = json.loads(Path("runs/val", kind, "predictions.json").read_text())
        assert rows and {row["image_id"] for row in rows} <= {item["id"] for item in content["images"]}
        assert {row["category_id"] for row in rows} <= {item["id"] for item in content["categories"]}
        metrics = json.loads(Path("runs/val", kind, "metrics.json").read_text())
        figures.append({key: metrics[key] for key in (*KEYS, "per_class", "precision", "recall")})
    assert all(found == figures[0] for found in figures) and figures[0]["AP50"] > 0


@pytest.mark.parametrize("flags", [[], ["--rect"], ["--cache", "disk"]])
def test_inputs_that_are_no_squares(command, shapes, tiny, flags):
    arguments = [*tiny, "--imgsz", 64, 96, "--epochs", 1, "--noplots"]
    assert command("train", "--data", shapes, *arguments, *flags).code == OK
    weights = "runs/train/exp/weights/best.pt"
    assert command("val", "--weights", weights, "--data", shapes, "--noplots", "--workers", 0).code == OK
    picture = next((shapes.parent / "images" / "val").iterdir())
    assert command("detect", "--weights", weights, "--source", picture, "--imgsz", 96, 64).code == OK
