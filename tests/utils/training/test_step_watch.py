"""Steps read one late; bad ones reported; three in a row end the run."""

import json

import pytest
import torch

from utils.errors import NON_FINITE, UserError
from utils.training.state import Update
from utils.training.step_watch import IN_A_ROW, MOST, StepWatch

NAN, INF = torch.nan, torch.inf


def update_of(*, bad: bool = False, norm: float = 1.0) -> Update:
    return Update(torch.tensor(norm), torch.tensor(not bad), torch.tensor(bad))


def terms_of(*rows) -> torch.Tensor:
    return torch.tensor(rows or [[1.0, 2.0, 3.0]])


def batches_of(number: int, count: int = 1) -> list[dict]:
    numbers = range(number, number + count)
    return [{"epoch": 1, "batch": i, "pictures": [f"{i}.jpg"]} for i in numbers]


def push(watch: StepWatch, step: int, terms=None, *, bad: bool = False, norm: float = 1.0) -> list[float]:
    terms = terms_of() if terms is None else terms
    update = update_of(bad=bad, norm=norm)
    return watch.push(update, terms, step=step, describe=lambda: batches_of(step, len(terms)))


def report_of(folder) -> list[dict]:
    return json.loads((folder / "nan_report.json").read_text())["skipped"]


def test_values_come_one_step_late(tmp_path):
    watch = StepWatch(tmp_path)
    assert push(watch, 0, terms_of([1.0, 2.0, 3.0]), norm=9.0) == []
    assert push(watch, 1, terms_of([4.0, 5.0, 6.0], [7.0, 8.0, 9.0]), norm=8.0) == [1, 2, 3, 9]
    assert push(watch, 3) == [7, 8, 9, 8]  # of several batches, the last
    assert list(tmp_path.iterdir()) == []


def test_the_report(tmp_path, capsys):
    watch = StepWatch(tmp_path)
    push(watch, 4, terms_of([NAN, INF, 0.5]), bad=True, norm=NAN)
    assert not (tmp_path / "nan_report.json").exists()  # not yet read
    push(watch, 5)
    (entry,) = report_of(tmp_path)
    assert entry == {
        "step": 4,
        "gradient_norm": "nan",
        "batches": [*(batches_of(4)[0] | {"terms": {"quality": "nan", "box": "inf", "dfl": "0.5"}},)],
    }
    assert "step 4 is skipped" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["nan_report.json"]


def test_of_several_batches_those_with_faulty_losses_are_named(tmp_path):
    watch = StepWatch(tmp_path)
    push(watch, 0, terms_of([1.0, 1, 1], [1, -INF, 1], [1, 1, 1]), bad=True)
    push(watch, 3, terms_of([1.0, 1, 1], [2.0, 2, 2]), bad=True, norm=INF)  # nobody knows which it was
    watch.flush()
    assert [[batch["batch"] for batch in entry["batches"]] for entry in report_of(tmp_path)] == [[1], [3, 4]]


def test_an_overflow_that_is_mended_is_not_reported(tmp_path):
    watch = StepWatch(tmp_path)
    for step in range(2 * IN_A_ROW):
        update = Update(torch.tensor(INF), torch.tensor(False), torch.tensor(False))
        watch.push(update, terms_of(), step=step, describe=lambda: pytest.fail("not asked"))
    watch.flush()
    assert list(tmp_path.iterdir()) == []


def test_three_in_a_row_end_the_run_one_step_later(tmp_path):
    watch = StepWatch(tmp_path)
    for step in range(3):
        push(watch, step, terms_of([NAN, 1, 1]), bad=True)
    with pytest.raises(
        UserError, match=r"3 steps in a row .* the last at step 2 \(quality nan, box 1"
    ) as ended:
        push(watch, 3)  # itself sound
    assert ended.value.code == NON_FINITE
    assert [entry["step"] for entry in report_of(tmp_path)] == [0, 1, 2]


def test_the_step_that_was_under_way_is_reported_too(tmp_path):
    watch = StepWatch(tmp_path)
    for step in range(3):
        push(watch, step, bad=True)
    with pytest.raises(UserError, match=r"4 steps in a row .* the last at step 3"):
        push(watch, 3, bad=True)
    assert [entry["step"] for entry in report_of(tmp_path)] == [0, 1, 2, 3]


def test_a_flush_counts_too(tmp_path):
    watch = StepWatch(tmp_path)
    for step in range(2):
        push(watch, step, bad=True)
        watch.flush()
    push(watch, 2, bad=True)
    with pytest.raises(UserError, match="3 steps in a row"):
        watch.flush()


def test_a_sound_step_between_starts_the_count_anew(tmp_path):
    watch = StepWatch(tmp_path)
    for step in range(4 * IN_A_ROW):
        push(watch, step, bad=step % IN_A_ROW > 0)
    watch.flush()
    assert len(report_of(tmp_path)) == 8


def test_other_ranks_write_nothing_and_leave_together(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watch = StepWatch(None)
    for step in range(3):
        push(watch, step, bad=True)
    with pytest.raises(UserError):
        watch.flush()
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path, capsys):
    watch = StepWatch(tmp_path / "gone")
    push(watch, 0, bad=True)
    watch.flush()
    assert "cannot be written" in capsys.readouterr().out


def test_the_report_keeps_the_latest(tmp_path):
    watch = StepWatch(tmp_path)
    for step in range(2 * MOST + 20):
        push(watch, step, bad=step % 2 == 0)
    watch.flush()
    steps = [entry["step"] for entry in report_of(tmp_path)]
    assert len(steps) == MOST and steps[-1] == 2 * MOST + 18 and steps[0] == 20
