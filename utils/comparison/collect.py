"""From finished and measured runs to the content of comparison.json.

S seeds that every loss has, N pictures, C classes, B bootstrap resamples of the pictures, D detections;
values are shares, 0..1.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from utils.comparison.matching import (
    MEASURES,
    calibration,
    match_detections,
    mean_levels,
    picture_scores,
    weighted_levels,
)
from utils.comparison.plan import Group, Plan, Run, differing_settings
from utils.comparison.protocol import describe_protocol
from utils.comparison.read_run import read_curves, read_metrics
from utils.comparison.runs import is_measured, next_stage
from utils.comparison.statistics import Difference, compare_paired, holm, resample_weights, verdict
from utils.config_files import display_path
from utils.errors import DATA, UserError
from utils.metrics.coco import KEYS, from_results

SCHEMA = 2  # of comparison.json: from 2 on null where there is nothing to measure, before it -1
NUM_RESAMPLES = 1000
PICTURES_PER_LOSS, MOST_PICTURES = 4, 12


class Measured(NamedTuple):
    """What val.py found for a run, matched to the truth."""

    metrics: dict  # metrics.json
    environment: dict  # what it was trained with; {} where that is not known
    rows: np.ndarray  # (D, 7) as ``pack_detections`` has them
    resampled: np.ndarray  # (B, 3) AP, AP50, AP75 of each resample of the pictures
    by_class: np.ndarray  # (B, C) AP; nan where the class is not in the resample
    scores: np.ndarray  # (N,) each picture's own score, nan where there is none


def complete_seeds(plan: Plan) -> list[int]:
    """The seeds of which every loss has a finished and measured run."""
    finished = [{seed for seed, run in g.runs.items() if not next_stage(run)} for g in plan.groups.values()]
    return sorted(set.intersection(*finished))


def missing_runs(plan: Plan) -> list[str]:
    """The names of the runs without which a seed is not complete."""
    seeds = sorted({run.seed for run in plan.runs})
    runs = {f"{name}-seed{seed}": g.runs.get(seed) for seed in seeds for name, g in plan.groups.items()}
    return [name for name, run in runs.items() if run is None or next_stage(run)]


def check_data(plan: Plan, fingerprint: str) -> None:
    """Refuse runs that were trained beside, or measured on, other validation pictures, boxes or classes.

    And runs that were trained on other pictures than each other; of older ones that is not known.
    """
    learned: dict[str, Run] = {}  # by the fingerprint of the training data
    for run in plan.runs:
        if run.is_trained:
            remedy, metrics = "Leave this run out, or train all with the same data", read_metrics(run.folder)
            _check_data(f"{run.folder} was trained", metrics, fingerprint, remedy)
            if "training" in metrics:
                learned.setdefault(metrics["training"], run)
        if is_measured(run):
            remedy = f"Remove {run.measured}, and the same command measures it again"
            _check_data(f"{run.folder} was measured", read_metrics(run.measured), fingerprint, remedy)
    if len(learned) > 1:
        first, second = list(learned.values())[:2]
        raise UserError(
            f"{first.folder} and {second.folder} learned from different training pictures, boxes or classes, "
            "so a difference would not be the losses' alone. Leave one out, or train all with the same data",
            DATA,
        )


def _check_data(what: str, metrics: Mapping, fingerprint: str, remedy: str) -> None:
    data = metrics.get("data")  # of an older run not known
    if data and data["fingerprint"] != fingerprint:
        raise UserError(
            f"{what} with other validation data than there is now: {data['path']}, "
            f"{data['num_pictures']:,} pictures, {data['num_boxes']:,} boxes, fingerprint "
            f"{data['fingerprint'][:12]}, not {fingerprint[:12]}. Figures of different pictures do not "
            f"compare. {remedy}",
            DATA,
        )


def read_runs(plan: Plan, seeds: Sequence[int], truth: dict) -> dict[str, Measured]:
    """Every run of ``seeds`` by its name, matched to ``truth``, which ``check_data`` found to be its own."""
    runs = [run for run in plan.runs if run.seed in seeds]
    weights = resample_weights(len(truth["images"]), NUM_RESAMPLES, 0)
    bar = tqdm(runs, desc="matching", leave=False, disable=None)
    return {run.name: measure(run, truth, weights) for run in bar}


def measure(run: Run, truth: dict, weights: np.ndarray) -> Measured:
    """Read a run's predictions and match them to the truth."""
    metrics, environment = read_metrics(run.measured), read_metrics(run.folder).get("environment", {})
    found = json.loads((run.measured / "predictions.json").read_text(encoding="utf-8"))
    rows = from_results(truth, found)
    matches = match_detections(truth, rows, metrics["protocol"]["evaluator"])
    levels = weighted_levels(matches, weights)
    return Measured(metrics, environment, rows, mean_levels(levels), levels.mean(2), picture_scores(matches))


