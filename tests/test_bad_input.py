"""Bad input of the commands: a message with place and remedy, an exit code, no traceback, no file."""

import os
import pickle
import re
import shutil
from pathlib import Path

import pytest

from utils.errors import DATA, USAGE


class Opaque:
    """Stands for a class inside another project's checkpoint."""


@pytest.fixture
def folder(shapes, tmp_path) -> Path:
    """A copy of the tiny data set to spoil."""
    shutil.copytree(shapes.parent, tmp_path / "set")
    return tmp_path / "set"


def first_label(folder: Path) -> Path:
    return sorted(path for path in (folder / "labels" / "train").iterdir() if path.read_text().strip())[0]


def spoil_label(folder: Path, row: str) -> None:
    label = first_label(folder)
    label.write_text(label.read_text() + row + "\n")


LABELS = {  # appended row -> what the message says
    "garbage here": "garbage",
    "9 0.5 0.5 0.1 0.1": "9",
    "1.5 0.5 0.5 0.1 0.1": "1.5",
    "0 320 240 50 60": "pixels",
    "0 nan 0.5 0.1 0.1": "nan",
    "0 0.5 0.5 inf 0.1": "inf",
    "0 0.99 0.5 0.1 0.1": "%",
    "0 0.5 0.5 -0.1 0.1": "-0.1",
    "0 0.5 0.5 0.1": "column",
    "0,0.5,0.5,0.1,0.1": "comma",
}


@pytest.mark.parametrize("row", LABELS)
def test_labels(command, folder, tiny, row):
    spoil_label(folder, row)
    result = command("train", "--data", folder, *tiny, "--epochs", 1)
    lines = len(first_label(folder).read_text().splitlines())
    assert result.code == DATA and LABELS[row] in result.err.lower()
    assert re.search(rf"{re.escape(os.path.relpath(first_label(folder)))}:{lines}\b", result.err)
    assert_clean(result)


def test_a_binary_label_file(command, folder, tiny):
    label = first_label(folder)
    label.write_bytes(bytes(range(256)))
    result = command("train", "--data", folder, *tiny, "--epochs", 1)
    assert result.code == DATA and "binary" in result.err and os.path.relpath(label) in result.err
    assert_clean(result)


def test_harmless_faults_are_mended_and_counted(command, folder, tiny):
    label = first_label(folder)
    rows = label.read_text().splitlines()
    label.write_text("\n".join([*rows, rows[0], "0 0.5 0.5 0 0.1", "0 0.953 0.5 0.1 0.1"]) + "\n")
    before = label.read_bytes()
    result = command("train", "--data", folder, *tiny, "--epochs", 1, "--noplots")
    assert result.code == 0 and label.read_bytes() == before
    line = next(line for line in result.out.splitlines() if line.startswith("train: "))
    for text in ("1 clipped", "1 of no size", "1 duplicate"):
        assert text in line, line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_does_not_decode(command, folder, tiny, workers):
    picture = sorted((folder / "images" / "train").iterdir())[3]
    picture.write_bytes(picture.read_bytes()[:-400])
    result = command("train", "--data", folder, *tiny, "--epochs", 1, "--noplots", "--workers", workers)
    assert result.code == DATA and picture.name in result.err and "Traceback" not in result.err
    assert not list(Path("runs").rglob("*.pt"))


