"""Training on several ranks (gloo, on the CPU): what one process computes, the same ending for all of them.

Functions that take ``folder`` and ``data`` run on every rank, inside one session, and leave files for the
test. A batch has 8 pictures, or 4 on each of two ranks; batches are numbered over the run, from 0.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import run_setup
import train
from data.dataset import Batch
from data.index import path_of
from data.shapes import make_shapes
from models.detector import build_detector
from tests.planted import SMALL, set_up
from tests.ranks import Ended, run_text
from tests.resume import compare_values, read_rows, read_weights
from utils.errors import DATA, NON_FINITE, OUR_FAULT, USAGE
from utils.structures import Targets
from utils.training import distributed

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 20
WORK = """
import importlib, sys, torch
from utils.training import distributed

torch.set_num_threads(1)
work = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])
with distributed.session(torch.device("cpu")):
    work(*sys.argv[3:])
"""
TRAIN = """
import os, sys, torch, train, utils.step
from utils.errors import run_main
from utils.training import distributed, endings

torch.set_num_threads(1)
distributed.GRACE = endings.GRACE = 0.5
rank, plain, passes = int(os.environ["RANK"]), utils.step.forward, 0
def forward(model, images, amp):
    global passes
    passes += model.training
    if rank and model.training and passes > 6:  # in the second epoch of four batches
        WHAT
    return plain(model, images, amp)
utils.step.forward = forward
run_main(train.main)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """data.yaml of 32 training pictures."""
    root = tmp_path_factory.mktemp("ranks") / "shapes"
    make_shapes(root, num_train=32, num_val=2, sides=(48, 64))
    return root / "data.yaml"


def differences(one, other) -> list[str]:
    return list(compare_values(one, other))


def on_ranks(work: Callable, *arguments, count: int = 2) -> None:
    """``work(*arguments)`` on all ranks; a function at the top of a test module, arguments as text."""
    named = [work.__module__, work.__name__, *map(str, arguments)]
    for ended in run_text(WORK, count, arguments=named, timeout=100):
        assert ended.code == 0, ended.err


def run_train(data: Path, *flags, what: str = "pass") -> list[Ended]:
    """train.py on two ranks; ``what`` happens on the second in each forward pass of the second epoch."""
    flags = ["--data", data, *SMALL, "--batch-size", 8, "--epochs", 3, *flags]
    return run_text(TRAIN.replace("WHAT", what), 2, arguments=list(map(str, flags)), timeout=60)


# 2 x 4 is 1 x 8


TWICE = ("--set", "train.nominal_batch=16", "--micro-batch", "2")  # two batches in a step, each in parts
CASES = {  # name -> (type of the numbers, largest relative difference, is a half without boxes?, flags)
    "gfl": (torch.float64, 1e-12, False, ("--loss", "gfl")),
    "accumulated": (torch.float64, 1e-12, False, ("--loss", "yolov8_like", *TWICE)),
    "a half without boxes": (torch.float64, 1e-12, True, ("--loss", "bce_aligned")),
    "single precision": (torch.float32, 1e-5, False, ("--loss", "gfl")),
}


class WithoutBoxes:
    """A ``TrainStep`` that takes the boxes off pictures ``rows`` of the batches for which ``when`` holds."""

    def __init__(self, step, rows: slice, when: Callable[[int], bool] = lambda batch: True):
        self.step, self.rows, self.when = step, rows, when

    def __getattr__(self, name: str):
        return getattr(self.step, name)

    def __call__(self, batches: list[Batch], **options):
        if self.when(self.step.state.step):
            batches = [batch._replace(truth=without_boxes(batch.truth, self.rows)) for batch in batches]
        return self.step(batches, **options)


def without_boxes(truth: Targets, rows: slice) -> Targets:
    """As the loader has it for pictures without boxes."""
    boxes, labels, valid, ignore = (tensor.clone() for tensor in truth)
    boxes[rows], labels[rows] = torch.tensor((0.0, 0, 1, 1)), 0
    valid[rows] = ignore[rows] = False
    kept = max(1, int(valid.any(0).sum()))
    return Targets(*(tensor[:, :kept] for tensor in (boxes, labels, valid, ignore)))


