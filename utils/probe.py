"""How many pictures a GPU holds: real steps of training and validation, tried out (``--batch-size auto``)."""

from collections.abc import Callable

import torch

from utils.assigners.statistics import AssignmentStatistics
from utils.config import Config
from utils.losses.anatomy import LossAnatomy
from utils.postprocess import postprocess
from utils.step import Batch, TrainStep, forward
from utils.training.batch_size import choose_batch_size, forget_peak, peak_of, usable_memory
from utils.training.state import TrainState


def find_batch_size(
    cfg: Config,
    build: Callable[[], TrainState],
    dense: Callable[[int], Batch],
    *,
    device: torch.device,
    most: int,
) -> int:
    """The batch size of one process on the CUDA ``device``, at most ``most``.

    ``build`` makes what is to be trained, anew for each trial, ``dense`` a batch of n pictures with as many
    boxes as there can be. A trial is a step with everything that a step can hold: accumulated gradients, the
    loss anatomy, the average, then a validation batch of the same size.
    """

    def measure(size: int) -> int:
        state, batch = build(), dense(size)
        truth = type(batch.truth)(*(tensor.to(device) for tensor in batch.truth))
        batch = batch._replace(images=batch.images.to(device), truth=truth)
        state.micro_batch = size
        return peak_of(lambda: try_out(state, batch, cfg), device)

    size = choose_batch_size(measure, total=usable_memory(device), most=most)
    forget_peak(device)
    return size


def try_out(state: TrainState, batch: Batch, cfg: Config) -> None:
    """Two steps of training, of which the first makes the optimiser's state, and one of validation."""
    step = TrainStep(state.model.train(), state, cfg, LossAnatomy(1, state.model.strides))
    counts = AssignmentStatistics(batch.images.device)
    for _ in range(2):
        step.accumulate([batch], counts)
        state.update(lr=0.0, clip_norm=cfg.train.clip_norm)
    images = batch.images[: cfg.val.batch_size or min(len(batch.images), 32)]
    with torch.inference_mode():
        pred = forward(state.ema.model, images, "off")
    postprocess(pred, conf=cfg.val.conf, iou=cfg.val.iou, max_det=cfg.val.max_det)
