"""Are the verdicts of a comparison to be believed?  ``python -m benchmarks.comparison``

2,000 simulated comparisons for each of four designs: how often two equal configurations get a verdict, how
often the 95 % interval holds the true difference, and how often the printed smallest difference is found.
The noise model, with magnitudes like those of AP; a run's figure is the mean of its pictures' scores:

    score of loss l, seed s, picture n = difference of l + seed effect + picture effect
        + l x n (how the loss suits the picture) + l x s (initial weights) + l x s x n (their luck on it)

``--real`` trains six tiny detectors that differ in their seeds only, and compares all ten splits into two
groups of three: a few minutes on one core. Writes benchmarks/out/comparison.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.random import Generator, Philox

from data.index import load_split
from data.loader import make_val_loader
from data.run_data import ground_truth_of
from data.shapes import make_shapes
from data.spec import load_data_spec
from inference import load_detector
from utils.comparison.matching import match_detections, weighted_ap
from utils.comparison.statistics import Difference, compare_paired, resample_weights, verdict
from utils.errors import OUR_FAULT
from val import evaluate

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).parent / "out" / "comparison.json"
DESIGNS = ((3, 73), (5, 73), (3, 500), (5, 500))  # seeds, pictures
RESAMPLES = 400
LIMITS = {  # inclusive
    "false_verdicts": (0.0, 0.065),
    "false_verdicts_of_different_losses": (0.0, 0.065),
    "coverage": (0.935, 0.965),
    "found": (0.75, 0.85),
}
SHARED_SEED, SHARED_PICTURE = 0.005, 0.25  # standard deviations; the same for both losses
TRUE = 0.01  # difference of the losses where one is better


class Noise(NamedTuple):
    """Standard deviations of the effects that do not cancel in a difference, for one loss."""

    seed: float = 0.005  # l x s; with ``luck`` a run's AP on 73 pictures has a standard deviation of 0.008
    loss: float = 0.03  # l x n
    luck: float = 0.055  # l x s x n


OTHERS = {  # coverage is reported, without a limit, where one source rules and where the seeds hold most
    "no luck": Noise(seed=0.008, loss=0.03, luck=0.0),
    "luck only": Noise(seed=0.0, loss=0.03, luck=0.055),
    "losses differ little": Noise(loss=0.01),
    "losses differ much": Noise(loss=0.12),
}


def simulate(
    rng: Generator, design: tuple[int, int], noise: Noise, weights: np.ndarray, *, true: float
) -> Difference:
    """One comparison of a loss that is better by ``true``, as ``compare_paired`` judges it."""
    num_seeds, num_pictures = design
    shared = rng.normal(0, SHARED_SEED, (num_seeds, 1)) + rng.normal(0, SHARED_PICTURE, num_pictures)
    figures = []
    for gain in (true, 0.0):
        scores = shared + gain + rng.normal(0, noise.loss, num_pictures)
        scores += rng.normal(0, noise.seed, (num_seeds, 1)) + rng.normal(0, noise.luck, scores.shape)
        figures.append((scores.mean(1), scores @ weights.T / num_pictures))
    (own, own_resampled), (base, base_resampled) = figures
    return compare_paired(own, base, own_resampled, base_resampled, num_pictures=num_pictures)


def judge(design: tuple[int, int], count: int, key: int) -> dict:
    """The figures of one design, from ``count`` comparisons of each kind.

    Of a configuration with itself; of two that suit different pictures and are equally good; of two of which
    one is better; and of two that differ by the smallest difference which the third kind printed.
    """
    rng = Generator(Philox(key=key))
    weights = resample_weights(design[1], RESAMPLES, seed=0).astype(float)

    def draw(noise: Noise, true: float) -> Difference:
        return simulate(rng, design, noise, weights, true=true)

    same = [draw(Noise(loss=0.0), 0.0) for _ in range(count)]
    equal = [draw(Noise(), 0.0) for _ in range(count)]
    other = [draw(Noise(), TRUE) for _ in range(count)]
    fresh = [draw(Noise(), printed.smallest) for printed in other]
    truths = [0.0] * count + [TRUE] * count + [printed.smallest for printed in other]
    elsewhere = {
        name: coverage([draw(noise, TRUE) for _ in range(count)], [TRUE] * count)
        for name, noise in OTHERS.items()
    }
    return {
        "seeds": design[0],
        "pictures": design[1],
        "false_verdicts": share(same, design, ("better", "worse")),
        "false_verdicts_of_different_losses": share(equal, design, ("better", "worse")),
        "coverage": coverage([*equal, *other, *fresh], truths),
        "found": share(fresh, design, ("better",)),
        "found_in_the_same": float(np.mean([d.low - TRUE + d.smallest > 0 for d in other])),
        "smallest": float(np.median([d.smallest for d in other])),
        "coverage_elsewhere": elsewhere,
    }


def share(differences: list[Difference], design: tuple[int, int], words: tuple[str, ...]) -> float:
    """Share of the comparisons that end with one of these verdicts."""
    return float(np.mean([verdict(d, d.p, design[0]) in words for d in differences]))


def coverage(differences: list[Difference], truths: list[float]) -> float:
    """Share of the intervals that hold the true difference."""
    return float(np.mean([d.low <= true <= d.high for d, true in zip(differences, truths, strict=True)]))


def compare_real(folder: Path) -> dict:
    """Six tiny detectors that differ in their seeds only; all splits into two groups of three are compared.

    The ten splits share their runs and the pictures, so their verdicts are not independent of one another.
    """
    os.environ["LTRB_CACHE"] = str(folder / "cache")
    make_shapes(folder / "shapes", num_train=200, num_val=73, sides=(64, 96))
    data = folder / "shapes" / "data.yaml"
    index, _ = load_split(spec := load_data_spec(data), "val")
    truth, found = ground_truth_of(index, spec), []
    weights = np.vstack((np.ones(len(index.sizes)), resample_weights(len(index.sizes), RESAMPLES, seed=0)))
    for seed in range(6):
        train_tiny(data, folder, seed)
        detector = load_detector(folder / f"seed{seed}" / "weights" / "last.pt", "cpu")
        loader, cfg = make_val_loader(index, detector.config, pin=False), detector.config.val
        rows = evaluate(detector.model, loader, truth, cfg=cfg, device=torch.device("cpu")).rows
        found.append(weighted_ap(match_detections(truth, rows), weights)[:, 0])
        print(f"seed {seed}: AP {found[-1][0]:.4f}")
    found, verdicts = np.stack(found), []
    for others in combinations(range(1, 6), 2):
        groups = [[0, *others], [seed for seed in range(1, 6) if seed not in others]]
        one, two = (found[group] for group in groups)
        values, resampled = (one[:, 0], two[:, 0]), (one[:, 1:], two[:, 1:])
        difference = compare_paired(*values, *resampled, num_pictures=len(index.sizes))
        verdicts.append(verdict(difference, difference.p, 3))
    resampled = found[:, 1:] - found[:, 1:].mean(1, keepdims=True)
    return {
        "ap": found[:, 0].tolist(),
        "standard_deviation": float(found[:, 0].std(ddof=1)),
        "of_it_luck_on_the_pictures": float(np.sqrt(resampled.var(axis=0, ddof=1).mean())),
        "splits": len(verdicts),
        "false_verdicts": sum(word != "no evidence" for word in verdicts),
    }


def train_tiny(data: Path, project: Path, seed: int) -> None:
    """One run of half a minute, by the command line."""
    flags = ["--data", data, "--project", project, "--name", f"seed{seed}", "--seed", seed, "--cfg", "demo"]
    flags += ["--imgsz", 96, "--batch-size", 8, "--workers", 0, "--epochs", 30, "--noplots"]
    flags += ["--set", "train.amp=off", "--set", "train.val_every=30"]
    command = [sys.executable, "train.py", *map(str, flags)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=2000, help="of each kind; default %(default)s")
    parser.add_argument("--real", action="store_true", help="train six tiny detectors too")
    args = parser.parse_args()
    start, met = time.perf_counter(), True
    result = {"comparisons": args.comparisons, "noise": Noise()._asdict(), "limits": LIMITS, "designs": []}
    for key, design in enumerate(DESIGNS):
        found = judge(design, args.comparisons, key)
        found["met"] = {name: low <= found[name] <= high for name, (low, high) in LIMITS.items()}
        met = met and all(found["met"].values())
        figures = ", ".join(
            f"{name.replace('_', ' ')} {found[name]:.1%}{'' if fine else ' (missed)'}"
            for name, fine in found["met"].items()
        )
        print(f"{design[0]} seeds, {design[1]} pictures: {figures}; smallest {found['smallest']:.4f}")
        elsewhere = ", ".join(f"{name} {held:.1%}" for name, held in found["coverage_elsewhere"].items())
        print(f"    coverage elsewhere: {elsewhere}")
        result["designs"].append(found)
    if args.real:
        with tempfile.TemporaryDirectory() as folder:
            result["real"] = compare_real(Path(folder))
        print("real: {false_verdicts} false verdicts in {splits} splits".format(**result["real"]))
    result["seconds"] = time.perf_counter() - start
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{result['seconds']:.0f} s; all within the limits: {met}; results: {OUT}")
    return 0 if met else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
