"""train.py from the command line: run folder, transfer, freezing, golden losses, overfitting."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.overfit import overfit
from scripts.golden_losses import PATH, golden_losses
from utils.config import TrainConfig
from utils.config_files import config_from_plain, read_yaml
from utils.errors import NON_FINITE, USAGE
from utils.training.state import TrainState

ROOT = Path(__file__).parents[1]


def read_rows(folder: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def test_run_folder_holds_what_the_readme_promises(trained):
    names = "config.yaml results.csv results.png labels.jpg train_batch0.jpg val_batch0_labels.jpg"
    names += " anatomy.csv anatomy.png assignment.csv assignment.png environment.json reproduce.sh"
    for name in (*names.split(), "val_batch0_pred.jpg", "metrics.json", "weights/best.pt", "weights/last.pt"):
        assert (trained / name).stat().st_size > 0, name
    rows = read_rows(trained)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    wanted = "epoch train/quality train/box train/dfl metrics/AP metrics/AP50 metrics/AP75 metrics/precision"
    assert {*wanted.split(), "metrics/recall", "lr", "seconds", "memory_gb"} <= rows[0].keys()
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert float(rows[-1]["train/quality"]) < float(rows[0]["train/quality"])
    config = config_from_plain(read_yaml(trained / "config.yaml"))
    assert (config.train.epochs, config.data.imgsz) == (4, 96)


def test_best_holds_all_that_inference_needs_and_no_code(trained):
    content = torch.load(trained / "weights" / "best.pt", weights_only=True)
    assert content["strides"] == [8, 16, 32] and len(content["names"]) == 6
    assert config_from_plain(content["config"]).model.width == 0.125
    assert "optimizer" not in content
    best = max(read_rows(trained), key=lambda row: float(row["metrics/AP"]))
    assert content["best"] == {"AP": float(best["metrics/AP"]), "epoch": int(best["epoch"])}


@pytest.mark.parametrize(
    "flags",
    [
        ("--imgsz", 32, "--batch-size", 1),
        ("--imgsz", 64, "--batch-size", 2, "--micro-batch", 1, "--multi-scale", 0.5),
    ],
)
def test_single_pictures_of_32_px_are_trained(command, few_shapes, flags):
    result = command(
        "train", "--data", few_shapes, "--cfg", "demo", "--workers", 0, *flags, "--epochs", 1, "--noplots"
    )
    assert result.code == 0, result.err


def test_last_screen_says_what_to_do_next(command, shapes, tiny):
    result = command("train", "--data", shapes, *tiny, "--epochs", 1, "--noplots")
    assert result.code == 0
    for text in (
        "results: runs/train/exp",
        "python detect.py --weights",
        "python train.py --data",
        "2 optimiser",
    ):
        assert text in result.out, text
    assert not Path("runs/train/exp/results.png").exists()
    again = command("train", "--data", shapes, *tiny, "--epochs", 1, "--noplots", "--nosave")
    assert again.code == 0 and Path("runs/train/exp2/weights/last.pt").exists()


def test_what_happens_inside_is_recorded(command, shapes, tiny):
    flags = ["--data", shapes, *tiny, "--epochs", 2, "--noplots", "--noval"]
    assert command("train", *flags, "--set", "train.anatomy_every=3", "--name", "on").code == 0
    assert command("train", *flags, "--set", "train.anatomy_every=0", "--name", "off").code == 0
    on, off = Path("runs/train/on"), Path("runs/train/off")
    rows = read_rows(on, "anatomy.csv")
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "0"), ("2", "3")]
    assert all(float(row[f"gradient/{term}"]) > 0 for row in rows for term in ("quality", "box", "dfl"))
    assert not (off / "anatomy.csv").exists()
    weights = [torch.load(folder / "weights/last.pt", weights_only=True)["model"] for folder in (on, off)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assigned = read_rows(on, "assignment.csv")
    assert [row["epoch"] for row in assigned] == ["1", "2"]
    assert all(float(row["small/boxes"]) + float(row["medium/boxes"]) >= 16 for row in assigned)
    assert all(float(row["unmatched"]) == 0 for row in assigned)


@pytest.mark.parametrize("loss", ["ltrb_plain", "gfl_dgqp"])
def test_other_heads_train_resume_and_detect(command, shapes, tiny, loss):
    flags = ["--data", shapes, *tiny, "--loss", loss, "--noplots", "--noval"]
    assert command("train", *flags, "--epochs", 1).code == 0
    weights = Path("runs/train/exp/weights/last.pt")
    found = command("detect", "--weights", weights, "--source", shapes.parent / "images/val", "--show-sigma")
    assert found.code == 0
    assert ("plain sides" in found.out) == (loss == "ltrb_plain")
    assert command("val", "--weights", weights, "--noplots", "--workers", 0).code == 0


def test_results_do_not_depend_on_workers(command, shapes, tiny):
    for workers in (0, 2):
        arguments = ["--data", shapes, *tiny, "--epochs", 1, "--noplots", "--workers", workers, "--noval"]
        assert command("train", *arguments, "--name", f"w{workers}").code == 0
    weights = [torch.load(f"runs/train/w{n}/weights/last.pt", weights_only=True)["model"] for n in (0, 2)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_weights_of_other_classes_start_the_class_layer_anew(command, trained, shapes, tiny, tmp_path):
    text = shapes.read_text().replace("circle", "disc").replace("path: .", f"path: {shapes.parent}")
    (tmp_path / "other.yaml").write_text(text)
    start = trained / "weights" / "best.pt"
    arguments = ["--data", "other.yaml", *tiny[2:], "--epochs", 1, "--noplots", "--weights", start]
    result = command("train", *arguments, "--freeze", "neck")
    assert result.code == 0
    assert "head.cls_outputs.0.weight" in result.out and "6 start anew" in result.out
    before = torch.load(start, weights_only=True)["ema"]
    after = torch.load("runs/train/exp/weights/last.pt", weights_only=True)["model"]
    frozen = [name for name in before if name.startswith(("backbone", "neck"))]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("head.box"))


def test_flags_of_yolov5_are_answered(command, shapes, tiny):
    asked = ["--quad", "--image-weights", "--cos-lr", "--noval", "--label-smoothing", "0.1"]
    result = command("train", "--data", shapes, *tiny, "--epochs", 1, "--noplots", *asked)
    assert result.code == 0
    for flag in ("--quad", "--image-weights", "--label-smoothing"):
        assert f"{flag} is not needed: " in result.err


def test_pictures_can_be_cached(command, shapes, tiny):
    """Kept on disk: the second run reuses both files, with the same results."""
    for name, word in (("built", " in "), ("reused", " from ")):
        asked = ["--epochs", 1, "--noplots", "--cache", "disk", "--name", name]
        result = command("train", "--data", shapes, *tiny, *asked)
        lines = [line for line in result.out.splitlines() if line.startswith("cache: ")]
        assert result.code == 0 and len(lines) == 2 and all(word in line for line in lines)
    weights = [torch.load(f"runs/train/{n}/weights/last.pt", weights_only=True) for n in ("built", "reused")]
    assert all(torch.equal(tensor, weights[1]["model"][name]) for name, tensor in weights[0]["model"].items())


@pytest.mark.parametrize(
    ("epoch", "best", "patience", "stale"), [(5, 3, 2, True), (4, 3, 2, False), (9, 1, 0, False)]
)
def test_early_stopping(epoch, best, patience, stale):
    state = TrainState(None, None, None, None, None, 1, epoch=epoch, best={"AP": 0.1, "epoch": best})
    assert state.is_over(TrainConfig(epochs=10, patience=patience)) is stale


def test_patience_counts_from_one_validation_to_the_next(command, shapes, tiny):
    asked = ["--epochs", 6, "--val-every", 3, "--patience", 2, "--noplots"]
    assert command("train", "--data", shapes, *tiny, *asked).code == 0
    assert len(read_rows(Path("runs/train/exp"))) == 6


def test_gradients_accumulate_to_the_nominal_batch(command, shapes, tiny):
    """16 pictures in batches of 6 are 3 batches, in groups of 2: two steps of the optimiser an epoch."""
    asked = ["--batch", 6, "--set", "train.nominal_batch=12", "--epochs", 2, "--noplots", "--noval"]
    result = command("train", "--data", shapes, *tiny, *asked)
    assert result.code == 0 and "4 optimiser steps" in result.out
    assert torch.load("runs/train/exp/weights/last.pt", weights_only=True)["ema_updates"] == 4


def test_a_loss_that_is_not_finite_ends_the_run(command, shapes, tiny):
    asked = ["--epochs", 3, "--noplots", "--set", "train.lr=1e30"]
    result = command("train", "--data", shapes, *tiny, *asked)
    assert result.code == NON_FINITE and "train.lr" in result.err and "Traceback" not in result.err


def test_resume_refuses_other_classes(command, trained, shapes, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(trained, folder)
    text = shapes.read_text()
    try:
        shapes.write_text(text.replace("circle", "disc"))
        result = command("train", "--resume", folder / "weights" / "last.pt")
    finally:
        shapes.write_text(text)
    assert result.code == USAGE and "circle" in result.err and "disc" in result.err


def test_golden_losses():
    golden = json.loads(PATH.read_text())
    rows = golden_losses()
    for step, (now, then) in enumerate(zip(rows, golden["losses"], strict=True)):
        tolerance = 1e-4 if step < 5 else 0.05
        for name, value in then.items():
            assert now[name] == pytest.approx(value, rel=tolerance), (step, name, golden["torch"])


@pytest.mark.slow
def test_overfits_one_batch():
    values = overfit(150)
    assert values["AP"] >= 0.90 and values["AP50"] >= 0.99
