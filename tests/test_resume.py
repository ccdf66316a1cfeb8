"""A run that stops and goes on is the run that did not stop: every bit of its checkpoints and tables.

Places are (epochs done, batches done of the next one).
"""

import os
import random
import shutil
import signal
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from models.detector import Detector, count_parameters
from tests.ranks import run_text
from tests.resume import (
    BATCHES,
    EPOCHS,
    FLAGS,
    StopAt,
    compare_runs,
    compare_values,
    go_on,
    place_of,
    read_rows,
    read_weights,
    train_here,
)
from utils.errors import DATA, OK, USAGE
from utils.training.signals import TERMINATED, Stop

pytestmark = pytest.mark.usefixtures("one_thread")

ENDS = [(epoch, 0) for epoch in range(1, EPOCHS + 1)]
INSIDE = {  # accumulation -> the steps of the optimiser to stop after: all there are, or ten at random
    4: [(epoch, batch) for epoch in range(EPOCHS) for batch in (4, 8)],
    1: random.Random(5).sample(list(product(range(EPOCHS), range(1, BATCHES))), 10),
}
ODD = [(0, 0), (2, BATCHES)]  # before the first step, and after the last of an epoch, before its validation
WAYS = list(product((0, 2), (1, 4), ("none", "ram")))  # workers, accumulation, cache
PAIRS = [(0, 1, "none"), (0, 4, "ram"), (2, 1, "ram"), (2, 4, "none")]  # any two values meet in one of them


@pytest.fixture
def flags(more_shapes, tmp_path) -> list:
    """Of a run in a folder of its own."""
    return [*FLAGS, "--data", more_shapes, "--project", tmp_path, "--workers", 0]


@pytest.fixture(scope="module")
def straight(more_shapes, tmp_path_factory):
    """``straight(workers, accumulation, cache)``: folder of a run without a stop, its state everywhere."""
    known = {}

    def run(*way) -> tuple[Path, dict]:
        if way not in known:
            stop, project = StopAt(look=True), tmp_path_factory.mktemp("straight")
            ended = train_here(*way_flags(more_shapes, project, *way), stop=stop)
            assert ended.code == OK and count_parameters(ended.run.state.model) < 200_000
            known[way] = ended.folder, stop.seen
        return known[way]

    return run


def way_flags(more_shapes: Path, project: Path, workers: int, accumulation: int, cache: str) -> list:
    flags = [*FLAGS, "--data", more_shapes, "--project", project, "--workers", workers, "--cache", cache]
    return [*flags, "--set", f"train.nominal_batch={3 * accumulation}"]


def stop_at(place, flags: list, *, folder: Path | None = None) -> Path:
    """Train to a place, from the start or from where the run in ``folder`` stands; returns its folder."""
    stop = StopAt(place)
    ended = go_on(folder, stop=stop) if folder else train_here(*flags, stop=stop)
    assert ended.code == TERMINATED and place_of(ended.run.state) == place
    return ended.folder


def finish(folder: Path, *flags) -> Path:
    """Resume a run and train it to its end."""
    assert go_on(folder, *flags).code == OK
    return folder


def parts_that_differ(folder: Path, state: dict) -> list[str]:
    """In what last.pt is not the ``state`` of a run at work."""
    saved = read_weights(folder)
    return list(compare_values({key: saved[key] for key in state}, state))


# anywhere


# One of the pairs with every change is enough for `make test`; the others take half a minute each.
@pytest.mark.parametrize(
    "way", [PAIRS[0], *(pytest.param(way, marks=pytest.mark.slow) for way in PAIRS[1:])], ids=str
)
def test_stops_at_every_place_of_one_run_change_nothing(way, straight, more_shapes, tmp_path):
    """Five ends of epochs, ten steps and two odd places; workers, accumulation and cache by pairs."""
    whole, seen = straight(*way)
    assert len(seen) == {1: EPOCHS * (BATCHES + 1), 4: EPOCHS * 4}[way[1]] + 1
    folder = None
    for place in sorted(ENDS + INSIDE[way[1]] + ODD):
        folder = stop_at(place, way_flags(more_shapes, tmp_path, *way), folder=folder)
        assert parts_that_differ(folder, seen[place]) == [], place
    assert compare_runs(whole, finish(folder)) == []


@pytest.mark.grid
@pytest.mark.parametrize("number", range(15))
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_stop_at_any_place_changes_nothing(way, number, straight, more_shapes, tmp_path):
    """The full grid: one stop in each run."""
    whole, seen = straight(*way)
    place = (ENDS + INSIDE[way[1]])[number]
    folder = stop_at(place, way_flags(more_shapes, tmp_path, *way))
    assert parts_that_differ(folder, seen[place]) == []
    assert compare_runs(whole, finish(folder)) == []


