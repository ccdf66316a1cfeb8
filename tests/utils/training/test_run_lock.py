"""Who may work in a folder. Other machines are played by locks that say they are theirs."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ranks import ROOT
from utils.errors import NOT_SAVED, USAGE, UserError
from utils.training import run_lock
from utils.training.run_lock import RunLock

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
HOLDER = """
import sys, time
from pathlib import Path
from utils.errors import run_main
from utils.training.run_lock import RunLock
def main():
    with RunLock() as lock:
        lock.take(Path(sys.argv[1]))
        print("has it", flush=True)
        time.sleep(float(sys.argv[2]))
run_main(main)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Signs of life come, and are missed, within a second."""
    monkeypatch.setattr(run_lock, "BEAT", 0.05)
    monkeypatch.setattr(run_lock, "WATCHED", 0.3)


def hold(folder: Path, seconds: float = 60) -> subprocess.Popen:
    """A process that has the lock, or has been refused, when this returns."""
    command = [sys.executable, "-c", HOLDER, str(folder), str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def write_lock(folder: Path, *, age: float = 0, **changes) -> Path:
    """A lock like that of this process, with changes; ``age``: seconds since its last sign of life."""
    record, path = run_lock._describe_owner() | changes, folder / ".lock"
    path.write_text(json.dumps(record), encoding="utf-8")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def takes(folder: Path) -> bool:
    with RunLock() as lock:
        lock.take(folder)
        lock.confirm()
        return lock.path is not None


# one machine


def test_a_second_one_is_told_who_has_it(tmp_path):
    with RunLock() as lock:
        lock.take(tmp_path)
        lock.take(tmp_path)  # its own
        with RunLock() as other, pytest.raises(UserError, match="choose another --name") as error:
            other.take(tmp_path)
        assert error.value.code == USAGE
        assert f"is being trained by process {os.getpid()} on " in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
        lock.confirm()
    assert list(tmp_path.iterdir()) == [] and takes(tmp_path)


@LINUX
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owner_stands_in_nobodys_way(sign, tmp_path, capfd):
    """Killed, and a zombie until it is waited for; ended by a signal that it hears."""
    holder = hold(tmp_path)
    assert holder.stdout.readline() == "has it\n"
    with pytest.raises(UserError, match=f"process {holder.pid} "):
        takes(tmp_path)
    holder.send_signal(sign)
    with suppress(subprocess.TimeoutExpired):
        holder.wait(10 if sign == signal.SIGTERM else 0.5)
    begun = time.monotonic()
    assert takes(tmp_path) and time.monotonic() - begun < 0.5
    assert ("taken over" in capfd.readouterr().err) == (sign == signal.SIGKILL)
    holder.communicate()


@LINUX
@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({"pid": 2**22 + 1}, True),  # more than there are
        ({"pid": 10**20}, True),
        ({"pid": -1}, True),
        ({"start": 12345}, True),  # the number is another process's by now
        ({"start": None}, True),
        ({}, False),
        ({"command": "\x1b[31m" + "x" * 600, "host_": 5}, False),
    ],
)
def test_process_numbers_are_reused(changes, free, tmp_path):
    write_lock(tmp_path, **changes)
    if free:
        assert takes(tmp_path)
    else:
        with pytest.raises(UserError, match="is being trained by process") as error:
            takes(tmp_path)
        assert str(error.value).isprintable() and len(str(error.value)) < 600


@LINUX
def test_one_of_many_that_start_at_once_has_it(tmp_path):
    """Also where all of them find a dead owner's lock; threads, each with a lock of its own."""
    for round_ in range(20):
        folder = tmp_path / str(round_)
        folder.mkdir()
        if round_ % 2:
            write_lock(folder, pid=2**22 + 1)
        start, over, won = threading.Barrier(8), threading.Event(), []

        def work(folder=folder, start=start, over=over, won=won):
            with RunLock() as lock:
                start.wait()
                with suppress(UserError):
                    lock.take(folder)
                    won.append(lock)
                    over.wait(10)
                    lock.confirm()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 10
        while sum(thread.is_alive() for thread in threads) > 1 and time.monotonic() < end:
            time.sleep(0.01)
        over.set()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and list(folder.iterdir()) == []


# other machines, other containers


ELSEWHERE = ({"host": "other"}, {"space": "another boot pid:[1]"}, {"space": ""}, {"pid": "7"})


