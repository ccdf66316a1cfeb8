"""What a process does as signals reach it. The second one is tried on processes of their own."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import pytest

from tests.ranks import run_ranks
from utils.training.signals import CODES, SAME, Stop, ending_signals, held, leave_to_parent

NAMES = pytest.mark.parametrize("name", CODES)
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")


def fork(work: Callable[[], int | None]) -> int:
    """Number of a process that does ``work`` and ends with the code that it returns."""
    child = os.fork()
    if not child:
        try:
            os._exit(work() or 0)
        finally:
            os._exit(1)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def send(name: str) -> None:
    signal.raise_signal(getattr(signal, name))


@NAMES
def test_the_first_signal_only_asks(name, capfd):
    before = signal.getsignal(getattr(signal, name))
    with Stop() as stop:
        assert (stop.code, stop.name) == (0, "")
        send(name)
        assert (stop.code, stop.name) == (CODES[name], name)
    assert signal.getsignal(getattr(signal, name)) is before
    assert capfd.readouterr().err.count(f"{name}: finishing this step and saving") == 1


def test_codes_are_those_of_shells():
    assert {name: code - 128 for name, code in CODES.items()} == {
        "SIGINT": 2,
        "SIGTERM": 15,
        "SIGHUP": 1,
        "SIGUSR1": 15,
    }


@NAMES
def test_work_that_leaves_nothing_half_done_ends_at_once(name):
    done = []

    def work(stop):
        with stop.at_once():
            done.append("begun")
            send(name)
            done.append("never")

    with Stop() as stop, pytest.raises(SystemExit) as ended:
        work(stop)
    assert (ended.value.code, done) == (CODES[name], ["begun"])


def test_such_work_does_not_begin_after_a_signal():
    with Stop() as stop:
        send("SIGTERM")
        with pytest.raises(SystemExit) as ended, stop.at_once():
            raise AssertionError("begun")
    assert ended.value.code == CODES["SIGTERM"]


def test_after_such_work_a_signal_only_asks_again():
    with Stop() as stop:
        with stop.at_once():
            pass
        send("SIGINT")
        assert stop.code == CODES["SIGINT"]


@FORK
def test_what_everybody_passes_on_counts_once(capfd):
    """torchrun and SLURM send what the terminal has sent already; the first of them decides the code."""

    def work():
        with Stop() as stop:
            for name in ("SIGINT", "SIGTERM", "SIGINT"):
                send(name)
            time.sleep(0.1)
            return 7 if (stop.code, stop.name) == (CODES["SIGINT"], "SIGINT") else 8

    assert exit_code(fork(work)) == 7
    assert "again" not in capfd.readouterr().err


@FORK
def test_afterwards_nothing_is_left():
    """Not even while a process that began in between lives on."""
    threads = threading.active_count()
    with Stop():
        child = fork(lambda: time.sleep(60))
    end = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    assert signal.set_wakeup_fd(-1) == -1


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            send("SIGHUP")
            assert stop.code == 0
            send("SIGTERM")
            assert stop.code == CODES["SIGTERM"]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_changes_nothing():
    before, codes = [signal.getsignal(number) for number in ending_signals()], []

    def work():
        with Stop() as stop, stop.at_once():
            codes.append(stop.code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert codes == [0] and [signal.getsignal(number) for number in ending_signals()] == before


@pytest.mark.parametrize("threads", [0, 3])
def test_held_signals_arrive_at_the_end(threads):
    """Also those that the system hands to another thread, which blocks none."""
    done, over = [], threading.Event()

    def work(stop):
        with stop.at_once(), held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            done.append(stop.code)

    others = [threading.Thread(target=over.wait) for _ in range(threads)]
    for other in others:
        other.start()
    with Stop() as stop, pytest.raises(SystemExit) as ended:
        work(stop)
    over.set()
    assert (ended.value.code, done) == (CODES["SIGTERM"], [0])
    assert not set(ending_signals()) & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_holding_changes_no_handler_and_only_the_main_thread_holds():
    before = [signal.getsignal(number) for number in ending_signals()]
    with held():
        pass
    thread = threading.Thread(target=held().__enter__)
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in ending_signals()] == before


@FORK
def test_signals_are_left_to_the_parent():
    def work():
        leave_to_parent()
        for name in CODES:
            send(name)
        return 7

    assert exit_code(fork(work)) == 7


WORKER = """
import multiprocessing, os, signal, sys, threading, time
import numpy as np
from utils.training.signals import Stop, leave_to_parent

def work(ready):
    leave_to_parent()
    ready.set()
    time.sleep(300)

context = multiprocessing.get_context("fork")
ready = context.Event()
child = context.Process(target=work, args=(ready,), daemon=True)
child.start()
ready.wait(30)
print(child.pid, flush=True)
"""
TWICE = """
def send():
    for name in sys.argv[1:3]:
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(1.2)

matrix = np.ones((int(sys.argv[3]),) * 2)
end = time.monotonic() + 100
with Stop() as stop:
    threading.Thread(target=send).start()
    while time.monotonic() < end:
        matrix @ matrix
"""
ERROR = """
raise RuntimeError("planted")
"""


def is_alive(pid: int) -> bool:
    """Whether a process of this number runs; a dead one whose parent is gone may take a moment."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.02)
    return True


@LINUX
@pytest.mark.parametrize(
    ("first", "second", "size"), [("SIGTERM", "SIGTERM", 100), ("SIGTERM", "SIGINT", 9000)]
)
def test_the_second_signal_ends_all_at_once(first, second, size, tmp_path):
    """Even while the main thread is in one operation of half a minute, in which Python runs no handler."""
    program = tmp_path / "program.py"
    program.write_text(WORKER + TWICE)
    (ended,) = run_ranks([program, first, second, size], 1, timeout=60)
    assert ended.code == CODES[second], ended.err
    assert f"{second} again: ending at once" in ended.err and "Traceback" not in ended.err
    assert not is_alive(int(ended.out))
    assert ended.seconds < SAME + 10


@LINUX
def test_processes_that_ignore_signals_keep_no_exit_waiting(tmp_path):
    """multiprocessing ends its children by SIGTERM at exit, and waits for them."""
    program = tmp_path / "program.py"
    program.write_text(WORKER + ERROR)
    (ended,) = run_ranks([program], 1, timeout=30)
    assert ended.code == 1 and "planted" in ended.err
    assert not is_alive(int(ended.out))
