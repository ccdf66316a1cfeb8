"""The runs of a comparison as processes: train.py, then val.py on its last.pt, several at a time.

A slot is a place for one process: a GPU, or a share of the cores. Each run has a log beside its folder, which
its processes hold locked: a training that outlives a killed comparison is not started a second time.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from utils.comparison.plan import Plan, Run
from utils.config_files import ROOT
from utils.errors import OUR_FAULT, UserError
from utils.files import open_regular
from utils.training.run_lock import RunLock
from utils.wording import figure

TRAINING, MEASURING = "training", "measuring"
PROMPT = "\n$ "  # before a command in a log
SHOWN_LINES = 15  # of a failed run's log
PAUSE = 0.1  # seconds between looks at the processes
PATIENCE = 10.0  # seconds a process has to end by itself, or to let go of its log


class Slot(NamedTuple):
    """A place for one process."""

    device: str  # --device of its commands; '': theirs to choose
    env: dict[str, str]  # beside what the environment holds
    workers: int | None  # loader processes; None: theirs to choose


class Process(NamedTuple):
    """A run at work."""

    run: Run
    stage: str
    popen: subprocess.Popen


def make_slots(device: str, jobs: int | None) -> list[Slot]:
    """``jobs`` slots on the GPUs of ``--device`` in turn ('': all there are, one job each), or on the CPU."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: at least one training has to run at a time")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _find_gpus(device)
    count = jobs or max(1, len(gpus))
    workers = max(0, cores // count - 1) if count > 1 else None
    if gpus:
        return [Slot("0", {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}, workers) for i in range(count)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // count))
    return [Slot(device, {"OMP_NUM_THREADS": threads}, workers)] * count


def _find_gpus(device: str) -> list[str]:
    """The GPUs that ``--device`` means, as CUDA_VISIBLE_DEVICES names them; [] for the CPU."""
    asked, found = device.strip().lower().removeprefix("cuda:"), torch.cuda.device_count()
    if asked == "cpu" or (asked in ("", "cuda") and not found):
        return []
    numbers = asked.split(",") if asked not in ("", "cuda") else map(str, range(found))
    numbers = [number.strip() for number in numbers]
    if not all(number.isdigit() and int(number) < found for number in numbers):
        raise UserError(
            f"--device {device}: give cpu, a GPU's number, or several as 0,1; this machine shows {found} GPUs"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(found)))
    return [visible.split(",")[int(number)] for number in numbers]


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Refuse a second comparison in the same folder for as long as this one lasts; a killed one lets go.

    A folder that cannot be written (full, or not ours) is a ``UserError``, now or later.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with RunLock("compared") as lock:
            lock.take(folder)
            yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: {error.strerror}. Mend it, then give the same command again; what "
            "is finished is kept"
        ) from error


def run_all(plan: Plan, slots: Sequence[Slot]) -> dict[str, int]:
    """Bring every run to its end; the exit codes of those that failed, by the names of their folders.

    One that fails is shown with the last lines of its log, and the others go on. On an interrupt or SIGTERM
    every process is ended first.
    """
    waiting = [run for run in plan.runs if next_stage(run)]
    failed: dict[str, int] = {}
    working: dict[int, Process] = {}
    total, begun = len(waiting), time.monotonic()
    for run in waiting:
        _open_log(run).close()  # refuses before anything is started
    waiting = [run for run in waiting if next_stage(run)]  # what was still at work may have come to its end
    with _ended_together(working):
        while waiting or working:
            for number in [n for n in range(len(slots)) if n not in working][: len(waiting)]:
                working[number] = _start(plan, waiting.pop(0), slots[number])
            time.sleep(PAUSE)
            for number, process in [item for item in working.items() if item[1].popen.poll() is not None]:
                del working[number]
                run, stage, code = process.run, next_stage(process.run), process.popen.returncode
                if code or stage == process.stage:
                    failed[run.name] = max(code, OUR_FAULT)
                    print(_show_failure(process, code), flush=True)
                elif stage:
                    working[number] = _start(plan, run, slots[number])
                else:
                    done = total - len(waiting) - len(working)
                    print(_show_progress(run, done, total, seconds=time.monotonic() - begun), flush=True)
    return failed


def next_stage(run: Run) -> str | None:
    """What is to be done with a run, None if nothing: a training that is whole is not begun again."""
    if not run.is_trained:
        return TRAINING
    return None if is_measured(run) else MEASURING


