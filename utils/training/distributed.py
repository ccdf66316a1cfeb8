"""The process group of a run. Every function is right, and cheap, in a run of one process."""

import gc
import os
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(hours=3)  # of ranks that wait while rank 0 validates


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def global_sum(value: Tensor) -> Tensor:
    """Sum over all ranks, without gradient.

    A collective: every rank calls it, every step, outside any branch on data.
    """
    total = value.detach().clone()
    if distributed.is_initialized():
        distributed.all_reduce(total)
    return total


def barrier() -> None:
    """Wait for all ranks."""
    if distributed.is_initialized():
        distributed.barrier()


def launched_by_torchrun() -> bool:
    """Whether torchrun (or anything that sets its variables) started this process."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def start(device: torch.device) -> None:
    """Join torchrun's process group: NCCL on CUDA, gloo elsewhere. Nothing to do in a run of one process."""
    if launched_by_torchrun() and not distributed.is_initialized():
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=_PATIENCE,
            device_id=device if device.type == "cuda" else None,
        )


def stop() -> None:
    """Leave the process group, if there is one. Whoever holds a model made by ``wrap`` lets go of it first.

    A wrapped model keeps the group's threads alive; still running when the interpreter ends, they abort the
    process (exit code -6, "terminate called without an active exception").
    """
    if distributed.is_initialized():
        gc.collect()  # DDP sits in reference cycles
        distributed.destroy_process_group()


def from_rank_zero(value):
    """Rank 0's value (plain Python), on every rank. A collective."""
    if not distributed.is_initialized():
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def wrap(model: nn.Module, device: torch.device, *, sync_bn: bool) -> nn.Module:
    """The model as several processes train it; itself in a run of one."""
    if world_size() == 1:
        return model
    if sync_bn and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def keep_gradients(model: nn.Module, keep: bool) -> AbstractContextManager:
    """Where ``keep``, gradients are only accumulated; otherwise ranks average them in the backward pass."""
    return model.no_sync() if keep and isinstance(model, DistributedDataParallel) else nullcontext()
