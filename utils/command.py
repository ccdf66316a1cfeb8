"""The first thing that a command does, before imports which take seconds: its output, and its signals.

Nothing slow is imported here, and nothing else of ours.
"""

import atexit
import errno
import io
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

ENDING = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}  # signals that end any command -> exit code
SLOW_READER = 10.0  # seconds that a full pipe which does not block has for making room
SAME = 1.0  # seconds in which further signals count as the first: torchrun and SLURM pass on what all got
CLEANING = 30.0  # seconds that work which a signal has interrupted may take to clean up
GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # nobody reads any more: closed pipe, terminal, descriptor

_ended_by = 0  # the first signal: it decides the exit code, and alone gets a line


def begin_command() -> None:
    """Output that nobody can take never ends this process; a signal ends it at once, with one line.

    For the start of a program alone: ``run_main`` gives the signals another meaning while the work lasts.
    """
    _open_missing()
    guard_output()
    for name in ENDING:
        number = getattr(signal, name, None)
        # what nohup, or the shell of a background job, had ignored stays ignored
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    atexit.register(_ignore_signals)  # the first one registered comes last


# output


def guard_output() -> None:
    """Make standard output and error take all text: ``Guarded``, with escapes for what the encoding lacks.

    Done twice it does nothing; what is no file of the system, as in a notebook, is left alone.
    """
    sys.stdout, sys.stderr = _guard(sys.stdout, 1), _guard(sys.stderr, 2)


class Guarded(io.RawIOBase):
    """A file whose writes never fail: what it cannot take is dropped, and later text is tried again."""

    def __init__(self, raw: io.RawIOBase):
        self._raw, self._patience = raw, SLOW_READER
        self.lost: OSError | None = None  # why text is missing, other than that nobody reads it

    @property
    def name(self) -> str:
        """As the file's."""
        return self._raw.name

    def fileno(self) -> int:
        """As the file's."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """As the file's."""
        return self._raw.isatty()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data) -> int:
        """All of ``data``, or as much as can be written; returns the length of all."""
        rest = view = memoryview(data).cast("B")
        try:
            while rest:
                written = self._raw.write(rest)
                if written is None and not self._wait():
                    break
                rest = rest[written or 0 :]
        except OSError as error:
            self._lose(error)
        return len(view)

    def _wait(self) -> bool:
        """Whether a full pipe makes room. One that did not is not waited for again until it has."""
        room = select.select([], [self.fileno()], [], self._patience)[1]
        self._patience = SLOW_READER if room else 0.0
        return bool(room)

    def _lose(self, error: OSError) -> None:
        if error.errno not in GONE and self.lost is None:
            self.lost = error
            tell(f"warning: {self.name} cannot be written, so lines are missing there ({error.strerror})\n")


def lost_output() -> str:
    """Why standard output lacks text, '' if it lacks none, or if whoever read it has gone."""
    sys.stdout.flush()
    guarded = getattr(sys.stdout, "buffer", None)
    lost = guarded.lost if isinstance(guarded, Guarded) else None
    return str(lost.strerror) if lost else ""


def tell(text: str) -> None:
    """Write to standard error from anywhere, a handler of signals too; what cannot be said is not."""
    with suppress(OSError):
        os.write(2, text.encode("ascii", "backslashreplace"))


def _open_missing() -> None:
    """Standard files that are closed (``>&-``) lead nowhere, lest the next file opened take their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number


def _guard(stream: TextIO | None, number: int) -> TextIO:
    if stream is None:  # it was closed
        raw = io.FileIO(number, "w", closefd=False)
        return io.TextIOWrapper(Guarded(raw), encoding="utf-8", errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper) or isinstance(stream.buffer, Guarded):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        Guarded(getattr(stream.buffer, "raw", stream.buffer)),  # sys.__stdout__ keeps it open
        encoding=_escaping(stream.encoding),
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _escaping(encoding: str) -> str:
    """The encoding, or UTF-8 in place of one that cannot escape what it lacks (idna, punycode)."""
    try:
        "\ud800\u2264".encode(encoding, "backslashreplace")
    except UnicodeError:
        return "utf-8"
    return encoding


# signals


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work, so that whatever is half done can be cleaned up; ``code`` is for the exit.

    Python's own of SIGINT, which it takes the place of for all signals, is what libraries expect.
    """

    def __init__(self, number: int):
        super().__init__(last_words(number))
        self.number, self.code = number, 128 + number


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first signal raises ``Interrupted``; one that comes ``SAME`` later ends at once.

    Where cleaning up takes longer than ``CLEANING``, the process ends all the same. Ignored signals stay so,
    and in another thread than the main one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, work, hook = {}, _Work(), sys.unraisablehook
    try:
        sys.unraisablehook = work.swallowed
        for name in ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, work.interrupt)
        yield
        if work.number is not None:  # somebody has swallowed the exception
            raise Interrupted(work.number)
    finally:
        work.over()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


class _Work:
    """What signals do while there is work."""

    def __init__(self):
        self.number: int | None = None  # of the first signal
        self._since, self._timer, self._hook = 0.0, None, sys.unraisablehook

    def interrupt(self, number: int, _) -> None:
        """Handle a signal."""
        global _ended_by
        if self.number is None:
            _ended_by = number
            self.number, self._since = number, time.monotonic()
            self._timer = threading.Timer(CLEANING, end_at_once, [number])
            self._timer.daemon = True
            self._timer.start()
            raise Interrupted(number)
        if time.monotonic() - self._since >= SAME:
            end_at_once(number)

    def swallowed(self, unraisable) -> None:
        """An exception in a destructor, where none can be raised: then the signal comes once more."""
        if not isinstance(unraisable.exc_value, Interrupted):
            self._hook(unraisable)
            return
        self.over()
        number, self.number = self.number, None
        threading.Timer(0.05, os.kill, [os.getpid(), number]).start()

    def over(self) -> None:
        """Nothing is cleaned up any more."""
        if self._timer:
            self._timer.cancel()


def end_at_once(number: int) -> None:
    """End this process, and those that it has started, with the signal's exit code."""
    end_children()
    os._exit(128 + number)


def end_children() -> None:
    """End the processes that this one has started by multiprocessing and that live no longer than it."""
    if multiprocessing := sys.modules.get("multiprocessing"):  # else there are none
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()


def last_words(number: int) -> str:
    """The one line of a command that a signal has ended."""
    return "interrupted" if number == signal.SIGINT else f"interrupted by {signal.Signals(number).name}"


def _ignore_signals() -> None:
    """All is done and said. Python takes its handlers away as it clears up: there, a signal would kill it."""
    for name in ENDING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end(number: int, _) -> None:
    """Before there is work, or after it: no exception, which an import may take for something else."""
    if not _ended_by:
        tell(f"{last_words(number)}\n")
    end_at_once(_ended_by or number)
