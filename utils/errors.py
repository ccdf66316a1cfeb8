"""Errors a user can mend, and the exit codes of every entry point."""

import sys
from collections.abc import Callable

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


class HalfDoneError(UserError):
    """Of a step that has begun to change the weights: the state must not be saved."""


def first_line(error: Exception) -> str:
    """What an error of a library says, without its explanations."""
    return str(error).partition("\n")[0]


def run_main(main: Callable[[], int | None]) -> None:
    """Run an entry point: a ``UserError`` is printed without a traceback and becomes the process's exit code.

    An interrupt (Ctrl-C) ends with 130, as shells expect.
    """
    try:
        sys.exit(main() or OK)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
