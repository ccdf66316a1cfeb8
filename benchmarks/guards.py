"""What do the guards of a training step cost?  ``python -m benchmarks.guards``

Steps as train.py takes them (seeds, statistics kept to be taken back, losses and gradients watched, counts,
sums of the epoch: ``TrainStep``, ``StepWatch``, ``Epoch``) against bare ones (forward, loss, backward, clip,
optimiser, average), of the same model on the same batches. Both take turns in one process, in blocks whose
order alternates; each round has its own ratio. Prints the median of pictures a second with guards over those
without, its quartiles, and the same of bare against bare, which is what the machine itself blurs; against
0.98. Processor time on a CPU; on a GPU the clock, with the device's work done at the ends of a block only.
Writes benchmarks/out/guards.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.step import NUM_CLASSES, Case, random_targets
from data.dataset import Batch
from models.detector import build_detector
from utils.assigners.build import build_assigner
from utils.config import Config
from utils.config_files import load_config
from utils.epoch import Epoch
from utils.errors import OUR_FAULT
from utils.losses.anatomy import LossAnatomy
from utils.losses.compute import compute_loss
from utils.step import TrainStep, forward
from utils.structures import Targets
from utils.training.device import select_device
from utils.training.reproducibility import seed_everything
from utils.training.state import TrainState, start_state
from utils.training.step_watch import StepWatch

OUT = Path(__file__).parent / "out" / "guards.json"
LIMIT = 0.98
STEPS = 10_000  # of the run that this pretends to be

Step = Callable[[Batch], None]


def make_state(cfg: Config, device: torch.device) -> TrainState:
    """The same weights each time."""
    seed_everything(0)
    model = build_detector(cfg.model, NUM_CLASSES).to(device, memory_format=torch.channels_last)
    return start_state(model.train(), cfg.train, STEPS, device, micro_batch=cfg.train.batch_size)


def bare_step(cfg: Config, device: torch.device) -> Step:
    """What a step cannot do without. The average's decay is a number, as the host counts the steps."""
    state, assign = make_state(cfg, device), build_assigner(cfg)
    model, optimizer, average, updates = state.model, state.optimizer, state.ema.model, 0

    def step(batch: Batch) -> None:
        nonlocal updates
        backward(batch)
        nn.utils.clip_grad_norm_(model.parameters(), cfg.train.clip_norm, foreach=True)
        for group in optimizer.param_groups:
            group["lr"] = cfg.train.lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        updates += 1
        move_average(average, model, 1 - min(state.ema.limit, (1 + updates) / (10 + updates)))

    def backward(batch: Batch) -> None:  # by itself, as in ``TrainStep``: predictions are gone afterwards
        pred = forward(model, batch.images, cfg.train.amp)
        compute_loss(pred, batch.truth, assign, cfg.loss).total.backward()

    return step


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, weight: float) -> None:
    """The share ``weight`` of the way to the model; integers are copied."""
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    ours, theirs = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
    torch._foreach_lerp_(ours, theirs, weight)
    for own, other in pairs:
        if not own.is_floating_point():
            own.copy_(other)


def guarded_step(cfg: Config, device: torch.device, folder: Path) -> Step:
    """As ``train.take_step``."""
    state = make_state(cfg, device)
    step = TrainStep(state.model, state, cfg, LossAnatomy(0, state.model.strides))
    epoch, watch = Epoch(device, step.anatomy), StepWatch(folder)

    def take(batch: Batch) -> None:
        update, terms = step([batch], lr=cfg.train.lr, counts=epoch.assigned)
        state.step += 1
        epoch.add(terms, update)
        watch.push(update, terms, step=state.step - 1, describe=lambda: [{"epoch": 1, "batch": 0}])

    return take


def measure(step: Step, batches: Sequence[Batch], device: torch.device) -> float:
    """Seconds of a block: a step on each of the batches."""
    begun = now(device)
    for batch in batches:
        step(batch)
    return now(device) - begun


def now(device: torch.device) -> float:
    """Seconds, with the device's work done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def compare(steps: Sequence[Step], batches: Sequence[Batch], device: torch.device, rounds: int) -> list[dict]:
    """Seconds of a block of each of the ``steps``, in each round; the order goes to and fro."""
    for step in steps:
        measure(step, batches, device)  # kernels are chosen, memory is taken
    rows = []
    for number in range(rounds):
        order = range(len(steps)) if number % 2 == 0 else reversed(range(len(steps)))
        rows.append({place: measure(steps[place], batches, device) for place in order})
    return rows


def make_batches(case: Case, count: int, device: torch.device) -> list[Batch]:
    """Noise with random boxes."""
    draw, batches = torch.Generator().manual_seed(0), []
    for number in range(count):
        shape = (case.batch, 3, case.imgsz, case.imgsz)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw).to(device)
        truth = Targets(*(tensor.to(device) for tensor in random_targets(case, number)))
        images = images.contiguous(memory_format=torch.channels_last)
        batches.append(Batch(images, truth, [0] * case.batch, [None] * case.batch))
    return batches


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cfg", default="n", help="model (default %(default)s)")
    parser.add_argument("--imgsz", type=int, default=320, help="default %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default %(default)s")
    parser.add_argument("--boxes", type=int, default=10, help="a picture (default %(default)s)")
    parser.add_argument("--amp", default="off", choices=("off", "bf16"), help="default %(default)s")
    parser.add_argument("--device", default="")
    parser.add_argument("--rounds", type=int, default=15, help="default %(default)s")
    parser.add_argument("--steps", type=int, default=4, help="of a block (default %(default)s)")
    args = parser.parse_args()
    device = select_device(args.device)
    sets = (f"train.amp={args.amp}", f"train.batch_size={args.batch_size}")
    cfg, case = load_config(cfg=args.cfg, sets=sets).config, Case(args.imgsz, args.batch_size, args.boxes, 1)
    with tempfile.TemporaryDirectory() as folder:
        steps = (bare_step(cfg, device), guarded_step(cfg, device, Path(folder)), bare_step(cfg, device))
        rows = compare(steps, make_batches(case, args.steps, device), device, args.rounds)
    ratios = {"guarded": [row[0] / row[1] for row in rows], "bare again": [row[0] / row[2] for row in rows]}
    bare = statistics.median(row[0] for row in rows) / args.steps
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}, model {args.cfg}, {args.imgsz} px, amp {args.amp}: {1000 * bare:.1f} ms a bare step")
    found = {key: statistics.quantiles(values, n=4) for key, values in ratios.items()}
    for key, (low, middle, high) in found.items():
        print(f"{key:>10}: {middle:.4f} of the bare throughput (quartiles {low:.4f} to {high:.4f})")
    met = found["guarded"][1] >= LIMIT
    print(f"at least {LIMIT}: {met}")
    OUT.parent.mkdir(exist_ok=True)
    about = {**vars(args), "device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
    OUT.write_text(
        json.dumps({**about, "step": bare, "ratios": found, "met": met}, indent=2) + "\n", encoding="utf-8"
    )
    return 0 if met else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
