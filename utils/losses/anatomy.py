"""What the loss does inside a step: which term pulls how hard, and at what. For people to look at.

B images, A anchor points, P positives, R bins, L levels. Measured every N steps on what the step computes
anyway, without changing it: no random number, no statistic of a normalisation, no gradient is touched.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.losses.compute import Loss
from utils.structures import Predictions

TERMS = ("quality", "box", "dfl")


class LossAnatomy:
    """Collects one row every ``every`` steps (0: never), unread on the device until ``rows``.

    Where ranks share normalisation statistics (``train.sync_bn``) all of them have to measure, at the same
    steps: a gradient that passes such a layer is a collective.
    """

    def __init__(self, every: int, strides: Sequence[int]):
        self.every, self.columns = every, anatomy_columns(strides)
        self._steps: list[int] = []
        self._values: list[Tensor] = []

    @contextmanager
    def watch(self, head: nn.Module, step: int | None) -> Iterator[list[Tensor]]:
        """Inside, the head's input is kept in the list that is handed out, if this step is to be measured.

        ``step`` None is never measured.
        """
        kept: list[Tensor] = []
        if not self.every or step is None or step % self.every:
            yield kept
            return
        hook = head.register_forward_pre_hook(lambda _, inputs: kept.extend(map(_with_gradient, inputs[0])))
        try:
            yield kept
        finally:
            hook.remove()

    def add(
        self,
        step: int | None,
        loss: Loss,
        pred: Predictions,
        features: list[Tensor],
        *,
        scaler: torch.amp.GradScaler,
    ) -> None:
        """Measure a step before its backward pass; nothing where ``watch`` kept no ``features``."""
        if features:
            scale = scaler.scale(torch.ones((), device=loss.total.device))
            self._steps.append(step)
            self._values.append(dissect(loss, pred, features, scale=scale))

    def forget(self, step: int) -> None:
        """Drop what was measured at ``step`` or later: it is measured again."""
        kept = [i for i, known in enumerate(self._steps) if known < step]
        self._steps, self._values = ([values[i] for i in kept] for values in (self._steps, self._values))

    def to_plain(self) -> dict[str, list]:
        """What was collected since ``rows``, for a checkpoint: numbers, as some may rightly be nan."""
        return {"steps": list(self._steps), "values": [value.tolist() for value in self._values]}

    def restore(self, content: dict[str, list]) -> None:
        """Inverse of ``to_plain``."""
        self._steps, self._values = list(content["steps"]), [torch.tensor(row) for row in content["values"]]

    def rows(self, epoch: int) -> list[dict[str, float]]:
        """The rows collected so far, by ``columns``; the list starts anew."""
        values = [value.tolist() for value in self._values]
        steps, self._steps, self._values = self._steps, [], []
        return [
            dict(zip(self.columns, (epoch, step, *row), strict=True))
            for step, row in zip(steps, values, strict=True)
        ]


def anatomy_columns(strides: Sequence[int]) -> tuple[str, ...]:
    """Columns of anatomy.csv."""
    gradients = [f"gradient/{term}" for term in TERMS]
    entropies = [f"entropy/stride{stride}" for stride in strides]
    return ("epoch", "step", *gradients, "share/positives", "share/negatives", "iou", *entropies)


def dissect(loss: Loss, pred: Predictions, features: Sequence[Tensor], *, scale: Tensor) -> Tensor:
    """(6 + L,) values of one step of this process.

    * L2 norm of each term's gradient at the head's input, over all levels; ``scale`` (fp16's) is divided out.
    * Share of the class loss that positives and negatives pay.
    * Mean IoU of the positives' decoded boxes; nan without positives.
    * Mean entropy in nats of the positives' predicted distributions on each level (0 = one bin, log R =
      flat); nan where a level has no positive, and for plain sides.
    """
    norms = [gradient_norm(loss.terms[term] * scale, features) / scale for term in TERMS]
    with torch.no_grad():
        positive = loss.match.positive
        paid = (loss.class_loss * positive).sum() / loss.class_loss.sum()
        count = positive.sum()
        start, entropies = 0, []
        for height, width, _ in pred.levels:
            part = slice(start, start + height * width)
            entropies.append(_mean_entropy(pred.ltrb_logits[:, part], positive[:, part]))
            start += height * width
        return torch.stack([*norms, paid, 1 - paid, loss.iou.sum() / count, *entropies]).float()


def gradient_norm(value: Tensor, features: Sequence[Tensor]) -> Tensor:
    """() L2 norm of a scalar's gradient at all ``features``, on which it depends; the graph is kept."""
    gradients = torch.autograd.grad(value, features, retain_graph=True)
    return torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()


def _with_gradient(feature: Tensor) -> Tensor:
    """The feature itself; where all below the head is frozen, autograd must be told that it is asked for."""
    return feature if feature.requires_grad else feature.requires_grad_()


def _mean_entropy(ltrb_logits: Tensor, positive: Tensor) -> Tensor:
    """(B, A, 4, R), (B, A) -> () nats."""
    if ltrb_logits.shape[-1] == 1:
        return torch.full((), torch.nan, device=positive.device)
    log_probabilities = ltrb_logits.float().log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1).mean(-1)  # (B, A)
    return (entropy * positive).sum() / positive.sum()
