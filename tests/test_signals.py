"""Signals to trainings: real processes with two loader processes each, and single moments in this process.

A child writes what it does into a file: ``begin`` and ``end N`` of each step, with N batches done,
``validate``, and ``signal`` as its handler is called.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import train
from tests.ranks import ROOT
from tests.resume import BATCHES, EPOCHS, FLAGS, compare_runs, go_on, read_weights, train_here
from utils.errors import OK, OUR_FAULT
from utils.training.signals import CODES

pytestmark = pytest.mark.usefixtures("one_thread")

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
TIMEOUT = 60  # seconds
CHILD = """
import os, runpy, sys, time
import val
from utils.step import TrainStep
from utils.training.signals import Stop

log, mode = os.open(sys.argv[1], os.O_APPEND | os.O_WRONLY), sys.argv[2]
evaluate, step, receive = val.evaluate, TrainStep.__call__, Stop._receive

def tell(text):
    os.write(log, f"{text}\\n".encode())

def told_step(self, batches, **options):
    tell("begin")
    if self.state.step == 3 and mode == "error":
        raise RuntimeError("planted")
    if self.state.step == 3 and mode == "long step":
        for _ in range(6000):
            time.sleep(0.01)
    result = step(self, batches, **options)
    tell(f"end {self.state.step + len(batches)}")
    return result

def told_evaluate(*arguments, **options):
    tell("validate")
    return evaluate(*arguments, **options)

def told_receive(self, *arguments):
    tell("signal")
    receive(self, *arguments)

TrainStep.__call__, val.evaluate, Stop._receive = told_step, told_evaluate, told_receive
sys.argv = ["train.py", *sys.argv[3:]]
runpy.run_path("train.py", run_name="__main__")
"""


class Left(NamedTuple):
    """What a child left behind."""

    code: int
    err: str
    did: list[str]  # lines of its log
    seconds: float  # from the last signal to its end
    processes: list[int]  # of its session


class Child:
    """A training in a process, and a session, of its own; ended at the end of the block."""

    def __init__(self, folder: Path, *flags, mode: str = ""):
        self.log, self.err, self.sent = folder / "log", folder / "err", 0.0
        self.log.write_text("")
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CHILD, self.log, mode, *flags]
        with open(self.err, "w") as err:
            self._process = subprocess.Popen(
                [*map(str, command)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        for number in self.processes():
            os.kill(number, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def wait_for(self, lines: int) -> None:
        """Until the log has as many lines."""
        end = time.monotonic() + TIMEOUT
        while self.log.read_bytes().count(b"\n") < lines:
            assert self._process.poll() is None and time.monotonic() < end, self.err.read_text()
            time.sleep(0.001)

    def send(self, name: str, *, to_all: bool = False) -> None:
        """A signal to the process, or to its whole group as shells and SLURM send it."""
        self.sent = time.monotonic()
        (os.killpg if to_all else os.kill)(self._process.pid, getattr(signal, name))

    def leave(self) -> Left:
        """Wait for its end."""
        code = self._process.wait(TIMEOUT)
        seconds = time.monotonic() - self.sent
        did = self.log.read_text().splitlines()
        return Left(code, self.err.read_text(), did, seconds, self.processes())

    def processes(self) -> list[int]:
        """All that live in its session, whoever their parent is."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # gone in between
                continue
            if int(session) == self._process.pid and state != "Z":
                found.append(int(folder.name))
        return found


def flags_of(more_shapes: Path, project: Path, *, workers: int = 2) -> list:
    return [*FLAGS, "--data", more_shapes, "--project", project, "--workers", workers]


def steps_after_signal(did: list[str]) -> list[str]:
    """The steps that ended after the signal came; none may begin anew once one has."""
    return [line for line in did[did.index("signal") :] if line.startswith("end")]


# processes


@LINUX
@pytest.mark.slow
def test_sigterm_at_20_random_moments_of_one_run(more_shapes, tmp_path):
    """Each is saved within one step, and 21 processes make the run that one makes."""
    rng = random.Random(20)
    flags = [*flags_of(more_shapes, tmp_path), "--epochs", 25]
    last, done, took = tmp_path / "exp" / "weights" / "last.pt", 0, []
    for _ in range(20):
        resume = ["--resume", last, "--noplots"] if last.exists() else flags
        with Child(tmp_path, *resume) as child:
            child.wait_for(rng.randint(1, 20))
            time.sleep(rng.uniform(0, 0.03))
            assert len(child.processes()) >= 3
            child.send("SIGTERM")
            left = child.leave()
        assert (left.code, left.processes) == (CODES["SIGTERM"], []), left.err
        assert "SIGTERM: " in left.err and "Traceback" not in left.err
        assert len(steps_after_signal(left.did)) <= 1
        ends = [int(line.split()[1]) for line in left.did if line.startswith("end")]
        done = ends[-1] if ends else done
        assert read_weights(last.parents[1])["step"] == done
        took.append(left.seconds)
    assert done < 25 * BATCHES and max(took) < 10
    assert go_on(last.parents[1]).code == OK
    whole = train_here(*flags_of(more_shapes, tmp_path / "straight"), "--epochs", 25)
    assert compare_runs(whole.folder, last.parents[1]) == []


