"""What an epoch has counted so far: for its rows of the tables, and for a checkpoint in its midst."""

from typing import Any

import torch
from torch import Tensor

from utils.assigners.statistics import AssignmentStatistics
from utils.losses.anatomy import LossAnatomy
from utils.training import distributed
from utils.training.state import Update


class Epoch:
    """Sums on ``device``, unread until ``rows``, which starts anew, or ``to_plain``; both are collectives.

    ``sums`` (6,): quality, box, dfl and the gradient's norm, then the batches and the updates that counted.
    """

    def __init__(self, device: torch.device, anatomy: LossAnatomy):
        self.device, self.anatomy = device, anatomy
        self._begin()

    def _begin(self) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64, device=self.device)
        self.assigned = AssignmentStatistics(self.device)
        self.seconds = self.waited = 0.0  # spent in all, and waiting for data

    def add(self, terms: Tensor, update: Update) -> None:
        """Count a step of the optimiser: ``terms`` (n, 3) of its n batches, unless they were not finite."""
        counted = torch.where(update.bad, 0.0, terms.double().sum(0))
        norm = torch.where(update.taken, update.norm.double(), 0.0)
        numbers = torch.stack((norm, (len(terms) * ~update.bad).double(), update.taken.double()))
        self.sums += torch.cat((counted, numbers))

    def rows(self, epoch: int) -> tuple[Tensor, list[dict], dict]:
        """Mean quality, box, dfl and gradient's norm (4,) over all ranks, nan where no step counted; the rows
        of anatomy.csv; that of assignment.csv.
        """
        total = distributed.global_sum(self.sums)
        means = torch.cat((total[:3] / total[4], total[3:4] / total[5]))
        looked, counted = self.anatomy.rows(epoch), {"epoch": epoch} | self.assigned.row()
        self._begin()
        return means, looked, counted

    def to_plain(self) -> list[dict[str, Any]]:
        """The part of each rank."""
        part = {"sums": self.sums.cpu(), "assigned": self.assigned.counts.cpu()}
        part |= {"anatomy": self.anatomy.to_plain(), "seconds": self.seconds, "waited": self.waited}
        return distributed.gather(part)

    def restore(self, parts: list[dict[str, Any]]) -> None:
        """Inverse of ``to_plain``; with another number of ranks, rank 0 takes what all had counted."""
        if len(parts) != distributed.world_size():
            total = {key: sum(part[key] for part in parts) for key in ("sums", "assigned")}
            parts = [parts[0] | total]
        if distributed.rank() < len(parts):
            part = parts[distributed.rank()]
            self.sums.copy_(part["sums"])
            self.assigned.counts.copy_(part["assigned"])
            self.anatomy.restore(part["anatomy"])
            self.seconds, self.waited = part["seconds"], part["waited"]
