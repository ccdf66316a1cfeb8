"""What an error costs: nothing that was trained; and what is said of files that are lost."""

import json
import os

import pytest
import torch

import train
from tests.resume import BATCHES, EPOCHS, FLAGS, compare_runs, go_on, read_weights, train_here
from tests.resume import StopAt as Stop
from tests.utils.test_files import ends_within
from utils.errors import DATA, NOT_SAVED, OK, OUR_FAULT, HalfDoneError, UserError
from utils.plots.curves import plot_run
from utils.training.checkpoint import save_checkpoint
from utils.training.state import TrainState

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def flags(more_shapes) -> list:
    return [*FLAGS, "--data", more_shapes, "--workers", 0]


@pytest.fixture(scope="module")
def straight(flags, tmp_path_factory):
    return train_here(*flags, "--project", tmp_path_factory.mktemp("straight")).folder


def failing_at(call: int, function, error: Exception):
    """``function``, but its call number ``call`` raises."""
    calls = iter(range(1, 10**6))

    def wrapped(*arguments, **options):
        if next(calls) == call:
            raise error
        return function(*arguments, **options)

    return wrapped


def test_an_error_between_two_steps_saves_first(flags, straight, tmp_path, monkeypatch):
    """As that of a picture that cannot be read, or of a loader process that was killed."""
    broken = failing_at(BATCHES + 4, train.take_step, UserError("picture 7 is gone", DATA))
    monkeypatch.setattr(train, "take_step", broken)
    with pytest.raises(UserError, match="picture 7 is gone"):
        train_here(*flags, "--project", tmp_path)
    monkeypatch.undo()
    saved = read_weights(tmp_path / "exp")
    assert (saved["epoch"], saved["batch"]) == (1, 3)
    assert go_on(tmp_path / "exp").code == OK
    assert compare_runs(straight, tmp_path / "exp") == []


def test_memory_that_runs_out_inside_the_update_is_not_saved(flags, tmp_path, monkeypatch):
    """Weights may have changed and the average not: the run goes on from its last save."""
    folder = train_here(*flags, "--project", tmp_path, stop=Stop((0, 2))).folder
    monkeypatch.setattr(
        TrainState, "update", failing_at(3, TrainState.update, torch.OutOfMemoryError("CUDA out of memory."))
    )
    with pytest.raises(HalfDoneError, match=r"in the optimiser, at step 4 .*--micro-batch") as ended:
        go_on(folder)
    assert ended.value.code == OUR_FAULT and read_weights(folder)["batch"] == 2


def test_memory_that_runs_out_in_validation(flags, tmp_path, monkeypatch):
    """The epoch is kept, and the line says which setting to go on with; it may be given."""
    broken = failing_at(1, train.evaluate, torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"))
    monkeypatch.setattr(train, "evaluate", broken)
    with pytest.raises(UserError, match=r"validation after epoch 1 .* --set val.batch_size=1") as ended:
        train_here(*flags, "--project", tmp_path)
    assert ended.value.code == OUR_FAULT and "more" not in str(ended.value)
    saved = read_weights(tmp_path / "exp")
    assert (saved["epoch"], saved["batch"]) == (0, BATCHES)
    again = go_on(tmp_path / "exp", "--set", "val.batch_size=1")
    assert again.code == OK and again.run.cfg.val_batch == 1


@pytest.mark.parametrize("loss", ["gone", "of another epoch"])
def test_a_best_that_is_not_the_best_is_not_measured(flags, tmp_path, capsys, loss):
    """An AP of 1 in the first epoch: no later one is better."""
    folder = train_here(*flags, "--project", tmp_path, stop=Stop((2, 0))).folder
    path = folder / "weights" / "best.pt"
    save_checkpoint(folder / "weights" / "last.pt", read_weights(folder) | {"best": {"AP": 1.0, "epoch": 1}})
    save_checkpoint(path, read_weights(folder, "best.pt") | {"epoch": 1})
    if loss == "gone":
        path.unlink()
    else:
        save_checkpoint(path, read_weights(folder, "best.pt") | {"epoch": 3})
    assert go_on(folder).code == NOT_SAVED
    assert "best.pt is not the one it should be" in capsys.readouterr().out
    assert not (folder / "metrics.json").exists()


def test_a_run_that_stopped_early_says_how_to_go_on(flags, tmp_path, command):
    """At this rate nothing changes, so that the first epoch stays the best."""
    folder = train_here(*flags, "--project", tmp_path, "--patience", 1, "--set", "train.lr=1e-12").folder
    result = command("train", "--resume", folder, "--epochs", 9)
    assert result.code == OK and "after 2 epochs of 9, as AP no longer rose" in result.out
    assert "--patience 0" in result.out
    assert go_on(folder, "--patience", 0).run.state.epoch == EPOCHS


def test_the_size_of_a_forward_pass_may_be_changed(flags, tmp_path):
    """Also back, where memory had run out; without the flag it stays."""
    folder = train_here(*flags, "--project", tmp_path, "--micro-batch", 1, stop=Stop((1, 2))).folder
    assert go_on(folder, stop=Stop((1, 5))).run.state.micro_batch == 1
    assert go_on(folder, "--micro-batch", 2, stop=Stop((2, 2))).run.state.micro_batch == 2
    assert read_weights(folder)["config"]["train"]["micro_batch"] == 2
    assert json.loads((folder / "environment.json").read_text())["sessions"][-1]["batch"] == 5


def test_pipes_in_place_of_a_run_s_own_files_are_not_waited_for(flags, tmp_path, capsys):
    """Tables cannot be written into one, which is said; all else takes its place."""
    folder = train_here(*flags, "--project", tmp_path, stop=Stop((1, 0))).folder
    names = (
        "results.csv",
        "environment.json",
        "reproduce.sh",
        "metrics.json",
        "config.yaml",
        "nan_report.json",
    )
    for name in names:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    with ends_within(60):
        assert go_on(folder).code == NOT_SAVED
    assert f"{folder / 'results.csv'} cannot be written (not a regular file" in capsys.readouterr().err
    ways = {name: (folder / name).is_file() for name in names}
    assert ways == dict.fromkeys(names, True) | {"results.csv": False, "nan_report.json": False}
    with ends_within(20), pytest.raises(OSError, match=r"not a regular file.*results\.csv"):
        plot_run(folder)