def collect(
    plan: Plan, measured: Mapping[str, Measured], seeds: Sequence[int], *, truth: dict, names
) -> dict:
    """The content of comparison.json; ``names`` (N,) of the pictures, in the order of ``truth``'s images."""
    base = plan.groups[plan.baseline]
    of = {name: [measured[group.runs[s].name] for s in seeds] for name, group in plan.groups.items()}
    others = [name for name in plan.groups if name != plan.baseline]
    design = {"num_pictures": len(truth["images"]), "num_comparisons": len(others)}
    differences = {name: _difference(of[name], of[plan.baseline], truth, design) for name in others}
    for key in MEASURES:
        _judge([differences[name][key] for name in others], len(seeds))
    losses = {
        name: describe_loss(group, base, of[name], seeds=seeds, truth=truth)
        for name, group in plan.groups.items()
    }
    ids = [image["id"] for image in truth["images"]]
    content = {
        "schema": SCHEMA,
        "name": plan.folder.name,
        "baseline": plan.baseline,
        "seeds": list(seeds),
        "missing": missing_runs(plan),
        "losses": losses,
        "differences": differences,
        "pictures": pick_pictures({name: of[name] for name in others}, of[plan.baseline], ids, names),
        "protocol": describe_protocol(
            plan, of[plan.baseline][0].metrics, [run.environment for runs in of.values() for run in runs]
        ),
    }
    return without_nan(content)


def describe_loss(group: Group, base: Group, measured: Sequence[Measured], *, seeds, truth: dict) -> dict:
    """The part "losses" of comparison.json for one of them."""
    runs = [describe_run(group.runs[seed], item) for seed, item in zip(seeds, measured, strict=True)]
    values = {key: [run["values"][key] for run in runs] for key in KEYS}
    whole = {key for key, column in values.items() if None not in column}
    return {
        "origin": display_path(group.path),
        "changes": differing_settings(base.config, group.config),
        "runs": runs,
        "mean": {key: statistics.fmean(values[key]) if key in whole else None for key in KEYS},
        "sd": {
            key: statistics.stdev(values[key]) if key in whole and len(runs) > 1 else None for key in KEYS
        },
        "calibration": calibration(truth, [item.rows for item in measured]),
    }


def describe_run(run: Run, measured: Measured) -> dict:
    """A run: COCO's figures, and what its results.csv says of time, memory and progress."""
    columns = read_curves(run.folder)
    memory = [value for value in columns.get("memory_gb", ()) if value is not None]
    return {
        "seed": run.seed,
        "folder": str(run.folder),
        "values": {key: measured.metrics[key] for key in KEYS},
        "per_class": measured.metrics["per_class"],
        "seconds_per_step": seconds_per_step(columns),
        "memory_gb": max(memory, default=None),
        "epochs": [int(epoch) for epoch in columns.pop("epoch")],
        "curves": columns,
    }


def seconds_per_step(columns: Mapping[str, Sequence[float | None]]) -> float | None:
    """Median over the epochs of an epoch's seconds per batch; None where results.csv does not count steps."""
    steps, seconds = columns.get("step", ()), columns.get("seconds", ())
    before = [0.0, *steps][: len(steps)]
    triples = [t for t in zip(before, steps, seconds, strict=False) if None not in t and t[1] > t[0]]
    return statistics.median(spent / (end - start) for start, end, spent in triples) if triples else None


def pick_pictures(of: Mapping[str, Sequence[Measured]], base: Sequence[Measured], ids, names) -> list[dict]:
    """The pictures that a loss and the baseline score most differently, at most 12, largest difference first.

    The difference is the mean over the seeds; at most four pictures of a loss.
    """
    found = []
    for loss, runs in of.items():
        change = np.mean([one.scores - other.scores for one, other in zip(runs, base, strict=True)], axis=0)
        order = np.argsort(-np.abs(change), kind="stable")[:PICTURES_PER_LOSS]  # nan, without a score, last
        found += [
            {"picture_id": ids[n], "name": names[n], "difference": float(change[n]), "loss": loss}
            for n in order
            if abs(change[n]) > 0
        ]
    return sorted(found, key=lambda picture: -abs(picture["difference"]))[:MOST_PICTURES]


def without_nan(value):
    """The same content with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _difference(runs: Sequence[Measured], base: Sequence[Measured], truth: dict, design: dict) -> dict:
    """The part "differences" of one loss, not yet judged; a class without boxes is left out."""
    found = {}
    for number, key in enumerate(MEASURES):
        found[key] = _paired(
            [[run.metrics[key] for run in some] for some in (runs, base)],
            [[run.resampled[:, number] for run in some] for some in (runs, base)],
            design,
        )
    per_class = {}
    for number, category in enumerate(truth["categories"]):
        values = [[run.metrics["per_class"][category["name"]]["AP"] for run in some] for some in (runs, base)]
        if None not in values[0] + values[1]:
            resampled = [[run.by_class[:, number] for run in some] for some in (runs, base)]
            per_class[category["name"]] = _paired(values, resampled, design)
    return found | {"per_class": per_class}


def _paired(values: list, resampled: list, design: dict) -> dict:
    """``compare_paired`` of a loss and the baseline, each with its (S,) values and (S, B) resampled ones.

    A value that is None, as there was nothing to measure, is nan there.
    """
    return compare_paired(*np.array(values, np.float64), *np.array(resampled), **design)._asdict()


def _judge(differences: Sequence[dict], num_seeds: int) -> None:
    """Add p_holm, over all the losses compared with the baseline, and the verdict."""
    known = [difference for difference in differences if difference["p"] is not None]
    for difference, p_holm in zip(known, holm([d["p"] for d in known]), strict=True):
        difference["p_holm"] = p_holm
    for difference in differences:
        difference.setdefault("p_holm", None)
        fields = {key: value for key, value in difference.items() if key != "p_holm"}
        difference["verdict"] = verdict(Difference(**fields), difference["p_holm"], num_seeds)
