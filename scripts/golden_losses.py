"""Record the losses of 20 fixed training steps: ``python -m scripts.golden_losses``.

A change that keeps the mathematics keeps these numbers; record them anew only for a change meant to alter
them, and say so in its commit.
"""

import json
import tempfile
from pathlib import Path

import torch

from data.index import load_split
from data.loader import make_train_loader
from data.shapes import make_shapes
from data.spec import load_data_spec
from models.detector import build_detector
from utils.assigners.build import build_assigner
from utils.config_files import load_config
from utils.losses.compute import compute_loss
from utils.training.reproducibility import seed_everything
from utils.training.state import start_state

PATH = Path(__file__).parents[1] / "tests" / "golden" / "losses.json"
STEPS = 20


def golden_losses(steps: int = STEPS) -> list[dict[str, float]]:
    """The three terms at each step: the demo model on augmented generated pictures, float32, seed 0.

    By SGD: Adam's first steps are the signs of the gradients, which turns the last bit of a sum, and so the
    number of threads, into another course.
    """
    sets = ("data.imgsz=128", "train.batch_size=8", "data.workers=0", "train.optimizer=SGD")
    cfg = load_config(cfg="demo", sets=sets).config
    seed_everything(cfg.train.seed)
    with tempfile.TemporaryDirectory() as folder:
        make_shapes(Path(folder) / "shapes", num_train=32, num_val=1, sides=(96, 160))
        spec = load_data_spec(Path(folder) / "shapes" / "data.yaml")
        loader = make_train_loader(load_split(spec, "train")[0], cfg, pin=False)
        model = build_detector(cfg.model, len(spec.names)).to(memory_format=torch.channels_last)
        state = start_state(model, cfg.train, steps, torch.device("cpu"))
        assign = build_assigner(cfg)
        rows = []
        while len(rows) < steps:
            loader.set_epoch(len(rows) // len(loader), mosaic=True)
            for batch in loader:
                loss = compute_loss(model(batch.images), batch.truth, assign, cfg.loss)
                loss.total.backward()
                state.update(lr=5e-3, clip_norm=cfg.train.clip_norm)
                rows.append({name: term.item() for name, term in loss.terms.items()})
    return rows[:steps]


def main() -> None:
    """Command line."""
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(
        json.dumps({"torch": torch.__version__, "losses": golden_losses()}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"written: {PATH}")


if __name__ == "__main__":
    main()
