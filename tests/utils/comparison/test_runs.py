"""Runs as processes: order, going on, failures, interrupts, slots. train.py and val.py are stand-ins here."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from utils.comparison import runs
from utils.comparison.plan import Group, Plan, make_run
from utils.comparison.runs import (
    MEASURING,
    TRAINING,
    Slot,
    alone_in,
    make_slots,
    measure_command,
    next_stage,
    run_all,
    train_command,
)
from utils.config import Config
from utils.errors import USAGE, UserError

STAND_INS = {
    "train.py": """
        value = lambda name: next(a.partition("=")[2] for a in sys.argv if a.startswith(f"--{name}="))
        folder = Path(value("project"), value("name"))
        with open("order.txt", "a") as file:
            file.write(f"{folder.name}{' resumed' * any('--resume' in a for a in sys.argv)}\\n")
        (folder / "weights").mkdir(parents=True, exist_ok=True)
        (folder / "weights" / "last.pt").write_text("weights")
        print("threads", os.environ.get("OMP_NUM_THREADS"))
        behaviour = Path(f"{folder.name}.txt").read_text() if Path(f"{folder.name}.txt").exists() else ""
        if behaviour == "fail":
            print("\\n".join(f"line {i}" for i in range(40)))
            sys.exit(3)
        if behaviour == "hang":
            time.sleep(60)
        if behaviour != "nothing":
            (folder / "metrics.json").write_text("{}")
    """,
    "val.py": """
        value = lambda name: next(a.partition("=")[2] for a in sys.argv if a.startswith(f"--{name}="))
        folder = Path(value("project"), value("name"))
        folder.mkdir(parents=True, exist_ok=True)
        figures = {"AP": 0.5, "protocol": {"weights": value("weights")}}
        (folder / "metrics.json").write_text(json.dumps(figures))
        (folder / "predictions.json").write_text("[]")
    """,
}
SLOT = Slot("", {"OMP_NUM_THREADS": "1"}, None)


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    """Losses a and b with the seeds 0 and 1, in an empty folder."""
    for name, body in STAND_INS.items():
        head = "import json, os, sys, time\nfrom pathlib import Path\n"
        (tmp_path / name).write_text(head + textwrap.dedent(body))
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = Path("out")
    groups = {x: Group(Path(x), Config(), {s: make_run(folder, x, s) for s in (0, 1)}) for x in "ab"}
    return Plan(folder, "a", groups, ["--epochs=1"], device="", download=False, weights="")


def order() -> list[str]:
    path = Path("order.txt")
    return path.read_text().splitlines() if path.exists() else []


def test_every_loss_of_a_seed_before_the_next_seed(plan, capfd):
    assert run_all(plan, [SLOT]) == {}
    assert order() == ["a-seed0", "b-seed0", "a-seed1", "b-seed1"]
    assert all(next_stage(run) is None for run in plan.runs)
    shown = capfd.readouterr().out
    assert (
        "[1/4] a-seed0: AP 0.500; 0 s, about 1 s left" in shown.replace("0 s left", "1 s left")
        and "[4/4] b-seed1" in shown
    )
    log = Path("out/runs/a-seed0.log").read_text()
    assert "--epochs=1" in log and "--seed=0" in log and "--save-json" in log and "threads 1" in log


def test_what_is_finished_is_not_touched(plan):
    assert run_all(plan, [SLOT] * 2) == {}
    files = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    before = order()
    assert run_all(plan, [SLOT]) == {} and order() == before
    assert files == {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}


def test_stages_of_a_run(plan):
    run = plan.runs[0]
    assert next_stage(run) == TRAINING
    run_all(plan, [SLOT] * 2)
    (run.measured / "predictions.json").unlink()  # val.py was killed before its last file
    assert next_stage(run) == MEASURING
    run_all(plan, [SLOT])
    assert next_stage(run) is None and len(order()) == 4
    late = time.time_ns() + 10**9
    os.utime(run.weights, ns=(late, late))  # trained again since it was measured
    assert next_stage(run) == MEASURING
    (run.measured / "metrics.json").write_text("{")
    assert next_stage(run) == MEASURING
    (run.folder / "metrics.json").unlink()
    assert next_stage(run) == TRAINING


def test_a_failing_run_is_shown_and_the_others_go_on(plan, capfd):
    Path("b-seed0.txt").write_text("fail")
    Path("a-seed1.txt").write_text("nothing")
    assert run_all(plan, [SLOT]) == {"b-seed0": 3, "a-seed1": 1}
    shown = capfd.readouterr().out
    assert "b-seed0: training ended with code 3" in shown and "line 39" in shown and "line 5\n" not in shown
    assert "a-seed1: training ended without its results" in shown
    assert next_stage(plan.groups["b"].runs[1]) is None
    for path in Path().glob("*-seed*.txt"):
        path.unlink()
    assert run_all(plan, [SLOT]) == {}
    assert order()[4:] == ["b-seed0 resumed", "a-seed1 resumed"]


def test_flags_of_the_user_stand_before_those_of_the_comparison(plan):
    command = train_command(plan, plan.runs[0], Slot("0", {}, 3))
    assert command.index("--workers=3") < command.index("--epochs=1") < command.index("--seed=0")
    assert "--device=0" in command and not any("--resume" in part for part in command)


def test_all_runs_are_measured_on_the_data_of_the_comparison(plan):
    command = measure_command(plan, plan.groups["b"].runs[0], SLOT)
    assert f"--data={plan.groups['a'].config.data.path}" in command and "--save-json" in command


def test_one_comparison_at_a_time_in_a_folder(tmp_path):
    with alone_in(tmp_path / "x"):
        with pytest.raises(UserError, match="x is being compared by process"), alone_in(tmp_path / "x"):
            pass
        with alone_in(tmp_path / "y"):
            pass
    with alone_in(tmp_path / "x"):
        pass


def test_a_full_disk_or_a_file_in_the_way_is_no_traceback(tmp_path):
    with pytest.raises(UserError, match=r"x: No space left on device\. Mend it"), alone_in(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file: (Not a directory|File exists)"),
        alone_in(tmp_path / "file"),
    ):
        pass


def test_a_run_that_ends_while_it_is_waited_for_is_not_begun_again(plan, monkeypatch):
    run, opened = plan.runs[0], runs._open_log

    def finish_first(asked):
        if asked is run and not run.is_trained:  # its orphan lets go of the log only now
            for folder in (run.folder / "weights", run.measured):
                folder.mkdir(parents=True)
            run.weights.write_text("weights")
            (run.folder / "metrics.json").write_text("{}")
            figures = {"AP": 0.5, "protocol": {"weights": str(run.weights)}}
            (run.measured / "metrics.json").write_text(json.dumps(figures))
            (run.measured / "predictions.json").write_text("[]")
        return opened(asked)

    monkeypatch.setattr(runs, "_open_log", finish_first)
    assert run_all(plan, [SLOT]) == {}
    assert order() == ["b-seed0", "a-seed1", "b-seed1"]


def start_comparison() -> subprocess.Popen:
    """``run_all`` of the plan in a process of its own, whose first training hangs."""
    Path("a-seed0.txt").write_text("hang")
    program = """
        from pathlib import Path
        from utils.comparison import runs
        from utils.comparison.plan import Group, Plan, make_run
        from utils.config import Config
        from utils.errors import run_main
        runs.ROOT, runs.PATIENCE = Path.cwd(), 1.0
        groups = {x: Group(Path(x), Config(), {0: make_run(Path("out"), x, 0)}) for x in "ab"}
        plan = Plan(Path("out"), "a", groups, [], device="", download=False, weights="")
        run_main(lambda: max(runs.run_all(plan, [runs.Slot("", {}, None)]).values(), default=0))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **options)


