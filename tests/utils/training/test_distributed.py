"""The processes of a run: right alone, together (gloo, on the CPU), and when one of them is gone."""

import os
import sys
import time

import pytest
import torch
from torch import nn

from tests.ranks import Ended, run_ranks, run_text
from utils.errors import DATA, OUR_FAULT, UserError
from utils.training import distributed, endings

CPU = torch.device("cpu")
START = """
import os, signal, sys, time
from datetime import timedelta
import torch
from torch import nn
from utils.errors import DATA, UserError, run_main
from utils.training import distributed as d, endings

torch.set_num_threads(1)
d.GRACE = endings.GRACE = 0.5
"""
TOGETHER = """
assert d.launched_by_torchrun() and d.world_size() == 1
cpu = torch.device("cpu")
d.start(cpu)
d.start(cpu)  # a second call does nothing
rank, others = d.rank(), {"first": 1}
assert d.world_size() == 3 and d.local_rank() == (0, 1, 0)[rank]

value = torch.tensor([1.0 + rank, 0.5], requires_grad=True)
total = d.global_sum(value)
assert total.tolist() == [6.0, 1.5] and not total.requires_grad
assert value.tolist() == [1.0 + rank, 0.5]

assert d.from_rank_zero({"rank": rank, "path": "x"}) == {"rank": 0, "path": "x"}
assert d.gather((rank, "x")) == [(0, "x"), (1, "x"), (2, "x")]
assert d.agree((5, 143, -1)[rank]) == 143 and type(d.agree(0)) is int
d.barrier("the test")

rows = torch.arange(rank * 4.0).reshape(-1, 2).double() + rank  # 0, 2 and 4 rows
found = d.gather_rows(rows)
if rank == 0:
    assert found.tolist() == [[1, 2], [3, 4], [2, 3], [4, 5], [6, 7], [8, 9]] and found.dtype == rows.dtype
else:
    assert found.shape == (0, 2)
assert d.gather_rows(torch.zeros(0, 7)).shape == (0, 7)

torch.manual_seed(rank)
model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
model[1].num_batches_tracked += 5 - rank
d.weights_from_rank_zero(model)
torch.manual_seed(0)
first = nn.Conv2d(3, 4, 3)
assert torch.equal(model[0].weight, first.weight) and torch.equal(model[0].bias, first.bias)
assert model[0].weight.is_contiguous(memory_format=torch.channels_last) and model[0].weight.requires_grad
assert model[1].num_batches_tracked == 5

ran = []
assert d.on_rank_zero(lambda: ran.append(rank) or "made") == "made" and ran == [0] * (rank == 0)
assert d.on_each_node(lambda: rank) == (0, 0, 2)[rank]  # ranks 0 and 1 on one machine, 2 on another

with d.alone():
    assert (d.world_size(), d.rank(), d.agree(rank), d.gather(rank)) == (1, rank, rank, [rank])
    assert d.global_sum(torch.ones(1)) == 1 and d.from_rank_zero(rank) == rank
    assert d.on_rank_zero(lambda: rank) == d.on_each_node(lambda: rank) == rank
    assert d.gather_rows(rows) is rows and d.wrap(model, cpu, sync_bn=False) is model
    d.barrier("nobody"), d.weights_from_rank_zero(model)
    with d.alone():
        pass
    assert d.world_size() == 1
assert d.world_size() == 3

def average():
    torch.manual_seed(rank)
    model = nn.Linear(2, 1)
    wrapped = d.wrap(model, cpu, sync_bn=True)
    for keep in (True, False):
        with d.keep_gradients(wrapped, keep):
            wrapped(torch.full((1, 2), float(rank))).sum().backward()
        if keep:
            assert model.weight.grad.tolist() == [[rank, rank]]
    weights = d.global_sum(model.weight)
    assert torch.allclose(weights, 3 * model.weight)  # rank 0's, on all
    assert model.weight.grad.tolist() == [[2, 2]]  # twice the mean of 0, 1, 2
average()  # a function, so that the wrapped model is gone before the group is
d.stop()
assert d.world_size() == 1 and d.agree(7) == 7
d.stop()
print("rank", rank, "done")
"""
DEFECTS = {  # rank 1 of two goes wrong in some way, in the midst of the training's steps
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "fault": "raise ZeroDivisionError('what went wrong')",
    "user": "raise UserError('picture.jpg: cannot be read', DATA)",
    "hang": "time.sleep(3)",
}
TRAINING = """
d.STEP_PATIENCE = timedelta(seconds=float(sys.argv[2]))
def main():
    with d.session(torch.device("cpu")):
        train(d.wrap(nn.Linear(2, 1), torch.device("cpu"), sync_bn=False))
def train(model):
    for step in range(1000):
        model(torch.ones(1, 2)).sum().backward()
        if d.rank() == 1 and step == 5:
            print("now", flush=True)
            exec(sys.argv[1])
run_main(main)
"""
WAITING = """
def main():
    with d.session(torch.device("cpu")):
        exec(sys.argv[1])
run_main(main)
"""


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def run(program: str, *arguments: str, count: int = 2, **variables: list[str]) -> list[Ended]:
    return run_text(START + program, count, arguments=arguments, **variables)


