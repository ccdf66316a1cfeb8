"""What stands in every checkpoint, when the next is due, and what becomes of a run that cannot write."""

import time

import pytest
import torch

from utils.errors import NON_FINITE, UserError
from utils.training import saver as module
from utils.training.saver import Saver

ABOUT = {"config": {"model": {"depth": 1.0}}, "names": ["a"], "strides": [8]}


def make(tmp_path, *, minutes: float = 10) -> Saver:
    return Saver(tmp_path, ABOUT, minutes=minutes)


def content(value: float = 1.0) -> dict:
    return {"ema": {"weight": torch.full((2,), value)}, "epoch": 3}


def test_what_stands_in_all_checkpoints(tmp_path):
    make(tmp_path).save("last.pt", content())
    found = torch.load(tmp_path / "weights/last.pt", weights_only=True)
    assert found.items() >= {**ABOUT, "epoch": 3}.items() and found["ema"]["weight"].tolist() == [1, 1]


def test_a_full_disk_costs_the_file_and_not_the_run(tmp_path, monkeypatch, capsys):
    saver, plain = make(tmp_path), module.save_checkpoint
    saver.save("last.pt", content())

    def full(path, what):
        raise OSError(28, f"{path} could not be written: No space left on device")

    monkeypatch.setattr(module, "save_checkpoint", full)
    saver.save("last.pt", content(2.0))
    saver.save("best.pt", content(2.0))
    err = capsys.readouterr().err
    assert saver.failed and "last.pt is not saved" in err and "No space left" in err
    assert torch.load(tmp_path / "weights/last.pt", weights_only=True)["ema"]["weight"].tolist() == [1, 1]
    monkeypatch.setattr(module, "save_checkpoint", plain)
    saver.save("last.pt", content(3.0))
    assert saver.failed  # best.pt is still missing
    saver.save("best.pt", content(3.0))
    assert not saver.failed


def test_what_is_not_finite_ends_the_run(tmp_path):
    saver = make(tmp_path)
    saver.save("last.pt", content())
    before = (tmp_path / "weights/last.pt").read_bytes()
    with pytest.raises(UserError, match=r"ema\.weight") as refused:
        saver.save("last.pt", content(torch.nan))
    assert refused.value.code == NON_FINITE
    assert (tmp_path / "weights/last.pt").read_bytes() == before


def test_when_the_next_is_due(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    saver = make(tmp_path, minutes=2)
    assert not saver.is_due
    now += 119
    assert not saver.is_due
    now += 1
    assert saver.is_due
    saver.save("best.pt", content())
    assert saver.is_due  # it is last.pt that counts
    saver.save("last.pt", content())
    assert not saver.is_due


def test_a_failed_attempt_is_not_repeated_at_every_step(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(module, "save_checkpoint", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    saver = make(tmp_path, minutes=2)
    now += 200
    assert saver.is_due
    saver.save("last.pt", content())
    assert not saver.is_due and saver.failed


def test_zero_minutes_are_never_due(tmp_path, monkeypatch):
    saver = make(tmp_path, minutes=0)
    monkeypatch.setattr(time, "monotonic", lambda: 1e12)
    assert not saver.is_due


def test_whatever_else_a_run_writes(tmp_path, capsys):
    """Remembered until it goes well; what is no fault of the disk is raised."""
    saver, calls = make(tmp_path), []

    def write() -> None:
        calls.append(True)
        if len(calls) == 1:
            raise OSError(28, "No space left on device", "results.png")

    saver.attempt("the plots", write)
    assert saver.failed and "the plots" in (err := capsys.readouterr().err) and "No space left" in err
    saver.attempt("the plots", write)
    assert not saver.failed and capsys.readouterr().err == ""
    with pytest.raises(KeyError):
        saver.attempt("the plots", lambda: {}["missing"])
