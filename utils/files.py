"""Opening files of a data set, of which a hostile one may hold pipes and devices under any name."""

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path, *, most: float = float("inf")) -> BinaryIO:
    """Open a file, never a pipe, which would wait for a writer, or a device, which may never end.

    Raises ``ValueError`` for these, for folders and for files of more than ``most`` bytes, else what ``open``
    raises.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("not a regular file (a directory, a pipe or a device)")
    if state.st_size > most:
        raise ValueError(f"{state.st_size:,} bytes are more than the limit of {most:,}")
    return open(path, "rb")
