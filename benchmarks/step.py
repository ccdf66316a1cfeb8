"""What share of a training step goes into assignment and loss?  ``python -m benchmarks.step``

Times a whole step (forward, loss, backward, optimiser, average) and, from the same predictions, the
assignment and loss alone with their gradient down to the head's output. Prints each share against its limit,
writes benchmarks/out/step.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch

from models.detector import build_detector
from utils.assigners.build import build_assigner
from utils.config_files import load_config
from utils.losses.compute import compute_loss
from utils.structures import Targets
from utils.training.device import autocast_dtype, select_device
from utils.training.state import start_state

OUT = Path(__file__).parent / "out" / "step.json"
NUM_CLASSES = 80


class Case(NamedTuple):
    """One measurement: input size, pictures, boxes a picture, and the largest share that is allowed."""

    imgsz: int
    batch: int
    boxes: int
    limit: float


CASES = (Case(320, 16, 10, 0.04), Case(640, 8, 100, 0.05), Case(640, 8, 300, 0.08))


def random_targets(case: Case, seed: int) -> Targets:
    """Boxes of log-uniform sizes from 8 px to half the picture, anywhere in it."""
    draw = torch.Generator().manual_seed(seed)
    shape = (case.batch, case.boxes, 2)
    half = 4 * (case.imgsz / 16) ** torch.rand(shape, generator=draw)
    centre = half + torch.rand(shape, generator=draw) * (case.imgsz - 2 * half)
    labels = torch.randint(0, NUM_CLASSES, shape[:2], generator=draw)
    valid = torch.ones(shape[:2], dtype=torch.bool)
    return Targets(torch.cat((centre - half, centre + half), -1), labels, valid, ~valid)


def measure(
    case: Case, model_name: str, amp: str, device: torch.device, *, repeats: int, loss: str = "gfl"
) -> dict:
    """Median seconds of a step and of its assignment and loss."""
    cfg = load_config(cfg=model_name, loss=loss).config
    model = build_detector(cfg.model, NUM_CLASSES).to(device, memory_format=torch.channels_last)
    state = start_state(model, cfg.train, 1000, device)
    dtype = autocast_dtype(amp, device)
    assign = build_assigner(cfg)
    images = torch.randint(0, 256, (case.batch, 3, case.imgsz, case.imgsz), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    steps, losses = [], []
    for repeat in range(repeats + 2):
        truth = Targets(*(tensor.to(device) for tensor in random_targets(case, repeat)))
        start = now(device)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            pred = model(images)
        compute_loss(pred, truth, assign, cfg.loss).total.backward()
        state.update(lr=1e-4, clip_norm=10.0)
        steps.append(now(device) - start)

        logits = (pred.cls_logits.detach().requires_grad_(), pred.ltrb_logits.detach().requires_grad_())
        leaf = pred._replace(cls_logits=logits[0], ltrb_logits=logits[1])
        start = now(device)
        compute_loss(leaf, truth, assign, cfg.loss).total.backward()
        losses.append(now(device) - start)
    return {"step": statistics.median(steps[2:]), "loss": statistics.median(losses[2:])}


def now(device: torch.device) -> float:
    """Seconds, with the device's work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cfg", default="n", help="model (default %(default)s)")
    parser.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"), help="default %(default)s")
    parser.add_argument("--device", default="")
    parser.add_argument("--repeats", type=int, default=10, help="counted repetitions (default %(default)s)")
    args = parser.parse_args()
    device, rows = select_device(args.device), []
    print(f"model {args.cfg}, {NUM_CLASSES} classes, amp {args.amp}, {device}, torch {torch.__version__}")
    print(f"{'imgsz':>6}{'batch':>6}{'boxes':>6}{'step ms':>10}{'loss ms':>10}{'share':>8}{'limit':>8}")
    for case in CASES:
        found = measure(case, args.cfg, args.amp, device, repeats=args.repeats)
        share = found["loss"] / found["step"]
        rows.append({**case._asdict(), **found, "share": share, "met": share <= case.limit})
        times = f"{1000 * found['step']:>10.1f}{1000 * found['loss']:>10.1f}"
        verdict = "" if share <= case.limit else "  missed"
        head = f"{case.imgsz:>6}{case.batch:>6}{case.boxes:>6}"
        print(f"{head}{times}{share:>8.1%}{case.limit:>8.0%}{verdict}")
    OUT.parent.mkdir(exist_ok=True)
    about = {"model": args.cfg, "amp": args.amp, "device": str(device), "torch": torch.__version__}
    OUT.write_text(json.dumps({**about, "cases": rows}, indent=2) + "\n", encoding="utf-8")
    print(f"results: {OUT}")


if __name__ == "__main__":
    main()
