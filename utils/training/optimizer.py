"""The optimiser and which weights it trains."""

import torch
from torch import nn

from utils.config import TrainConfig
from utils.errors import UserError


def freeze(model: nn.Module, what: int | str) -> int:
    """Stop the training of a model's first parts; returns how many tensors are frozen.

    ``what`` is "backbone", "neck" (and the backbone before it), or the number of blocks, counted from the
    picture: the stem, each stage, the neck. 0 freezes nothing. The head always trains.
    """
    backbone, neck = [model.backbone.stem, *model.backbone.stages], model.neck
    parts = [*backbone, neck]
    count = {"backbone": len(backbone), "neck": len(parts)}.get(what, what)
    if count > len(parts):
        raise UserError(
            f"--freeze {what}: this model has {len(parts)} parts to freeze (0 to {len(parts)}), "
            "the stem first; YOLOv5's --freeze 10 is --freeze backbone here"
        )
    frozen = [parameter for part in parts[:count] for parameter in part.parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return len(frozen)


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Normalisations of frozen weights: they must stay in evaluation mode, or their statistics drift."""
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.weight.requires_grad
    ]


def trained_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that train, in the order in which the optimiser numbers them: those of two or more axes,
    then the others.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]


def build_optimizer(model: nn.Module, cfg: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum, fused; weight decay on tensors of two or more axes only.

    Fused ones skip a step on the device where ``optimizer.found_inf`` is 1; see ``TrainState.update``.
    """
    decayed, plain = trained_groups(model)
    groups = [
        {"params": decayed, "weight_decay": cfg.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    if cfg.optimizer == "AdamW":
        return torch.optim.AdamW(groups, lr=cfg.lr, fused=True)
    sgd = torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, nesterov=cfg.momentum > 0, fused=True)
    if cfg.momentum:  # PyTorch leaves the first step's buffers as they come where that step is skipped
        for parameter in decayed + plain:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd
