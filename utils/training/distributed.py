"""The processes of a run, in two groups. What is said when one of them is gone: ``endings``.

The default group carries the tensors of the step: NCCL on CUDA, gloo elsewhere; who waits there for longer
than ``STEP_PATIENCE`` waits in vain. The control group (gloo) carries plain values and waits for hours, while
rank 0 downloads, decodes a cache or computes metrics. A *collective* is called by every rank, in the same
order, outside any branch on data. Every function is right, and cheap, in a run of one process.
"""

import gc
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from utils.errors import OUR_FAULT, UserError
from utils.training.endings import GRACE, explained, reason_of
from utils.training.rendezvous import meet

STEP_PATIENCE = timedelta(minutes=10)
PATIENCE = timedelta(hours=6)

T = TypeVar("T")

_control: distributed.ProcessGroup | None = None
_apart = False  # inside alone()


# the groups


def launched_by_torchrun() -> bool:
    """Whether torchrun (or anything that sets its variables) started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first_process() -> bool:
    """Whether this is, or will be, rank 0: also before there is a ``session``."""
    return not launched_by_torchrun() or os.environ.get("RANK", "0") == "0"


@contextmanager
def told_once() -> Iterator[None]:
    """For what all ranks do before there is a ``session``, such as reading their flags.

    What a machine's first process says is heard at once. That of the others is what it has said as well:
    they drop it, and speak only of what ends them, ``GRACE`` later. If it has ended the first process, too,
    torchrun has ended them by then.
    """
    if not launched_by_torchrun() or os.environ["LOCAL_RANK"] == "0":
        yield
        return
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            yield
    except (UserError, SystemExit):
        time.sleep(GRACE)
        print(said.getvalue(), end="", file=sys.stderr)
        raise


@contextmanager
def session(device: torch.device) -> Iterator[None]:
    """What an entry point puts round its work: ``start``, ``explained``, ``stop``."""
    start(device)
    try:
        with explained():
            yield
    finally:
        stop()


def start(device: torch.device) -> None:
    """Join torchrun's groups, if it started this process; partners not found are a ``UserError``."""
    global _control
    if not launched_by_torchrun() or distributed.is_initialized():
        return
    cuda = device.type == "cuda"
    try:
        store, rank, count = meet(STEP_PATIENCE)
        meeting = {"store": store, "rank": rank, "world_size": count, "timeout": STEP_PATIENCE}
        backend, gpu = ("nccl", device) if cuda else ("gloo", None)
        distributed.init_process_group(backend, **meeting, device_id=gpu)
        _control = distributed.new_group(backend="gloo", timeout=PATIENCE)
    except RuntimeError as error:
        if not (reason := reason_of(error)):
            raise
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"rank {os.environ.get('RANK')}: the other processes of this run are not found at {address} "
            f"({reason}); see that all have been started, and that the nodes reach each other",
            OUR_FAULT,
        ) from None


def stop() -> None:
    """Leave the groups, if there are any. Whoever holds a model made by ``wrap`` lets go of it first.

    A wrapped model keeps the group's threads alive; still running when the interpreter ends, they abort the
    process (exit code -6, "terminate called without an active exception").
    """
    global _control
    if distributed.is_initialized():
        gc.collect()  # DDP sits in reference cycles
        _control = None
        distributed.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this is a run of one process: ``world_size`` 1, collectives do nothing. ``rank`` is as ever."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def _joined() -> bool:
    return distributed.is_initialized() and not _apart


def world_size() -> int:
    """Number of ranks; 1 without a group."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """This process's rank; 0 without a group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def local_rank() -> int:
    """This process's place among those of its machine; 0 without a group."""
    return int(os.environ.get("LOCAL_RANK", 0)) if distributed.is_initialized() else 0


def local_world_size() -> int:
    """Number of processes on this machine; 1 without a group."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if distributed.is_initialized() else 1


# tensors


def global_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, without gradient. A collective of the step."""
    total = value.detach().clone()
    if _joined():
        distributed.all_reduce(total)
    return total


