"""Two ranks that stop, or are killed, and go on: the run that did not, bit by bit (gloo, on the CPU).

Functions that take ``folder`` and ``data`` run on every rank, inside one session. A run has three epochs of
14 batches, which are numbered over the run, from 0; a place is (epochs done, batches done of the next one).
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import train
from data.shapes import make_shapes
from tests.ranks import ROOT, run_text
from tests.resume import (
    FLAGS,
    StopAt,
    compare_runs,
    go_on,
    place_of,
    read_rows,
    read_weights,
    train_here,
)
from tests.test_train_ranks import on_ranks
from utils.errors import OK
from utils.training import distributed
from utils.training.signals import TERMINATED, Stop

pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES, EPOCHS = 14, 3
OWN = [*FLAGS, "--batch-size", "4", "--epochs", str(EPOCHS)]
WAYS = {
    "plain": (1, 10),
    "accumulated": (2, 3),
}  # batches of a step, steps between two questions to all ranks
KILLED_AT, SAVED_AT = 27, 24  # batches of the run
OFTEN = ["--save-minutes", "0.0001"]  # whenever the ranks have talked
PROGRAM = """
import os, signal, sys, torch, train
from utils.errors import run_main

torch.set_num_threads(1)
plain, rank, life = train.take_step, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
def take_step(run, batches):
    if rank == "1" and life == "0" and run.state.step == 27:
        WHAT
    return plain(run, batches)
train.take_step = take_step
if __name__ == "__main__":
    run_main(train.main)
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """data.yaml of 56 training pictures."""
    root = tmp_path_factory.mktemp("resume_ranks") / "shapes"
    make_shapes(root, num_train=4 * BATCHES, num_val=3, sides=(48, 64))
    return root / "data.yaml"


def flags_of(folder: str, data: str, way: str) -> list[str]:
    accumulated = ["--set", f"train.nominal_batch={4 * WAYS[way][0]}"]
    return [*OWN, *accumulated, "--data", data, "--project", folder, "--workers", "0"]


def train_straight(folder: str, data: str) -> None:
    for way in WAYS:
        assert train_here(*flags_of(folder, data, way), "--name", way).code == OK


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> Path:
    """Holds a folder for each of the ``WAYS``: runs of two ranks that never stop."""
    folder = tmp_path_factory.mktemp("straight")
    on_ranks(train_straight, folder, data)
    return folder


def differences(first: Path, second: Path) -> list[str]:
    """Between two finished runs, beside how often they were saved and how many processes loaded."""
    found = compare_runs(first, second)
    return [line for line in found if "train.save_minutes" not in line and "data.workers" not in line]


class Signalled:
    """A ``TrainStep`` in which this process gets a signal when ``batch`` is about to begin."""

    def __init__(self, step, batch: int, number: int):
        self.step, self.batch, self.number = step, batch, number

    def __getattr__(self, name: str):
        return getattr(self.step, name)

    def __call__(self, batches, **options):
        if self.step.state.step == self.batch:
            os.kill(os.getpid(), self.number)
        return self.step(batches, **options)


# signals


