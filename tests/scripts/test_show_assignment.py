"""The command on generated pictures: its files, its table, and what it refuses."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.show_assignment import main
from utils.assigners.statistics import COLUMNS
from utils.errors import run_main
from utils.plots.draw import PALETTE
from utils.training.checkpoint import save_checkpoint


@pytest.fixture
def show(capfd, monkeypatch, tmp_path):
    """``show("--count", 2)`` -> exit code, standard output, standard error; runs in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["show_assignment.py", *map(str, arguments), "--device", "cpu"])
        with pytest.raises(SystemExit) as ended:
            run_main(main)
        return ended.value.code, *capfd.readouterr()

    return run


def test_every_picture_has_a_column_for_each_loss(show, shapes, tmp_path):
    rule = tmp_path / "center.yaml"
    rule.write_text("assigner:\n  name: center\n")
    flags = ("--data", shapes, "--cfg", "demo", "--imgsz", 96, "--count", 3)
    code, out, _ = show(*flags, "--loss", "gfl", rule)
    assert code == 0 and "3 of 6 pictures at 96x96" in out
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[:1]}
    assert all(len(table[key]) == 2 for key in COLUMNS[1:])
    assert table["small/boxes"][0] == table["small/boxes"][1] != "0"
    assert float(table["small/positives_per_box"][0]) > float(table["small/positives_per_box"][1]) >= 1
    pictures = sorted((tmp_path / "runs/assignment/exp").iterdir())
    assert len(pictures) == 3 and all(path.suffix == ".png" for path in pictures)
    both = np.asarray(Image.open(pictures[0]).convert("RGB"))
    assert show(*flags, "--loss", "gfl")[0] == 0
    one = np.asarray(Image.open(tmp_path / "runs/assignment/exp2" / pictures[0].name).convert("RGB"))
    assert both.shape[1] == 2 * one.shape[1] and both.shape[0] == one.shape[0]
    first = (both == PALETTE[0]).all(-1)  # the first box and its points
    halves = np.split(first, 2, axis=1)
    assert all(half.sum() > 50 for half in halves)


def test_with_weights_their_predictions_choose(show, shapes, trained, tmp_path):
    content = torch.load(trained / "weights/best.pt", weights_only=True)
    draw = torch.Generator().manual_seed(0)
    for key, weights in content["ema"].items():
        if key.startswith("head.") and weights.ndim == 4:  # four epochs have taught it too little to differ
            weights.normal_(generator=draw)
    save_checkpoint(tmp_path / "changed.pt", content)
    flags = ("--data", shapes, "--count", 1, "--exist-ok", "--weights")
    pixels = []
    for weights in (trained / "weights/best.pt", tmp_path / "changed.pt"):
        code, out, error = show(*flags, weights)
        assert code == 0 and "at 96x96" in out, error
        (path,) = (tmp_path / "runs/assignment/exp").iterdir()
        pixels.append(path.read_bytes())
    assert pixels[0] != pixels[1]
    # Their architecture stands above the loss file's, which has no bins.
    assert show(*flags, trained / "weights/best.pt", "--loss", "ltrb_plain")[0] == 0


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--count", 0), 2, "--count 0"),
        (("--loss", "gfl", "nonsense"), 2, "nonsense: no such file"),
        (("--set", "assigner.name=atts"), 2, "assigner.name"),
        (("--weights", "missing.pt"), 2, "missing.pt"),
    ],
)
def test_what_is_refused(show, shapes, flags, code, words):
    found, _, error = show("--data", shapes, *flags)
    assert found == code and words in error and "Traceback" not in error


def test_nothing_to_draw(show, shapes, tmp_path):
    root = tmp_path / "empty"
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(root / "images" / split / "a.png")
        (root / "labels" / split / "a.txt").write_text("")
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [a]\n")
    code, _, error = show("--data", root / "data.yaml", "--imgsz", 64, "--cfg", "demo")
    assert code == 4 and "nothing to draw" in error
