"""An exponential moving average of a model's weights."""

import copy

import torch
from torch import nn


class EMA:
    """The average of the weights over the last steps, which is what is validated and saved as best.

    The decay at step t is min(``decay``, (1 + t) / (10 + t), 1 - 1 / max(1, ``share`` * T)) with T the steps
    of the run: a fixed decay near 1 would leave a short run at its initial weights. Floating buffers
    (normalisation statistics) are averaged, integers copied.
    """

    def __init__(self, model: nn.Module, *, steps: int, decay: float = 0.9998, share: float = 0.05):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.limit = min(decay, 1 - 1 / max(1.0, share * steps))
        self.updates = 0

    def decay_at(self, update: int) -> float:
        """The decay of one update, counted from 1."""
        return min(self.limit, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step of ``model`` into the average."""
        self.updates += 1
        ours, theirs = list(self.model.state_dict().values()), list(model.state_dict().values())
        floating = [i for i, tensor in enumerate(ours) if tensor.is_floating_point()]
        averaged = [ours[i] for i in floating]
        torch._foreach_lerp_(averaged, [theirs[i] for i in floating], 1 - self.decay_at(self.updates))
        for i in set(range(len(ours))) - set(floating):
            ours[i].copy_(theirs[i])
