"""Seeds. Data draws its own numbers from counters (``data.augment.plan``); this is for initial weights."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on all devices."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries may draw from it
    torch.manual_seed(seed)
