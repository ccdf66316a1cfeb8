"""Pictures of what a training is about to see."""

from pathlib import Path

import numpy as np

from data.augment.show_plan import show_plan
from data.dataset import unpad
from data.run_data import Data
from utils.plots.curves import plot_labels
from utils.plots.grid import save_grid


def draw_training_data(folder: Path, data: Data) -> None:
    """labels.jpg, all boxes of the training pictures, and train_batch0.jpg, the first batch."""
    index, names = data.index, data.spec.names
    sizes = np.repeat(index.sizes, np.diff(index.offsets), axis=0)
    plot_labels(folder / "labels.jpg", labels=index.labels, boxes=index.boxes, sizes=sizes, names=names)
    batch = data.train.first_batch()
    save_grid(folder / "train_batch0.jpg", batch.images, *unpad(batch.truth), names=names)


def draw_plans(folder: Path, data: Data, count: int) -> None:
    """The first ``count`` augmented pictures of the first epoch, annotated with what was done to them."""
    shown = data.train.dataset
    options = {"epoch": 0, "count": count, "names": data.spec.names}
    show_plan(folder, shown.planner, shown.index, shown.pictures, **options)
    print(f"the first {count} training pictures and how they were made: {folder}")
