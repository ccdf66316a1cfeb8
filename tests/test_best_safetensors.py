"""best.safetensors of a run: beside best.pt, the same, and taken wherever that is."""

import shutil

import pytest
import torch

from inference import load_detector
from tests.resume import compare_values, go_on
from utils.errors import OK, USAGE
from utils.training.checkpoint import load_checkpoint


def same(folder) -> bool:
    first, second = (load_checkpoint(folder / "weights" / f"best.{end}") for end in ("pt", "safetensors"))
    return not list(compare_values(first | {"digest": ""}, second | {"digest": ""}))


def test_a_run_leaves_both_forms(trained):
    assert same(trained)


def test_both_detect_alike(trained, shapes):
    picture = sorted((shapes.parent / "images" / "val").glob("*.jpg"))[0]
    found = [
        load_detector(trained / "weights" / f"best.{end}")(picture, conf=0.01)
        for end in ("pt", "safetensors")
    ]
    assert len(found[0].scores) and torch.equal(found[0].boxes, found[1].boxes)
    assert torch.equal(found[0].scores, found[1].scores)


def test_a_training_starts_from_it(trained, shapes, command):
    weights = trained / "weights" / "best.safetensors"
    flags = ("--data", shapes, "--weights", weights, "--epochs", 1, "--workers", 0, "--noplots", "--nosave")
    result = command("train", *flags, "--device", "cpu", "--set", "train.amp=off", "--imgsz", 96)
    assert result.code == OK and "tensors loaded, 0 start anew" in result.out, result.err
    assert "to give on:            runs/train/exp/weights/best.safetensors" in result.out


def test_it_is_not_resumed(trained, command):
    result = command("train", "--resume", trained / "weights" / "best.safetensors")
    assert result.code == USAGE and "only last.pt can be resumed" in result.err


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_a_run_without_it_gets_it_on_resume(trained, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / "weights" / "best.safetensors"
    path.unlink() if damage == "gone" else path.write_bytes(b"")
    assert go_on(folder, "--epochs", 5).code == OK
    assert same(folder)
