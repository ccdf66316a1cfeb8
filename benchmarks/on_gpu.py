"""What can only be seen on a GPU?  ``python -m benchmarks.on_gpu --data <bccd>/data.yaml``

For each loss: three runs with --deterministic give the same last.pt to the bit, and so does a run that a
SIGTERM stops and --resume goes on with. A run with --batch-size auto trains, validates and holds 70 to 95 %
of the GPU's memory. ``benchmarks.guards``: at least 0.98 of the bare throughput. With two GPUs: two processes
with --sync-bn have the losses of one, in the first epoch, to 1 %. Prints what was found against each limit,
writes benchmarks/out/on_gpu.json. ``--device cpu`` tries the script itself.
"""

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.environment import describe_environment
from utils.errors import OUR_FAULT
from utils.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "out" / "on_gpu.json"
MEMORY = (0.70, 0.95)  # share of the GPU
LOSSES = ("gfl", "yolov8_like", "gfl_simota", "gfl_atss")
TERMS = ("train/quality", "train/box", "train/dfl")
PATIENCE = 600  # seconds


class Trial:
    """Runs of train.py below one folder."""

    def __init__(self, project: Path, flags: list[str]):
        self.project, self.flags = project, flags

    def command(self, name: str, *flags: str, ranks: int = 1) -> list[str]:
        """The command line of a run."""
        launch = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"] if ranks > 1 else []
        where = ["--project", str(self.project), "--name", name, "--noplots", "--exist-ok"]
        return [sys.executable, *launch, "train.py", *self.flags, *where, *flags]

    def run(self, name: str, *flags: str, ranks: int = 1) -> Path:
        """Train to the end; returns the folder."""
        subprocess.run(self.command(name, *flags, ranks=ranks), check=True, cwd=ROOT, timeout=PATIENCE)
        return self.project / name

    def run_in_two(self, name: str, *flags: str) -> Path:
        """The same, stopped by SIGTERM after the first epoch, and resumed."""
        folder, begun = self.project / name, time.monotonic()
        process = subprocess.Popen(self.command(name, *flags), cwd=ROOT)
        while not (folder / "results.csv").exists() and time.monotonic() - begun < PATIENCE:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        if (code := process.wait(PATIENCE)) != 128 + signal.SIGTERM:
            raise SystemExit(f"{name}: ended with {code}, not stopped: give more --epochs")
        return self.run(name, *flags, "--resume", "auto")


def differing(one: object, other: object, where: str = "") -> Iterator[str]:
    """Dotted keys of all that two checkpoints do not have alike, to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and torch.equal(one, other)
    elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from differing(one[key], other[key], f"{where}.{key}")
        return
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differing(*pair, f"{where}.{number}")
        return
    else:
        same = type(one) is type(other) and one == other
    if not same:
        yield where


def check_bits(trial: Trial, loss: str) -> dict:
    """Three runs and one in two parts, against the first."""
    flags = ("--deterministic", "--loss", loss)
    folders = [trial.run(f"{loss}{number}", *flags) for number in range(3)]
    folders.append(trial.run_in_two(f"{loss}_stopped", *flags))
    first, *others = (load_checkpoint(folder / "weights" / "last.pt") for folder in folders)
    found = [list(differing(first, other)) for other in others]
    return {"check": f"same bits, {loss}", "found": [keys[:5] for keys in found], "met": not any(found)}


def check_auto_batch(trial: Trial, device: torch.device) -> dict:
    """One epoch with as many pictures as fit."""
    folder = trial.run("auto", "--batch-size", "auto", "--cfg", "l", "--imgsz", "640", "--epochs", "1")
    size = load_checkpoint(folder / "weights" / "last.pt")["config"]["train"]["batch_size"]
    total = torch.cuda.get_device_properties(device).total_memory / 1e9
    share = float(read_rows(folder)[-1]["memory_gb"]) / total
    met = MEMORY[0] <= share <= MEMORY[1]
    return {"check": "share of the memory, auto batch", "found": {"share": share, "batch": size}, "met": met}


def check_guards() -> dict:
    """The benchmark of that name, in the precision that trainings have."""
    flags = ("--cfg", "n", "--imgsz", "640", "--batch-size", "16", "--amp", "bf16")
    code = subprocess.run([sys.executable, "-m", "benchmarks.guards", *flags], cwd=ROOT).returncode
    found = json.loads((ROOT / "benchmarks" / "out" / "guards.json").read_text(encoding="utf-8"))["ratios"]
    return {"check": "throughput with guards", "found": found, "met": code == 0}


def check_sync_bn(trial: Trial) -> dict:
    """Two processes against one, first epoch."""
    flags = ("--sync-bn", "--set", "train.amp=off")
    devices = {1: "0", 2: "0,1"}
    rows = [
        read_rows(trial.run(f"ranks{n}", *flags, "--device", device, ranks=n))[0]
        for n, device in devices.items()
    ]
    gaps = [abs(float(rows[1][term]) / float(rows[0][term]) - 1) for term in TERMS]
    return {"check": "SyncBN, 2 processes against 1", "found": gaps, "met": max(gaps) <= 0.01}


def read_rows(folder: Path) -> list[dict[str, str]]:
    """The rows of results.csv."""
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="data.yaml of BCCD")
    parser.add_argument("--losses", nargs="+", default=LOSSES, help="default %(default)s")
    parser.add_argument("--device", default="0", help="default %(default)s")
    parser.add_argument("--project", default="runs/on_gpu", help="default %(default)s; to be empty")
    parser.add_argument("--epochs", type=int, default=3, help="default %(default)s")
    args, flags = parser.parse_known_args()
    data = str(Path(args.data).resolve())
    budget = [
        "--data",
        data,
        "--cfg",
        "n",
        "--imgsz",
        "320",
        "--batch-size",
        "16",
        "--epochs",
        str(args.epochs),
    ]
    trial = Trial(Path(args.project).resolve(), [*budget, "--device", args.device, *flags])
    rows = [check_bits(trial, loss) for loss in args.losses]
    if args.device != "cpu":
        rows += [check_auto_batch(trial, torch.device("cuda", int(args.device))), check_guards()]
    if args.device != "cpu" and torch.cuda.device_count() > 1:
        rows.append(check_sync_bn(trial))
    for row in rows:
        print(f"{row['check']:<40}{'met' if row['met'] else 'MISSED':<8}{row['found']}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        json.dumps({"environment": describe_environment(), "checks": rows}, indent=2) + "\n", encoding="utf-8"
    )
    return 0 if all(row["met"] for row in rows) else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
