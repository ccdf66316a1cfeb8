"""What a run writes: rows of results.csv once each, values that stop no device, and lines of the table."""

import csv
import math
import sys
import types

import pytest
import torch

from utils.errors import NON_FINITE, UserError
from utils.training.logger import (
    COLUMNS,
    HEADER,
    CsvLog,
    DelayedValues,
    ResultsLog,
    epoch_line,
    epoch_row,
    table_header,
    table_line,
    waiting_advice,
    waiting_note,
)


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)


def row(epoch: int, **more) -> dict:
    means = torch.tensor([1 / 3, 2.0, 0.25, 9.5])
    return epoch_row(epoch, means, step=7 * epoch, lr=1e-3, seconds=12.34, waited=0.1) | more


def read(folder) -> list[dict]:
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


# results.csv


def test_a_row_an_epoch(tmp_path):
    log = ResultsLog(tmp_path)
    for epoch in (1, 2, 3):
        log.write(row(epoch, **{"metrics/AP": 0.1 * epoch}))
    log.close()
    rows = read(tmp_path)
    assert list(rows[0]) == list(COLUMNS)
    assert [int(found["epoch"]) for found in rows] == [1, 2, 3]
    assert [float(found["metrics/AP"]) for found in rows] == [0.1, 0.2, 0.1 * 3]  # in full precision
    assert rows[0]["metrics/AP50"] == ""  # not measured
    assert float(rows[0]["train/quality"]) == torch.tensor(1 / 3).item()


def test_each_row_is_on_disk_at_once(tmp_path):
    log = ResultsLog(tmp_path)
    for epoch in (1, 2):
        log.write(row(epoch))
        assert len(read(tmp_path)) == epoch


def test_a_resumed_run_drops_the_rows_it_writes_again(tmp_path):
    log = ResultsLog(tmp_path)
    for epoch in range(1, 6):
        log.write(row(epoch, lr=1.0))
    log = ResultsLog(tmp_path, epochs_done=3)
    assert [int(found["epoch"]) for found in read(tmp_path)] == [1, 2, 3]
    for epoch in (4, 5, 6):
        log.write(row(epoch, lr=2.0))
    rows = read(tmp_path)
    assert [int(found["epoch"]) for found in rows] == [1, 2, 3, 4, 5, 6]
    assert [float(found["lr"]) for found in rows] == [1, 1, 1, 2, 2, 2]
    assert (tmp_path / "results.csv").read_text().count("epoch") == 1


def test_a_resumed_run_keeps_what_it_has(tmp_path):
    log = ResultsLog(tmp_path)
    for epoch in range(1, 13):
        log.write(row(epoch))
    before = read(tmp_path)
    ResultsLog(tmp_path, epochs_done=12)
    ResultsLog(tmp_path, epochs_done=100)
    assert read(tmp_path) == before


def test_a_new_run_in_an_old_folder_starts_over(tmp_path):
    ResultsLog(tmp_path).write(row(1))
    log = ResultsLog(tmp_path)
    log.write(row(1, lr=5.0))
    assert [float(found["lr"]) for found in read(tmp_path)] == [5]


def test_a_resumed_run_leaves_the_kept_rows_as_they_are(tmp_path):
    log = ResultsLog(tmp_path)
    for epoch in (1, 2, 3):
        log.write(row(epoch))
    before = (tmp_path / "results.csv").read_bytes()
    ResultsLog(tmp_path, epochs_done=2).write(row(3))
    assert (tmp_path / "results.csv").read_bytes() == before


def test_a_row_cut_off_by_a_crash_is_written_again(tmp_path):
    log = ResultsLog(tmp_path)
    log.write(row(1))
    with open(tmp_path / "results.csv", "a") as file:
        file.write("2,0.33")  # no checkpoint of epoch 2 was written: the run goes on after 1
    ResultsLog(tmp_path, epochs_done=1).write(row(2))
    assert [int(found["epoch"]) for found in read(tmp_path)] == [1, 2]
    assert float(read(tmp_path)[1]["seconds"]) == 12.34


def test_an_empty_file_gets_its_header(tmp_path):
    (tmp_path / "results.csv").write_bytes(b"")
    ResultsLog(tmp_path).write(row(1))
    assert read(tmp_path)[0]["epoch"] == "1"


def test_an_unknown_column_is_our_mistake(tmp_path):
    with pytest.raises(ValueError, match="train/typo"):
        ResultsLog(tmp_path).write({"epoch": 1, "train/typo": 2})


def test_tensorboard_gets_every_value(tmp_path, monkeypatch):
    events = []

    class Writer:
        def __init__(self, folder):
            events.append(folder)

        def add_scalar(self, *event):
            events.append(event)

        def close(self):
            events.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    log = ResultsLog(tmp_path)
    log.write(row(7))
    log.close()
    assert events[0] == str(tmp_path) and events[-1] == "closed"
    assert ("train/box", 2.0, 7) in events
    assert len(events) == 2 + len(row(7))


