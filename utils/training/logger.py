"""What a run writes: results.csv, one table line an epoch, TensorBoard events where it is installed."""

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import NON_FINITE, UserError
from utils.training.device import peak_memory_gb

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
WAITING = 0.3  # share of an epoch spent waiting for data from which on it is said
HEADER = ("Epoch", "GPU_mem", "quality", "box", "dfl", "grad", "Size", "P", "R", "AP50", "AP", "seconds")


class DelayedValues:
    """Values of a training step, read without stopping the device: the newest ones whose copy has arrived."""

    def __init__(self) -> None:
        self._latest: list[float] = []
        self._pending: tuple[Tensor, torch.cuda.Event | None] | None = None

    def push(self, values: Tensor) -> list[float]:
        """Hand in this step's (n,) values; returns those of an earlier step, [] while none has arrived."""
        self._collect()
        if self._pending is None:
            event = torch.cuda.Event() if values.is_cuda else None
            copied = torch.empty(values.shape, pin_memory=True) if event else values.clone()
            if event:
                copied.copy_(values, non_blocking=True)
                event.record()
            self._pending = (copied, event)
        return self._latest

    def _collect(self) -> None:
        if self._pending and (self._pending[1] is None or self._pending[1].query()):
            self._latest, self._pending = self._pending[0].tolist(), None


class CsvLog:
    """A table of a run, one file; the first of its ``columns`` is the epoch."""

    def __init__(self, path: Path, columns: Sequence[str], *, epochs_done: int = 0):
        self.path, self.columns = path, tuple(columns)
        if path.exists():
            self._keep_until(epochs_done)

    def write(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Append rows in full precision; a missing column stays empty, an unknown one is a ``ValueError``."""
        if not rows:
            return
        fresh = not self.path.exists() or self.path.stat().st_size == 0
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerows({key: repr(value) for key, value in row.items()} for row in rows)

    def _keep_until(self, epoch: int) -> None:
        """Drop the rows after ``epoch``, which a resumed run writes again, and what a crash cut off."""
        with open(self.path, newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(self.columns) and row[0].isdigit()]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with open(temporary, "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows(row for row in rows if int(row[0]) <= epoch)
        os.replace(temporary, self.path)


class ResultsLog:
    """results.csv and, where TensorBoard is installed, its events."""

    def __init__(self, folder: Path, *, epochs_done: int = 0):
        self._table = CsvLog(folder / "results.csv", COLUMNS, epochs_done=epochs_done)
        self._events = _tensorboard_writer(folder)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one epoch; a missing column stays empty."""
        self._table.write([row])
        if self._events:
            for key, value in row.items():
                self._events.add_scalar(key, value, int(row["epoch"]))

    def close(self) -> None:
        """Flush what is buffered."""
        if self._events:
            self._events.close()


def table_header() -> str:
    """Head of the table, in the shape YOLOv5's users know."""
    return "".join(f"{name:>10}" for name in HEADER)


def table_line(epoch: str, values: list[float], size: str, metrics: Sequence[float] = ()) -> str:
    """One line of the table: quality, box, dfl, the gradient's norm, the input size, then P, R, AP50, AP."""
    memory = f"{torch.cuda.max_memory_reserved() / 1e9:.3g}G" if torch.cuda.is_available() else "-"
    numbers = [f"{value:.4g}" for value in values] + [""] * (4 - len(values))
    shown = [f"{value:.3f}" for value in metrics]
    return "".join(f"{cell:>10}" for cell in (epoch, memory, *numbers, size, *shown))


def epoch_line(row: Mapping[str, float], epochs: int, shape: tuple[int, int]) -> str:
    """The table's line of a finished epoch, from its row of results.csv."""
    losses = [row[f"train/{name}"] for name in ("quality", "box", "dfl", "grad_norm")]
    metrics = [row.get(f"metrics/{name}", math.nan) for name in ("precision", "recall", "AP50", "AP")]
    size = str(shape[0]) if shape[0] == shape[1] else f"{shape[0]}x{shape[1]}"
    return table_line(f"{row['epoch']}/{epochs}", losses, size, metrics) + f"{row['seconds']:>10.1f}"


def waiting_note(waited: float, seconds: float) -> str:
    """``waiting for data 45 %`` for the progress bar; '' while it is no more than 30 % of the time."""
    share = waited / max(seconds, 1e-9)
    return f"waiting for data {100 * share:.0f} %" if share > WAITING else ""


def waiting_advice(row: Mapping[str, float], *, workers: int, cache: str) -> str:
    """What to do about an epoch that waited for data, from its row of results.csv; '' where it did not."""
    note = waiting_note(row["data_seconds"], row["seconds"])
    if not note:
        return ""
    advice = f"more --workers (now {workers})" + (" or --cache ram" if cache == "none" else "")
    return f"epoch {row['epoch']}: {note} of its time; {advice} may help"


def epoch_row(
    epoch: int, means: Tensor, *, step: int, lr: float, seconds: float, waited: float
) -> dict[str, float]:
    """The training's part of a row of results.csv; a loss that is not finite ends the run.

    ``means`` are quality, box, dfl and the gradient's norm; ``step`` counts the run's batches; ``waited`` are
    the seconds spent waiting for data.
    """
    quality, box, dfl, norm = means.tolist()
    if not math.isfinite(quality + box + dfl):
        raise UserError(
            f"the loss is not finite in epoch {epoch} (quality {quality}, box {box}, dfl {dfl}). Lower the "
            "learning rate (--set train.lr=...) or train without mixed precision (--set train.amp=off)",
            NON_FINITE,
        )
    row = {
        "epoch": epoch,
        "train/quality": quality,
        "train/box": box,
        "train/dfl": dfl,
        "train/grad_norm": norm,
    }
    row |= {"lr": lr, "seconds": seconds, "data_seconds": waited, "step": step}
    return row | {"memory_gb": peak_memory_gb()}


def _tensorboard_writer(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