@LINUX
@pytest.mark.parametrize(
    "name",
    [
        "SIGINT",
        pytest.param("SIGUSR1", marks=pytest.mark.slow),
        pytest.param("SIGHUP", marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_all_processes_of_a_run(name, more_shapes, tmp_path):
    """As shells and SLURM send it: loader processes go on until the step is done."""
    with Child(tmp_path, *flags_of(more_shapes, tmp_path)) as child:
        child.wait_for(9)
        child.send(name, to_all=True)
        left = child.leave()
    assert (left.code, left.processes) == (CODES[name], []), left.err
    assert f"{name}: finishing this step and saving" in left.err and "Traceback" not in left.err
    assert len(steps_after_signal(left.did)) <= 1
    ends = [line for line in left.did if line.startswith("end")]
    assert f"end {read_weights(tmp_path / 'exp')['step']}" == ends[-1]


@LINUX
def test_a_second_signal_ends_a_long_step(more_shapes, tmp_path):
    """Nothing is saved, nobody is left."""
    with Child(tmp_path, *flags_of(more_shapes, tmp_path), mode="long step") as child:
        child.wait_for(7)
        child.send("SIGTERM")
        child.wait_for(8)
        time.sleep(1.2)
        assert len(child.processes()) >= 3
        child.send("SIGINT")
        left = child.leave()
    assert left.code == CODES["SIGINT"] and left.seconds < 5
    assert left.processes == [] and "SIGINT again: ending at once" in left.err
    assert not (tmp_path / "exp" / "weights" / "last.pt").exists()


@LINUX
def test_an_error_leaves_no_process_behind(more_shapes, tmp_path):
    """Its traceback holds the loader, whose processes ignore what multiprocessing ends them with at exit."""
    with Child(tmp_path, *flags_of(more_shapes, tmp_path), mode="error") as child:
        left = child.leave()
    assert (left.code, left.processes) == (OUR_FAULT, []) and "RuntimeError: planted" in left.err


# moments


@pytest.fixture
def signal_in(monkeypatch):
    """``signal_in("evaluate", 3)``: a SIGTERM as train.py calls that function for the third time."""

    def plant(name: str, call: int = 1) -> None:
        function, calls = getattr(train, name), []

        def interrupted(*arguments, **options):
            calls.append(name)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments, **options)

        monkeypatch.setattr(train, name, interrupted)

    return plant


@pytest.mark.parametrize("moment", ["read_data", "build_run"])
def test_a_signal_during_set_up_ends_it_and_leaves_nothing(moment, signal_in, more_shapes, command, tmp_path):
    signal_in(moment)
    result = command("train", *flags_of(more_shapes, tmp_path / "runs", workers=0))
    assert result.code == CODES["SIGTERM"] and "Traceback" not in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("moment", "call", "place"),
    [
        ("describe_run", 1, None),
        pytest.param("end_epoch", 2, (2, 0), marks=pytest.mark.slow),
        pytest.param("save_epoch", 2, (2, 0), marks=pytest.mark.slow),
        pytest.param("end_epoch", EPOCHS, (EPOCHS, 0), marks=pytest.mark.slow),
        pytest.param("load_detector", 1, (EPOCHS, 0), marks=pytest.mark.slow),
        pytest.param("evaluate", EPOCHS + 1, (EPOCHS, 0), marks=pytest.mark.slow),
        ("write_metrics", 1, (EPOCHS, 0)),
    ],
)
def test_a_signal_between_steps_saves_where_the_run_stands(
    moment, call, place, signal_in, straight, more_shapes, command, tmp_path
):
    """Between validation, row and checkpoint, and while the results are measured."""
    signal_in(moment, call)
    result = command("train", *flags_of(more_shapes, tmp_path, workers=0))
    assert result.code == CODES["SIGTERM"] and "Traceback" not in result.err
    folder = tmp_path / "exp"
    if place is None:
        assert not (folder / "weights").exists()
        return
    saved = read_weights(folder)
    assert (saved["epoch"], saved["batch"]) == place
    assert not (folder / "metrics.json").exists()
    assert go_on(folder).code == OK
    assert compare_runs(straight, folder) == []


@pytest.fixture(scope="module")
def straight(more_shapes, tmp_path_factory) -> Path:
    """The folder of the run that no signal ended."""
    return train_here(*flags_of(more_shapes, tmp_path_factory.mktemp("straight"), workers=0)).folder
