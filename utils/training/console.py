"""What the terminal shows of a training: table, waiting, time left, last line. Numbers in, text out.

Times are seconds unless named otherwise; they are shown and never enter a result.
"""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from utils.wording import figure

WAITING = 0.3  # share of an epoch spent waiting for data from which on it is said
RECENT = 5  # epochs whose median foretells the next ones
HEADER = (
    "Epoch",
    "GPU_mem",
    "quality",
    "box",
    "dfl",
    "grad",
    "Size",
    "P",
    "R",
    "AP50",
    "AP",
    "seconds",
    "left",
)


def table_header() -> str:
    """Head of the table, in the shape YOLOv5's users know."""
    return "".join(f"{name:>10}" for name in HEADER)


def table_line(epoch: str, values: list[float], size: str, metrics: Sequence[float | None] = ()) -> str:
    """One line of the table: quality, box, dfl, the gradient's norm, the input size, then P, R, AP50, AP.

    ``-`` stands for metrics that are None: not measured, or nothing to measure them by.
    """
    memory = f"{torch.cuda.max_memory_reserved() / 1e9:.3g}G" if torch.cuda.is_available() else "-"
    numbers = [f"{value:.4g}" for value in values] + [""] * (4 - len(values))
    shown = [figure(value) for value in metrics]
    return "".join(f"{cell:>10}" for cell in (epoch, memory, *numbers, size, *shown))


def epoch_line(row: Mapping[str, float], epochs: int, shape: tuple[int, int], *, left: float) -> str:
    """The table's line of a finished epoch, from its row of results.csv and the run's ``remaining`` time."""
    losses = [row[f"train/{name}"] for name in ("quality", "box", "dfl", "grad_norm")]
    metrics = [row.get(f"metrics/{name}") for name in ("precision", "recall", "AP50", "AP")]
    size = str(shape[0]) if shape[0] == shape[1] else f"{shape[0]}x{shape[1]}"
    line = table_line(f"{row['epoch']}/{epochs}", losses, size, metrics)
    return f"{line}{row['seconds']:>10.1f}{duration(left):>10}"


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


def duration(seconds: float) -> str:
    """A time as people say it, at most nine characters: ``45 s``, ``12 min``, ``1:23:45``, ``2 d 4 h``.

    '-' where it is not known (not finite).
    """
    if not math.isfinite(seconds):
        return "-"
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{round(whole / 60)} min"
    hours, rest = divmod(whole, 3600)
    if hours < 24:
        return f"{hours}:{rest // 60:02}:{rest % 60:02}"
    days = hours // 24
    return f"{days} d {hours % 24} h" if days < 100 else f"{days} d"


def remaining(
    epoch: int, epochs: int, *, training: Sequence[float], validating: Sequence[float], val_every: int = 1
) -> float:
    """Seconds that a run needs after ``epoch`` of its ``epochs``; nan while no epoch was timed.

    ``training`` and ``validating`` are the seconds of the whole epochs and of the validations so far, oldest
    first; the median of the last ``RECENT`` of each stands for those to come, so one slow epoch (a first one
    that fills caches, a busy disk) does not move it. Validations come every ``val_every`` epochs and after
    the last. While none was timed they count as nothing.
    """
    if epoch >= epochs:
        return 0.0
    if not training:
        return math.nan
    validations = epochs // val_every - epoch // val_every + bool(epochs % val_every)
    one = statistics.median(validating[-RECENT:]) if validating else 0.0
    return (epochs - epoch) * statistics.median(training[-RECENT:]) + validations * one


def left_note(seconds: float) -> str:
    """``1:23:45 left`` for the progress bar, from ``remaining``; '' while it is not known."""
    return f"{duration(seconds)} left" if math.isfinite(seconds) else ""


def last_line(
    folder: Path,
    *,
    epoch: int,
    epochs: int,
    seconds: float,
    best: Mapping[str, float],
    stopped: str = "",
    begun: int = 0,
    saved: bool = True,
    measurable: bool = True,
) -> str:
    """One sentence at the end of a run: how it ended, after how long, the best AP, and where the results are.

    ``epoch`` of ``epochs`` are done, those after ``begun`` by this process in ``seconds``. ``best`` holds AP
    and epoch, the latter below 1 while nothing was validated. ``stopped`` is '' for a run that came to its
    end, "patience", or the name of a signal. ``saved``: whether all that was to be written is on the disk.
    ``measurable``: whether the validation data has boxes to measure by.
    """
    here = f", {epoch - begun} of them now," if begun else ""
    ended = f"{epoch} of {epochs} epochs{here} in {duration(seconds)}"
    begins = {"": "finished", "patience": "stopped early, as AP no longer rose"}.get(
        stopped, f"stopped by {stopped}"
    )
    found = f"best AP {best['AP']:.3f} in epoch {best['epoch']:.0f}" if best["epoch"] > 0 else "not validated"
    if not measurable:
        found = "no AP, as no box in val counts, and no best.pt: weights/last.pt is the one to use"
    line = f"{begins}: {ended}; {found}; results in {folder}"
    again = f"python train.py --resume {shlex.quote(str(folder))}"
    if not saved:
        return f"{line}, but files could not be written, see above: what came after the last save is lost"
    return line if stopped in ("", "patience") else f"{line}; go on with: {again}"
