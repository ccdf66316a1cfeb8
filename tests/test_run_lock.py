"""Two trainings in one run folder: one trains, the other says whose it is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from tests.ranks import ROOT
from tests.resume import FLAGS, go_on, read_rows, read_weights, train_here
from utils.errors import NOT_SAVED, USAGE, UserError
from utils.training.run_lock import RunLock

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def begun(more_shapes, tmp_path) -> Path:
    """A run of one epoch, of two."""
    flags = [*FLAGS, "--data", more_shapes, "--workers", 0, "--project", tmp_path / "runs", "--epochs", 1]
    return train_here(*flags).folder


def flags_of(folder: Path, data: Path) -> list:
    return [*FLAGS, "--data", data, "--workers", 0, "--project", folder.parent, "--name", folder.name]


def test_a_run_at_work_is_refused_however_it_is_named(begun, more_shapes, command):
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    with RunLock() as lock:
        lock.take(begun)
        lock_file = begun / ".lock"
        for flags in (
            ["--resume", begun],
            ["--resume", begun / "weights" / "last.pt", "--epochs", 3],
            ["--resume", "--project", begun.parent],
            [*flags_of(begun, more_shapes), "--resume", "auto"],
            [*flags_of(begun, more_shapes), "--exist-ok"],
        ):
            result = command("train", *flags)
            assert result.code == USAGE, result.err
            assert f"{begun} is being trained by process {os.getpid()}" in result.err
            assert result.err.count("\n") == 1 and "Traceback" not in result.err
        assert before == {p: p.read_bytes() for p in begun.rglob("*") if p.is_file() and p != lock_file}
        result = command("train", *flags_of(begun, more_shapes), "--epochs", 1)
        assert result.code == 0 and (begun.parent / f"{begun.name}2").is_dir()
    assert not (begun / ".lock").exists() and not (begun.parent / f"{begun.name}2" / ".lock").exists()


@pytest.mark.parametrize("harm", ["removed", "taken over"])
def test_a_run_that_is_another_process_s_by_now_writes_nothing_more(harm, begun, monkeypatch):
    """Its lock goes in the second epoch, as if it had been asleep for an hour."""
    weights, rows = (begun / "weights" / "last.pt").read_bytes(), read_rows(begun)
    validate = train.validate

    def lose(run):
        (begun / ".lock").unlink()
        if harm == "taken over":
            RunLock().take(begun)
        return validate(run)

    monkeypatch.setattr(train, "validate", lose)
    with pytest.raises(UserError, match="this process has lost it") as error:
        go_on(begun, "--epochs", 2)
    assert error.value.code == NOT_SAVED
    assert (begun / "weights" / "last.pt").read_bytes() == weights and read_rows(begun) == rows
    assert (begun / ".lock").exists() == (harm == "taken over")


def test_auto_sees_what_another_process_has_begun_meanwhile(begun, more_shapes, command, monkeypatch):
    """It found no last.pt as it started; by the time it has the lock there is one."""
    import run_setup

    find, asked = run_setup.find_resumed, []

    def too_early(args):
        asked.append(args)
        return find(args) if len(asked) > 1 else None

    monkeypatch.setattr(run_setup, "find_resumed", too_early)
    result = command("train", *flags_of(begun, more_shapes), "--resume", "auto", "--epochs", 2)
    assert result.code == 0 and "goes on: after epoch 1" in result.out
    assert read_weights(begun)["epoch"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("how", "times"), [("auto", 4), ("latest", 2), ("exist-ok", 2)])
def test_of_two_that_start_at_once_one_trains(how, times, more_shapes, tmp_path):
    """Where both are there at the same moment, the other says who has it."""
    refused = 0
    for number in range(times):
        folder = tmp_path / str(number) / "exp"
        flags = list(map(str, flags_of(folder, more_shapes)))
        flags += {"auto": ["--resume", "auto"], "exist-ok": ["--exist-ok"], "latest": []}[how]
        if how == "latest":
            train_here(*flags, "--epochs", 1)
            flags = ["--resume", "--project", str(folder.parent), "--noplots"]
        both = [
            subprocess.Popen(
                [sys.executable, "train.py", *flags, "--epochs", "2"],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        ended = [(*process.communicate(timeout=120), process.returncode) for process in both]
        codes = sorted(code for _, _, code in ended)
        assert codes in ([0, 0], [0, USAGE]), ended
        refused += codes == [0, USAGE]
        text = "".join(err for _, err, _ in ended)
        assert codes == [0, 0] or "is being trained by process" in text or "meanwhile" in text
        assert [row["epoch"] for row in read_rows(folder)] == ["1", "2"]
        assert read_weights(folder)["epoch"] == 2 and not (folder / ".lock").exists()
    assert refused >= times - 1