# values that stop no device


def test_delayed_values_are_those_of_an_earlier_step():
    shown, steps = DelayedValues(), [torch.tensor([float(n), 10.0 * n]) for n in range(1, 5)]
    assert shown.push(steps[0]) == []
    for n, values in enumerate(steps[1:], 1):
        assert shown.push(values) == [n, 10 * n]


def test_delayed_values_are_copies():
    shown, values = DelayedValues(), torch.tensor([1.0])
    shown.push(values)
    values.fill_(5.0)
    assert shown.push(values) == [1]


def test_delayed_values_do_not_wait_for_the_device():
    """A pending copy is left alone, and no second one is begun, until its event has passed."""
    shown, passed = DelayedValues(), False
    shown.push(torch.tensor([1.0]))
    copied = shown._pending[0]
    shown._pending = (copied, types.SimpleNamespace(query=lambda: passed))
    assert shown.push(torch.tensor([2.0])) == []
    assert shown._pending[0] is copied
    passed = True
    assert shown.push(torch.tensor([3.0])) == [1]
    assert shown.push(torch.tensor([4.0])) == [3]


# the table


def test_table_lines_stand_below_the_header():
    header = table_header()
    assert len(header) == 10 * len(HEADER)
    found = row(3, **{f"metrics/{key}": 0.5 for key in ("AP", "AP50", "AP75", "precision", "recall")})
    line = epoch_line(found, 30, (320, 320))
    assert len(line) == len(header)
    cells = [line[start : start + 10].strip() for start in range(0, len(line), 10)]
    assert cells[0] == "3/30"
    assert cells[2:] == ["0.3333", "2", "0.25", "9.5", "320", "0.500", "0.500", "0.500", "0.500", "12.3"]


def test_an_epoch_without_validation_shows_nan():
    line = epoch_line(row(3), 30, (320, 416))
    assert len(line) == len(table_header())
    assert line.split()[-5:-1] == ["nan"] * 4
    assert "320x416" in line


def test_a_line_before_the_first_values():
    line = table_line("1/30", [], "")
    assert line.split()[0] == "1/30"
    assert len(line) == 70


def test_values_go_below_their_names():
    names = dict(zip(HEADER, range(0, 120, 10), strict=True))
    line = epoch_line(
        row(1, **{"metrics/precision": 0.1, "metrics/recall": 0.2, "metrics/AP50": 0.3}), 9, (64, 64)
    )
    shown = {name: line[start : start + 10].strip() for name, start in names.items()}
    assert (shown["quality"], shown["box"], shown["dfl"], shown["grad"]) == ("0.3333", "2", "0.25", "9.5")
    assert (shown["P"], shown["R"], shown["AP50"], shown["AP"]) == ("0.100", "0.200", "0.300", "nan")


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


# losses that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_finite_ends_the_run(value, place):
    means = torch.ones(4)
    means[place] = value
    with pytest.raises(UserError, match=r"not finite in epoch 3.*train\.lr") as error:
        epoch_row(3, means, step=1, lr=0.1, seconds=1, waited=0)
    assert error.value.code == NON_FINITE


def test_losses_of_both_infinities_end_the_run():
    with pytest.raises(UserError):
        epoch_row(3, torch.tensor([math.inf, -math.inf, 0, 0]), step=1, lr=0.1, seconds=1, waited=0)


@pytest.mark.parametrize("torn", ["3,0.", "3,0.1,0.2\n", "\n", "garbage\n"])
def test_a_row_cut_off_by_a_crash_is_dropped_on_resume(tmp_path, torn):
    log = ResultsLog(tmp_path)
    for epoch in (1, 2):
        log.write(row(epoch))
    (tmp_path / "results.csv").write_text((tmp_path / "results.csv").read_text() + torn)
    log = ResultsLog(tmp_path, epochs_done=3)
    log.write(row(3))
    assert [found["epoch"] for found in read(tmp_path)] == ["1", "2", "3"]
    assert all(None not in found and None not in found.values() for found in read(tmp_path))


# tables of any columns


def test_a_table_of_several_rows_an_epoch(tmp_path):
    path = tmp_path / "anatomy.csv"
    log = CsvLog(path, ("epoch", "step", "iou"))
    log.write([{"epoch": 1, "step": 0, "iou": 1 / 3}, {"epoch": 1, "step": 50, "iou": math.nan}])
    log.write([])
    log.write([{"epoch": 2, "step": 100}])
    assert path.read_text() == f"epoch,step,iou\n1,0,{1 / 3!r}\n1,50,nan\n2,100,\n"
    CsvLog(path, log.columns, epochs_done=1).write([{"epoch": 2, "step": 100, "iou": 0.5}])
    assert path.read_text() == f"epoch,step,iou\n1,0,{1 / 3!r}\n1,50,nan\n2,100,0.5\n"
    with pytest.raises(ValueError, match="typo"):
        log.write([{"typo": 1}])
