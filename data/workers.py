"""The processes of a loader: how many, how they start, and what is said when one of them is killed.

They hand over *units*, lists of batches, through shared memory. Amounts are bytes.
"""

import gc
import multiprocessing.connection
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from utils.command import guard_output
from utils.errors import OUR_FAULT, UserError
from utils.training.distributed import rank
from utils.training.signals import held, leave_to_parent

SHARED_MEMORY = Path("/dev/shm")
MAX_WORKERS = 8
EACH_CORE, SOME = 4, 16  # more than this many workers only take memory from one another
GRACE = 1.0  # seconds between the first sign of a process's death and its exit code


def choose_workers(asked: int | None, units: int, *, unit_bytes: int, prefetch: int) -> int:
    """Worker processes: as asked, else one for each core left beside the training process, at most 8.

    Fewer, with one line that says so, where half of the free shared memory cannot hold what they prepare:
    ``prefetch`` units each, and the one in use.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = asked if asked is not None else max(0, min(MAX_WORKERS, cores // ranks - 1, units))
    if wanted > (most := EACH_CORE * cores + SOME):
        if rank() == 0:
            print(f"workers: {most} instead of {wanted}: this machine has {cores} cores for them")
        wanted = most
    if not wanted or not SHARED_MEMORY.is_dir():
        return wanted
    free = shutil.disk_usage(SHARED_MEMORY).free
    room = max(0, int((free / 2 / ranks / unit_bytes - 1) / prefetch))
    if room < wanted and rank() == 0:
        print(
            f"workers: {room} instead of {wanted}: each needs {prefetch * unit_bytes / 1e9:.2g} GB of "
            f"{SHARED_MEMORY}, of which {free / 1e9:.2g} GB are free, half for them (docker run --shm-size)"
        )
    return min(wanted, room)


def prefetch_of(size: int) -> int:
    """How many units of ``size`` batches each worker prepares: about four batches, at least two units."""
    return max(2, 4 // size)


def start_worker(_: int) -> None:
    """First thing in a worker: its errors travel to the training process, which alone heeds signals."""
    cv2.setNumThreads(0)
    leave_to_parent()
    guard_output()  # a process that was not forked has its own
    sys.excepthook = _show_unless_parted
    gc.freeze()  # what is inherited is shared memory as long as the collector does not write to it


def _show_unless_parted(kind, error, trace) -> None:
    """That the training process broke off, perhaps in the midst of fetching a batch, is no news."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def start_units(loader: DataLoader) -> Iterator[list]:
    """PyTorch's iterator without its signal handler, which raises wherever the training happens to be."""
    child_signal = getattr(signal, "SIGCHLD", None)
    handler = signal.getsignal(child_signal) if child_signal else None
    old = loader._iterator  # of an earlier epoch, whose workers have to answer
    check_workers(old)
    with _explained(old) if old is not None else held():
        units = iter(loader)
    if child_signal and signal.getsignal(child_signal) is not handler:
        signal.signal(child_signal, handler)
    return units


def next_unit(units: Iterator) -> list | None:
    """The next unit, None at the end."""
    with _explained(units):
        return next(units, None)


@contextmanager
def _explained(units: Iterator | None) -> Iterator[None]:
    """Whatever comes of reading from a process that is gone, turned into the error that says so."""
    try:
        yield
    except Exception:
        if workers := _workers_of(units):
            multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=GRACE)
        check_workers(units)
        raise


def _workers_of(units: Iterator | None) -> Sequence:
    return getattr(units, "_workers", ())  # none where this process renders, nor before the first epoch


def check_workers(units: Iterator | None) -> None:
    """Raise where a worker has died; the others are ended first."""
    dead = [worker.exitcode for worker in _workers_of(units) if worker.exitcode]
    if dead:
        end_workers(units)
        raise UserError(_explain_death(dead[0]), OUR_FAULT)


def end_workers(units: Iterator) -> None:
    """End them at once; PyTorch's own way waits, perhaps for a lock that a dead process holds."""
    if thread := getattr(units, "_pin_memory_thread", None):  # it reads what they write
        units._pin_memory_thread_done_event.set()
        units._worker_result_queue.put((None, None))
        thread.join(GRACE)
    for worker in _workers_of(units):
        worker.kill()
    if getattr(units, "_worker_pids_set", False):  # or PyTorch refuses the next iterator at this address
        signal_handling._remove_worker_pids(id(units))
        units._worker_pids_set = False
    units._shutdown = True


def _explain_death(code: int) -> str:
    """``code`` as ``Process.exitcode`` has it: negative for a signal."""
    if code == -getattr(signal, "SIGKILL", 9):
        return (
            "a loader process was killed (signal 9): usually memory ran out; use fewer --workers, a smaller "
            "--batch-size or --imgsz, or --cache disk instead of ram"
        )
    if code == -getattr(signal, "SIGBUS", 7):
        return (
            f"a loader process was killed (signal {-code}): usually {SHARED_MEMORY} is full; use fewer "
            "--workers, or give the container more shared memory (docker run --shm-size=8g)"
        )
    what = f"was killed (signal {-code})" if code < 0 else f"ended with exit code {code}"
    return f"a loader process {what}; run with --workers 0 to see where it happens"
