"""What tests of the entry points share: a small generated data set, and a way to call a command."""

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from data.shapes import make_shapes
from utils.errors import run_main


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests keep their caches apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTRB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """data.yaml of 16 training and 6 validation pictures of 64 to 96 px."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(root, num_train=16, num_val=6, sides=(64, 96))
    return root / "data.yaml"


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags of a training of seconds."""
    return ["--cfg", "demo", "--imgsz", "96", "--batch-size", "8", "--workers", "0", "--set", "train.amp=off"]


@pytest.fixture
def command(capfd, monkeypatch, tmp_path):
    """``command("train", "--epochs", 1)`` runs train.py here, in an empty folder; returns a ``Result``."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments) -> Result:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_main(__import__(script).main)
        return Result(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def trained(shapes, tiny, tmp_path_factory) -> Path:
    """The folder of a finished run of four epochs, with a checkpoint after the second."""
    project = tmp_path_factory.mktemp("runs")
    arguments = ["train.py", "--data", shapes, *tiny, "--epochs", 4, "--save-period", 2, "--project", project]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", list(map(str, arguments)))
        __import__("train").main()
    return project / "exp"
