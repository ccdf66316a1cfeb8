"""What a model needs at least, so that what cannot be held is refused before it is tried. Amounts are bytes.

An estimate from below, by design: it refuses what certainly cannot be. Where the truth lies between, a GPU
says so itself and the batch is split; a CPU's system would end the process without a word.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from models.blocks import ConvBNAct
from models.detector import Detector, build_detector, count_parameters
from utils.config import Config, ModelConfig
from utils.errors import UserError

COPIES = 4  # of the weights while training: they, gradients, average, at least one moment of the optimiser
SAVED = 2  # tensors of each convolution's output that backward needs: before and after its normalisation
AHEAD = 2  # batches of pictures at a time: in use, and the next


Free = Callable[[torch.device], float]  # utils.training.device.free_memory


class Need(NamedTuple):
    """The least that one process holds."""

    fixed: int
    picture: int  # for each picture of a forward pass
    parameters: int


def least_memory(
    cfg: ModelConfig, num_classes: int, shape: tuple[int, int], *, itemsize: int, training: bool
) -> Need:
    """Laid out without memory and run once on a picture of ``shape``: only sizes are computed.

    ``itemsize``: of an activation. In training all are kept for backward, otherwise the largest counts.
    """
    with torch.device("meta"):
        model = build_detector(cfg, num_classes)
    outputs: list[int] = []
    for module in model.modules():
        if isinstance(module, ConvBNAct):
            module.register_forward_hook(lambda _, __, output: outputs.append(output.numel()))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, *shape, device="meta"))
    parameters = count_parameters(model)
    if training:
        return Need(COPIES * 4 * parameters, SAVED * itemsize * sum(outputs), parameters)
    return Need(4 * parameters, itemsize * max(outputs), parameters)


def check_training_memory(
    cfg: Config,
    num_classes: int,
    shape: tuple[int, int],
    device: torch.device,
    *,
    ranks: tuple[int, int],
    free: Free,
) -> None:
    """Refuse a training that needs more than is free; ``ranks``: of the run, and of this machine.

    On a GPU a batch that does not fit is split, so there a single picture decides, and batches as loaded.
    """
    everywhere, here = ranks
    share = cfg.train.batch_size // everywhere
    at_once = min(cfg.train.micro_batch or share, share)
    loaded = AHEAD * share * 3 * shape[0] * shape[1]
    # What is frozen keeps nothing for backward: then only the largest activation is certain.
    kept = not cfg.train.freeze
    need = least_memory(
        cfg.model, num_classes, shape, itemsize=4 if cfg.train.amp == "off" else 2, training=kept
    )
    if device.type == "cuda":
        _require(need, 1, loaded, free(device), (shape, f"GPU {device.index}", "--batch-size"))
        need, at_once = need._replace(fixed=0, picture=0), share
    room = free(torch.device("cpu")) // here
    _require(need, at_once, loaded, room, (shape, "this machine", "--batch-size"))


def check_use_memory(
    model: Detector, cfg: Config, shape: tuple[int, int], *, pictures: int, free: Free
) -> None:
    """Refuse to look at ``pictures`` of ``shape`` at a time with ``model`` where that cannot be held."""
    device = next(model.parameters()).device
    classes = model.head.cls_outputs[0].out_channels
    need = least_memory(cfg.model, classes, shape, itemsize=2, training=False)._replace(fixed=0)
    at_once = 1 if device.type == "cuda" else pictures
    where = f"GPU {device.index}" if device.type == "cuda" else "this machine"
    loaded = pictures * 3 * shape[0] * shape[1]
    _require(need, at_once, loaded, free(device), (shape, where, "--batch-size"))


def _require(need: Need, pictures: int, loaded: int, free: float, about: tuple) -> None:
    total = need.fixed + pictures * need.picture + loaded
    if total <= free:
        return
    shape, where, flag = about
    raise UserError(
        f"{pictures:,} x {shape[0]}x{shape[1]} px at a time with {need.parameters:,} parameters need at "
        f"least {total / 1e9:,.3g} GB, and {where} has {free / 1e9:,.3g} GB free: give a smaller {flag}, "
        "--imgsz or --cfg"
    )
