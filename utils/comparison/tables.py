"""A comparison in words, as a text table and as comparison.csv, from the content of comparison.json.

AP, AP50 and AP75 are shares in [0, 1]; a difference is a loss's value minus the baseline's, over S seeds.
"""

import csv
import io
from pathlib import Path

from utils.comparison.statistics import MIN_SEEDS
from utils.files import write_whole
from utils.metrics.coco import KEYS
from utils.wording import NOTHING, figure, is_value

SHOWN = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SHOWN_MISSING = 6  # runs named
VERDICTS = {  # verdict -> its word where verdicts are counted
    "better": "better",
    "worse": "worse",
    "no evidence": "without evidence of a difference",
    None: "without a verdict",
}


def mean_and_sd(values: dict, key: str, plus_minus: str = "+-") -> str:
    """``0.412 +- 0.006`` of a loss's "mean" and "sd" of ``key``; ``-`` for nothing, no sd below 2 seeds."""
    mean, sd = ((values.get(field) or {}).get(key) for field in ("mean", "sd"))
    if not is_value(mean):
        return NOTHING
    return f"{mean:.3f} {plus_minus} {sd:.3f}" if is_value(sd) else f"{mean:.3f}"


def ordered_losses(content: dict) -> list[str]:
    """The baseline, then the others by their difference in AP, best first, those without one last."""

    def place(name: str) -> tuple[bool, float]:
        mean = difference_of(content, name).get("mean")
        return (False, -mean) if is_value(mean) else (True, 0.0)

    others = [name for name in content["losses"] if name != content["baseline"]]
    return [content["baseline"], *sorted(others, key=place)]


def difference_of(content: dict, name: str, key: str = "AP") -> dict:
    """The difference of a loss from the baseline, {} where none could be computed."""
    return (content["differences"].get(name) or {}).get(key) or {}


def interval_figures(difference: dict) -> tuple[str, str, str]:
    """Mean, low and high, signed, ``-`` where missing; a fourth digit where three would hide the sign."""
    numbers = [difference.get(field) for field in ("mean", "low", "high")]
    spec = "+.4f" if any(is_value(number) and 0 < abs(number) < 0.0005 for number in numbers) else "+.3f"
    mean, low, high = (figure(number, spec) for number in numbers)
    return mean, low, high


def interval_text(difference: dict, key: str = "AP") -> str:
    """``AP -0.012, 95 % interval -0.019 to -0.005``, without the interval where there is none."""
    mean, low, high = interval_figures(difference)
    if mean == NOTHING:
        return f"{key} could not be measured"
    return f"{key} {mean}" + ("" if NOTHING in (low, high) else f", 95 % interval {low} to {high}")


def verdict_line(content: dict, name: str) -> str:
    """One loss against the baseline in plain words, from its difference in AP."""
    difference, base, seeds = difference_of(content, name), content["baseline"], len(content["seeds"])
    verdict = difference.get("verdict")
    if verdict is None:
        why = f"only numbers: {_count(seeds)} too few for a verdict" if seeds < MIN_SEEDS else "no verdict"
        return f"{name} against {base}: {interval_text(difference)}; {why}"
    line = f"{_claim(name, base, verdict)}: {interval_text(difference)}, {seeds} seeds"
    if verdict != "no evidence":
        return line
    if is_value(difference.get("smallest")):
        smallest = difference["smallest"]
        size = figure(smallest, ".3f" if smallest >= 0.0005 else ".1g")
        line += f"; this design finds differences of {size} or more with 80 % power"
    return line + _holm_note(difference, len(content["differences"]))


def _claim(name: str, base: str, verdict: str) -> str:
    if verdict == "no evidence":
        return f"no evidence of a difference between {name} and {base}"
    return f"{name} is {verdict} than {base}"


def _count(seeds: int) -> str:
    return "1 seed is" if seeds == 1 else f"{seeds} seeds are"


def _holm_note(difference: dict, comparisons: int) -> str:
    """Why an interval that leaves out 0 is no evidence: it is that of one comparison, p counts them all."""
    low, high, p = (difference.get(field) for field in ("low", "high", "p_holm"))
    if not all(map(is_value, (low, high, p))) or low <= 0 <= high:
        return ""
    return f"; its interval leaves out 0, but p is {p:.2g} with all {comparisons} comparisons counted (Holm)"


def summary_line(content: dict) -> str:
    """All verdicts in a sentence: ``Against gfl: 1 better, 2 without evidence of a difference.``"""
    names = ordered_losses(content)[1:]
    base, seeds = content["baseline"], len(content["seeds"])
    if not names:
        return f"Only {base} was run: there is nothing to compare it with."
    verdicts = [difference_of(content, name).get("verdict") for name in names]
    if seeds < MIN_SEEDS:
        return f"Only numbers: {_count(seeds)} too few for a verdict, which needs {MIN_SEEDS}."
    if len(names) == 1 and verdicts[0]:
        return _claim(names[0], base, verdicts[0]).replace("no evidence", "No evidence", 1) + "."
    counts = [verdicts.count(verdict) for verdict in VERDICTS]
    parts = [f"{count} {word}" for count, word in zip(counts, VERDICTS.values(), strict=True) if count]
    return f"Against {base}: {', '.join(parts)}."


def missing_line(content: dict) -> str:
    """Which runs are missing, and what that may mean; '' where all are there.

    A seed in which one loss failed is left out for all: what is left flatters the loss that failed.
    """
    missing = content["missing"]
    if not missing:
        return ""
    more = f" and {len(missing) - SHOWN_MISSING} more" if len(missing) > SHOWN_MISSING else ""
    shown = ", ".join(missing[:SHOWN_MISSING])
    return (
        f"Runs are missing: {shown}{more}; their seeds are left out for every loss. If a loss failed in "
        "them, the seeds that are left flatter it."
    )


def format_comparison(content: dict) -> str:
    """The last screen of a comparison: the verdicts, then one line a loss with mean and sd over the seeds."""
    names = ordered_losses(content)
    lines = [summary_line(content), *(f"  {verdict_line(content, name)}" for name in names[1:])]
    lines += filter(None, [missing_line(content)])
    width = max(map(len, [*names, "loss"]))
    lines += ["", f"{'loss':<{width}}" + "".join(f"{key:>16}" for key in SHOWN)]
    for name in names:
        cells = [mean_and_sd(content["losses"][name], key) for key in SHOWN]
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>16}" for cell in cells))
    seeds = len(content["seeds"])
    spread = f"mean +- standard deviation over {seeds} seeds" if seeds > 1 else "1 seed"
    return "\n".join([*lines, f"{spread}, last EMA; baseline: {content['baseline']}"])


def write_csv(content: dict, path: Path) -> None:
    """One row a run in full precision: loss, seed, COCO's twelve figures, seconds a step, memory in GB."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["loss", "seed", *KEYS, "seconds_per_step", "memory_gb"])
    for name, loss in content["losses"].items():
        for run in loss["runs"]:
            values = [run["values"].get(key) for key in KEYS]
            writer.writerow([name, run["seed"], *values, run["seconds_per_step"], run["memory_gb"]])
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))
