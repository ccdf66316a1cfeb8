"""What a step has computed, read one step later; steps that are not finite are reported, and at last the end.

Such a step has already been skipped, on the device (``TrainState.update``). Here the host learns of it.
"""

import json
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import NON_FINITE, UserError
from utils.files import open_regular, write_whole
from utils.training.state import Update

IN_A_ROW = 3  # bad steps of the optimiser that end the run
MOST = 100  # entries of the report

Describe = Callable[[], list[dict]]  # the batches of a step: "epoch", "batch", "pictures"


class StepWatch:
    """Reads each step's values one step late, from pinned memory; writes nan_report.json into ``folder``.

    ``folder`` None: another rank writes. Every rank sees the same flags, so all leave together.
    """

    def __init__(self, folder: Path | None):
        self._path = folder / "nan_report.json" if folder else None
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None, int, Describe]] = deque()
        self._in_a_row = 0
        self._latest: list[float] = []

    def push(self, update: Update, terms: Tensor, *, step: int, describe: Describe) -> list[float]:
        """Hand in a step: ``terms`` (n, 3) of its n batches, and the number of the first of them.

        Returns quality, box, dfl and the gradient's norm of the step before, [] while there is none. Waits
        only where the device is more than a step behind. ``describe`` is called if the step was bad. Raises
        ``UserError`` after ``IN_A_ROW`` bad ones.
        """
        values = torch.cat((torch.stack((update.bad, update.norm)).float(), terms.flatten().float()))
        event = torch.cuda.Event() if values.is_cuda else None
        copied = torch.empty(values.shape, pin_memory=True) if event else values
        if event:
            copied.copy_(values, non_blocking=True)
            event.record()
        self._pending.append((copied, event, step, describe))
        self._read(leave=1)
        return self._latest

    def flush(self) -> None:
        """Read what is pending: before a checkpoint, and at the end of an epoch."""
        self._read(leave=0)

    def _read(self, leave: int) -> None:
        fatal = ""
        while len(self._pending) > (0 if fatal else leave):  # at the end, the step under way as well
            copied, event, step, describe = self._pending.popleft()
            if event:
                event.synchronize()
            bad, norm, *terms = copied.tolist()
            self._latest = [*terms[-3:], norm]
            self._in_a_row = self._in_a_row + 1 if bad else 0
            if bad:
                self._report(step, norm, terms, describe())
            if self._in_a_row >= IN_A_ROW:
                fatal = self._explain(step)
        if fatal:
            raise UserError(fatal, NON_FINITE)

    def _report(self, step: int, norm: float, terms: list[float], batches: list[dict]) -> None:
        """Numbers are text, as JSON knows no nan. Of several batches, those with losses not finite count."""
        rows = [
            dict(zip(("quality", "box", "dfl"), map(str, terms[i : i + 3]), strict=True))
            for i in range(0, len(terms), 3)
        ]
        named = [batch | {"terms": row} for batch, row in zip(batches, rows, strict=True)]
        faulty = [batch for batch in named if {"nan", "inf", "-inf"} & set(batch["terms"].values())]
        self._last = (faulty or named)[0]
        if not self._path:
            return
        entries = [
            *(entry for entry in self._read_entries() if entry["step"] < step),  # others are taken again
            {"step": step, "gradient_norm": str(norm), "batches": faulty or named},
        ]
        where = ", ".join(f"epoch {batch['epoch']} batch {batch['batch']}" for batch in faulty or named)
        print(f"step {step} is skipped: its losses or gradients are not finite ({where}; {self._path})")
        try:
            write_whole(self._path, json.dumps({"skipped": entries[-MOST:]}, indent=1) + "\n")
        except OSError as error:
            print(f"{self._path} cannot be written ({error.strerror})")

    def _read_entries(self) -> list[dict]:
        """Those of the report so far, also from before the run was resumed."""
        try:
            with open_regular(self._path) as file:
                return list(json.loads(file.read())["skipped"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _explain(self, step: int) -> str:
        terms = ", ".join(f"{name} {value}" for name, value in self._last["terms"].items())
        return (
            f"the losses or gradients of {self._in_a_row} steps in a row are not finite, the last at step "
            f"{step} ({terms}). None of them has changed the weights; nan_report.json in the run's folder "
            "names the pictures. Start anew with a lower learning rate (--set train.lr=...), a longer "
            "warm-up (--set train.warmup_epochs=...) or without mixed precision (--set train.amp=off); "
            "--weights <run>/weights/last.pt keeps what was learnt so far"
        )
