"""The records of a run: tables, results.csv above all, and the trackers that were asked for by name.

Epochs count from 1, as in the tables; a time is seconds.
"""

import contextlib
import csv
import importlib.util
import io
import numbers
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from utils.errors import UserError
from utils.files import open_regular, replacing
from utils.training.device import peak_memory_gb
from utils.training.trackers import MlflowLog, RunStart, TensorBoardLog, WandbLog

COLUMNS = (
    "epoch",
    "train/quality",
    "train/box",
    "train/dfl",
    "train/grad_norm",
    "metrics/AP",
    "metrics/AP50",
    "metrics/AP75",
    "metrics/precision",
    "metrics/recall",
    "lr",
    "seconds",
    "data_seconds",
    "step",
    "memory_gb",
)
TRACKERS = {"tensorboard": TensorBoardLog, "wandb": WandbLog, "mlflow": MlflowLog}  # by the package's name


class Logger(Protocol):
    """Whatever keeps the rows of a run."""

    def write(self, row: Mapping[str, float]) -> None:
        """Keep the row of one epoch; it is safe when this returns, as far as the logger can tell."""

    def close(self) -> None:
        """Nothing follows."""


class RunLog:
    """results.csv and further ``tables`` (file name -> columns), and the ``loggers`` that were asked for.

    Those are "tensorboard", "wandb", "mlflow"; they get the rows of results.csv.

    Only a logger that was asked for is imported, told of the ``settings`` (a nested plain configuration), or
    heard of by anybody. One that fails, now or later, is dropped with one line on stderr: neither a dead
    network nor a full disk ends a training. One that is not installed is a ``UserError`` before anything is
    written. A run that goes on after ``epochs_done`` continues its curves in each of them.
    """

    def __init__(
        self,
        folder: Path,
        loggers: Sequence[str] = (),
        *,
        settings: Mapping,
        epochs_done: int = 0,
        tables: Mapping[str, Sequence[str]] | None = None,
    ):
        check_loggers(loggers)
        path = folder / "results.csv"
        continued = epochs_done > 0 or not os.path.exists(path)  # else a new run takes an old one's folder
        start = RunStart(folder, settings, epochs_done=epochs_done, continued=continued)
        self._tables = {
            name: CsvLog(folder / name, columns, epochs_done=epochs_done)
            for name, columns in ({path.name: COLUMNS} | dict(tables or {})).items()
        }
        self._trackers: dict[str, Logger] = {}
        for name in dict.fromkeys(loggers):
            with self._surviving(name):
                self._trackers[name] = TRACKERS[name](start)

    @property
    def failed(self) -> bool:
        """Whether a table lacks rows; see ``CsvLog.failed``."""
        return any(table.failed for table in self._tables.values())

    def write(self, row: Mapping[str, float], **others: Sequence[Mapping[str, float]]) -> None:
        """Keep one epoch, its ``row`` of results.csv and rows of the ``others``, by file name without suffix.

        A missing column stays empty, an unknown one is a ``ValueError``.
        """
        for name, rows in {"results": [row], **others}.items():
            self._tables[f"{name}.csv"].write(rows)
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.write(row)

    def close(self) -> None:
        """Write what is still waiting; the trackers end their runs."""
        for table in self._tables.values():
            table.write([])
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.close()

    @contextlib.contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any kind: the code is other people's, and the training goes on
            self._trackers.pop(name, None)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            print(f"warning: {name} is off from here on, results.csv goes on ({reason})", file=sys.stderr)


