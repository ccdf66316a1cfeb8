"""Trainings in this process, with something planted into their steps.

A *batch* is numbered over the run, from 0, as ``state.step`` counts; a step of the optimiser by its first.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from run_setup import Run, build_run, read_data, read_settings
from tests.resume import StopAt
from train import train
from utils.arguments import train_parser
from utils.step import TrainStep
from utils.training.run_lock import RunLock
from utils.training.state import Update

SMALL = (  # 0.12 M parameters; a step takes hundredths of a second
    *("--cfg", "demo", "--imgsz", "64", "--workers", "0", "--noplots", "--noval", "--device", "cpu"),
    *("--set", "train.amp=off", "--set", "model.width=0.0625"),
)
CPU = torch.device("cpu")

Change = Callable[[Tensor, int], Tensor]  # (images, batch) -> images


class Training(NamedTuple):
    """One that is ready to begin, or to go on."""

    run: Run
    args: Namespace

    def train(self, change: Change = lambda images, batch: images) -> int:
        """Train to the end, what goes into the model altered by ``change``; returns the exit code."""
        plant(self.run, change)
        return train(self.run, self.args)


class Altered:
    """A ``TrainStep`` with other parts.

    A step that begins with one of the batches ``skipped`` is not computed at all, and counts as a bad one.
    ``sizes``: most pictures of a part from a batch on.
    """

    def __init__(self, step: TrainStep, *, skipped: Iterable[int] = (), sizes: dict[int, int] | None = None):
        self.step, self.skipped, self.sizes = step, set(skipped), sizes or {}

    def __getattr__(self, name: str):
        return getattr(self.step, name)

    def __call__(self, batches: Sequence, *, lr: float, counts) -> tuple[Update, Tensor]:
        state = self.step.state
        if state.step in self.skipped:
            nothing = torch.full((len(batches), 3), torch.nan)
            return Update(nothing.sum(), torch.tensor(False), torch.tensor(True)), nothing
        state.micro_batch = self.sizes.get(state.step, state.micro_batch)
        return self.step(batches, lr=lr, counts=counts)


def set_up(*flags, stop: tuple[int, int] | None = None, **altered) -> Training:
    """As train.py does it. ``stop``: the place where a signal comes; the rest is ``Altered``'s."""
    args = train_parser().parse_args(list(map(str, flags)))
    with RunLock() as lock:
        settings, resumed = read_settings(args, lock)
        settings, data = read_data(settings, resumed, CPU, download=False)
        signal = StopAt(stop)
        run = signal.run = build_run(settings, data, resumed, args, device=CPU, stop=signal, lock=lock)
    run.step = Altered(run.step, **altered)
    return Training(run, args)


def plant(run: Run, change: Change) -> None:
    """Let ``change`` see, and alter, what goes into the model; an attempt at a step begins with its batch."""
    step, batch_size, seen = run.step.step, run.cfg.train.batch_size, 0
    attempt = step.accumulate

    def accumulate(*arguments) -> Tensor:
        nonlocal seen
        seen = 0
        return attempt(*arguments)

    def alter(model, arguments: tuple[Tensor]) -> Tensor:
        nonlocal seen
        (images,) = arguments
        if not model.training:
            return images
        batch = run.state.step + seen // batch_size
        seen += len(images)
        return change(images, batch)

    step.accumulate = accumulate
    run.state.model.register_forward_pre_hook(alter)
