"""The process group: right in a run of one process, and in one of two (gloo, on the CPU)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.training import distributed

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
CHILD = """
import torch
from torch import nn
from utils.training import distributed as d

torch.set_num_threads(1)
assert d.launched_by_torchrun() and d.world_size() == 1
d.start(torch.device("cpu"))
d.start(torch.device("cpu"))  # a second call does nothing
rank = d.rank()
assert d.world_size() == 2
value = torch.tensor([1.0 + rank, 0.5], requires_grad=True)
total = d.global_sum(value)
assert total.tolist() == [3.0, 1.0] and not total.requires_grad
assert value.tolist() == [1.0 + rank, 0.5]
assert d.from_rank_zero({"rank": rank, "path": "x"}) == {"rank": 0, "path": "x"}
d.barrier()
def average():
    torch.manual_seed(rank)
    model = nn.Linear(2, 1)
    wrapped = d.wrap(model, torch.device("cpu"), sync_bn=True)
    wrapped(torch.full((1, 2), float(rank))).sum().backward()
    weights = d.global_sum(model.weight)
    assert torch.allclose(weights, 2 * model.weight)  # rank 0's, on both
    assert model.weight.grad.tolist() == [[0.5, 0.5]]  # the mean of 0 and 1
average()  # a function, so that the wrapped model is gone before the group is
d.stop()
assert d.world_size() == 1
d.stop()
print("rank", rank, "done")
"""


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def test_one_process():
    value = torch.ones(2, requires_grad=True)
    total = distributed.global_sum(value)
    assert total.tolist() == [1, 1] and not total.requires_grad
    total.zero_()
    assert value.tolist() == [1, 1]  # a copy, not the tensor itself
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    marker = object()
    assert distributed.from_rank_zero(marker) is marker
    distributed.barrier()
    distributed.start(CPU)
    distributed.stop()
    assert not torch.distributed.is_initialized()
    model = nn.Linear(2, 1)
    assert distributed.wrap(model, CPU, sync_bn=True) is model


def test_torchrun_is_known_by_its_variables(monkeypatch):
    assert not distributed.launched_by_torchrun()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not distributed.launched_by_torchrun()  # set by a shell, say
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.launched_by_torchrun()


def test_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for rank, child in enumerate(children):
            out, errors = child.communicate(timeout=120)
            assert child.returncode == 0, errors
            assert f"rank {rank} done" in out
    finally:
        for child in children:
            child.kill()