def is_measured(run: Run) -> bool:
    """Whether val.py has measured the weights that lie there now."""
    metrics = run.measured / "metrics.json"
    try:
        with open_regular(metrics) as file:
            weights = json.loads(file.read())["protocol"]["weights"]
        newer = metrics.stat().st_mtime_ns >= run.weights.stat().st_mtime_ns
        whole = os.path.isfile(run.measured / "predictions.json")  # which val.py writes after it
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return newer and whole and weights == str(run.weights)


def train_command(plan: Plan, run: Run, slot: Slot) -> list[str]:
    """The command that begins a training, or goes on with it where there is a last.pt."""
    command = [sys.executable, str(ROOT / "train.py")]
    if slot.workers is not None:
        command.append(f"--workers={slot.workers}")  # the user's flag, behind it, wins
    command += [*plan.flags, f"--loss={plan.groups[run.loss].path}", f"--seed={run.seed}"]
    command += [f"--project={run.folder.parent}", f"--name={run.folder.name}", "--exist-ok"]
    if slot.device:
        command.append(f"--device={slot.device}")
    return [*command, f"--resume={run.weights}"] if os.path.isfile(run.weights) else command


def measure_command(plan: Plan, run: Run, slot: Slot) -> list[str]:
    """The command that measures the last averaged weights of a run, all runs on the same data."""
    command = [sys.executable, str(ROOT / "val.py"), f"--weights={run.weights}", "--save-json", "--noplots"]
    data = plan.groups[plan.baseline].config.data
    command += [f"--data={data.path}", f"--data-root={data.root}"]
    command += [f"--project={run.measured.parent}", f"--name={run.measured.name}", "--exist-ok"]
    if slot.workers is not None:
        command.append(f"--workers={slot.workers}")
    return [*command, f"--device={slot.device}"] if slot.device else command


def _start(plan: Plan, run: Run, slot: Slot) -> Process:
    """The process of a run's next stage."""
    stage = next_stage(run)
    command = train_command(plan, run, slot) if stage == TRAINING else measure_command(plan, run, slot)
    if stage == TRAINING:
        how = "goes on" if os.path.isfile(run.weights) else "starts"
        print(f"{run.name} {how}; log: {run.log}", flush=True)
    with _open_log(run) as log:
        log.write(f"{PROMPT}{shlex.join(command)}\n")
        log.flush()
        output = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        popen = subprocess.Popen(command, env=os.environ | slot.env, start_new_session=True, **output)
    return Process(run, stage, popen)


def _open_log(run: Run) -> TextIO:
    """The run's log, locked for as long as a process has it open."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(run.log) and not os.path.isfile(run.log):  # a pipe would be waited for
        raise UserError(f"{run.log} is in the way of a log: not a regular file. Move it away")
    log = open(run.log, "a", encoding="utf-8")  # noqa: SIM115, the caller closes it
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return log
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                log.close()
                raise UserError(
                    f"{run.name} is being trained or measured by another process; it writes {run.log}. "
                    "Wait for it, or end it"
                ) from error
        time.sleep(PAUSE)


@contextmanager
def _ended_together(working: dict[int, Process]) -> Iterator[None]:
    """On leaving, nothing of ours is at work any more."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        print("stopped; the same command goes on from here", flush=True)
        raise
    finally:
        _end([process.popen for process in working.values()])


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Interrupt processes and those they started; kill what is left of them after ``PATIENCE``."""
    for sign in (signal.SIGINT, signal.SIGKILL):
        for popen in processes:
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, sign)
        for popen in processes:
            with suppress(subprocess.TimeoutExpired):
                popen.wait(PATIENCE)


def _show_failure(process: Process, code: int) -> str:
    """What became of a failed process, with the last lines it wrote."""
    run = process.run
    what = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
    if code == 0:
        what = "ended without its results"
    text = run.log.read_text(encoding="utf-8", errors="replace")
    lines = text.rpartition(PROMPT)[2].splitlines()[1:][-SHOWN_LINES:]  # of the last command
    return "\n".join(
        [f"{run.name}: {process.stage} {what}; the end of {run.log}:", *(f"  {x}" for x in lines)]
    )


def _show_progress(run: Run, done: int, total: int, *, seconds: float) -> str:
    """``[3/10] gfl-seed1: AP 0.412; 5 min, about 12 min left``."""
    value = json.loads((run.measured / "metrics.json").read_text(encoding="utf-8"))["AP"]
    rest = f", about {_show_time(seconds / done * (total - done))} left" if done < total else ""
    return f"[{done}/{total}] {run.name}: AP {figure(value)}; {_show_time(seconds)}{rest}"


def _show_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
