"""Faults in a data set, gathered over a whole split so that the user mends them in one go."""

import os
from typing import Literal, NamedTuple

from utils.errors import DATA, UserError
from utils.wording import printable

SHOWN = 10
MISSING_PICTURE = "missing picture"  # a kind of problem
Policy = Literal["stop", "skip", "clip"]  # data.label_errors


class Problem(NamedTuple):
    """One fault; sorts by file, then line."""

    path: str
    line: int  # from 1; 0 where the file as a whole is meant
    text: str  # what is wrong, with the offending value
    kind: str = "label"  # one word or two, the same for alike faults: the doctor counts by it


def dangling_link(path: str) -> Problem | None:
    """Of a label file that is not there: a fault where its name is a link, whose labels got lost."""
    if not os.path.islink(path):
        return None
    text = f"cannot read this label file: it is a link to {os.readlink(path)}, where nothing is"
    return Problem(path, 0, text, "label file")


def show_problem(problem: Problem) -> str:
    """``path:line: text``."""
    where = f"{problem.path}:{problem.line}" if problem.line else problem.path
    return printable(f"{where}: {problem.text}")  # a name with a line break must not look like two problems


def check_problems(problems: list[Problem], where: str) -> None:
    """Raise one error with the first faults and their total; nothing where there are none."""
    if not problems:
        return
    shown = [f"  {show_problem(problem)}" for problem in sorted(problems)[:SHOWN]]
    left = len(problems) - len(shown)
    more = [f"  ... and {left} more"] if left else []
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    remedy = "Mend or delete these lines or files, then run the same command again."
    if all(problem.kind == MISSING_PICTURE for problem in problems):
        remedy = "Put these pictures where they are looked for, or take them out of the list."
    raise UserError("\n".join([f"{where}: {count}", *shown, *more, remedy]), DATA)
