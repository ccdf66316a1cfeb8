"""What a training step changes beside the weights, kept so that the step can be taken back on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Snapshot:
    """Copies of ``tensors``, taken before each step. Nothing here waits for the device."""

    def __init__(self, tensors: Sequence[Tensor]):
        self._tensors = list(tensors)
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember the present values."""
        self._kept = [tensor.clone() for tensor in self._tensors]

    def take_back(self, unless: Tensor) -> None:
        """Return to the remembered values, except where ``unless`` () bool, on the device, holds.

        A choice, not an interpolation: what is not finite leaves no trace.
        """
        for tensor, kept in zip(self._tensors, self._kept, strict=True):
            tensor.copy_(torch.where(unless, tensor, kept))


def join_buffers(model: nn.Module) -> list[Tensor]:
    """Lay the buffers of ``model`` (normalisation statistics) out in one tensor for each type; returns these.

    The buffers become views, so all of them are copied at once. ``load_state_dict`` and copies of the model
    keep that; ``model.to`` another device or type would not.
    """
    owners: dict[torch.dtype, list[tuple[nn.Module, str, Tensor]]] = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            owners.setdefault(buffer.dtype, []).append((module, name, buffer))
    joined = []
    for entries in owners.values():
        whole = torch.cat([buffer.detach().flatten() for _, _, buffer in entries])
        parts = whole.split([buffer.numel() for _, _, buffer in entries])
        for (module, name, buffer), part in zip(entries, parts, strict=True):
            setattr(module, name, part.view(buffer.shape))
        joined.append(whole)
    return joined
