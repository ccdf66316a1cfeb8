"""Starting from the weights of an earlier run."""

from pathlib import Path

import torch
from torch import nn

from utils.training.checkpoint import load_checkpoint

_SHOWN = 12  # skipped tensors listed one by one


def load_weights(model: nn.Module, path: str | Path, names: tuple[str, ...]) -> str:
    """Copy the averaged weights of ``path`` that fit into ``model``; returns a table.

    The table shows what was and was not loaded. The class layer starts anew, with its prior, unless the
    classes are the same in the same order: a picture's "cat" must not begin as another data set's "airplane"
    because both are class 3.
    """
    content = load_checkpoint(path)
    tensors = content["ema"]
    if tuple(content["names"]) != tuple(names):
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("head.cls_outputs.")}
    skipped = load_tensors(model, tensors)
    total = len(model.state_dict())
    lines = [f"{path}: {total - len(skipped)} of {total} tensors loaded, {len(skipped)} start anew"]
    lines += [f"  {name:<48} {reason}" for name, reason in skipped[:_SHOWN]]
    if len(skipped) > _SHOWN:
        lines.append(f"  ... and {len(skipped) - _SHOWN} more")
    return "\n".join(lines)


def load_tensors(model: nn.Module, tensors: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Copy the tensors that fit into ``model``; returns (name, reason) of each of the model's skipped."""
    skipped, fitting = [], {}
    for name, tensor in model.state_dict().items():
        if name not in tensors:
            skipped.append((name, "new: not in the weights, or of other classes"))
        elif tensors[name].shape != tensor.shape:
            skipped.append((name, f"shape {tuple(tensors[name].shape)} there, {tuple(tensor.shape)} here"))
        else:
            fitting[name] = tensors[name]
    model.load_state_dict(fitting, strict=False)
    return skipped