@pytest.mark.slow
def test_a_signal_during_validation_changes_nothing(straight, more_shapes, tmp_path, monkeypatch):
    """It ends the run there; validation begins anew."""
    evaluate, calls = train.evaluate, []

    def interrupted(*args, **options):
        calls.append(len(calls))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **options)

    monkeypatch.setattr(train, "evaluate", interrupted)
    with Stop() as stop:
        ended = train_here(*way_flags(more_shapes, tmp_path, 0, 1, "none"), stop=stop)
    assert (ended.code, place_of(ended.run.state)) == (TERMINATED, (2, BATCHES))
    assert compare_runs(straight(0, 1, "none")[0], finish(ended.folder)) == []


OTHERS = {
    "SGD": ["--optimizer", "SGD", "--set", "train.lr=0.01"],
    "bf16": ["--set", "train.amp=bf16"],
    "multi-scale and mixup": ["--multi-scale", "0.5", "--set", "augment.mixup=0.5"],
    "micro-batches": ["--micro-batch", "2", "--set", "train.nominal_batch=6"],
    "rare validations": ["--val-every", "3", "--nosave", "--save-period", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_settings_resume_exactly(name, flags):
    flags = [*flags, *OTHERS[name]]
    whole = train_here(*flags).folder
    folder = stop_at((3, 2), flags, folder=stop_at((1, 8), flags))
    assert compare_runs(whole, finish(folder)) == []


@pytest.mark.slow
def test_generators_that_the_model_draws_from_resume_exactly(flags, monkeypatch):
    """Those of Python, NumPy and torch, drawn from inside the step."""
    forward, drawn = Detector.forward, []

    def noisy(self, images):
        pred = forward(self, images)
        if not self.training:
            return pred
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
        return pred._replace(cls_logits=pred.cls_logits * (1 + sum(drawn[-1]) / 10))

    monkeypatch.setattr(Detector, "forward", noisy)
    whole, numbers = train_here(*flags).folder, list(drawn)
    assert len(set(numbers)) == EPOCHS * BATCHES
    drawn.clear()
    folder = stop_at((1, 4), flags)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(99)
    assert compare_runs(whole, finish(folder)) == []
    assert drawn == numbers


# the end of a run


@pytest.mark.slow
def test_early_stopping_counts_on(flags):
    """At this rate nothing changes, so that the first epoch stays the best."""
    flags = [*flags, "--patience", 3, "--set", "train.lr=1e-12"]
    whole = train_here(*flags)
    assert place_of(whole.run.state) == (4, 0)
    folder = stop_at((3, 1), flags, folder=stop_at((2, 0), flags))
    assert compare_runs(whole.folder, finish(folder)) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", [(3, 0), (2, 5)])
def test_more_epochs_are_a_run_whose_schedule_has_as_many_from_that_step_on(place, flags):
    """Its learning rate, average and the end of the mosaics change at that batch and nowhere else."""
    short, long = ([*flags, "--epochs", epochs, "--set", "augment.close_mosaic=0.4"] for epochs in (3, 6))
    change = place[0] * BATCHES + place[1]
    ended = train_here(*short, stop=StopAt(place if place[1] else None))
    assert place_of(ended.run.state) == place
    assert (ended.folder / "metrics.json").exists() is (place == (3, 0))
    of_three = ended.run

    def change_there(run):
        rates, limits, items = (of_three.rate, run.rate), [], run.data.train.sampler.items
        limits += [of_three.state.ema.limit, run.state.ema.limit]
        assert limits[0] < limits[1] and 1.5 * rates[0](change) < rates[1](change)
        run.rate = lambda step: rates[step >= change](step)
        update = run.state.ema.update

        def average(*arguments):
            run.state.ema.limit = limits[run.state.step >= change]
            update(*arguments)

        def planned(batch, places):  # mosaics in 60 % of three epochs, or of six
            epoch = run.data.train.sampler.epoch
            run.data.train.sampler.mosaic = epoch < (1.8 if epoch * BATCHES + batch < change else 3.6)
            return items(batch, places)

        run.state.ema.update, run.data.train.sampler.items = average, planned

    whole = train_here(*long, prepare=change_there).folder
    assert compare_runs(whole, finish(ended.folder, "--epochs", 6)) == []


# killed


KILLED = """
import os, signal, sys
import torch
from tests.resume import train_here
from utils.step import TrainStep
from utils.training.saver import Saver

torch.set_num_threads(1)
where, *flags = sys.argv[1:]
train_step, save = TrainStep.__call__, Saver.save

def die_in_step_17(self, *arguments, **options):
    if self.state.step == 17:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(self, *arguments, **options)

def die_before_last(self, name, content):
    if name == where and content["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, name, content)

TrainStep.__call__ = die_in_step_17 if where == "step" else train_step
Saver.save = die_before_last
train_here(*flags)
"""


@pytest.mark.parametrize(
    ("where", "minutes", "place", "rows"),
    [
        pytest.param("step", 1e-6, (1, 6), "1", marks=pytest.mark.slow),
        ("last.pt", 10, (1, 0), "12"),
        pytest.param("best.pt", 10, (1, 0), "12", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_from_its_last_save(
    where, minutes, place, rows, straight, more_shapes, tmp_path
):
    """Within an epoch by --save-minutes; or with the row of an epoch on the disk, but no checkpoint yet."""
    flags = [*way_flags(more_shapes, tmp_path, 0, 1, "none"), "--save-minutes", minutes]
    (ended,) = run_text(KILLED, 1, arguments=[where, *map(str, flags)])
    assert ended.code == -signal.SIGKILL, ended.err
    folder = tmp_path / "exp"
    saved = read_weights(folder)
    assert (saved["epoch"], saved["batch"]) == place
    assert "".join(row["epoch"] for row in read_rows(folder)) == rows
    finish(folder)
    assert [row["epoch"] for row in read_rows(folder)] == list("12345")
    found = compare_runs(straight(0, 1, "none")[0], folder)
    assert [line for line in found if "save_minutes" not in line] == []


# what may differ, and what may not


def contents(folder: Path) -> dict:
    """Every file below a folder, with its time."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def stopped(more_shapes, tmp_path_factory) -> Path:
    """A run that was stopped in the midst of its second epoch."""
    return stop_at((1, 4), way_flags(more_shapes, tmp_path_factory.mktemp("stopped"), 0, 1, "none"))


def test_other_settings_are_refused(stopped, command):
    before, last = contents(stopped), stopped / "weights" / "last.pt"
    result = command("train", "--resume", last, "--imgsz", 96, "--set", "train.lr=0.5", "--epochs", 9)
    assert result.code == USAGE and "Traceback" not in result.err
    assert "data.imgsz: 64 in" in result.err and "96 by --imgsz" in result.err
    assert "train.lr: 0.002 in" in result.err and "0.5 by --set" in result.err
    assert "epochs" not in result.err
    assert contents(stopped) == before and not Path("runs").exists()


def edit_class(line: str) -> str:
    return f"{(int(line[0]) + 1) % 6}{line[1:]}"


def move_box(line: str) -> str:
    label, x, *rest = line.split()
    return " ".join([label, f"{float(x) + 1e-4:.8f}", *rest]) + "\n"


@pytest.mark.parametrize("edit", [edit_class, move_box])
@pytest.mark.parametrize("split", ["train", "val"])
def test_other_data_are_refused(edit, split, stopped, more_shapes, command):
    labels = sorted((more_shapes.parent / "labels" / split).iterdir())
    label = next(path for path in labels if path.stat().st_size)
    text, before = label.read_text(), contents(stopped)
    try:
        first, *others = text.splitlines(keepends=True)
        label.write_text(edit(first) + "".join(others))
        result = command("train", "--resume", stopped / "weights" / "last.pt")
    finally:
        label.write_text(text)
    assert result.code == DATA and "Traceback" not in result.err
    assert f"  {split}: " in result.err and "then" in result.err and "now" in result.err
    assert f"  {'val' if split == 'train' else 'train'}: " not in result.err
    assert contents(stopped) == before and not Path("runs").exists()


@pytest.mark.slow
def test_other_workers_and_a_moved_data_set_change_nothing(stopped, straight, more_shapes, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(more_shapes.parent, moved)
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    finish(folder, "--workers", 2, "--data", moved / "data.yaml")
    found = compare_runs(straight(0, 1, "none")[0], folder)
    told = [line for line in found if "data.path" in line or "data.workers" in line]
    assert told and [line for line in found if line not in told] == []


def test_a_finished_run_says_so_and_stays_as_it_is(straight, command):
    folder, _ = straight(0, 1, "none")
    before = contents(folder)
    result = command("train", "--resume", folder / "weights" / "last.pt")
    assert result.code == OK and "this run is finished, after 5 epochs: " in result.out
    assert "--epochs 10" in result.out
    assert contents(folder) == before
