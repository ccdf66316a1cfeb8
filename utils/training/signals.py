"""Ending a run from outside: the first signal asks for an orderly end, the second ends it at once."""

import atexit
import multiprocessing.util  # noqa: F401, what it does at exit is registered before ours, so it is done after
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from utils.command import ENDING, SAME, end_children, tell

INTERRUPTED, TERMINATED = ENDING["SIGINT"], ENDING["SIGTERM"]
CODES = {**ENDING, "SIGUSR1": TERMINATED}  # SLURM's early warning


class Stop:
    """Inside ``with Stop() as stop``, ``stop.code`` is the exit code a signal asked for, 0 until then.

    Only the main thread can receive signals; elsewhere this does nothing. The handlers of before come back
    at the end. A hang-up that is ignored (nohup) stays so.
    """

    def __init__(self) -> None:
        self.code = 0
        self.name = ""  # of the signal
        self._raises = False
        self._before: dict[int, object] = {}
        self._heard: socket.socket | None = None  # where Python writes the number of each signal, at once
        self._heard_before = -1

    def __enter__(self) -> "Stop":
        try:
            for number in ending_signals():
                if number != getattr(signal, "SIGHUP", 0) or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        except ValueError:  # not the main thread
            return self
        self._heard, listening = socket.socketpair()
        self._heard.setblocking(False)
        self._heard_before = signal.set_wakeup_fd(self._heard.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_at_second, args=(listening,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._heard:
            signal.set_wakeup_fd(self._heard_before)
            self._heard.shutdown(socket.SHUT_RDWR)  # ends the thread, whoever else has inherited the socket
            self._heard.close()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises ``SystemExit``: for work that leaves nothing half done."""
        self._raises = True  # first, so that no signal falls between
        try:
            if self.code:
                raise SystemExit(self.code)
            yield
        finally:
            self._raises = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.code:
            return
        self.code, self.name = CODES[name], name
        what = "ending" if self._raises else "finishing this step and saving; once more ends at once"
        tell(f"\n{name}: {what}\n")
        if self._raises:
            raise SystemExit(self.code)


def _end_at_second(heard: socket.socket) -> None:
    """End the process, and those that it has started, when a second signal to end is ``heard``.

    A thread's work: the main one runs no handler of Python's as long as one operation of PyTorch lasts, which
    is minutes where it waits for another rank; and then it runs one for all signals of a kind.
    """
    ending, first = [n for n in ending_signals() if signal.getsignal(n) != signal.SIG_IGN], None
    with heard:
        while byte := heard.recv(1):
            if byte[0] not in ending:
                continue
            first = first or time.monotonic()
            if time.monotonic() - first >= SAME:
                name = signal.Signals(byte[0]).name
                tell(f"\n{name} again: ending at once\n")
                end_children()
                os._exit(CODES[name])


def leave_to_parent() -> None:
    """In a process that a training has started: the signals that end a run are not for it."""
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """Inside, signals to end wait: processes that start here take a moment until they ignore them.

    They are blocked for this thread and, so, for the new processes. Another thread may let one through
    meanwhile, for which Python would call the handler here.
    """
    if not hasattr(signal, "pthread_sigmask") or threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in ending_signals()}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    came: list[int] = []
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in came:
            handlers[number](number, None)


# Without this at exit, multiprocessing would ask the children by SIGTERM, which leave_to_parent ignores, and
# wait: an error's traceback, for one, keeps a loader and its processes alive until then.
atexit.register(end_children)


def ending_signals() -> list[int]:
    """Numbers of the signals that end a run."""
    return [getattr(signal, name) for name in CODES if hasattr(signal, name)]
