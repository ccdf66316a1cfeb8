"""``--batch-size auto``: the largest batch that fits into a GPU, found by trying. Memory is in bytes."""

import gc
import math
from collections.abc import Callable

import torch

from utils.config import Resolved, TrainConfig
from utils.errors import UserError

AUTO = ": auto"  # ends the origin of a batch size that was found
TARGET = 0.88  # share of the memory that the choice is to fill
LARGEST = 0.93  # share above which a size counts as one that does not fit
MOST_TRIES = 24  # measurements; some ten are needed
GROWTH = 4  # a size is at most this many times the largest one that fitted: lines from small sizes mislead


def choose_batch_size(measure: Callable[[int], int], *, total: int, most: int) -> int:
    """The largest number of pictures, at most ``most``, with which a step needs about 88 % of ``total``.

    ``measure(n)`` runs a real training step and a validation step of n pictures and returns the peak, or
    raises ``torch.OutOfMemoryError``. Sizes double from 1; then the line through the two largest that fitted
    says which to try next, halving the gap to the smallest that did not fit where it says too much. So the
    answer was really measured, at most at 93 %. Above 16 it is a multiple of 2, 4 or 8. The same measurements
    give the same answer. Where not one picture fits, a ``UserError``.
    """
    peaks: dict[int, int] = {}  # of those that fitted
    size, too_large = 1, math.inf
    for _ in range(MOST_TRIES):
        peak = _peak_or_none(measure, size)
        if peak is not None and (size == 1 or peak <= LARGEST * total):
            peaks[size] = peak
        else:
            too_large = size
        if not peaks:
            raise UserError(
                f"--batch-size auto: not even one picture fits into the {total / 2**30:.1f} GiB that are "
                "free on the GPU. Give a smaller --imgsz or model, or end what else runs there (nvidia-smi)"
            )
        size = min(_next_size(peaks, too_large, TARGET * total), round_size(most))
        if size <= max(peaks):
            break
    return max(peaks)


def _peak_or_none(measure: Callable[[int], int], size: int) -> int | None:
    try:
        return measure(size)
    except torch.OutOfMemoryError:
        return None


def _next_size(peaks: dict[int, int], too_large: float, target: float) -> int:
    """What to measure next, below ``too_large``; at most the largest of ``peaks`` where nothing is left."""
    best = max(peaks)
    second = max((size for size in peaks if size < best), default=0)
    slope = (peaks[best] - peaks[second]) / (best - second) if second else 0.0
    room = target - peaks[best]
    if room <= 0:
        return best
    wanted = best * GROWTH if room >= slope * best * (GROWTH - 1) else best + int(room / slope)
    wanted = min(wanted, best * 2 if best < 2 * GROWTH else best * GROWTH)
    if wanted >= too_large:
        wanted = int(best + too_large) // 2
    return round_size(wanted)


def round_size(size: int) -> int:
    """The next multiple of 1, 2, 4 or 8 below or at ``size``: the largest of them that is an eighth or less.

    Kernels are made for such sizes, and they divide among ranks; rounding costs less than an eighth.
    """
    step = max(step for step in (1, 2, 4, 8) if step == 1 or 8 * step <= size)
    return size - size % step


def peak_of(step: Callable[[], None], device: torch.device) -> int:
    """Most memory that PyTorch held on the CUDA ``device`` while ``step`` ran; nothing idle is kept."""
    gc.collect()  # what an earlier try, broken off for want of memory, still refers to
    forget_peak(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_reserved(device)


def forget_peak(device: torch.device) -> None:
    """Give back what is held idle; the peak is counted anew. Nothing to do on a CPU."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def usable_memory(device: torch.device) -> int:
    """What PyTorch holds or can still get of the CUDA ``device``; CUDA and other programs have the rest."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


def default_batch_size(world_size: int) -> int:
    """What auto is without a GPU: the setting's default, rounded down to a multiple of the ranks."""
    default = TrainConfig.model_fields["batch_size"].default
    return max(1, default // world_size) * world_size


def set_batch_size(settings: Resolved, size: int) -> Resolved:
    """The settings with the number that auto stands for."""
    train = settings.config.train.model_copy(update={"batch_size": size})
    origin = settings.origins["train.batch_size"] + AUTO
    config = settings.config.model_copy(update={"train": train})
    return Resolved(config, settings.origins | {"train.batch_size": origin})
