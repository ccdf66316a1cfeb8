"""What does each recipe of configs/losses cost?  ``python -m benchmarks.losses``

A whole training step (forward, loss, backward, optimiser, average) with each recipe against one with gfl, the
default, measured in turns; and the assignment and loss alone. No limit: the figures stand in the recipes'
headers. Writes benchmarks/out/losses.json.
"""

import argparse
import json
import statistics
from pathlib import Path

from benchmarks.step import Case, measure
from utils.config_files import ROOT
from utils.training.device import select_device

OUT = Path(__file__).parent / "out" / "losses.json"
BASELINE = "gfl"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cfg", default="n", help="model (default %(default)s)")
    parser.add_argument("--imgsz", type=int, default=320, help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default %(default)s")
    parser.add_argument("--boxes", type=int, default=10, help="a picture (default %(default)s)")
    parser.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"), help="default %(default)s")
    parser.add_argument("--device", default="")
    parser.add_argument("--rounds", type=int, default=3, help="turns of all recipes (default %(default)s)")
    args = parser.parse_args()
    device = select_device(args.device)
    case = Case(args.imgsz, args.batch_size, args.boxes, 1.0)
    recipes = sorted(path.stem for path in ROOT.glob("configs/losses/*.yaml"))
    found = {recipe: [] for recipe in recipes}
    for _ in range(args.rounds):
        for recipe in recipes:
            found[recipe].append(measure(case, args.cfg, args.amp, device, repeats=4, loss=recipe))
    rows = {
        recipe: {key: statistics.median(row[key] for row in rows) for key in ("step", "loss")}
        for recipe, rows in found.items()
    }
    print(f"model {args.cfg}, {case.imgsz} px, batch {case.batch}, {case.boxes} boxes a picture, {device}")
    print(f"{'recipe':>14}{'step ms':>10}{'to ' + BASELINE:>10}{'loss ms':>10}{'to ' + BASELINE:>10}")
    for recipe, row in rows.items():
        row["step_ratio"], row["loss_ratio"] = (row[key] / rows[BASELINE][key] for key in ("step", "loss"))
        times = f"{1000 * row['step']:>10.1f}{row['step_ratio']:>10.2f}"
        print(f"{recipe:>14}{times}{1000 * row['loss']:>10.1f}{row['loss_ratio']:>10.2f}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({**vars(args), "recipes": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"results: {OUT}")


if __name__ == "__main__":
    main()
