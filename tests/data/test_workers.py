"""Loader processes: how many, what is said when one is killed, and that none is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

import data.workers
from data.shapes import make_shapes
from data.workers import check_workers, choose_workers, end_workers, prefetch_of
from utils.errors import OUR_FAULT, UserError

ROOT = Path(__file__).parents[2]
GB = 10**9
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def machine(monkeypatch):
    """Make as if there were so many cores, and so many free bytes of shared memory."""

    def pretend(cores: int, free: float = 100 * GB):
        monkeypatch.setattr(data.workers.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        monkeypatch.setattr(data.workers.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    monkeypatch.setattr(data.workers, "SHARED_MEMORY", Path("/"))  # a folder on every system
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return pretend


def workers(asked, units=100, unit_bytes=1000, prefetch=2):
    return choose_workers(asked, units, unit_bytes=unit_bytes, prefetch=prefetch)


def test_as_asked_or_from_the_cores(machine):
    machine(64)
    assert workers(0) == 0 and workers(5, units=1) == 5
    for cores, units, expected in ((1, 100, 0), (4, 100, 3), (64, 100, 8), (64, 3, 3)):
        machine(cores)
        assert workers(None, units) == expected


def test_ranks_share_the_cores(machine, monkeypatch):
    machine(16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers(None) == 3


def test_shared_memory_limits_the_workers(machine, capsys, monkeypatch):
    """2 units of 0.1 GB each and one in use: of 1.1 GB, half are 5.5 units, so (5.5 - 1) / 2 = 2 workers."""
    machine(9, free=1.1 * GB)
    assert workers(None, unit_bytes=GB // 10) == 2
    out = capsys.readouterr().out
    assert "workers: 2 instead of 8" in out and "0.2 GB" in out and "1.1 GB" in out and out.count("\n") == 1
    assert workers(4, unit_bytes=GB // 10) == 2
    assert workers(2, unit_bytes=GB // 10) == 2 and workers(None, unit_bytes=GB) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # 0.275 GB a rank: (2.75 - 1) / 2
    assert workers(2, unit_bytes=GB // 10) == 0
    capsys.readouterr()
    assert workers(0, unit_bytes=GB) == 0
    assert capsys.readouterr().out == ""


def test_without_a_folder_of_shared_memory_nothing_limits(machine, monkeypatch, tmp_path):
    machine(9, free=0)
    monkeypatch.setattr(data.workers, "SHARED_MEMORY", tmp_path / "none")
    assert workers(None) == 8


@pytest.mark.parametrize(("batches", "units"), [(1, 4), (2, 2), (4, 2), (16, 2)])
def test_about_four_batches_are_prepared(batches, units):
    assert prefetch_of(batches) == units


# killed


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-9, r"killed \(signal 9\): usually memory ran out; use fewer --workers"),
        (-7, r"signal 7\): usually .*shared memory"),
        (-11, r"killed \(signal 11\); run with --workers 0"),
        (3, r"ended with exit code 3; run with --workers 0"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="SIGBUS has another number")
def test_a_dead_worker_is_explained_and_the_others_are_ended(code, text):
    killed = []
    workers = [SimpleNamespace(exitcode=c, kill=lambda c=c: killed.append(c)) for c in (None, 0, code)]
    with pytest.raises(UserError, match=text) as error:
        check_workers(SimpleNamespace(_workers=workers))
    assert error.value.code == OUR_FAULT and killed == [None, 0, code]


@linux
def test_an_ended_loader_makes_room_for_the_next_at_its_address():
    """PyTorch knows the processes of a loader by the address of its iterator."""
    units = iter(DataLoader(range(4), num_workers=1, multiprocessing_context="fork"))
    end_workers(units)
    signal_handling._set_worker_pids(id(units), ())
    signal_handling._remove_worker_pids(id(units))


def test_living_workers_and_none_are_fine():
    check_workers(SimpleNamespace(_workers=[SimpleNamespace(exitcode=None), SimpleNamespace(exitcode=0)]))
    check_workers(iter([]))


PROGRAM = """
import signal
import time
from data.index import load_split
from data.loader import make_train_loader
from data.spec import load_data_spec
from utils.config import Config, DataConfig, TrainConfig
from utils.errors import run_main

def main():
    index = load_split(load_data_spec("data.yaml"), "train")[0]
    cfg = Config(data=DataConfig(workers=2, imgsz=64), train=TrainConfig(batch_size=8))
    loader = make_train_loader(index, cfg, pin=False)
    print("started", flush=True)
    for epoch in range(10**6):
        loader.set_epoch(epoch, mosaic=True)
        for batch in loader:
            time.sleep(PAUSE)

signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell start with it ignored
run_main(main)
"""


@pytest.fixture
def start(tmp_path):
    """``start(pause)`` runs a program that loads for ever, ``pause`` s a batch: (process, its workers)."""
    make_shapes(tmp_path / "set", num_train=16, num_val=1, sides=(48, 64))
    started = []

    def run(pause: float):
        text = PROGRAM.replace("PAUSE", str(pause)).replace("data.yaml", str(tmp_path / "set" / "data.yaml"))
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", text],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "started\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 30
        while len(pids := children.read_text().split()) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        return process, [int(pid) for pid in pids]

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def are_gone(pids: list[int]) -> bool:
    """Within 10 s: PyTorch's workers look every 5 s whether their parent still lives."""
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@linux
@pytest.mark.parametrize("pause", [0, 0.2])  # it waits for data; the queue is full
def test_a_killed_worker_ends_the_run(start, pause):
    process, pids = start(pause)
    os.kill(pids[1], signal.SIGKILL)
    begun = time.monotonic()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == OUR_FAULT, errors
    assert errors.startswith("error: a loader process was killed (signal 9)") and "Traceback" not in errors
    assert time.monotonic() - begun < 30 and are_gone(pids)


@linux
def test_ctrl_c_leaves_no_worker_behind(start):
    process, pids = start(0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == "interrupted\n"
    assert are_gone(pids)


@linux
@pytest.mark.slow
def test_a_killed_run_leaves_no_worker_behind(start):
    process, pids = start(0)
    process.kill()
    process.wait(timeout=30)
    assert are_gone(pids)
