"""One process for one run: a lock file in its folder, which a process that died does not leave for ever.

The file holds who has it. On one machine the number and the start of a process tell whether that one lives.
Processes of other machines, or of other containers, are not seen: their lock counts as long as it is touched,
by a thread, every ``BEAT``. The kernel's locks (flock) are not used: network file systems lack them, or keep
them to one machine.
"""

import contextlib
import json
import os
import shlex
import socket
import stat
import sys
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from utils.errors import NOT_SAVED, UserError

BEAT = 10.0  # seconds between two signs of life
WATCHED = 60.0  # seconds without one, as a newcomer watches: the owner is dead
SILENT = 180.0  # seconds without one, by the clock of the file system, which all machines share: the same
GUARD = 5.0  # seconds that a takeover, of milliseconds, may stand in the way of another
MOST = 4096  # bytes of a lock of ours
LOCK = ".lock"  # its name, and what the names of its helpers begin with
TOKEN = "token"  # the key by which an owner knows its own lock


class Seen(NamedTuple):
    """A lock as it was found."""

    content: bytes
    state: os.stat_result

    @property
    def record(self) -> dict:
        """What it says; {} where that is not of our form."""
        try:
            record = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) and isinstance(record.get("pid"), int) else {}

    @property
    def sign(self) -> tuple:
        """What changes with each sign of life."""
        return self.content, self.state.st_mtime_ns


class RunLock:
    """``with RunLock() as lock: lock.take(folder)``; given back at the end. ``what`` is done in the folder.

    One process takes one folder, once. Nothing is locked before ``take``. ``other``: what gives another one.
    """

    def __init__(self, what: str = "trained", *, other: str = "--name"):
        self.what, self.other, self.path, self._pid = what, other, None, os.getpid()
        self._over, self._own = threading.Event(), {}

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        if self.path and os.getpid() == self._pid:  # no process forked in between may do this
            with contextlib.suppress(OSError, ValueError):
                if self._is_ours(_read(self.path)):
                    self.path.unlink()
        self.path = None

    def take(self, folder: Path) -> None:
        """Lock ``folder``, or raise a ``UserError`` that says who has it.

        A folder in which nothing can be written (full, read-only) is a warning: the run may still go on. A
        lock that may be that of a dead process elsewhere is watched first, for up to ``WATCHED``. A second
        call with the same folder does nothing.
        """
        path = folder.absolute() / LOCK
        if path == self.path:
            return
        self._own = _describe_owner()
        own = path.with_name(f"{LOCK}.{self._own[TOKEN]}")
        try:
            own.write_text(json.dumps(self._own) + "\n", encoding="utf-8")
            self._take(path, own)
            self.path = path
        except OSError as error:
            self._refuse_unless_free(path)
            reason = error.strerror or error
            print(
                f"warning: {folder} cannot be locked ({reason}): see that nothing else works there",
                file=sys.stderr,
            )
            return
        finally:
            with contextlib.suppress(OSError):
                own.unlink()
        threading.Thread(target=self._live, args=(path,), daemon=True).start()

    def confirm(self) -> None:
        """Raise a ``UserError`` where the lock is another's by now, or gone: then nothing may be written."""
        if not self.path:
            return
        try:
            seen = _read(self.path)
        except (FileNotFoundError, ValueError):
            seen = None
        except OSError:  # the disk does not answer: that changes no owner, and a save will tell
            return
        if not self._is_ours(seen):
            who = f"it is being {self.what} by {_name(seen)}" if seen else "its lock was removed"
            raise UserError(
                f"{self.path.parent}: this process has lost it: {who}; ended without another save", NOT_SAVED
            )

    def _is_ours(self, seen: Seen | None) -> bool:
        return seen is not None and seen.record.get(TOKEN) == self._own[TOKEN]

    def _live(self, path: Path) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError, ValueError):
                if self._is_ours(_read(path)):
                    os.utime(path)

    def _take(self, path: Path, own: Path) -> None:
        watched, since = None, 0.0
        while not _create(path, own):
            try:
                seen = _look(path)
            except FileNotFoundError:  # given back at this moment
                continue
            if self._is_ours(seen):  # a network file system may say no after it has done it
                return
            alive = _lives(seen.record)
            if alive:
                self._refuse(path, seen)
            if alive is None and _age(seen, own) < SILENT:
                if watched != seen.sign:
                    if watched and watched[0] == seen.content:  # it was touched: somebody is there
                        self._refuse(path, seen)
                    _say_waiting(path, seen)
                    watched, since = seen.sign, time.monotonic()
                if time.monotonic() - since < WATCHED:
                    time.sleep(min(0.5, WATCHED / 10))
                    continue
            if _replace_stale(path, own, seen) and self._is_ours(_look(path)):
                print(f"{path.parent}: {_name(seen)} had it and is gone: taken over", file=sys.stderr)
                return

    def _refuse_unless_free(self, path: Path) -> None:
        """For a folder in which nothing can be written: whose lock may be there all the same."""
        try:
            seen = _look(path)
        except OSError:
            return
        alive = _lives(seen.record)
        if alive or (alive is None and time.time() - seen.state.st_mtime < SILENT):
            self._refuse(path, seen)

    def _refuse(self, path: Path, seen: Seen) -> None:
        raise UserError(
            f"{path.parent} is being {self.what} by {_name(seen)}: wait for it, stop it, or choose another "
            f"{self.other}"
        )


