"""What does an assignment cost, and how does that grow?  ``python -m benchmarks.assigners``

640 px, batch 16, boxes of all sizes. For every assigner the time of a call with 300 boxes a picture; for the
task-aligned one, the default, two limits: its peak extra memory against 3 float32 tensors of batch x boxes x
points, and its time over 10 to 1,000 boxes against growth in proportion. Exit code 1 where one is missed;
writes benchmarks/out/assigners.json. Times are the shortest of the repetitions, which take turns; on a CPU
that of this process, so that others on the machine do not count.
"""

import argparse
import gc
import itertools
import json
import time
from pathlib import Path

import torch

from benchmarks.step import NUM_CLASSES, Case, random_targets
from utils.assigners.build import build_assigner
from utils.config import Config
from utils.config_files import load_config
from utils.errors import OK, OUR_FAULT, UserError
from utils.geometry.anchor_points import make_anchor_points
from utils.structures import Predictions, Targets
from utils.training.device import select_device

OUT = Path(__file__).parent / "out" / "assigners.json"
NAMES = ("task_aligned", "atss", "simota", "center")
SIDE, BATCH, BOXES = 640, 16, 300
COUNTS = (10, 30, 100, 300, 1000)
TENSORS = 3  # limit of the peak: float32 tensors of batch x boxes x points


def make_scene(num_boxes: int, device: torch.device, *, batch: int = BATCH) -> tuple:
    """What an assigner is called with; sides from 0.5 to 6 strides, so that few predictions are equal."""
    levels = tuple((SIDE // stride, SIDE // stride, stride) for stride in (8, 16, 32))
    points, strides = make_anchor_points([level[:2] for level in levels], [level[2] for level in levels])
    draw = torch.Generator().manual_seed(0)
    sides = strides * (0.5 + 5.5 * torch.rand(batch, len(points), 4, generator=draw))
    boxes = torch.cat((points - sides[..., :2], points + sides[..., 2:]), -1)
    scores = torch.rand(batch, len(points), NUM_CLASSES, generator=draw).square_()
    points, strides = points.to(device), strides.to(device)
    pred = Predictions(scores.to(device), torch.empty(batch, len(points), 4, 16), points, strides, levels)
    truth = random_targets(Case(SIDE, batch, num_boxes, 0.0), seed=0)
    return pred.cls_logits, boxes.to(device), pred, Targets(*(tensor.to(device) for tensor in truth))


def call_time(assign, scene: tuple, device: torch.device) -> float:
    """Seconds of one call: of a GPU's work, or of this process on a CPU."""
    if device.type == "cpu":
        start = time.process_time()
        assign(*scene)
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    assign(*scene)
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure_peak(cfg: Config, device: torch.device) -> float:
    """Bytes that one call holds at most, beyond what stood before it; its result included."""
    assign, scene = build_assigner(cfg), make_scene(BOXES, device)
    assign(*make_scene(1, device, batch=1))  # libraries load their own at the first call
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        assign(*scene)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    except OSError as error:
        raise UserError(f"peak memory cannot be measured here: /proc/self/clear_refs: {error}") from error
    before = _memory("VmRSS")
    assign(*scene)
    return _memory("VmHWM") - before


def measure_growth(cfg: Config, device: torch.device, repeats: int) -> list[dict]:
    """For each step of ``COUNTS``: the ratio of the times against that of the boxes; last, end to start."""
    assign, scenes = build_assigner(cfg), [make_scene(count, device) for count in COUNTS]
    rounds = [[call_time(assign, scene, device) for scene in scenes] for _ in range(repeats + 1)][1:]
    seconds = dict(zip(COUNTS, map(min, zip(*rounds, strict=True)), strict=True))
    rows = []
    for few, many in (*itertools.pairwise(COUNTS), (COUNTS[0], COUNTS[-1])):
        ratio, limit = seconds[many] / seconds[few], many / few
        rows.append({"boxes": [few, many], "seconds": [seconds[few], seconds[many]]})
        rows[-1] |= {"ratio": ratio, "limit": limit, "met": ratio <= limit}
    return rows


def _memory(name: str) -> int:
    """Bytes that /proc/self/status gives under this name."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="")
    parser.add_argument("--repeats", type=int, default=15, help="counted repetitions (default %(default)s)")
    args = parser.parse_args()
    device = select_device(args.device)
    configs = {name: load_config(sets=(f"assigner.name={name}",)).config for name in NAMES}
    default = configs["task_aligned"]
    print(f"{SIDE} px, batch {BATCH}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    peak = measure_peak(default, device)  # first, while the process is fresh
    points = sum((SIDE // stride) ** 2 for stride in (8, 16, 32))
    tensors = peak / (4 * BATCH * BOXES * points)
    memory = {"bytes": peak, "tensors": tensors, "limit": TENSORS, "met": tensors <= TENSORS}
    shown = f"{peak / 2**20:.0f} MiB at the peak, {tensors:.2f} float32 tensors batch x boxes x points"
    print(f"task_aligned, {BOXES:>4} boxes: {shown} (at most {TENSORS}){_verdict(memory)}")
    assigners, scene = {name: build_assigner(cfg) for name, cfg in configs.items()}, make_scene(BOXES, device)
    times = {name: [] for name in NAMES}
    for _, name in itertools.product(range(args.repeats + 1), NAMES):
        times[name].append(call_time(assigners[name], scene, device))
    fastest = {name: min(values[1:]) for name, values in times.items()}
    for name, seconds in fastest.items():
        ratio = seconds / fastest["task_aligned"]
        print(f"{name:>12}, {BOXES:>4} boxes: {1000 * seconds:8.1f} ms, {ratio:.2f} of task_aligned")
    growth = measure_growth(default, device, args.repeats)
    for row in growth:
        (few, many), (short, long) = row["boxes"], (1000 * seconds for seconds in row["seconds"])
        times = f"{few:>4} -> {many:>4} boxes: {short:8.1f} -> {long:8.1f} ms, x {row['ratio']:.2f}"
        print(f"task_aligned, {times} (at most x {row['limit']:.2f}){_verdict(row)}")
    OUT.parent.mkdir(exist_ok=True)
    about = {"device": str(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    found = {**about, "memory": memory, "seconds": fastest, "growth": growth}
    OUT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"results: {OUT}")
    return OK if all(row["met"] for row in (memory, *growth)) else OUR_FAULT


def _verdict(row: dict) -> str:
    return "" if row["met"] else "  missed"


if __name__ == "__main__":
    raise SystemExit(main())