def test_missing_and_empty_data_sets(command, tiny):
    result = command("train", "--data", "nowhere.yaml", *tiny)
    assert (
        result.code == DATA and str(Path("nowhere.yaml").absolute()) in result.err and "data/" in result.err
    )
    assert_clean(result)
    Path("empty/images").mkdir(parents=True)
    Path("empty/data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    result = command("train", "--data", "empty", *tiny)
    assert result.code == DATA and "no pictures" in result.err and "empty/images" in result.err
    assert_clean(result)
    Path("empty/data.yaml").write_text("train: pictures\nval: images\nnames: [a]\n")
    result = command("train", "--data", "empty/data.yaml", *tiny)
    assert result.code == DATA and result.err.count("pictures") >= 2  # every path tried
    assert_clean(result)


WEIGHTS = {
    "yolov5s.pt": (lambda path: path.write_bytes(pickle.dumps({"model": Opaque()}, 2)), "YOLOv5"),
    "empty.pt": (lambda path: path.write_bytes(b""), "empty"),
    "text.pt": (lambda path: path.write_text("hello"), "not a PyTorch checkpoint"),
    "missing.pt": (lambda path: None, "not found"),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("script", ["train", "val", "detect"])
def test_weights_of_others(command, shapes, script, name):
    make, text = WEIGHTS[name]
    make(Path(name))
    source = ["--source", str(shapes.parent)] if script == "detect" else ["--data", str(shapes)]
    if script == "train":
        source += ["--cfg", "demo"]  # otherwise the weights are read for their architecture already
    result = command(script, "--weights", name, *source)
    assert result.code == USAGE and name in result.err and text in result.err
    assert_clean(result)


def test_cuda_without_a_gpu(command, shapes, tiny, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    result = command("train", "--data", shapes, *tiny, "--device", "0")
    assert result.code == USAGE and "CUDA" in result.err
    result = command("train", "--data", shapes, *tiny, "--device", "0,1")
    assert result.code == USAGE and "torchrun --nproc_per_node 2 train.py" in result.err
    assert_clean(result)


SETTINGS = {
    "train:\n  epoch: 3\n": ("train.epoch", "train.epochs", "hyp.yaml:2"),
    "train:\n  epochs: many\n": ("train.epochs", "integer", "hyp.yaml:2"),
    "train:\n  epochs: -1\n": ("train.epochs", "1", "hyp.yaml:2"),
    "train:\n  lr: .nan\n": ("train.lr", "hyp.yaml:2"),
    "model:\n  depth: 0.5\n": ("model.depth", "--cfg", "hyp.yaml:2"),
    "lr0: 0.01\n": ("lr0", "train.lr", "hyp.yaml:1"),
    "train: [1, 2\n": ("hyp.yaml:",),
}


@pytest.mark.parametrize("text", SETTINGS)
def test_settings(command, shapes, tiny, text):
    Path("hyp.yaml").write_text(text)
    result = command("train", "--data", shapes, *tiny, "--hyp", "hyp.yaml")
    assert result.code == USAGE
    for part in SETTINGS[text]:
        assert part in result.err, result.err
    assert_clean(result)


def test_set_and_flags(command, shapes, tiny):
    for asked, part in (("train.epoch=3", "train.epochs"), ("nonsense", "="), ("train.lr=big", "train.lr")):
        result = command("train", "--data", shapes, *tiny, "--set", asked)
        assert result.code == USAGE and part in result.err
        assert_clean(result)
    for asked in (["--freeze", "99"], ["--set", "train.amp=fp16", "--device", "cpu"]):
        result = command("train", "--data", shapes, *tiny, *asked)
        assert result.code == USAGE, result.err
        assert_clean(result)
    for asked in (
        ["--epochs", "0"],
        ["--imgsz", "8"],
        ["--freeze", "nothing"],
        ["--cfg", "huge"],
        ["--resume"],
    ):
        result = command("train", "--data", shapes, *tiny, *asked)
        assert result.code == USAGE and asked[-1].lstrip("-") in result.err
        assert_clean(result)


def assert_clean(result) -> None:
    """One message, no traceback, and nothing written."""
    assert "Traceback" not in result.err and "error: " in result.err
    assert not Path("runs").exists()


TOO_LONG = "n" * 300
NAMED = {  # command -> flags in which a file or folder is named
    "train": ("--hyp", "--cfg", "--data", "--weights", "--loss", "--resume", "--project", "--name"),
    "val": ("--data", "--project", "--name"),
    "detect": ("--source", "--weights"),
    "data.check": ("--data",),
    "data.convert": ("--out",),
    "data.shapes": ("--root",),
}


@pytest.mark.parametrize(("script", "flag"), [(script, flag) for script in NAMED for flag in NAMED[script]])
def test_names_that_no_disk_holds(command, shapes, tiny, trained, script, flag):
    """Looking such a file up is an error of the system, as it is behind a folder one may not enter."""
    use = ["--weights", trained / "weights" / "last.pt", "--device", "cpu"]
    before = {
        "train": ["--data", shapes, *tiny, "--epochs", 1, "--exist-ok"],
        "val": [*use, "--workers", 0, "--exist-ok"],
        "detect": [*use, "--source", shapes.parent],
        "data.convert": ["--data", shapes, "--to", "coco"],
    }
    result = command(script, *before.get(script, ()), flag, TOO_LONG)
    assert result.code in (USAGE, DATA) and "n" * 50 in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("flag", ["--weights", "--hyp", "--cfg", "--loss", "--data"])
def test_a_pipe_is_there_but_no_file(command, shapes, tiny, flag):
    os.mkfifo("pipe.yaml")
    result = command("train", "--data", shapes, *tiny, flag, "pipe.yaml")
    assert result.code in (USAGE, DATA) and "pipe.yaml" in result.err
    assert "no such file" not in result.err and "not found" not in result.err


@pytest.mark.parametrize("flag", ["--name", "--project"])
def test_a_folder_s_name_does_not_break_lines(command, shapes, tiny, flag):
    result = command("train", "--data", shapes, *tiny, flag, "a\nb")
    assert result.code == USAGE and f"{flag} a\\nb: holds a control character" in result.err
    assert_clean(result)
