"""What the terminal shows: the table, waiting, time left, the last line."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.training.console import (
    HEADER,
    duration,
    epoch_line,
    last_line,
    left_note,
    remaining,
    table_header,
    table_line,
    waiting_advice,
    waiting_note,
)


def row(epoch: int, **more) -> dict:
    losses = {"train/quality": 1 / 3, "train/box": 2.0, "train/dfl": 0.25, "train/grad_norm": 9.5}
    return {"epoch": epoch} | losses | {"seconds": 12.34, "data_seconds": 0.1} | more


def cells(line: str) -> dict[str, str]:
    """A line of the table, cut below the names of its columns."""
    assert len(line) == len(table_header()) == 10 * len(HEADER)
    return {name: line[start : start + 10].strip() for start, name in zip(range(0, 999, 10), HEADER)}  # noqa: B905


# the table


def test_values_go_below_their_names():
    metrics = {"metrics/precision": 0.1, "metrics/recall": 0.2, "metrics/AP50": 0.3, "metrics/AP": 0.4}
    shown = cells(epoch_line(row(3, **metrics), 30, (320, 320), left=5025.0))
    del shown["GPU_mem"]  # of this machine
    names = ("Epoch", "quality", "box", "dfl", "grad", "Size", "P", "R", "AP50", "AP", "seconds", "left")
    values = (
        "3/30",
        "0.3333",
        "2",
        "0.25",
        "9.5",
        "320",
        "0.100",
        "0.200",
        "0.300",
        "0.400",
        "12.3",
        "1:23:45",
    )
    assert shown == dict(zip(names, values, strict=True))


def test_an_epoch_without_validation_shows_no_figures():
    shown = cells(epoch_line(row(3), 30, (320, 416), left=math.nan))
    assert [shown[name] for name in ("P", "R", "AP50", "AP")] == ["-"] * 4
    assert shown["Size"] == "320x416" and shown["left"] == "-"


def test_an_epoch_whose_steps_were_all_skipped_has_a_line():
    nothing = {f"train/{name}": math.nan for name in ("quality", "box", "dfl", "grad_norm")}
    assert cells(epoch_line(row(3, **nothing), 30, (64, 64), left=0.0))["quality"] == "nan"


def test_a_line_before_the_first_values():
    line = table_line("1/30", [], "")
    assert line.split()[0] == "1/30"
    assert len(line) == 70


# waiting for data


def test_waiting_is_said_beyond_30_percent():
    assert waiting_note(4.5, 10.0) == "waiting for data 45 %"
    assert waiting_note(3.0, 10.0) == waiting_note(0.0, 0.0) == waiting_note(0.0, 10.0) == ""
    assert waiting_note(3.01, 10.0) == "waiting for data 30 %"


def test_advice_after_an_epoch_that_waited():
    waited = row(3, seconds=10.0, data_seconds=6.0)
    advice = waiting_advice(waited, workers=2, cache="none")
    assert advice.startswith("epoch 3: waiting for data 60 % of its time") and "\n" not in advice
    assert "--workers (now 2)" in advice and "--cache ram" in advice
    assert "--cache" not in waiting_advice(waited, workers=2, cache="ram")
    assert waiting_advice(row(3, seconds=10.0, data_seconds=2.9), workers=2, cache="none") == ""


# times


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-3, "0 s"),  # a clock that was set back
        (59.4, "59 s"),
        (59.6, "1 min"),
        (89, "1 min"),
        (90.4, "2 min"),
        (720, "12 min"),
        (3599.4, "60 min"),
        (3599.6, "1:00:00"),
        (5025, "1:23:45"),
        (86399, "23:59:59"),
        (86400, "1 d 0 h"),
        (99 * 86400 + 23.9 * 3600, "99 d 23 h"),
        (100 * 86400 + 3 * 3600, "100 d"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@given(st.floats(0, 8e7))
def test_a_duration_leaves_a_blank_between_columns(seconds):
    assert len(duration(seconds)) <= 9


# time left


def test_time_left_by_hand():
    # 7 epochs of 10 s and 7 validations of 2 s to come
    assert remaining(3, 10, training=[10, 10, 10], validating=[2, 2, 2]) == 84
    # validations after epochs 4, 8 and 10; none of them timed yet, then one
    assert remaining(3, 10, training=[10], validating=[], val_every=4) == 70
    assert remaining(4, 10, training=[10], validating=[5], val_every=4) == 60 + 2 * 5
    assert remaining(8, 10, training=[10], validating=[5], val_every=4) == 20 + 5
    assert remaining(0, 8, training=[10], validating=[5], val_every=4) == 80 + 2 * 5


def test_time_left_at_both_ends():
    assert math.isnan(remaining(0, 10, training=[], validating=[]))
    assert remaining(1, 10, training=[10], validating=[1]) == 99  # the first epoch has one
    assert remaining(10, 10, training=[10], validating=[1]) == 0
    assert remaining(10, 10, training=[], validating=[]) == 0  # nothing to do, and known to be


def test_a_slow_epoch_does_not_move_it_and_a_lasting_change_does():
    assert remaining(3, 4, training=[500, 10, 10], validating=[]) == 10
    assert remaining(5, 6, training=[10, 10, 10, 900, 10], validating=[]) == 10
    assert remaining(9, 10, training=[10] * 6 + [20] * 3, validating=[]) == 20
    assert remaining(9, 10, training=[10] * 9, validating=[1] * 6 + [3] * 3) == 13


@given(st.integers(0, 60), st.integers(1, 60), st.integers(1, 70))
def test_as_many_validations_are_counted_as_the_run_makes(epoch, epochs, every):
    still = [e for e in range(epoch + 1, epochs + 1) if e % every == 0 or e == epochs]
    assert remaining(epoch, epochs, training=[0.0], validating=[1.0], val_every=every) == len(still)


def test_the_note_of_the_progress_bar():
    assert left_note(5025) == "1:23:45 left"
    assert left_note(math.nan) == ""


# the last line

BEST = {"AP": 0.41234, "epoch": 27}
FOLDER = Path("runs/train/exp 2")


def test_the_last_line_of_a_whole_run():
    line = last_line(FOLDER, epoch=30, epochs=30, seconds=720, best=BEST)
    assert (
        line == "finished: 30 of 30 epochs in 12 min; best AP 0.412 in epoch 27; results in runs/train/exp 2"
    )


def test_the_last_line_of_a_run_that_stopped_early():
    line = last_line(FOLDER, epoch=37, epochs=100, seconds=5025, best=BEST, stopped="patience")
    assert line.startswith(
        "stopped early, as AP no longer rose: 37 of 100 epochs in 1:23:45; best AP 0.412 in"
    )
    assert "--resume" not in line


def test_the_last_line_of_a_run_with_nothing_to_measure_names_last_pt():
    never = {"AP": -1.0, "epoch": -1}
    line = last_line(FOLDER, epoch=9, epochs=9, seconds=720, best=never, measurable=False)
    assert (
        "no AP, as no box in val counts, and no best.pt: weights/last.pt is the one to use; results in"
        in line
    )
    assert "not validated" not in line and "-1" not in line


def test_the_last_line_of_a_run_that_was_stopped_says_how_it_goes_on():
    line = last_line(FOLDER, epoch=3, epochs=30, seconds=50, best={"AP": 0.0, "epoch": -1}, stopped="SIGTERM")
    assert line.startswith("stopped by SIGTERM: 3 of 30 epochs in 50 s; not validated; results in ")
    assert line.endswith("python train.py --resume 'runs/train/exp 2'")


def test_the_last_line_of_a_resumed_run_counts_its_own_epochs():
    line = last_line(FOLDER, epoch=30, epochs=30, seconds=60, best=BEST, begun=25)
    assert line.startswith("finished: 30 of 30 epochs, 5 of them now, in 1 min;")


def test_the_last_line_does_not_send_anyone_to_files_that_are_not_there():
    for stopped in ("", "patience", "SIGINT"):
        line = last_line(FOLDER, epoch=3, epochs=30, seconds=50, best=BEST, stopped=stopped, saved=False)
        assert line.endswith("files could not be written, see above: what came after the last save is lost")
        assert "--resume" not in line and "\n" not in line
