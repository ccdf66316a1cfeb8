"""What does a training from scratch reach on real pictures?  ``python -m benchmarks.bccd --data data.yaml``

Size n, 320 px, 40 epochs, batch 16 and the defaults, seeds 0, 1, 2: best.pt on the validation pictures by
pycocotools, and the mean over the seeds against 0.434, the AP of YOLOv8n (3.2 M parameters, its defaults,
seed 0, the same budget). Finished seeds are not trained again. Other flags of train.py may follow. Writes
benchmarks/out/bccd.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from utils.errors import OUR_FAULT

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "out" / "bccd.json"
PROJECT = Path("runs/bccd")
PROTOCOL = ("--cfg", "n", "--imgsz", "320", "--epochs", "40", "--batch-size", "16")
AP = 0.434
SHOWN = ("AP", "AP50", "AP75")


def run_seed(seed: int, data: str, flags: list[str]) -> dict[str, float]:
    """COCO metrics of one seed's best.pt, trained if need be."""
    folder = ROOT / PROJECT / f"seed{seed}"
    if not (folder / "metrics.json").exists():  # written at the end of a training
        where = ("--project", PROJECT, "--name", folder.name, "--exist-ok", "--seed", seed)
        call("train.py", "--data", data, *PROTOCOL, *where, *flags)
    measured = PROJECT / "val"
    weights = ("--weights", folder / "weights" / "best.pt", "--data", data, "--evaluator", "pycocotools")
    call("val.py", *weights, "--project", measured, "--name", folder.name, "--exist-ok", "--noplots")
    return json.loads((ROOT / measured / folder.name / "metrics.json").read_text(encoding="utf-8"))


def call(script: str, *arguments) -> None:
    """Run one of the project's commands."""
    subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], check=True, cwd=ROOT)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="data.yaml of BCCD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, flags = parser.parse_known_args()
    data = str(Path(args.data).resolve())
    found = {seed: run_seed(seed, data, flags) for seed in args.seeds}
    print(f"\n{'seed':>6}" + "".join(f"{key:>9}" for key in SHOWN))
    for seed, values in found.items():
        print(f"{seed:>6}" + "".join(f"{values[key]:>9.4f}" for key in SHOWN))
    mean = {key: sum(values[key] for values in found.values()) / len(found) for key in SHOWN}
    met = mean["AP"] >= AP
    print(f"{'mean':>6}" + "".join(f"{mean[key]:>9.4f}" for key in SHOWN) + f"   AP at least {AP}: {met}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        json.dumps({"flags": flags, "seeds": found, "mean": mean, "met": met}, indent=2) + "\n",
        encoding="utf-8",
    )
    return 0 if met else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
