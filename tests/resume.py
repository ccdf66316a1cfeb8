"""Trainings that stop and go on, here in this process, and in what two runs differ.

A *place* is (epochs done, batches done of the next one). The settings make runs of five epochs of eleven
batches; four batches accumulate in three steps an epoch, the last of which has three.
"""

import copy
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import train
from run_setup import Run, build_run, read_data, read_settings
from utils.arguments import train_parser
from utils.training.run_lock import RunLock
from utils.training.signals import TERMINATED, Stop
from utils.training.state import TrainState

EPOCHS, BATCHES = 5, 11
TIMES = ("seconds", "data_seconds", "waited", "memory_gb")  # of no result
SETS = "model.depth=0.1 model.width=0.125 model.max_channels=128 data.group=8 train.amp=off val.max_det=20"
FLAGS = ["--cfg", "demo", "--imgsz", "64", "--batch-size", "3", "--epochs", str(EPOCHS), "--noplots"]
FLAGS += ["--device", "cpu", *(part for text in SETS.split() for part in ("--set", text))]
FLAGS += ["--set", "train.anatomy_every=4"]

Place = tuple[int, int]


class StopAt(Stop):
    """As if a signal came at a place; None: at none. ``seen`` holds the whole state at all places."""

    def __init__(self, place: Place | None = None, *, look: bool = False):
        self.run: Run | None = None
        self.place, self.look, self.seen = place, look, {}
        super().__init__()

    @property
    def code(self) -> int:
        """Asked for before every step, and before the results are measured."""
        if not self.run:
            return 0
        place = place_of(self.run.state)
        if self.look:
            self.seen[place] = copy.deepcopy(self.run.to_plain())
        return TERMINATED if place == self.place else 0

    @code.setter
    def code(self, _: int) -> None:
        """Only places decide."""

    def at_once(self) -> AbstractContextManager:
        """No signal comes before the first step is near, so a run can stop there."""
        return super().at_once() if self.run and self.run.state.step else nullcontext()


class Ended(NamedTuple):
    """How a training here ended."""

    code: int
    folder: Path
    run: Run


def place_of(state: TrainState) -> Place:
    """Where a training stands."""
    return state.epoch, state.batch


def train_here(*flags, stop: Stop | None = None, prepare: Callable[[Run], None] | None = None) -> Ended:
    """``train.py *flags`` in this process; ``prepare`` may change the run before it begins."""
    args = train_parser().parse_args(list(map(str, flags)))
    device, stop = torch.device("cpu"), stop or Stop()
    with RunLock() as lock:
        settings, resumed = read_settings(args, lock)
        settings, data = read_data(settings, resumed, device, download=False)
        run = stop.run = build_run(settings, data, resumed, args, device=device, stop=stop, lock=lock)
        if prepare:
            prepare(run)
        try:
            code = train.train(run, args)
        except SystemExit as ended:
            code = ended.code
        finally:
            run.data.train.close()
    return Ended(code, run.folder, run)


def go_on(folder: Path, *flags, **options) -> Ended:
    """``--resume`` of the run in ``folder``."""
    return train_here("--resume", folder / "weights" / "last.pt", *flags, "--noplots", **options)


def read_weights(folder: Path, name: str = "last.pt") -> dict:
    """A checkpoint as it lies on the disk, without its digest, which is of the times in it, too."""
    content = torch.load(folder / "weights" / name, weights_only=True)
    return {key: value for key, value in content.items() if key != "digest"}


def read_rows(folder: Path, name: str = "results.csv") -> list[dict[str, str]]:
    """The rows of a table, times aside."""
    with open(folder / name, newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def compare_values(first, second, where: str = "") -> Iterator[str]:
    """Where two nested values differ by a bit, a type, a key or a length, times aside."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in [*first, *(key for key in second if key not in first)]:
            if key not in first or key not in second:
                yield f"{where}.{key}: in one only"
            elif key not in TIMES:
                yield from compare_values(first[key], second[key], f"{where}.{key}")
    elif type(first) is not type(second):
        yield f"{where}: {type(first).__name__} and {type(second).__name__}"
    elif isinstance(first, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape or _bytes(first) != _bytes(second):
            yield where
    elif isinstance(first, list | tuple):
        if len(first) != len(second):
            yield f"{where}: {len(first)} and {len(second)} items"
        for number, pair in enumerate(zip(first, second, strict=False)):
            yield from compare_values(*pair, f"{where}.{number}")
    elif first != second and not (first != first and second != second):  # nan is nan
        yield f"{where}: {first!r} and {second!r}"


def compare_runs(first: Path, second: Path) -> list[str]:
    """Where two finished runs differ in what they leave behind, times and the name of the folder aside."""
    found = []
    for name in ("last.pt", "best.pt"):
        found += compare_values(read_weights(first, name), read_weights(second, name), name)
    for name in ("results.csv", "anatomy.csv", "assignment.csv"):
        found += compare_values(read_rows(first, name), read_rows(second, name), name)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (first, second)]
    for content in metrics:
        content["protocol"].pop("weights")
    return found + list(compare_values(*metrics, "metrics.json"))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
