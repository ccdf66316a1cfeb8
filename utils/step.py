"""One step of the optimiser: forward, loss and backward of its batches, in as many parts as memory asks for.

B pictures of a batch, n batches of a step (``train.accumulation``).
"""

import gc
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from utils.assigners.build import build_assigner
from utils.assigners.statistics import AssignmentStatistics
from utils.config import Config
from utils.errors import OUR_FAULT, HalfDoneError, UserError, first_line
from utils.losses.anatomy import LossAnatomy
from utils.losses.compute import compute_loss
from utils.structures import Predictions, Targets
from utils.training import distributed
from utils.training.device import autocast_dtype
from utils.training.reproducibility import seed_step
from utils.training.state import TrainState, Update


class Batch(Protocol):
    """What a step needs of ``data.dataset.Batch``."""

    images: Tensor  # (B, 3, H, W) uint8
    truth: Targets

    def split(self, size: int) -> list["Batch"]: ...


class TrainStep:
    """``step(batches, lr=..., counts=...)`` trains ``state`` by one step; ``model`` is its, maybe wrapped."""

    def __init__(self, model: nn.Module, state: TrainState, cfg: Config, anatomy: LossAnatomy):
        self.model, self.state, self.cfg, self.anatomy = model, state, cfg, anatomy
        self._assign = build_assigner(cfg)

    def __call__(
        self, batches: Sequence[Batch], *, lr: float, counts: AssignmentStatistics
    ) -> tuple[Update, Tensor]:
        """What became of the step, and the terms (n, 3) of its batches: the loss's three, weighted.

        A batch is computed in parts of at most ``state.micro_batch`` pictures. Where the device's memory runs
        out, the parts are halved, one line says so, and the step begins anew: nothing but the parts differs.
        Several ranks cannot do that, as each step is theirs together: a ``UserError`` says how to go on.
        Global generators are seeded by (seed, step), so what they yield does not depend on the past.
        """
        state, counted = self.state, counts.counts.clone()
        state.statistics.keep()
        while True:
            seed_step(self.cfg.train.seed, state.step)
            try:
                terms = self.accumulate(batches, counts)
                break
            except torch.OutOfMemoryError as error:
                reason = first_line(error)
            counts.counts.copy_(counted)
            self._halve(reason)  # here, as the error above holds on to the step's tensors
        clip, sound = self.cfg.train.clip_norm, terms.isfinite().all()
        try:
            update = state.update(lr=lr, clip_norm=clip, sound=sound)
        except torch.OutOfMemoryError as error:
            raise HalfDoneError(
                f"out of memory in the optimiser, at step {state.step} ({first_line(error)}). Go on from the "
                "last save, with --resume and a smaller --micro-batch, or begin with a smaller model",
                OUR_FAULT,
            ) from error
        counts.counts.copy_(torch.where(update.bad, counted, counts.counts))
        return update, terms

    def accumulate(self, batches: Sequence[Batch], counts: AssignmentStatistics) -> Tensor:
        """Add up the gradients of all batches; returns the terms (n, 3) of each by itself.

        All parts of all batches share one normaliser, as if they were one batch: only the statistics of batch
        normalisation are those of each part. The normaliser is known at the end, so each part is divided by
        that of the first, and what has been added up is put right.
        """
        state, rows, first, total, lowest = self.state, [], None, 0.0, 1 / distributed.world_size()
        for number, batch in enumerate(batches):
            parts, terms, normaliser = batch.split(state.micro_batch), 0.0, 0.0
            for part in parts:
                last = number == len(batches) - 1 and part is parts[-1]
                step = state.step + number if part is parts[0] else None
                with distributed.keep_gradients(self.model, not last):
                    with self.anatomy.watch(state.model.head, step) as features:
                        pred = forward(self.model, part.images, self.cfg.train.amp)
                    loss = compute_loss(pred, part.truth, self._assign, self.cfg.loss)
                    counts.add(loss.match, part.truth, pred, reach=self.cfg.model.reach)
                    self.anatomy.add(step, loss, pred, features, scaler=state.scaler)
                    divisor = loss.normaliser.clamp(min=lowest)
                    first = divisor if first is None else first
                    state.scaler.scale(loss.total * (divisor / first)).backward()
                terms = terms + divisor * torch.stack([term.detach() for term in loss.terms.values()])
                normaliser = normaliser + loss.normaliser
            rows.append(terms / normaliser.clamp(min=lowest))
            total = total + normaliser
        if len(batches) > 1 or len(parts) > 1:
            gradients = [tensor.grad for tensor in state.model.parameters() if tensor.grad is not None]
            torch._foreach_mul_(gradients, first / total.clamp(min=lowest))
        return torch.stack(rows)

    def _halve(self, reason: str) -> None:
        """Undo what the failed attempt has done, and make the parts smaller."""
        state, pictures = self.state, self.state.micro_batch
        state.optimizer.zero_grad(set_to_none=True)
        state.statistics.take_back(unless=torch.zeros_like(state.ema.updates, dtype=torch.bool))
        self.anatomy.forget(state.step)
        gc.collect()
        torch.cuda.empty_cache()
        if pictures == 1 or distributed.world_size() > 1:
            remedy = "a smaller --imgsz or model" if pictures == 1 else f"--micro-batch {(pictures + 1) // 2}"
            raise UserError(
                f"out of memory with {pictures} pictures in a forward pass at step {state.step} ({reason}). "
                f"Go on with {remedy}" + (" and --resume" if pictures > 1 else ""),
                OUR_FAULT,
            )
        state.micro_batch = (pictures + 1) // 2
        print(
            f"out of memory at step {state.step}: from here on {state.micro_batch} instead of {pictures} "
            "pictures in a forward pass; the batch stays as it is"
        )


def settle_buckets(model: nn.Module, state: TrainState, shape: tuple[int, int]) -> None:
    """A backward pass that changes nothing, before the first step of several ranks.

    PyTorch reduces gradients in buckets, which it fills anew after the first backward pass, in the order that
    it has seen; and a sum over three ranks or more is rounded by where in its bucket a number lies. Without
    this, the first step of a run that goes on would be rounded in another way than that of a run which did
    not stop.
    """
    if distributed.world_size() == 1:
        return
    state.statistics.keep()
    pred = model(torch.zeros(2, 3, *shape, dtype=torch.uint8, device=state.ema.updates.device))
    (pred.cls_logits.sum() + pred.ltrb_logits.sum()).backward()
    state.optimizer.zero_grad(set_to_none=True)
    state.statistics.take_back(unless=torch.zeros_like(state.ema.updates, dtype=torch.bool))


def forward(model: nn.Module, images: Tensor, amp: str) -> Predictions:
    """The raw predictions of a batch on the device, in the precision of ``train.amp``."""
    dtype = autocast_dtype(amp, images.device)
    with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        return model(images)