def train_with_stops(folder: str, data: str, way: str) -> None:
    """SIGTERM to one rank at a time: in the first step after a start, in an epoch's last, at random."""
    accumulation, train.ASK_EVERY = WAYS[way]
    numbers, last, between, place = random.Random(len(way)), None, train.ASK_EVERY * accumulation, 0
    for hit, asked in ((1, 0), (0, numbers.randrange(1, 14)), (1, BATCHES), (1, numbers.randrange(1, 14))):
        batch = place + asked if asked < BATCHES else place - place % BATCHES + BATCHES - accumulation
        batch -= batch % BATCHES % accumulation

        def prepare(run, batch=batch, hit=hit):
            if distributed.rank() == hit:
                run.step = Signalled(run.step, batch, signal.SIGTERM)

        with Stop() as stop:
            options = {"stop": stop, "prepare": prepare}
            way_flags = flags_of(folder, data, way)
            ended = go_on(last, **options) if last else train_here(*way_flags, **options)
        last, state = ended.folder, ended.run.state
        inside = -(-(batch % BATCHES + accumulation) // between) * between  # where they talk next
        expected = (batch // BATCHES, inside) if inside < BATCHES else (batch // BATCHES + 1, 0)
        assert ended.code == TERMINATED
        assert distributed.gather(place_of(state)) == [expected] * 2, (batch, hit)
        place = state.epoch * BATCHES + state.batch
        distributed.barrier("last.pt")  # which processes of their own would find there
    assert go_on(last).code == OK


@pytest.mark.parametrize("way", ["plain", pytest.param("accumulated", marks=pytest.mark.slow)])
def test_stops_change_nothing(straight, data, tmp_path, way):
    """Whichever rank is asked to stop, both do, before the same step."""
    on_ranks(train_with_stops, tmp_path, data, way)
    assert differences(straight / way, tmp_path / "exp") == []


KILLED = """
from tests import test_resume_ranks as t
import sys, torch

torch.set_num_threads(1)
def prepare(run):
    run.step = t.Signalled(run.step, t.KILLED_AT, t.signal.SIGKILL)
with t.distributed.session(torch.device("cpu")):
    t.train_here(*t.flags_of(*sys.argv[1:], "plain"), *t.OFTEN, prepare=prepare)
"""


def finish(folder: str) -> None:
    assert go_on(Path(folder)).code == OK


@pytest.mark.slow
def test_a_killed_run_goes_on_from_inside_the_epoch(straight, data, tmp_path):
    for ended in run_text(KILLED, 2, arguments=[str(tmp_path), str(data)]):
        assert ended.code == -signal.SIGKILL, ended.err
    killed = tmp_path / "exp"
    assert read_weights(killed)["step"] == SAVED_AT and len(read_rows(killed)) == 1
    on_ranks(finish, killed)
    assert differences(straight / "plain", killed) == []


def train_by_three(folder: str, data: str) -> None:
    """A run that does not stop, and one that does."""
    flags = [*flags_of(folder, data, "plain"), "--batch-size", "12", "--set", "train.nominal_batch=12"]
    flags += ["--epochs", "2"]
    assert train_here(*flags, "--name", "whole").code == OK
    ended = train_here(*flags, "--name", "stopped", stop=StopAt((1, 0)))
    assert ended.code == TERMINATED
    distributed.barrier("last.pt")
    assert go_on(ended.folder).code == OK


@pytest.mark.slow
def test_sums_over_three_ranks_are_rounded_alike(data, tmp_path):
    """Where a number lies in its bucket decides in which order its three summands are added."""
    on_ranks(train_by_three, tmp_path, data, count=3)
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []


# another number of ranks


def go_on_for_an_epoch(folder: str) -> None:
    assert go_on(Path(folder), stop=StopAt((1, 10))).code == TERMINATED


@pytest.mark.slow
def test_the_number_of_ranks_may_change(straight, data, tmp_path):
    """Other rounding and statistics, the same pictures and boxes: one process, two ranks, one process."""
    ended = train_here(*flags_of(str(tmp_path), str(data), "plain"), stop=StopAt((0, 5)))
    assert ended.code == TERMINATED and read_weights(ended.folder)["micro_batch"] == 4
    on_ranks(go_on_for_an_epoch, ended.folder)
    content = read_weights(ended.folder)
    assert (content["epoch"], content["batch"], content["micro_batch"]) == (1, 10, 2)
    assert len(content["epoch_parts"]) == 2
    ended = go_on(ended.folder)
    assert ended.code == OK and ended.run.state.micro_batch == 2  # what fitted then
    expected, found = (read_rows(run, "assignment.csv") for run in (straight / "plain", ended.folder))
    assert len(found) == EPOCHS and float(found[0]["small/boxes"]) > 100
    for size in ("small", "medium", "large"):
        assert [row[f"{size}/boxes"] for row in found] == [row[f"{size}/boxes"] for row in expected]
    steps = [row["step"] for row in read_rows(ended.folder)]
    assert steps == [str(BATCHES * epoch) for epoch in (1, 2, 3)]
    assert all("nan" not in row.values() for row in read_rows(ended.folder))


OTHER_PLACES = """
import os, sys, torch, train
from utils.errors import run_main
from utils.training import distributed, endings

torch.set_num_threads(1)
distributed.GRACE = endings.GRACE = 0.5
sys.argv += {"0": ["--name", "exp"], "1": ["--name", "missing", "--epochs", "5"]}[os.environ["RANK"]]
run_main(train.main)
"""


def test_ranks_that_would_not_begin_alike_are_refused(straight, data):
    """As on machines that share no disk, where only one finds the run that --resume auto means."""
    arguments = [*flags_of(str(straight), str(data), "plain"), "--resume", "auto", "--name"]
    first, second = run_text(OTHER_PLACES.replace('"exp"', '"plain"'), 2, arguments=arguments[:-1])
    assert first.code == second.code == 2, first.err + second.err
    assert "train.epochs: 3 and 5" in first.err and f"batches done: {BATCHES * EPOCHS} and 0" in first.err
    assert second.err == "" and not (straight / "missing").exists()


# torchrun


class Job:
    """A job of torchrun with two ranks; ``err`` is what all of its processes have written."""

    def __init__(self, folder: Path, *flags, what: str = "pass", launch: tuple = ()):
        (folder / "program.py").write_text(PROGRAM.replace("WHAT", what))
        self.mark, self.output, self.begun = f"LTRB_JOB={folder}", folder / "output.txt", time.monotonic()
        name, value = self.mark.split("=")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *launch]
        environment = os.environ | {"OMP_NUM_THREADS": "1", name: value}
        environment |= {"PYTHONUNBUFFERED": "1"}
        with open(self.output, "w") as output:
            options = {"stdout": output, "stderr": output, "cwd": ROOT, "env": environment}
            line = [*command, folder / "program.py", *flags]
            self.process = subprocess.Popen(list(map(str, line)), **options)

    def wait(self) -> tuple[int, str]:
        """Exit code and all that was written; nothing of the job is left after some seconds."""
        code = self.process.wait(timeout=120)
        end = time.monotonic() + 15  # processes of a loader look for their parent every five seconds
        while self.processes() and time.monotonic() < end:
            time.sleep(0.1)
        assert self.processes() == []
        return code, self.output.read_text()

    def processes(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # it has ended, or is not ours
        return found


@contextmanager
def torchrun(folder: Path, *flags, **options) -> Iterator[Job]:
    job = Job(folder, *flags, **options)
    try:
        yield job
    finally:
        for number in job.processes():
            os.kill(number, signal.SIGKILL)


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc to look into")


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_torchrun_ends_a_job_of_which_a_rank_was_killed(data, tmp_path, workers):
    """The processes of its loader hold its connections for some seconds; without them, all know at once."""
    flags = [*flags_of(str(tmp_path), str(data), "plain"), "--workers", workers]
    with torchrun(tmp_path, *flags, what=KILL) as job:
        code, text = job.wait()
    assert code == 1 and time.monotonic() - job.begun < 60
    assert text.count("error: ") == 1 and "error: rank 0: rank 1 is gone or stuck (Connection " in text
    assert "Signal 9 (SIGKILL) received" in text


@needs_proc
@pytest.mark.slow
def test_torchrun_starts_a_killed_job_anew(straight, data, tmp_path):
    flags = [*flags_of(str(tmp_path), str(data), "plain"), *OFTEN, "--workers", 1, "--resume", "auto"]
    with torchrun(tmp_path, *flags, what=KILL, launch=("--max-restarts", "1")) as job:
        code, text = job.wait()
    assert code == 0 and text.count("error: rank 0: rank 1 is gone") == 1, text
    assert differences(straight / "plain", tmp_path / "exp") == []


@needs_proc
@pytest.mark.slow
def test_torchrun_passes_a_signal_on(straight, data, tmp_path):
    table = tmp_path / "exp/results.csv"
    with torchrun(tmp_path, *flags_of(str(tmp_path), str(data), "plain")) as job:
        while not (table.exists() and table.read_text().count("\n") > 1):
            assert job.process.poll() is None and time.monotonic() < job.begun + 60
            time.sleep(0.01)
        job.process.terminate()
        code, text = job.wait()
    assert code == 1 and "SIGTERM: finishing this step and saving" in text and "error: " not in text
    assert text.count("stopped by SIGTERM") == 1
    assert 1 <= read_weights(tmp_path / "exp")["epoch"] < EPOCHS
    on_ranks(finish, tmp_path / "exp")
    assert differences(straight / "plain", tmp_path / "exp") == []


@needs_proc
@pytest.mark.slow
def test_torchrun_shows_the_fault_before_all_else(data, tmp_path):
    flags = flags_of(str(tmp_path), str(data), "plain")
    with torchrun(tmp_path, *flags, what="raise ZeroDivisionError('a fault of ours')") as job:
        code, text = job.wait()
    assert code == 1
    places = [text.index(part) for part in ("[rank1]: Traceback", "error: rank 0: rank 1 is gone", "E1")]
    assert places == sorted(places)
    assert "Root Cause" in text and text.count("ZeroDivisionError: a fault of ours") == 2


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--set", "train.lrr=1"], ["--weights", "missing.pt"]], ids=" ".join)
def test_torchrun_shows_a_mistake_once(data, tmp_path, flags):
    with torchrun(tmp_path, *flags_of(str(tmp_path), str(data), "plain"), *flags) as job:
        code, text = job.wait()
    assert code == 1 and text.count("error: ") == 1, text
