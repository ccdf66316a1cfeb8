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


def test_predictions_hold_the_ids_of_the_source(command, formats, trained, tmp_path):
    """COCO's file gets category ids 11, 21, ... and picture ids from 1000 on."""
    root = formats["coco"].parent
    content = json.loads((root / "annotations" / "instances_val.json").read_text())
    for key, field in (("categories", "id"), ("annotations", "category_id")):
        for item in content[key]:
            item[field] = 10 * item[field] + 11
    for key, field in (("images", "id"), ("annotations", "image_id")):
        for item in content[key]:
            item[field] += 1000
    (tmp_path / "val.json").write_text(json.dumps(content))
    folder = root / load_data_spec(formats["coco"]).images["val"][0]
    (tmp_path / "data.yaml").write_text(f"val: val.json\nimages: {folder}\n")
    weights = trained / "weights" / "best.pt"
    result = command(
        "val",
        "--weights",
        weights,
        "--data",
        tmp_path / "data.yaml",
        "--save-json",
        "--noplots",
        "--workers",
        0,
    )
    assert result.code == OK, result.err
    assert "11       0  circle" in result.out
    rows = json.loads(Path("runs/val/exp/predictions.json").read_text())
    assert {row["image_id"] for row in rows} <= {item["id"] for item in content["images"]}
    assert {row["category_id"] for row in rows} <= {11, 21, 31, 41, 51, 61} and len(rows) > 0


@pytest.mark.parametrize("flags", [[], ["--rect"], ["--cache", "disk"]])
def test_inputs_that_are_no_squares(command, shapes, tiny, flags):
    arguments = [*tiny, "--imgsz", 64, 96, "--epochs", 1, "--noplots"]
    assert command("train", "--data", shapes, *arguments, *flags).code == OK
    weights = "runs/train/exp/weights/best.pt"
    assert command("val", "--weights", weights, "--data", shapes, "--noplots", "--workers", 0).code == OK
    picture = next((shapes.parent / "images" / "val").iterdir())
    assert command("detect", "--weights", weights, "--source", picture, "--imgsz", 96, 64).code == OK