# alone


def test_one_process():
    value = torch.ones(2, requires_grad=True)
    total = distributed.global_sum(value)
    assert total.tolist() == [1, 1] and not total.requires_grad
    total.zero_()
    assert value.tolist() == [1, 1]  # a copy, not the tensor itself
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (0, 0, 1)
    marker, rows = object(), torch.ones(2, 7)
    assert distributed.from_rank_zero(marker) is marker
    assert distributed.gather(marker) == [marker] and distributed.agree(-3) == -3
    assert distributed.gather_rows(rows) is rows
    assert distributed.on_rank_zero(lambda: marker) is distributed.on_each_node(lambda: marker) is marker
    distributed.barrier("nobody")
    model = nn.Linear(2, 1)
    distributed.weights_from_rank_zero(model)
    with distributed.alone(), distributed.session(CPU):
        assert not torch.distributed.is_initialized()
    assert distributed.wrap(model, CPU, sync_bn=True) is model


def test_errors_of_one_process_pass_as_they_are():
    for error in (UserError("message", DATA), RuntimeError("[gloo/transport] Connection closed by peer")):
        with pytest.raises(type(error)) as caught, distributed.session(CPU):
            raise error
        assert caught.value is error
        with pytest.raises(type(error)) as caught:
            distributed.on_rank_zero(lambda error=error: (_ for _ in ()).throw(error))
        assert caught.value is error


def test_torchrun_is_known_by_its_variables(monkeypatch):
    assert not distributed.launched_by_torchrun()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not distributed.launched_by_torchrun()  # set by a shell, say
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert distributed.launched_by_torchrun()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("[/x/gloo/pair.cc:561] Connection closed by peer [1.2.3.4]:5."),
            "Connection closed by peer",
        ),
        (RuntimeError("[gloo] Timed out waiting 4000ms for recv"), "Timed out waiting 4000ms for recv"),
        (RuntimeError("[Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 9 ms"), "failed to pass"),
        (torch.distributed.DistBackendError("NCCL error: ncclRemoteError: x"), "ncclRemoteError"),
        (RuntimeError("Connection closed by peer"), ""),  # of somebody else, such as a loader's process
        (ConnectionResetError("gloo Connection reset by peer"), ""),
        (RuntimeError("gloo: no such option"), ""),
        (ValueError("gloo Connection closed by peer"), ""),
    ],
)
def test_errors_that_speak_of_a_partner(error, reason):
    assert endings.reason_of(error).startswith(reason) and bool(endings.reason_of(error)) == bool(reason)


# together


def test_three_processes_on_two_machines():
    for rank, ended in enumerate(run(TOGETHER, count=3, LOCAL_RANK=["0", "1", "0"])):
        assert ended.code == 0, ended.err
        assert f"rank {rank} done" in ended.out


LEAVING = """
def main():
    model = d.wrap(nn.Linear(2, 1), torch.device("cpu"), sync_bn=False)
    model(torch.ones(1, 2)).sum().backward()
    if d.rank() == 1:
        raise ZeroDivisionError("with a wrapped model at hand")
    d.barrier("nothing")
def session():
    with d.session(torch.device("cpu")):
        main()
run_main(session)
"""


@pytest.mark.slow
def test_interpreters_end_in_order_after_a_fault():
    """Whole processes: threads of a wrapped model that are still there would abort them."""
    survivor, failed = run_ranks(["-c", START + LEAVING], 2)
    assert (survivor.code, failed.code) == (OUR_FAULT, OUR_FAULT), survivor.err
    assert "error: rank 0: rank 1 is gone" in survivor.err and "ZeroDivisionError" in failed.err


# one is gone


