"""All that changes during a training, and how it is saved and restored."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from utils.config import TrainConfig
from utils.training.device import autocast_dtype
from utils.training.ema import EMA
from utils.training.optimizer import build_optimizer


@dataclass
class TrainState:
    """The parts of a run that a checkpoint holds."""

    model: nn.Module  # without a wrapper for several processes
    ema: EMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # does nothing except in fp16
    epoch: int = 0  # epochs done
    step: int = 0  # batches done
    best: dict[str, float] = field(default_factory=lambda: {"AP": -1.0, "epoch": -1})

    def update(self, *, lr: float, clip_norm: float) -> torch.Tensor:
        """One step of the optimiser and the average, from the gradients at hand; returns their L2 norm, ().

        Nothing is read back to the host: fp16's check for overflow stays on the device too.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model)
        return norm

    def to_plain(self) -> dict[str, Any]:
        """Tensors and plain values, everything a run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "best": dict(self.best),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Inverse of ``to_plain``."""
        self.model.load_state_dict(content["model"])
        self.ema.model.load_state_dict(content["ema"])
        self.ema.updates = content["ema_updates"]
        self.optimizer.load_state_dict(content["optimizer"])
        if content["scaler"] and self.scaler.is_enabled():  # fp16 before and now
            self.scaler.load_state_dict(content["scaler"])
        self.epoch, self.step, self.best = content["epoch"], content["step"], dict(content["best"])


def start_state(model: nn.Module, cfg: TrainConfig, steps: int, device: torch.device) -> TrainState:
    """What trains ``model`` for ``steps`` steps of the optimiser, before the first of them."""
    return TrainState(
        model,
        EMA(model, steps=steps, decay=cfg.ema_decay, share=cfg.ema_share),
        build_optimizer(model, cfg),
        torch.amp.GradScaler(device.type, enabled=autocast_dtype(cfg.amp, device) == torch.float16),
    )
