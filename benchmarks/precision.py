"""Does half precision follow float32, does a step wait for the device?  ``python -m benchmarks.precision``

Trains the first 50 steps of the generated data set in float32, bf16 and fp16 (fp16 on a GPU only) from the
same weights and batches, and prints the largest relative difference of the loss, smoothed over 10 steps,
against 2 %. On a GPU every step runs in a mode in which a host-device synchronisation is an error. Prints
pictures a second as well; writes benchmarks/out/precision.json.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from data.run_data import load_data
from run_setup import build_state
from utils.config import Config
from utils.config_files import load_config
from utils.epoch import Epoch
from utils.errors import OUR_FAULT
from utils.losses.anatomy import LossAnatomy
from utils.step import TrainStep
from utils.training.device import on_device, select_device
from utils.training.schedule import Rate

OUT = Path(__file__).parent / "out" / "precision.json"
STEPS, WINDOW, LIMIT = 50, 10, 0.02


def run(cfg: Config, device: torch.device) -> tuple[torch.Tensor, float]:
    """The loss at each of 50 steps, and pictures a second after the first 10 steps."""
    data = load_data(cfg, device, download=False)
    state = build_state(cfg, data, device)
    step = TrainStep(state.model.train(), state, cfg, LossAnatomy(0, state.model.strides))
    epoch, rate, losses, begun = Epoch(device, step.anatomy), Rate(cfg.train, len(data.train)), [], 0.0
    while len(losses) < STEPS:
        data.train.set_epoch(len(losses) // len(data.train), mosaic=True)
        for batch in on_device(data.train, device):
            if len(losses) == STEPS // 5:
                begun = now(device)
            guard(device, "error")
            update, terms = step([batch], lr=rate(state.step), counts=epoch.assigned)
            epoch.add(terms, update)
            guard(device, "default")
            state.step += 1
            losses.append(terms.sum())
            if len(losses) == STEPS:
                break
    speed = (STEPS - STEPS // 5) * cfg.train.batch_size / (now(device) - begun)
    return torch.stack(losses).cpu(), speed


def guard(device: torch.device, mode: str) -> None:
    """On a GPU: what a synchronisation is from here on."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode(mode)


def now(device: torch.device) -> float:
    """Seconds, with the device's work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def smooth(losses: torch.Tensor) -> torch.Tensor:
    """Means over windows of 10 steps: a single step shows rounding amplified, not the course of the loss."""
    return losses.unfold(0, WINDOW, 1).mean(1)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cfg", default="n")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="")
    args = parser.parse_args()
    device, rows, reference = select_device(args.device), [], None
    for amp in ("off", "bf16", "fp16") if device.type == "cuda" else ("off", "bf16"):
        sets = (f"train.amp={amp}", f"data.imgsz={args.imgsz}", f"train.batch_size={args.batch_size}")
        losses, speed = run(load_config(cfg=args.cfg, sets=sets).config, device)
        reference = smooth(losses) if reference is None else reference
        gap = ((smooth(losses) - reference) / reference).abs().max().item()
        rows.append({"amp": amp, "gap": gap, "pictures_per_second": speed, "met": gap <= LIMIT})
        course = f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, off by {gap:.2%} at most"
        print(f"{amp:>5}: {course}, {speed:.0f} pictures/s")
    met = all(row["met"] for row in rows)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}: within {LIMIT:.0%}: {met}" + (", no step synchronised" if device.type == "cuda" else ""))
    OUT.parent.mkdir(exist_ok=True)
    about = {"device": name, "torch": torch.__version__, "model": args.cfg, "imgsz": args.imgsz}
    OUT.write_text(
        json.dumps({**about, "batch": args.batch_size, "precisions": rows}, indent=2) + "\n", encoding="utf-8"
    )
    return 0 if met else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
