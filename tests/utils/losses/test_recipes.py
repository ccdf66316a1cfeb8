"""Every file of configs/losses trains: on one batch its loss falls and its boxes come to fit."""

import pytest
import torch

from models.detector import build_detector
from utils.assigners.build import build_assigner
from utils.config_files import ROOT, load_config
from utils.losses.compute import compute_loss
from utils.structures import Targets
from utils.training.state import start_state

RECIPES = sorted(path.stem for path in ROOT.glob("configs/losses/*.yaml"))
STEPS = 40


def one_batch() -> tuple[torch.Tensor, Targets]:
    """Two pictures of 96 px: a bright box and a dark one in the first, a bright one in the second."""
    boxes = torch.tensor([[[8.0, 12, 56, 52], [60, 50, 92, 94]], [[30, 20, 80, 90], [0, 0, 1, 1]]])
    labels, valid = torch.tensor([[0, 1], [0, 0]]), torch.tensor([[True, True], [True, False]])
    images = torch.full((2, 3, 96, 96), 0.5)
    for picture, number in valid.nonzero().tolist():
        x1, y1, x2, y2 = boxes[picture, number].int().tolist()
        images[picture, :, y1:y2, x1:x2] = 1.0 if labels[picture, number] == 0 else 0.0
    return images, Targets(boxes, labels, valid, torch.zeros_like(valid))


def test_the_files_are_found():
    assert len(RECIPES) >= 15


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_learns_one_batch(recipe):
    cfg = load_config(cfg="demo", loss=recipe).config
    torch.manual_seed(0)
    model = build_detector(cfg.model, 2)
    state = start_state(model, cfg.train, STEPS, torch.device("cpu"))
    assign, (images, truth) = build_assigner(cfg), one_batch()
    fits = []  # IoU of the best positive, mean of the two pictures
    for _ in range(STEPS):
        loss = compute_loss(model(images), truth, assign, cfg.loss)
        loss.total.backward()
        update = state.update(lr=4e-3, clip_norm=10.0)
        assert update.norm.isfinite() and update.taken and not update.bad
        assert loss.match.positive.any(1).all()
        fits.append(loss.iou.amax(1).mean().item())
    fitted = sum(fits[-5:]) / 5
    assert fitted > 0.9 > 0.7 > fits[0], fits
    scores = model(images).cls_logits.sigmoid()
    assert scores[loss.match.positive].amax() > 0.3
    assert scores[~loss.match.positive].mean() < 0.1