def weights_from_rank_zero(model: nn.Module) -> None:
    """Give ``model`` rank 0's parameters and buffers. A collective.

    DDP keeps parameters alike, but not what lies outside it: each rank's average has the normalisation
    statistics of that rank's own pictures.
    """
    if not _joined():
        return
    tensors = list(model.state_dict().values())
    for kind in dict.fromkeys(tensor.dtype for tensor in tensors):
        own = [tensor for tensor in tensors if tensor.dtype == kind]
        flat = torch.cat([tensor.reshape(-1) for tensor in own])
        distributed.broadcast(flat, src=0)
        for tensor, part in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def gather_rows(rows: Tensor) -> Tensor:
    """All ranks' ``rows`` (n, C) on rank 0, in the order of the ranks; (0, C) elsewhere. A collective.

    n may differ from rank to rank, and be 0.
    """
    if not _joined():
        return rows
    counts = gather(len(rows))
    padded = rows.new_zeros(max(1, *counts), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts] if rank() == 0 else None
    distributed.gather(padded, parts, dst=0, group=_control)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]) if parts else rows[:0]


def wrap(model: nn.Module, device: torch.device, *, sync_bn: bool) -> nn.Module:
    """The model as several processes train it; itself in a run of one.

    Gradients live in the buffers in which they are reduced, so they are not held twice.
    """
    if world_size() == 1:
        return model
    if sync_bn and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def keep_gradients(model: nn.Module, keep: bool) -> AbstractContextManager:
    """Where ``keep``, gradients are only accumulated; otherwise ranks average them in the backward pass."""
    return model.no_sync() if keep and isinstance(model, DistributedDataParallel) else nullcontext()


# plain values, over the control group: all of these are collectives


def barrier(what: str) -> None:
    """Wait for all ranks. ``what`` stands in the error where some do not come: "the end of an epoch"."""
    if not _joined():
        return
    try:
        distributed.monitored_barrier(_control, timeout=PATIENCE, wait_all_ranks=True)
    except RuntimeError as error:
        raise RuntimeError(f"{error}, waiting for {what}") from error


def from_rank_zero(value):
    """Rank 0's value (plain Python), on every rank."""
    if not _joined():
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0, group=_control)
    return holder[0]


def gather(value) -> list:
    """Every rank's value (plain Python), in the order of the ranks, on every rank."""
    if not _joined():
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value, group=_control)
    return values


def agree(value: int) -> int:
    """The largest of all ranks' values."""
    if not _joined():
        return value
    largest = torch.tensor(value, dtype=torch.int64)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=_control)
    return int(largest)


def on_rank_zero(work: Callable[[], T]) -> T:
    """What ``work`` returns on rank 0, where alone it runs; plain Python, or NumPy's arrays.

    A ``UserError`` of it is raised there; the others end with its code, without a word.
    """
    if not _joined():
        return work()
    outcome = from_rank_zero(_attempt(work) if rank() == 0 else None)
    return _take(outcome, [outcome], mine=rank() == 0)


def on_each_node(work: Callable[[], T]) -> T:
    """As ``on_rank_zero``, but the first rank of each machine runs ``work``, for those of that machine."""
    if not _joined():
        return work()
    outcomes = gather(_attempt(work) if local_rank() == 0 else None)
    first = rank() - local_rank()  # torchrun numbers the ranks of a machine in a row
    return _take(outcomes[first], outcomes, mine=local_rank() == 0)


def _attempt(work: Callable):
    """(value, None) or (None, the ``UserError``)."""
    try:
        return work(), None
    except UserError as error:
        return None, error


def _take(own: tuple, outcomes: list, *, mine: bool):
    value, error = own
    if error and mine:
        raise error
    errors = [outcome[1] for outcome in outcomes if outcome and outcome[1]]
    if errors:
        _leave_quietly(errors[0].code)
    return value


def _leave_quietly(code: int) -> None:
    """End after whoever failed has spoken: torchrun ends all others as soon as one has ended."""
    time.sleep(GRACE)
    raise SystemExit(code)
