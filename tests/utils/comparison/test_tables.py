"""The verdicts in words, the terminal's last screen, comparison.csv."""

import csv
import math

import pytest

from utils.comparison.tables import (
    format_comparison,
    interval_text,
    mean_and_sd,
    missing_line,
    ordered_losses,
    summary_line,
    verdict_line,
    write_csv,
)
from utils.metrics.coco import KEYS

SIOU = "no evidence of a difference between siou and gfl: AP +0.003, 95 % interval -0.005 to +0.011, 5 seeds"
POWER = "; this design finds differences of 0.010 or more with 80 % power"
HOLM = "; its interval leaves out 0, but p is 0.081 with all 3 comparisons counted (Holm)"


def test_verdicts_in_words(make_content):
    content = make_content()
    assert [verdict_line(content, name) for name in ordered_losses(content)[1:]] == [
        "vfl is better than gfl: AP +0.020, 95 % interval +0.012 to +0.028, 5 seeds",
        f"{SIOU}{POWER}",
        "dfl_off is worse than gfl: AP -0.012, 95 % interval -0.020 to -0.004, 5 seeds",
    ]
    assert summary_line(content) == "Against gfl: 1 better, 1 worse, 1 without evidence of a difference."


@pytest.mark.parametrize(
    ("seeds", "line", "summary"),
    [
        (2, "AP +0.020, 95 % interval +0.012 to +0.028; only numbers: 2 seeds are", "2 seeds are"),
        (1, "AP +0.020; only numbers: 1 seed is", "1 seed is"),
    ],
)
def test_too_few_seeds_give_numbers_only(make_content, seeds, line, summary):
    content = make_content(num_seeds=seeds)
    assert verdict_line(content, "vfl") == f"vfl against gfl: {line} too few for a verdict"
    assert summary_line(content) == f"Only numbers: {summary} too few for a verdict, which needs 3."


def test_an_interval_without_0_that_is_no_evidence_is_explained(make_content):
    content = make_content()
    content["differences"]["vfl"]["AP"].update(verdict="no evidence", p_holm=0.0812)
    assert verdict_line(content, "vfl").endswith(POWER + HOLM)
    content["differences"]["vfl"]["AP"].update(low=-0.001)
    assert verdict_line(content, "vfl").endswith(POWER)


def test_a_small_smallest_difference_is_not_0(make_content):
    content = make_content()
    content["differences"]["siou"]["AP"]["smallest"] = 0.00042
    assert verdict_line(content, "siou").endswith(
        "this design finds differences of 0.0004 or more with 80 % power"
    )


def test_missing_runs_are_named_with_what_they_may_mean(make_content):
    content = make_content()
    assert missing_line(content) == "" and "missing" not in format_comparison(content)
    content["missing"] = [f"vfl-seed{seed}" for seed in range(9)]
    line = missing_line(content)
    assert "vfl-seed0, vfl-seed1" in line and "vfl-seed5 and 3 more" in line and "flatter" in line
    assert line in format_comparison(content)


def test_one_comparison_is_summed_up_in_its_own_words(make_content):
    assert summary_line(make_content(names=("gfl", "vfl"))) == "vfl is better than gfl."
    content = make_content(names=("gfl", "vfl"))
    content["differences"]["vfl"]["AP"]["verdict"] = "no evidence"
    assert summary_line(content) == "No evidence of a difference between vfl and gfl."


def test_the_baseline_alone_is_no_comparison(make_content):
    content = make_content(names=("gfl",))
    assert summary_line(content) == "Only gfl was run: there is nothing to compare it with."
    assert format_comparison(content).splitlines()[2].startswith("loss")


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        ({"mean": 0.0123, "low": 0.0004, "high": 0.02}, "AP +0.0123, 95 % interval +0.0004 to +0.0200"),
        ({"mean": 0.0123, "low": 0.0006, "high": 0.02}, "AP +0.012, 95 % interval +0.001 to +0.020"),
        ({"mean": 0.0, "low": -0.01, "high": 0.01}, "AP +0.000, 95 % interval -0.010 to +0.010"),
        ({"mean": -0.0123, "low": None, "high": float("nan")}, "AP -0.012"),
        ({"mean": None}, "AP could not be measured"),
        ({}, "AP could not be measured"),
    ],
)
def test_no_digit_hides_a_sign_and_no_gap_breaks_a_line(difference, text):
    assert interval_text(difference) == text


def test_mean_and_sd():
    values = {
        "mean": {"AP": 0.41234, "APs": math.nan, "APm": 0.5, "APl": None},
        "sd": {"AP": 0.0061, "APm": None},
    }
    shown = [mean_and_sd(values, key) for key in ("AP", "APs", "APm", "APl", "AR1")]
    assert shown == ["0.412 +- 0.006", "-", "0.500", "-", "-"]
    assert mean_and_sd({"mean": None, "sd": None}, "AP") == "-"


def test_losses_stand_best_first_behind_the_baseline(make_content):
    content = make_content(names=("gfl", "vfl", "siou", "dfl_off", "mal"))  # mal: +0.04
    assert ordered_losses(content) == ["gfl", "mal", "vfl", "siou", "dfl_off"]
    content["differences"]["mal"]["AP"] = None
    assert ordered_losses(content) == ["gfl", "vfl", "siou", "dfl_off", "mal"]
    assert verdict_line(content, "mal") == "mal against gfl: AP could not be measured; no verdict"
    assert summary_line(content).endswith("1 without evidence of a difference, 1 without a verdict.")


def test_last_screen(make_content):
    lines = format_comparison(make_content()).splitlines()
    assert lines[0].startswith("Against gfl:") and lines[1].startswith("  vfl is better")
    table = lines[5:]
    assert table[0].split() == ["loss", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [line.split()[0] for line in table[1:5]] == ["gfl", "vfl", "siou", "dfl_off"]
    assert table[1].split()[2] == "+-" and table[1].endswith("-")
    assert table[5] == "mean +- standard deviation over 5 seeds, last EMA; baseline: gfl"
    assert len({len(line) for line in table[:5]}) == 1


def test_csv_holds_every_run_in_full_precision(make_content, tmp_path):
    content = make_content(num_seeds=2, names=("gfl", 'a "quoted", name'), memory=None)
    write_csv(content, tmp_path / "comparison.csv")
    with open(tmp_path / "comparison.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["loss", "seed", *KEYS, "seconds_per_step", "memory_gb"]
    assert [row[:2] for row in rows] == [
        ["gfl", "0"],
        ["gfl", "1"],
        ['a "quoted", name', "0"],
        ['a "quoted", name', "1"],
    ]
    runs = [run for loss in content["losses"].values() for run in loss["runs"]]
    for row, run in zip(rows, runs, strict=True):
        assert (
            dict(zip(KEYS, [float(cell) if cell else None for cell in row[2:14]], strict=True))
            == run["values"]
        )
        assert float(row[14]) == run["seconds_per_step"] and row[15] == ""
