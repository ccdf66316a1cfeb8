"""What an epoch counts: means by hand, bad steps left out, and the way into a checkpoint."""

import json
import math

import pytest
import torch

from utils.assigners.statistics import COLUMNS
from utils.epoch import Epoch
from utils.losses.anatomy import LossAnatomy
from utils.training import distributed
from utils.training.state import Update

CPU = torch.device("cpu")


def make() -> Epoch:
    return Epoch(CPU, LossAnatomy(1, (8, 16, 32)))


def add(epoch: Epoch, rows, *, norm: float = 1.0, taken: bool = True, bad: bool = False) -> None:
    epoch.add(torch.tensor(rows), Update(torch.tensor(norm), torch.tensor(taken), torch.tensor(bad)))


def test_means_by_hand():
    """Losses are means over batches, the gradient's norm one over steps of the optimiser."""
    epoch = make()
    add(epoch, [[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]], norm=4.0)
    add(epoch, [[6.0, 60.0, 600.0]], norm=6.0)
    means, looked, counted = epoch.rows(7)
    assert means.tolist() == [3, 30, 300, 5] and looked == []
    assert counted["epoch"] == 7 and tuple(counted) == COLUMNS


def test_bad_steps_do_not_count():
    epoch = make()
    add(epoch, [[1.0, 2.0, 3.0]], norm=4.0)
    add(epoch, [[math.nan, 5.0, math.inf], [7.0, 7.0, 7.0]], norm=math.nan, taken=False, bad=True)
    add(epoch, [[7.0, 7.0, 7.0]], norm=math.inf, taken=False, bad=True)  # gradients alone
    add(epoch, [[3.0, 4.0, 5.0]], norm=6.0)
    assert epoch.rows(1)[0].tolist() == [2, 3, 4, 5]


def test_an_overflow_that_is_mended_counts_with_its_losses():
    epoch = make()
    add(epoch, [[1.0, 2.0, 3.0]], norm=math.inf, taken=False)
    add(epoch, [[3.0, 4.0, 5.0]], norm=6.0)
    assert epoch.rows(1)[0].tolist() == [2, 3, 4, 6]


def test_nothing_counted_is_nan_and_no_error():
    epoch = make()
    add(epoch, [[math.nan] * 3], norm=math.nan, taken=False, bad=True)
    means, _, counted = epoch.rows(1)
    assert means.isnan().all() and counted["small/boxes"] == 0


def test_rows_start_anew():
    epoch = make()
    add(epoch, [[1.0, 2.0, 3.0]])
    epoch.assigned.counts += 1
    epoch.seconds, epoch.waited = 5.0, 2.0
    epoch.rows(1)
    assert (epoch.seconds, epoch.waited) == (0, 0)
    add(epoch, [[4.0, 4.0, 4.0]])
    means, _, counted = epoch.rows(2)
    assert means.tolist() == [4, 4, 4, 1] and counted["small/boxes"] == 0


def test_many_small_losses_are_not_lost():
    """In float64: in float32 a sum of 2^24 would not grow by 1 any more."""
    epoch = make()
    add(epoch, [[2.0**24] * 3])
    for _ in range(4):
        add(epoch, [[1.0] * 3])
    assert epoch.rows(1)[0][:3].tolist() == [(2**24 + 4) / 5] * 3


def test_all_ranks_are_added_up(monkeypatch):
    """One of the two had a single batch."""
    epoch = make()
    add(epoch, [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], norm=4.0)
    other = torch.tensor([5.0, 6, 7, 8, 1, 1])
    monkeypatch.setattr(distributed, "global_sum", lambda value: value + other)
    assert epoch.rows(1)[0].tolist() == [3, 4, 5, 6]


def counted(value: int) -> Epoch:
    epoch = make()
    add(epoch, [[value, 2.0 * value, 3.0 * value]], norm=float(value))
    epoch.assigned.counts += value
    epoch.anatomy.restore({"steps": [value], "values": [[float(value)] * 9]})
    epoch.seconds, epoch.waited = 10.0 * value, float(value)
    return epoch


def test_the_way_into_a_checkpoint_and_back():
    epoch, resumed = counted(1), make()
    (part,) = epoch.to_plain()
    assert json.dumps({key: value for key, value in part.items() if not isinstance(value, torch.Tensor)})
    resumed.restore([part])
    add(epoch, [[5.0, 5.0, 5.0]])
    add(resumed, [[5.0, 5.0, 5.0]])
    assert (resumed.seconds, resumed.waited) == (10, 1)
    assert resumed.anatomy.to_plain() == epoch.anatomy.to_plain()
    for one, other in zip(epoch.rows(3), resumed.rows(3), strict=True):
        assert str(one) == str(other)


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_takes_its_own_part(monkeypatch, rank):
    parts = [*counted(1).to_plain(), *counted(2).to_plain()]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    epoch = make()
    epoch.restore(parts)
    assert epoch.sums.tolist() == counted(rank + 1).sums.tolist()
    assert epoch.assigned.counts.unique().tolist() == [rank + 1]


@pytest.mark.parametrize(("rank", "share"), [(0, 3), (1, 0), (2, 0)])
def test_with_another_number_of_ranks_nothing_is_lost(monkeypatch, rank, share):
    """Two before, three now: the first holds what both had counted, which is as good for a sum."""
    parts = [*counted(1).to_plain(), *counted(2).to_plain()]
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    epoch = make()
    epoch.restore(parts)
    assert epoch.sums[:3].tolist() == [share, 2 * share, 3 * share]
    assert epoch.assigned.counts.unique().tolist() == [share]
    assert epoch.anatomy.to_plain()["steps"] == ([1] if rank == 0 else [])
