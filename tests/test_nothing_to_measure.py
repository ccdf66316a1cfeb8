"""Validation data without a box that counts: AP is not a number, so nothing may be decided by it."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from utils.errors import DATA, OK

WARNING = "counts, so there is nothing to measure"


@pytest.fixture(scope="module")
def unmeasured(shapes, tiny, tmp_path_factory) -> tuple[Path, Path]:
    """data.yaml of pictures with empty label files in val, and the folder of a run of three epochs on it."""
    root = tmp_path_factory.mktemp("unmeasured")
    shutil.copytree(shapes.parent, root / "set")
    for file in (root / "set" / "labels" / "val").iterdir():
        file.write_text("")
    yaml = root / "set" / shapes.name
    arguments = ["train.py", "--data", yaml, *tiny, "--epochs", 3, "--patience", 1, "--project", root]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, arguments)))
        assert __import__("train").main() == OK
    return yaml, root / "exp"


def read_metrics(folder: Path) -> dict:
    """metrics.json, which holds nothing but JSON: neither NaN nor Infinity."""
    return json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)


def test_no_epoch_is_the_best_and_none_the_last_before_its_time(unmeasured):
    _, folder = unmeasured
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]  # by a patience of 1 it would have ended
    assert all(value == "" for row in rows for key, value in row.items() if key.startswith("metrics/"))
    assert sorted(path.name for path in (folder / "weights").iterdir()) == ["last.pt"]
    found = read_metrics(folder)
    assert found["AP"] is found["precision"] is found["per_class"]["circle"]["AP"] is None
    assert found["protocol"]["weights"].endswith("last.pt") and (folder / "results.png").exists()


def test_such_a_run_goes_on_and_its_last_screen_names_last_pt(command, unmeasured, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unmeasured[1], folder)
    shutil.copy(folder / "weights" / "last.pt", folder / "weights" / "best.pt")  # as older versions left one
    result = command("train", "--resume", folder, "--epochs", 4, "--noplots")
    assert result.code == OK and "best.pt is left from earlier" in result.out
    assert "warning val    no box counts, so AP cannot be measured: the label files hold no box" in result.out
    assert WARNING in result.out and f"detect.py --weights {folder}/weights/last.pt" in result.out
    last = result.out.splitlines()[-1]
    assert last.startswith("finished: 4 of 4 epochs") and "AP -1" not in last
    assert "no AP, as no box in val counts, and no best.pt: weights/last.pt is the one to use" in last


def test_last_pt_is_measured_and_used(command, unmeasured):
    yaml, folder = unmeasured
    last = folder / "weights" / "last.pt"
    result = command("val", "--weights", last)
    assert result.code == OK and WARNING in result.out and "-1.0" not in result.out
    assert "AP -  AP50 -" in result.out and read_metrics(Path("runs/val/exp"))["ARl"] is None
    assert command("detect", "--weights", last, "--source", yaml.parent / "images" / "val").code == OK


def test_there_is_nothing_to_compare(command, unmeasured, tiny):
    asked = ["--losses", "gfl", "vfl", "--data", unmeasured[0], *tiny, "--device", "cpu"]
    result = command("compare", *asked)
    assert result.code == DATA and "there is nothing to compare" in result.err
    assert not Path("runs").exists()