def wait_for(condition, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_the_children_and_says_how_to_go_on(plan, sign, code):
    process = start_comparison()
    assert wait_for(lambda: order() == ["a-seed0"])
    (child,) = children(process.pid)
    os.kill(process.pid, sign)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == code and "Traceback" not in errors
    assert "the same command goes on from here" in output
    assert not Path(f"/proc/{child}").exists()
    assert order() == ["a-seed0"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_a_training_that_outlives_a_killed_comparison_is_not_started_twice(plan, monkeypatch):
    process = start_comparison()
    assert wait_for(lambda: order() == ["a-seed0"])
    (child,) = children(process.pid)
    process.kill()
    process.communicate()
    monkeypatch.setattr(runs, "PATIENCE", 0.3)
    with pytest.raises(UserError, match="a-seed0 is being trained or measured by another process"):
        run_all(plan, [SLOT])
    assert order() == ["a-seed0"]
    os.kill(child, signal.SIGKILL)
    Path("a-seed0.txt").unlink()
    monkeypatch.setattr(runs, "PATIENCE", 10.0)
    assert run_all(plan, [SLOT]) == {}
    assert order()[1] == "a-seed0 resumed"


def test_a_pipe_in_place_of_a_log_is_not_waited_for(plan):
    log = plan.runs[0].log
    log.parent.mkdir(parents=True)
    os.mkfifo(log)
    with pytest.raises(UserError, match="is in the way of a log: not a regular file"):
        run_all(plan, [SLOT])


# slots


@pytest.fixture
def gpus(monkeypatch):
    def show(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    return show


def test_cores_are_shared_by_the_jobs(gpus, monkeypatch):
    gpus(0)
    assert make_slots("", None) == [Slot("", {"OMP_NUM_THREADS": "8"}, None)]
    assert make_slots("cpu", 3) == [Slot("cpu", {"OMP_NUM_THREADS": "2"}, 1)] * 3
    assert make_slots("", 20)[0] == Slot("", {"OMP_NUM_THREADS": "1"}, 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert make_slots("", 2)[0].env == {"OMP_NUM_THREADS": "5"}
    with pytest.raises(UserError, match="--jobs 0"):
        make_slots("", 0)


def test_one_job_a_gpu(gpus, monkeypatch):
    gpus(3)
    visible = [slot.env["CUDA_VISIBLE_DEVICES"] for slot in make_slots("", None)]
    assert visible == ["0", "1", "2"] and make_slots("", None)[0].device == "0"
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in make_slots("2,0", 3)] == ["2", "0", "2"]
    assert make_slots("cpu", None)[0].device == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in make_slots("1,2", None)] == ["6", "7"]
    for wrong in ("3", "x", "0,9"):
        with pytest.raises(UserError, match="this machine shows 3") as error:
            make_slots(wrong, None)
        assert error.value.code == USAGE


def test_figures_stand_where_they_are_looked_for(plan):
    run_all(plan, [SLOT])
    run = plan.runs[-1]
    assert json.loads((run.measured / "metrics.json").read_text())["protocol"]["weights"] == str(run.weights)
