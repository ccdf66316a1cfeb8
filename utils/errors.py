"""Errors a user can mend, and the exit codes of every entry point."""

import os
import sys
from collections.abc import Callable

from utils.command import ENDING, Interrupted, interruptible
from utils.wording import printable

OK = 0
OUR_FAULT = 1
USAGE = 2  # command line, configuration or weights
NON_FINITE = 3  # training diverged
DATA = 4  # data set or pictures
NOT_SAVED = 5  # trained to the end, but a checkpoint could not be written


class UserError(ValueError):
    """A mistake the user can mend: the message says what, where and what next; ``code`` is the exit code.

    What the message quotes may come from anywhere; nothing in it can steer a terminal.
    """

    def __init__(self, message: str, code: int = USAGE):
        super().__init__("\n".join(map(printable, str(message).split("\n"))))
        self.code = code


class NotFoundError(UserError):
    """Of a file or folder that is not there, and not of one that cannot be read."""


class NothingThereError(NotFoundError):
    """Of a split without pictures, or without a single label file."""


class HalfDoneError(UserError):
    """Of a step that has begun to change the weights: the state must not be saved."""


def first_line(error: Exception) -> str:
    """What an error of a library says, without its explanations."""
    return str(error).partition("\n")[0]


def run_main(main: Callable[[], int | None]) -> None:
    """Run an entry point: a ``UserError`` is printed without a traceback and becomes the process's exit code.

    SIGINT, SIGTERM and SIGHUP end it with 130, 143 and 129, as shells expect, after a line.
    """
    try:
        with interruptible():
            code = _run(main)
            _flush()
    except KeyboardInterrupt as interrupt:
        print(interrupt if isinstance(interrupt, Interrupted) else "interrupted", file=sys.stderr)
        code = getattr(interrupt, "code", ENDING["SIGINT"])
        _flush()
    sys.exit(code)


def _run(main: Callable[[], int | None]) -> int:
    try:
        _require_working_folder()
        return main() or OK
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:  # relative paths would fail one by one
        raise UserError("the working directory is gone: go to one that is there (cd)") from error


def _flush() -> None:
    """What is still held back is written now: from here on a signal ends the process at once."""
    for stream in (sys.stdout, sys.stderr):
        if stream:
            stream.flush()