class CsvLog:
    """A table of a run, one file; the first of its ``columns`` is the epoch, all values are numbers.

    An ``OSError`` (a full disk, a folder that became read-only) never leaves this class: the file is cut back
    to whole rows, rows that are not on the disk are kept and tried again with the next ones, and one line on
    stderr says so, the next one only after a write that went well.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, epochs_done: int = 0):
        self.path, self.columns = path, tuple(columns)
        self._waiting = ""  # whole lines
        self._epochs_done: int | None = epochs_done  # what to cut the file to before a row is added; None: is
        self._failed_at: int | None = None  # bytes of the file when the last write began, if it failed
        self._told = False
        self._settle()

    @property
    def failed(self) -> bool:
        """Whether the file lacks rows, or still holds some that a resumed run writes again."""
        return bool(self._waiting) or self._epochs_done is not None

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Append rows in full precision; a missing column stays empty, an unknown one is a ``ValueError``.

        The rows are on the disk when this returns, or wait in memory: then ``failed`` holds.
        """
        lines = io.StringIO()
        writer = csv.DictWriter(lines, self.columns, lineterminator="\n")
        writer.writerows({key: _in_full(value) for key, value in row.items()} for row in rows)
        self._waiting += lines.getvalue()
        self._settle()

    def _settle(self) -> None:
        """Bring the file up to date, if the disk lets us."""
        try:
            if self._epochs_done is not None:
                self._keep_until(self._epochs_done)
                self._epochs_done = None
            if self._waiting:
                self._append((",".join(self.columns) + "\n").encode(), self._waiting.encode())
                self._waiting = ""
            self._told = False
        except (OSError, ValueError) as error:  # ValueError: it is a pipe or a device
            if not self._told:
                reason = getattr(error, "strerror", None) or error
                print(f"warning: {self.path} cannot be written ({reason}); its rows wait", file=sys.stderr)
            self._told = True

    def _append(self, header: bytes, lines: bytes) -> None:
        """Add all of ``lines``, or nothing; the header goes before them into an empty file."""
        with open(self.path, "ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if self._failed_at is not None:
                end = min(end, self._failed_at)  # in case the truncation below failed as well
                file.truncate(end)
            self._failed_at = end
            try:
                _write_all(file, lines if end else header + lines)
            except OSError:
                file.truncate(end)
                raise
        self._failed_at = None

    def _keep_until(self, epoch: int) -> None:
        """Drop the rows after ``epoch``, which a resumed run writes again, and what a crash cut off.

        Nothing is touched where nothing is to be dropped. Else the file is replaced in one go: whoever reads
        it, and whenever this process dies, it is the old table or the new one.
        """
        try:
            with open_regular(self.path) as file:
                content = file.read()
        except FileNotFoundError:
            return
        lines = [line.rstrip("\r") for line in content.decode(errors="replace").split("\n")[:-1]]
        kept = [line for line in lines if self._is_row(line) and int(line.partition(",")[0]) <= epoch]
        table = "".join(f"{line}\n" for line in [",".join(self.columns), *kept]).encode()
        if table == content:
            return
        with replacing(self.path) as file:
            file.write(table)
            file.flush()
            os.fsync(file.fileno())

    def _is_row(self, line: str) -> bool:
        cells = line.split(",")
        try:
            numbers = [float(cell or 0) for cell in cells]
            return len(numbers) == len(self.columns) and cells[0].isdecimal() and int(cells[0]) >= 0
        except ValueError:
            return False


def check_loggers(loggers: Sequence[str]) -> None:
    """Raise a ``UserError`` for a logger that is not known or not installed; nothing is imported for it."""
    for name in loggers:
        if name not in TRACKERS:
            raise UserError(
                f"--loggers {name}: choose from {', '.join(TRACKERS)}; results.csv is always written"
            )
        if not _is_installed(name):
            raise UserError(
                f"--loggers {name}: package {name} is not installed. Run python -m pip install {name}, "
                "or leave this logger out (results.csv is always written)"
            )


def epoch_row(
    epoch: int, means: Tensor, *, step: int, lr: float, seconds: float, waited: float
) -> dict[str, float]:
    """The training's part of a row of results.csv.

    ``means`` (4,) are quality, box, dfl and the gradient's norm over the steps that counted, nan if none did;
    ``step`` counts the run's batches; ``waited`` are the seconds spent waiting for data.
    """
    names = ("train/quality", "train/box", "train/dfl", "train/grad_norm")
    row = {"epoch": epoch} | dict(zip(names, means.tolist(), strict=True))
    row |= {"lr": lr, "seconds": seconds, "data_seconds": waited, "step": step}
    return row | {"memory_gb": peak_memory_gb()}


def _is_installed(package: str) -> bool:
    """Whether ``import package`` would find one; a mere folder of that name, as wandb leaves one, is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _in_full(value: float) -> str:
    """A number such that reading it gives the same one; NumPy's scalars look as Python's numbers do."""
    return repr(int(value) if isinstance(value, numbers.Integral) else float(value))


def _write_all(file: io.RawIOBase, content: bytes) -> None:
    """Write to an unbuffered file until the disk has all of it; an ``OSError`` may leave a part there."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
    os.fsync(file.fileno())
