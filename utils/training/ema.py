"""An exponential moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """The average of ``model``'s weights over the last steps, which is what is validated and saved as best.

    The decay at step t is min(``decay``, (1 + t) / (10 + t), 1 - 1 / max(1, ``share`` * T)) with T the steps
    of the run: a fixed decay near 1 would leave a short run at its initial weights. Floating buffers
    (normalisation statistics) are averaged, integers copied. Which tensors these are is found out once:
    ``model.to`` another device or type afterwards would go unseen, ``load_state_dict`` would not.
    """

    def __init__(self, model: nn.Module, *, steps: int, decay: float = 0.9998, share: float = 0.05):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.limit = min(decay, 1 - 1 / max(1.0, share * steps))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        device = next((tensor.device for tensor in model.parameters()), None)
        self.updates = torch.zeros((), dtype=torch.int64, device=device)  # steps taken into the average

    def decay_at(self, update: Tensor) -> Tensor:
        """The decay () of one update, counted from 1, in float64."""
        update = update.double()
        return ((1 + update) / (10 + update)).clamp(max=self.limit)

    @torch.no_grad()
    def update(self, taken: Tensor | bool = True) -> None:
        """Take one step of the model into the average, where ``taken`` () bool holds; else change nothing.

        Nothing is read from the device. The values of the model have to be finite either way.
        """
        self.updates += taken
        weight = ((1 - self.decay_at(self.updates)) * taken).float()
        ours, theirs = ([pair[i] for pair in self._averaged] for i in (0, 1))
        change = torch._foreach_sub(theirs, ours)
        torch._foreach_mul_(change, weight)
        torch._foreach_add_(ours, change)
        if self._copied:
            torch._foreach_copy_(*([pair[i] for pair in self._copied] for i in (0, 1)))
