"""A made-up comparison with the fields of comparison.json."""

import numpy as np
import pytest

from utils.metrics.coco import KEYS

COLUMNS = (
    "train/quality",
    "train/box",
    "train/dfl",
    "metrics/AP",
    "metrics/AP50",
    "metrics/AP75",
    "lr",
    "seconds",
)


def difference(mean: float, half: float, verdict: str | None, *, seeds: int = 5) -> dict:
    """A DIFF whose 95 % interval is mean +- half; one seed leaves only the mean."""
    fields = ("low", "high", "se", "se_seeds", "se_pictures", "df", "p", "p_holm", "smallest")
    values = (mean - half, mean + half, half / 2.6, half / 3.5, half / 4, 5.5, 0.01, 0.03, half * 1.25)
    known = dict(zip(fields, values if seeds > 1 else [None] * len(fields), strict=True))
    return {"mean": mean, **known, "p_sign_flip": None, "verdict": verdict}


def make_loss(number: int, shift: float, *, seeds, classes, epochs: int, memory) -> dict:
    rng = np.random.default_rng(number)
    means = {key: 0.3 + 0.02 * i + shift for i, key in enumerate(KEYS)} | {"APl": None, "ARl": None}
    rows = [{k: v if v is None else v + float(rng.normal(0, 0.006)) for k, v in means.items()} for _ in seeds]
    grown = 1 - np.exp(-np.arange(1, epochs + 1) / (0.25 * epochs))
    curves = [
        {
            c: (grown * row.get(c.removeprefix("metrics/"), 1.3 - 0.1 * i)).tolist()
            if "metrics" in c
            else (1.8 - grown + 0.1 * i + rng.normal(0, 0.02, epochs)).tolist()
            for i, c in enumerate(COLUMNS)
        }
        for row in rows
    ]
    scores = np.linspace(0.05, 0.95, 10)
    bins = [
        {"score": s, "iou": 0.15 + 0.7 * s + 0.4 * shift, "count": int(4000 / (1 + 20 * s))} for s in scores
    ]
    return {
        "origin": f"configs/losses/loss_{number}.yaml",
        "changes": {"loss.dfl": [0.25, 0.0], "loss.alpha": [None, 0.75]} if number else {},
        "runs": [
            {
                "seed": seed,
                "folder": f"runs/compare/made_up/loss_{number}/seed_{seed}",
                "values": row,
                "per_class": {
                    name: {"AP": 0.3 + shift, "AP50": 0.5, "AP75": 0.3, "AR100": 0.4, "boxes": 9}
                    for name in classes
                },
                "seconds_per_step": 0.0812 + 0.002 * number + 0.0004 * i,
                "memory_gb": memory,
                "epochs": list(range(1, epochs + 1)),
                "curves": curve,
            }
            for i, (seed, row, curve) in enumerate(zip(seeds, rows, curves, strict=True))
        ],
        "mean": {
            key: None if means[key] is None else float(np.mean([row[key] for row in rows])) for key in KEYS
        },
        "sd": {
            key: float(np.std([row[key] for row in rows], ddof=1))
            if means[key] is not None and len(seeds) > 1
            else None
            for key in KEYS
        },
        "calibration": {"bins": bins, "error": 0.034 + 0.01 * number},
    }


@pytest.fixture(scope="session")
def make_content():
    """``make_content(num_seeds=2)``: baseline gfl, vfl (better), siou (no evidence), dfl_off (worse), ..."""

    def make(
        num_seeds: int = 5,
        names=("gfl", "vfl", "siou", "dfl_off"),
        classes=("RBC", "WBC", "Platelets"),
        epochs: int = 40,
        memory: float | None = 3.41,
    ) -> dict:
        seeds = list(range(num_seeds))
        shifts = [0.0, *((0.02, 0.003, -0.012)[i % 3] * (1 + i // 3) for i in range(len(names) - 1))]
        verdicts = [
            ("better", "no evidence", "worse")[i % 3] if num_seeds >= 3 else None for i in range(len(names))
        ]
        rng = np.random.default_rng(7)
        differences = {
            name: {
                **{key: difference(shift, 0.008, verdict, seeds=num_seeds) for key in ("AP", "AP50", "AP75")},
                "per_class": {
                    label: difference(shift + float(rng.normal(0, 0.01)), 0.02, None, seeds=num_seeds)
                    for label in classes
                },
            }
            for name, shift, verdict in zip(names[1:], shifts[1:], verdicts, strict=False)
        }
        losses = {
            name: make_loss(i, shift, seeds=seeds, classes=classes, epochs=epochs, memory=memory)
            for i, (name, shift) in enumerate(zip(names, shifts, strict=True))
        }
        protocol = {
            "data": "bccd/data.yaml",
            "fingerprint": "3f9a1c0e",
            "num_pictures": 1073,
            "num_boxes": 14912,
            "imgsz": 320,
            "rect": False,
            "conf": 0.001,
            "iou": 0.65,
            "max_det": 300,
            "weights": "last EMA",
            "evaluator": "hotcoco",
            "epochs": epochs,
            "batch_size": 16,
            "model": "demo",
            "versions": {"python": "3.13.5", "torch": "2.10.0", "hotcoco": "0.4.1"},
            "commit": None,
            "hardware": "2 cores",
        }
        return {
            "schema": 2,
            "name": "made_up",
            "baseline": names[0],
            "seeds": seeds,
            "missing": [],
            "losses": losses,
            "differences": differences,
            "pictures": [],
            "protocol": protocol,
        }

    return make