def _describe_owner() -> dict:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start": _start_of(os.getpid()),
        "space": _space(),
        "since": datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join(sys.argv)[:500],
        TOKEN: uuid.uuid4().hex,
    }


def _space() -> str:
    """Names the space in which a process's number means one process; '' where nothing says so.

    It is one start of one kernel, and in that a container's own numbers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except (OSError, ValueError):
        return ""


def _start_of(pid: int) -> int | None:
    """When a process started, in ticks since its kernel did; None where there is no such process."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = line.rpartition(")")[2].split()  # its name, before, may hold anything
    return None if state in "ZX" else int(fields[18])  # killed, and not yet waited for


def _lives(record: dict) -> bool | None:
    """Whether the owner does; None where that is not to be seen from here."""
    space = _space()
    if not space or record.get("space") != space or record.get("host") != socket.gethostname():
        return None
    return _start_of(record["pid"]) == record.get("start") is not None


def _look(path: Path) -> Seen:
    """Read a lock; a ``UserError`` where it is there, and cannot be read or is no plain file."""
    try:
        return _read(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path} cannot be read ({reason}), so another process may be at work there: see to it, or "
            "choose another folder"
        ) from error


def _read(path: Path) -> Seen:
    """Read a lock; a ``ValueError`` where it is no plain file. A pipe is not waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    number = os.open(path, flags)
    try:
        state = os.fstat(number)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("no plain file")
        return Seen(os.read(number, MOST), state)
    finally:
        os.close(number)


def _create(path: Path, own: Path) -> bool:
    """Give the lock its name, whole and only if there is none."""
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:  # no links on this file system: it is empty for a moment, which others take for alive
        content = own.read_bytes()
        try:
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(number, "wb") as file:
            file.write(content)
    return True


def _replace_stale(path: Path, own: Path, stale: Seen) -> bool:
    """Put ``own`` in the place of a dead process's lock; False where somebody else was faster.

    Two newcomers may find it stale at once. Who renames over it holds a second file meanwhile, so the other
    one sees the new lock, not the old one, before it does so itself.
    """
    guard, copy = path.with_name(f"{LOCK}.next"), own.with_name(f"{own.name}.new")
    if not _create(guard, own):
        time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):
            held = _look(guard)
            if _lives(held.record) is False or abs(_age(held, own)) > GUARD:
                guard.unlink()
        return False
    try:
        with contextlib.suppress(FileNotFoundError):
            if _look(path).sign != stale.sign:
                return False
        copy.write_bytes(own.read_bytes())
        os.replace(copy, path)
        time.sleep(0.05)  # should somebody have taken the guard for stale, too, the later one has it
        return True
    finally:
        for file in (copy, guard):
            file.unlink(missing_ok=True)


def _age(seen: Seen, own: Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system."""
    os.utime(own)
    return own.stat().st_mtime - seen.state.st_mtime


def _name(seen: Seen) -> str:
    record = seen.record
    if not record:
        return "a process that does not say its name"
    return (
        f"process {record['pid']} on {record.get('host', '?')} since {record.get('since', '?')} "
        f"({str(record.get('command', '?'))[:200]})"
    )


def _say_waiting(path: Path, seen: Seen) -> None:
    print(
        f"{path.parent}: {_name(seen)} may still be at work; watching its lock for up to {WATCHED:.0f} s",
        file=sys.stderr,
    )