@pytest.mark.parametrize("there", ELSEWHERE, ids=str)
def test_an_owner_that_cannot_be_seen_is_watched(there, tmp_path, capfd):
    path, over = write_lock(tmp_path, **there), threading.Event()

    def live():
        while not over.wait(0.03):
            os.utime(path)

    owner = threading.Thread(target=live)
    owner.start()
    with pytest.raises(UserError, match="is being trained by"):
        takes(tmp_path)
    over.set()
    owner.join()
    assert "watching its lock for up to" in capfd.readouterr().err
    begun = time.monotonic()
    assert takes(tmp_path) and 0.3 < time.monotonic() - begun < 5
    assert "gone: taken over" in capfd.readouterr().err


@pytest.mark.parametrize("there", ELSEWHERE, ids=str)
def test_one_that_has_been_silent_for_long_is_dead(there, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(run_lock, "WATCHED", 100)
    write_lock(tmp_path, age=200, **there)
    assert takes(tmp_path)
    assert "watching" not in capfd.readouterr().err


def test_the_owner_gives_signs_of_life(tmp_path):
    with RunLock() as lock:
        lock.take(tmp_path)
        os.utime(lock.path, (0, 0))
        end = time.monotonic() + 5
        while lock.path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert lock.path.stat().st_mtime > 0


@pytest.mark.parametrize("content", ["", '{"pid": 1', "\0" * 5000, "[" * 4000, "ÿ"])
def test_a_lock_that_says_nothing_counts_until_it_has_been_silent(content, tmp_path, capfd):
    (tmp_path / ".lock").write_text(content, encoding="latin-1")
    assert takes(tmp_path)
    assert "a process that does not say its name" in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "loop", "device"])
def test_what_is_no_lock_is_refused_at_once(kind, tmp_path):
    path = tmp_path / ".lock"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": tmp_path / "gone", "loop": path, "device": "/dev/zero"}[kind])
    with pytest.raises(UserError, match="cannot be read"):
        takes(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [".lock"]


# file systems


def refuse(number: int):
    def raise_(*_, **__):
        raise OSError(number, os.strerror(number))

    return raise_


def test_a_takeover_that_was_killed_under_another_clock_is_not_waited_for(tmp_path):
    write_lock(tmp_path, pid=2**22 + 1)
    guard = tmp_path / ".lock.next"
    guard.write_text(json.dumps({"host": "other", "pid": 5}))
    late = time.time() + 10**6
    os.utime(guard, (late, late))
    assert takes(tmp_path) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK])
def test_without_links(number, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(number))
    with RunLock() as lock:
        lock.take(tmp_path)
        with pytest.raises(UserError, match=f"process {os.getpid()} "):
            takes(tmp_path)
        lock.confirm()
    write_lock(tmp_path, pid=2**22 + 1)
    assert takes(tmp_path) and list(tmp_path.iterdir()) == []


def test_a_link_that_is_made_and_reported_as_refused(tmp_path, monkeypatch):
    """A network file system whose answer was lost asks a second time."""
    link = os.link

    def twice(*arguments):
        link(*arguments)
        link(*arguments)

    monkeypatch.setattr(os, "link", twice)
    assert takes(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_written_the_run_goes_on_unless_it_is_at_work(
    number, tmp_path, monkeypatch, capfd
):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse(number))
        assert not takes(tmp_path)
    assert f"cannot be locked ({os.strerror(number)})" in capfd.readouterr().err
    for there in ({}, {"host": "other"}):
        write_lock(tmp_path, **there)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", refuse(number))
            with pytest.raises(UserError, match="is being trained by"):
                takes(tmp_path)


# losing it


@pytest.mark.parametrize("harm", ["removed", "taken over", "pipe", "folder gone"])
def test_who_has_lost_it_is_told_before_it_writes(harm, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with RunLock() as lock:
        lock.take(folder)
        lock.path.unlink()
        if harm == "taken over":
            write_lock(folder, host="other")
        elif harm == "pipe":
            os.mkfifo(folder / ".lock")
        elif harm == "folder gone":
            folder.rmdir()
        with pytest.raises(UserError, match="this process has lost it") as error:
            lock.confirm()
        assert error.value.code == NOT_SAVED
    assert folder.exists() == (harm != "folder gone")
    assert harm == "folder gone" or (folder / ".lock").exists() == (harm != "removed")  # not ours to remove


def test_a_disk_that_does_not_answer_takes_no_lock_away(tmp_path, monkeypatch):
    with RunLock() as lock:
        lock.take(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse(errno.EIO))
            lock.confirm()
        lock.confirm()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_a_forked_process_gives_nothing_back(tmp_path):
    with RunLock() as lock:
        lock.take(tmp_path)
        if not (child := os.fork()):
            lock.__exit__()
            os._exit(0)
        os.waitpid(child, 0)
        lock.confirm()
