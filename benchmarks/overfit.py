"""Can the detector learn eight pictures by heart?  ``python -m benchmarks.overfit``

One batch of 8 generated pictures whose boxes are at least 24 px, the demo model, no augmentation, at most 300
steps: AP >= 0.90 and AP50 >= 0.99 on the same pictures. What cannot pass this has a fault, not a shortage of
data.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data.dataset import Batch, ValSet
from data.index import Index, load_split
from data.letterbox import restore
from data.pictures import DecodedPictures
from data.shapes import make_shapes
from data.spec import load_data_spec
from models.detector import build_detector
from utils.assigners.build import build_assigner
from utils.config_files import load_config
from utils.errors import OUR_FAULT
from utils.losses.compute import compute_loss
from utils.metrics.coco import evaluate_detections, make_ground_truth, pack_detections
from utils.postprocess import postprocess
from utils.training.reproducibility import seed_everything
from utils.training.schedule import lr_factor
from utils.training.state import start_state

OUT = Path(__file__).parent / "out" / "overfit.json"
NUM_PICTURES, SMALLEST, SIDE, LR = 8, 24, 320, 2e-3
AP, AP50 = 0.90, 0.99


def pick_pictures(folder: Path) -> tuple[Index, tuple[str, ...], list[int]]:
    """The first 8 generated pictures that hold boxes, none of them below 24 px in the letterboxed input."""
    make_shapes(folder, num_train=200, num_val=1)
    spec = load_data_spec(folder / "data.yaml")
    index, _ = load_split(spec, "train")
    sides = (index.boxes[:, 2:] - index.boxes[:, :2]).min(1)
    scale = SIDE / index.sizes.max(1)
    fits = [
        bool(b > a and (sides[a:b] * scale[i]).min() >= SMALLEST)
        for i, (a, b) in enumerate(zip(index.offsets[:-1], index.offsets[1:], strict=True))
    ]
    return index, spec.names, np.flatnonzero(fits)[:NUM_PICTURES].tolist()


def learn(batch: Batch, num_classes: int, steps: int) -> torch.nn.Module:
    """The averaged model after ``steps`` steps on one batch."""
    cfg = load_config(cfg="demo", sets=(f"train.lr={LR}", "train.amp=off")).config
    model = build_detector(cfg.model, num_classes).to(memory_format=torch.channels_last)
    state = start_state(model, cfg.train, steps, torch.device("cpu"))
    assign = build_assigner(cfg)
    for step in range(steps):
        compute_loss(model(batch.images), batch.truth, assign, cfg.loss).total.backward()
        factor = lr_factor(step, steps, steps // 10, cfg.train)
        state.update(lr=cfg.train.lr * factor, clip_norm=cfg.train.clip_norm)
    return state.ema.model


def overfit(steps: int = 300) -> dict[str, float]:
    """COCO metrics on the eight pictures after learning them."""
    seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        index, names, chosen = pick_pictures(Path(folder) / "shapes")
        pictures = DecodedPictures(index, index.sizes, keep=0)
        batch = ValSet(index, pictures, (SIDE, SIDE))[[(number, (SIDE, SIDE)) for number in chosen]]
    model, ids = learn(batch, len(names), steps), range(1, len(names) + 1)
    with torch.inference_mode():
        found = postprocess(model(batch.images), conf=0.001, iou=0.65, max_det=300)
    rows = [
        pack_detections(restore(detections, letterbox), int(index.picture_ids[number]), ids)
        for number, detections, letterbox in zip(chosen, found, batch.letterboxes, strict=True)
    ]
    keep = np.isin(np.repeat(np.arange(len(index.sizes)), np.diff(index.offsets)), chosen)
    truth = make_ground_truth(
        picture_ids=index.picture_ids[chosen],
        sizes=index.sizes[chosen],
        offsets=np.concatenate(([0], np.cumsum(np.diff(index.offsets)[chosen]))),
        boxes=index.boxes[keep],
        labels=index.labels[keep],
        ignore=index.ignore[keep],
        areas=index.areas[keep],
        category_ids=ids,
        names=names,
    )
    return evaluate_detections(truth, np.concatenate(rows)).values


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="default %(default)s")
    args = parser.parse_args()
    start = time.perf_counter()
    values = overfit(args.steps)
    met = values["AP"] >= AP and values["AP50"] >= AP50
    seconds = time.perf_counter() - start
    print(
        f"{args.steps} steps, {seconds:.0f} s: AP {values['AP']:.3f} (at least {AP}), "
        f"AP50 {values['AP50']:.3f} (at least {AP50}){'' if met else '  missed'}"
    )
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(
        json.dumps({"steps": args.steps, "seconds": seconds, "met": met, **values}, indent=2) + "\n",
        encoding="utf-8",
    )
    return 0 if met else OUR_FAULT


if __name__ == "__main__":
    raise SystemExit(main())
