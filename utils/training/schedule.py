"""The learning rate of a run, as a function of its step."""

import math

from utils.config import TrainConfig


def warmup_steps(cfg: TrainConfig, steps: int, steps_per_epoch: float) -> int:
    """The longer of ``warmup_epochs`` and ``warmup_steps``, at most ``warmup_share`` of the run's steps."""
    return int(min(max(cfg.warmup_epochs * steps_per_epoch, cfg.warmup_steps), cfg.warmup_share * steps))


def lr_factor(step: int, steps: int, warmup: int, cfg: TrainConfig) -> float:
    """Share of the peak learning rate at ``step`` (from 0) of ``steps``.

    A linear warm-up, then cosine or linear decay. The decay runs over the whole run, warm-up included, and
    ends at ``final_lr``.
    """
    progress = min(step / max(1, steps - 1), 1.0)
    left = (1 + math.cos(math.pi * progress)) / 2 if cfg.schedule == "cosine" else 1 - progress
    return (cfg.final_lr + (1 - cfg.final_lr) * left) * min(1.0, (step + 1) / (warmup + 1))


class Rate:
    """The learning rate of every batch of a run; ``batches`` are those of an epoch."""

    def __init__(self, cfg: TrainConfig, batches: int):
        self._cfg, self._steps = cfg, batches * cfg.epochs
        self._warmup = warmup_steps(cfg, self._steps, batches)

    def __call__(self, step: int) -> float:
        """``step`` counts batches over the run, from 0."""
        return self._cfg.lr * lr_factor(step, self._steps, self._warmup, self._cfg)
