"""Faults in a data set, gathered over a whole split so that the user mends them in one go."""

from typing import NamedTuple

from utils.errors import DATA, UserError

SHOWN = 10


class Problem(NamedTuple):
    """One fault; sorts by file, then line."""

    path: str
    line: int  # from 1; 0 where the file as a whole is meant
    text: str  # what is wrong, with the offending value


def check_problems(problems: list[Problem], where: str) -> None:
    """Raise one error with the first faults and their total; nothing where there are none."""
    if not problems:
        return
    shown = [
        f"  {path}:{line}: {text}" if line else f"  {path}: {text}"
        for path, line, text in sorted(problems)[:SHOWN]
    ]
    left = len(problems) - len(shown)
    more = [f"  ... and {left} more"] if left else []
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    remedy = "Mend or delete these lines or files, then run the same command again."
    raise UserError("\n".join([f"{where}: {count}", *shown, *more, remedy]), DATA)
