"""Starting from the weights of an earlier run."""

from pathlib import Path

import torch
from torch import nn

from utils.errors import UserError
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
    own = list(model.state_dict())
    if len(skipped) == len(own):
        raise UserError(
            f"{path}: not one of its tensors fits this model; leave out --cfg to take its architecture"
        )
    return _table(path, own, skipped, num_surplus=len(content["ema"].keys() - set(own)))


def _table(path: str | Path, own: list[str], skipped: list[tuple[str, str]], *, num_surplus: int) -> str:
    """What was loaded, part by part, and each tensor that was not."""
    anew = {name for name, _ in skipped}
    lines = [f"{path}: {len(own) - len(anew)} of {len(own)} tensors loaded, {len(anew)} start anew"]
    for part in dict.fromkeys(
        ".".join(name.split(".")[: 2 if name.startswith("head") else 1]) for name in own
    ):
        names = [name for name in own if name.startswith(f"{part}.")]
        fresh = sum(name in anew for name in names)
        lines.append(f"  {part:<24}{len(names) - fresh:>5} loaded{fresh:>5} anew")
    lines += [f"  anew: {name:<42} {reason}" for name, reason in skipped[:_SHOWN]]
    lines += [f"  ... and {len(skipped) - _SHOWN} more"] if len(skipped) > _SHOWN else []
    return "\n".join(
        lines + [f"  {num_surplus} tensors of the weights have no place here"] * bool(num_surplus)
    )


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
