"""What a run leaves in writing: results.csv, one table line an epoch, TensorBoard events where it is installed."""

import csv
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

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
)
HEADER = ("Epoch", "GPU_mem", "quality", "box", "dfl", "grad", "Size")


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


class ResultsLog:
    """results.csv in full precision and, where TensorBoard is installed, its events."""

    def __init__(self, folder: Path):
        self.path = folder / "results.csv"
        self._events = _tensorboard_writer(folder)

    def write(self, row: Mapping[str, float]) -> None:
        """Append one epoch; a missing column stays empty."""
        fresh = not self.path.exists()
        with open(self.path, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if fresh:
                writer.writeheader()
            writer.writerow({key: repr(value) for key, value in row.items()})
        if self._events:
            for key, value in row.items():
                self._events.add_scalar(key, value, int(row["epoch"]))

    def keep_until(self, epoch: int) -> None:
        """Drop the rows after ``epoch``: a resumed run writes them again."""
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= epoch]
        self.path.write_text("".join(lines[:1] + kept))

    def close(self) -> None:
        """Flush what is buffered."""
        if self._events:
            self._events.close()


def table_header() -> str:
    """Head of the table, in the shape YOLOv5's users know."""
    return "".join(f"{name:>11}" for name in HEADER)


def table_line(epoch: str, memory: str, values: list[float], size: str) -> str:
    """One line of the table; ``values`` are quality, box, dfl and the gradient's norm."""
    numbers = [f"{value:.4g}" for value in values] + [""] * (4 - len(values))
    return "".join(f"{cell:>11}" for cell in (epoch, memory, *numbers, size))


def _tensorboard_writer(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