def record(data: str, project: str, case: str) -> list[dict[str, Tensor]]:
    """Each of the first 20 steps, in normalisations that are frozen: terms, gradients, weights after it."""
    dtype, _, half, flags = CASES[case]
    seen, steps = [], 2 if TWICE[1] in flags else 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_setup, "build_detector", lambda *options: build_detector(*options).to(dtype))
        patch.setattr(train, "frozen_norms", lambda m: [n for n in m.modules() if type(n) is nn.BatchNorm2d])
        run = set_up("--data", data, *SMALL, "--batch-size", 8, *flags, "--project", project).run
        if half:  # the second
            rows = slice(4, 8) if distributed.world_size() == 1 else slice(4 * (1 - distributed.rank()), 4)
            run.step = WithoutBoxes(run.step.step, rows)
        update = run.state.update

        def recorded(**options):
            named = run.state.model.named_parameters()
            before = {f"gradient of {name}": tensor.grad.clone() for name, tensor in named}
            found = update(**options)
            after = {name: tensor.detach().clone() for name, tensor in run.state.model.named_parameters()}
            seen.append(before | after | {"norm": found.norm})
            return found

        run.state.update = recorded
        for _ in range(STEPS * steps // len(run.data.train)):
            assert train.train_epoch(run) == 0
            row, _, counted = train.end_epoch(run)
            means = {key: torch.tensor(value) for key, value in row.items() if key.startswith("train/")}
            seen[-1] |= means | {key: torch.tensor(float(value)) for key, value in counted.items()}
    return seen


def record_all(folder: str, data: str) -> None:
    for case in CASES:
        torch.save(record(data, folder, case), f"{folder}/{case}{distributed.rank()}.pt")


@pytest.fixture(scope="module")
def recorded(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    on_ranks(record_all, folder, data)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_times_four_is_one_times_eight(recorded, data, tmp_path, case):
    """Losses, counts, gradients, their norm and weights, one by one, each step; ranks to the bit."""
    ranks = [torch.load(recorded / f"{case}{rank}.pt", weights_only=True) for rank in range(2)]
    assert not differences(*ranks)
    alone, limit = record(str(data), str(tmp_path), case), CASES[case][1]
    assert len(alone) == len(ranks[0]) == STEPS
    for number, (one, two) in enumerate(zip(alone, ranks[0], strict=True)):
        assert one["norm"] > 0
        for name, tensor in one.items():
            norm, far = (value.double().norm() for value in (tensor, two[name] - tensor))
            close = far <= limit * norm or (
                tensor.isnan().all() and two[name].isnan().all()
            )  # a mean of none
            assert close, (number, name, float(far / norm))
    assert sum("train/box" in step for step in alone) >= 2


# pictures without boxes


def train_without_boxes(folder: str, data: str) -> None:
    """Rank 1 never has a box, rank 0 has none either for some steps, the first and the last among them."""
    flags = ["--batch-size", 4, "--epochs", 7, "--set", "train.anatomy_every=1"]
    training = set_up("--data", data, *SMALL, *flags, "--project", folder)
    run, taken = training.run, []
    none = {*range(3), *range(20, 30), 55}
    run.step = WithoutBoxes(
        run.step.step, slice(None), lambda batch: distributed.rank() == 1 or batch in none
    )
    update = run.state.update

    def watched(**options):
        found = update(**options)
        taken.append(bool(found.taken) and float(found.norm) > 0)
        return found

    run.state.update = watched
    assert training.train() == 0
    assert taken == [True] * 56
    check_alike(run)


def check_alike(run) -> None:
    """All ranks have the same weights, finite ones, and the same average of them."""
    for model in (run.state.model, run.state.ema.model):
        own = {name: tensor.detach() for name, tensor in model.named_parameters()}
        assert all(tensor.isfinite().all() for tensor in own.values())
        assert all(not differences(own, other) for other in distributed.gather(own))


@pytest.mark.slow
def test_a_rank_may_have_no_boxes_at_all(data, tmp_path):
    on_ranks(train_without_boxes, tmp_path, data)
    rows = read_rows(tmp_path / "exp")
    assert len(rows) == 7 and "nan" not in {row[f"train/{key}"] for row in rows for key in ("box", "quality")}
    assert not (tmp_path / "exp" / "nan_report.json").exists()


# not finite on one rank


def train_with_nan(folder: str, data: str, what: str) -> None:
    """Pixels, or losses, of rank 1 are NaN in batch 6; then the run that leaves this step out."""
    flags = ["--data", data, *SMALL, "--batch-size", 8, "--epochs", 3, "--project", folder]
    spoilt, skipping, shown = set_up(*flags), set_up(*flags, skipped=[6]), []
    state, step, take_step = spoilt.run.state, spoilt.run.step.step, train.take_step
    accumulate = step.accumulate

    def spoil(values: Tensor, kind: str) -> Tensor:
        return values * torch.nan if (distributed.rank(), state.step, kind) == (1, 6, what) else values

    def watch(run, batches):
        if state.step == 6:
            shown.extend(str(path_of(run.data.index, number)) for number in batches[0].pictures)
        return take_step(run, batches)

    step.accumulate = lambda *options: spoil(accumulate(*options), "losses")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "take_step", watch)
        assert spoilt.train(lambda images, batch: spoil(images, "pixels")) == 0
    check_alike(spoilt.run)
    if distributed.rank():
        Path(folder, "pictures.json").write_text(json.dumps(shown))
    assert skipping.train() == 0


@pytest.mark.parametrize("what", ["pixels", pytest.param("losses", marks=pytest.mark.slow)])
def test_numbers_that_are_not_finite_on_one_rank_skip_the_step_of_all(data, tmp_path, what):
    """As if it had not been; the report names the pictures of all ranks, which share one normaliser."""
    on_ranks(train_with_nan, tmp_path, data, what)
    spoilt, skipping = tmp_path / "exp", tmp_path / "exp2"
    assert not differences(read_weights(spoilt), read_weights(skipping))
    assert read_weights(spoilt)["ema_updates"] == 11 and len(read_rows(spoilt)) == 3
    for table in ("results.csv", "assignment.csv"):
        assert read_rows(spoilt, table) == read_rows(skipping, table)
    (entry,) = json.loads((spoilt / "nan_report.json").read_text())["skipped"]
    (named,) = entry["batches"]
    assert (entry["step"], named["epoch"], named["batch"]) == (6, 2, 2)
    shown = json.loads((tmp_path / "pictures.json").read_text())
    assert len(set(shown)) == 4 and set(shown) < set(named["pictures"])


def test_three_such_steps_in_a_row_end_all_ranks(data, tmp_path):
    first, second = run_train(data, "--project", tmp_path, what="images = images * torch.nan")
    assert first.code == second.code == NON_FINITE, second.err
    assert first.err.startswith("error: the losses or gradients of 4 steps in a row") and second.err == ""
    last = read_weights(tmp_path / "exp")
    assert last["ema_updates"] == 6 and 9 <= last["step"] <= 11
    assert all(tensor.isfinite().all() for tensor in last["model"].values())


# an error of one rank


@pytest.mark.slow
def test_out_of_memory_on_one_rank(data, tmp_path):
    """The job ends with the setting to go on with, and goes on with it, with as little memory as before."""
    short = "if len(images) > 2: raise torch.OutOfMemoryError('CUDA out of memory.')"
    first, second = run_train(data, "--project", tmp_path, what=short)
    assert first.code == second.code == OUR_FAULT and first.seconds < 30
    (line,) = second.err.splitlines()
    assert line.startswith("error: rank 1: out of memory with 4 pictures in a forward pass at step 6 (CUDA")
    assert "--micro-batch 2 and --resume" in line
    assert first.err.startswith("error: rank 0: rank 1 is gone") and first.err.count("\n") == 1
    last = tmp_path / "exp" / "weights" / "last.pt"
    assert read_weights(tmp_path / "exp")["epoch"] == 1
    program = TRAIN.replace("WHAT", short).replace("passes > 6", "True")
    resumed = ["--resume", last, "--micro-batch", 2, "--noplots", "--device", "cpu"]
    for ended in run_text(program, 2, arguments=list(map(str, resumed)), timeout=60):
        assert ended.code == 0, ended.err
    assert read_weights(tmp_path / "exp")["micro_batch"] == 2
    assert [row["epoch"] for row in read_rows(tmp_path / "exp")] == ["1", "2", "3"]


def test_a_fault_of_one_rank_shows_its_traceback_first(data, tmp_path):
    first, second = run_train(data, "--project", tmp_path, what="raise ZeroDivisionError('a fault of ours')")
    assert first.code == second.code == OUR_FAULT
    assert second.err.startswith("[rank1]: Traceback") and second.err.count("Traceback") == 1
    assert second.err.rstrip().endswith("ZeroDivisionError: a fault of ours")
    (line,) = first.err.splitlines()
    assert line.startswith("error: rank 0: rank 1 is gone") and "--resume" in line
    assert first.seconds > second.seconds + 0.2


# a mistake that all ranks find


MISTAKES = {  # flags -> code, words of the message
    ("--data", "missing.yaml"): (DATA, "data set 'missing.yaml' not found"),
    ("--batch-size", "7"): (USAGE, "--batch-size 7 is the total over all ranks: no multiple of 2"),
    ("--weights", "missing.pt", "--cfg", "demo"): (USAGE, "missing.pt"),
    ("--set", "train.lrr=1"): (USAGE, "train.lrr is not a setting"),
    ("--epocks", "3"): (USAGE, "unrecognized arguments: --epocks"),
}


@pytest.mark.parametrize("flags", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_once(data, tmp_path, flags):
    """By the first rank. That the other waits before it speaks, and torchrun has ended it by then, is a test
    in one process (test_distributed): between two, the machine says which comes to its mistake first.
    """
    code, words = MISTAKES[flags]
    first, second = run_train(data, "--project", tmp_path, *flags)
    assert first.code == second.code == code
    assert first.err.count(words) == 1 and "Traceback" not in first.err
    assert "Traceback" not in second.err and second.out == "" and not list(tmp_path.iterdir())


def test_notes_are_told_once(data, tmp_path):
    first, second = run_train(data, "--project", tmp_path, "--quad", "--epochs", "1")
    assert first.code == second.code == 0, second.err
    assert first.err == "--quad is not needed: " + first.err.split(": ", 1)[1] and first.err.count("\n") == 1
    assert second.out == second.err == ""
