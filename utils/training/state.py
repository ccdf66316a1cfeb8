"""All that changes during a training, how one step changes it, and how it is saved and restored."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.config import TrainConfig
from utils.training import distributed
from utils.training.device import autocast_dtype
from utils.training.ema import EMA
from utils.training.optimizer import build_optimizer
from utils.training.snapshot import Snapshot, join_buffers

NEVER = {"AP": -1.0, "epoch": -1}  # the best AP where none was measured: no epoch counts from it


class Update(NamedTuple):
    """What became of a step of the optimiser, on the device."""

    norm: Tensor  # () L2 norm of the gradients before they were clipped
    taken: Tensor  # () bool: whether weights and average have changed
    bad: Tensor  # () bool: a loss or gradient was not finite; an overflow that fp16's scaler mends is not bad


@dataclass
class TrainState:
    """The parts of a run that a checkpoint holds."""

    model: nn.Module  # without a wrapper for several processes
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # does nothing except in fp16
    statistics: Snapshot  # the model's normalisation statistics, as they were before the step
    micro_batch: int  # most pictures of a forward pass; less than asked for where memory ran out
    epoch: int = 0  # epochs done
    batch: int = 0  # batches done of the epoch that runs
    step: int = 0  # batches done in the run
    best: dict[str, float] = field(default_factory=lambda: dict(NEVER))

    def update(self, *, lr: float, clip_norm: float, sound: Tensor | None = None) -> Update:
        """One step of the optimiser and the average, from the gradients at hand.

        Where a gradient is not finite on some rank, or ``sound`` () bool (were the losses finite?) does not
        hold, weights, optimiser and average stay as they are, and normalisation statistics become what they
        were at ``statistics.keep()``. That is decided on the device: nothing is read back to the host.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        scale = self.scaler.scale(torch.ones_like(self.ema.updates, dtype=torch.float32))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm, foreach=True)
        finite = norm.isfinite() if sound is None else norm.isfinite() & sound
        mended = scale > 1 if sound is None else (scale > 1) & sound  # by a smaller scale in the next step
        flags = distributed.global_sum(torch.stack((~finite, ~finite & ~mended)).float())
        taken, bad = flags[0] == 0, flags[1] > 0
        self.optimizer.found_inf = flags[0].clamp(max=1)  # as GradScaler tells fused optimisers not to step
        self.optimizer.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.statistics.take_back(unless=~bad)
        self.ema.update(taken)
        return Update(norm, taken, bad)

    def is_over(self, cfg: TrainConfig) -> bool:
        """Whether all epochs are done, or the best AP has become as old as ``train.patience`` (0: never)."""
        validated = self.epoch > 0 and self.epoch % cfg.val_every == 0
        age = self.epoch - self.best["epoch"] if self.best["epoch"] > 0 else 0
        return self.epoch >= cfg.epochs or bool(cfg.patience and validated and age >= cfg.patience)

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain values, everything a run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "micro_batch": self.micro_batch,
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "best": dict(self.best),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Inverse of ``to_plain``; the shapes of all tensors must be those of this state.

        The optimiser's settings stay those of our own configuration; only the rate is that of the last step.
        """
        self.model.load_state_dict(content["model"])
        self.ema.model.load_state_dict(content["ema"])
        self.ema.updates.copy_(content["ema_updates"])
        settings = self.optimizer.state_dict()["param_groups"]
        for own, saved in zip(settings, content["optimizer"]["param_groups"], strict=True):
            own["lr"] = saved["lr"]  # of the last step: without it, a save before the next one would differ
        self.optimizer.load_state_dict({"state": content["optimizer"]["state"], "param_groups": settings})
        if content["scaler"] and self.scaler.is_enabled():  # fp16 before and now
            self.scaler.load_state_dict(content["scaler"])
        self.micro_batch = min(self.micro_batch, content["micro_batch"])
        self.epoch, self.batch, self.step = content["epoch"], content["batch"], content["step"]
        measured = content["best"]["AP"] >= 0  # older runs kept COCO's -1, for nothing to measure, as an AP
        self.best = dict(content["best"]) if measured else dict(NEVER)


def start_state(
    model: nn.Module, cfg: TrainConfig, steps: int, device: torch.device, *, micro_batch: int = 1
) -> TrainState:
    """What trains ``model`` for ``steps`` steps of the optimiser, before the first of them."""
    statistics = Snapshot(join_buffers(model))
    statistics.keep()
    return TrainState(
        model,
        EMA(model, steps=steps, decay=cfg.ema_decay, share=cfg.ema_share),
        build_optimizer(model, cfg),
        torch.amp.GradScaler(device.type, enabled=autocast_dtype(cfg.amp, device) == torch.float16),
        statistics,
        micro_batch,
    )