def test_a_killed_rank_ends_the_other_with_one_line():
    begun = time.monotonic()
    survivor, killed = run(TRAINING, DEFECTS["kill"], "600")
    assert time.monotonic() - begun < 30
    assert killed.code == -9 and survivor.code == OUR_FAULT
    (line,) = survivor.err.splitlines()
    assert line.startswith("error: rank 0: rank 1 is gone or stuck (Connection ") and "--resume" in line


def test_a_fault_shows_its_traceback_before_the_others_speak():
    survivor, failed = run(TRAINING, DEFECTS["fault"], "600")
    assert failed.code == survivor.code == OUR_FAULT
    assert failed.err.count("Traceback") == 1 and "ZeroDivisionError: what went wrong" in failed.err
    assert failed.err.splitlines()[0].startswith("[rank1]:")
    (line,) = survivor.err.splitlines()
    assert line.startswith("error: rank 0: rank 1 is gone")
    assert survivor.seconds > failed.seconds + 0.2  # of the half second of grace


def test_an_error_of_one_rank_has_its_number():
    survivor, failed = run(TRAINING, DEFECTS["user"], "600")
    assert (survivor.code, failed.code) == (OUR_FAULT, DATA)
    assert failed.err == "error: rank 1: picture.jpg: cannot be read\n"
    assert survivor.err.startswith("error: rank 0: rank 1 is gone") and survivor.err.count("\n") == 1


def test_a_rank_that_hangs_is_named_after_the_patience_of_the_step():
    survivor, _ = run(TRAINING, DEFECTS["hang"], "1")
    assert survivor.code == OUR_FAULT
    (line,) = survivor.err.splitlines()
    assert line.startswith("error: rank 0: rank 1 is gone or stuck (Timed out waiting 1000ms")


def test_a_barrier_names_what_was_waited_for_and_who_is_missing():
    work = "d.PATIENCE = timedelta(seconds=1); d.rank() < 2 and d.barrier('dinner') or time.sleep(2.5)"
    first, second, _ = run(WAITING, work, count=3)
    assert first.code == second.code == OUR_FAULT
    assert "error: rank 0: rank 2 is gone or stuck" in first.err and "waiting for dinner" in first.err


def test_a_mistake_that_rank_zero_finds_is_told_once():
    work = "d.on_rank_zero(lambda: (_ for _ in ()).throw(UserError('no labels', DATA)))"
    first, second = run(WAITING, work)
    assert (first.code, second.code) == (DATA, DATA)
    assert (first.err, second.err) == ("error: no labels\n", "") and second.seconds > first.seconds


def test_a_mistake_of_one_machine_ends_all():
    work = "d.on_each_node(lambda: d.rank() and (_ for _ in ()).throw(UserError('not here', DATA)) and 1)"
    ended = run(WAITING, work, count=3, LOCAL_RANK=["0", "1", "0"])
    assert [one.code for one in ended] == [DATA] * 3
    assert [one.err for one in ended] == ["", "", "error: rank 2: not here\n"]


def test_what_all_ranks_find_is_told_once():
    first, second = run(WAITING, "raise UserError('no such file: x.pt')")
    assert first.code == second.code == 2
    assert (first.err, second.err) == ("error: no such file: x.pt\n", "")


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [(endings.GRACE, "")])])
def test_what_all_ranks_find_is_said_at_once_by_the_first_alone(rank, waits, monkeypatch, capsys):
    """The others wait first: by then torchrun has ended them, if the first one found it, too."""
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    waited = []

    def wait(seconds: float) -> None:
        waited.append((seconds, capsys.readouterr().err))

    def find_mistake() -> None:
        with distributed.told_once():
            print("a mistake", file=sys.stderr)
            raise SystemExit(2)

    monkeypatch.setattr(distributed.time, "sleep", wait)
    with pytest.raises(SystemExit):
        find_mistake()
    assert (waited, capsys.readouterr().err) == (waits, "a mistake\n")


def test_partners_that_never_come_are_an_error():
    program = WAITING.replace("def main", "d.STEP_PATIENCE = timedelta(seconds=1)\ndef main")
    (ended,) = run(program, "pass", count=1, WORLD_SIZE=["2"])
    assert ended.code == OUR_FAULT and ended.err.splitlines()[-1].startswith(
        "error: rank 0: the other processes"
    )
    assert "127.0.0.1:" in ended.err and "Traceback" not in ended.err
    assert "LOCAL_RANK" not in os.environ
