"""Where a run writes: ``project/name``, ``name2``, ``name3``, ..."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import NOT_SAVED, UserError
from utils.wording import printable


def make_run_folder(project: str | Path, name: str, *, exist_ok: bool = False) -> Path:
    """Create and return the first free folder of ``name``, ``name2``, ...; ``exist_ok`` takes ``name`` as is.

    The folder is created in the same moment it is found free, so two runs never share one. A line break or
    another control character in its name would break every line that says where the results are.
    """
    for flag, value in (("--project", project), ("--name", name)):
        if (shown := printable(value)) != str(value):
            raise UserError(f"{flag} {shown}: holds a control character; choose another name")
    try:
        Path(project).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--project {project}: no folder can be made there ({error.strerror})") from error
    for number in itertools.count(1):
        folder = Path(project) / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir(exist_ok=exist_ok)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{folder}: this folder cannot be made ({error.strerror})") from error
        return folder
    raise AssertionError("unreachable: the counter does not end")


@contextmanager
def results_into(folder: Path) -> Iterator[None]:
    """Inside, an ``OSError`` (a full disk, no right to write, a folder in the way) is a ``UserError``."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written ({error.strerror or error}); what was written "
            "before is whole. Mend that, or choose another --project",
            NOT_SAVED,
        ) from error
