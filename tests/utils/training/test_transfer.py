"""Starting from earlier weights: what fits is taken, the classes only where they are the same."""

import math

import pytest
import torch

from models.detector import Detector, build_detector
from utils.config import ModelConfig, config_to_plain
from utils.config_files import load_config
from utils.errors import UserError
from utils.training.checkpoint import save_checkpoint
from utils.training.transfer import load_tensors, load_weights

DEMO = load_config(cfg="demo").config
CATS = ("cat", "dog", "bird")


def detector(seed: int, classes: int = 3, cfg: ModelConfig = DEMO.model) -> Detector:
    torch.manual_seed(seed)
    return build_detector(cfg, classes)


@pytest.fixture
def weights(tmp_path):
    """A checkpoint of three classes whose every floating tensor differs from a fresh model's."""
    model = detector(1)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.25)
    path = tmp_path / "best.pt"
    ema = model.state_dict()
    save_checkpoint(path, {"ema": ema, "config": config_to_plain(DEMO), "names": list(CATS)})
    return path, {name: tensor.clone() for name, tensor in ema.items()}


def loaded(model: Detector, tensors: dict) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if torch.equal(tensor, tensors[name])}


def test_the_same_classes_take_everything(weights):
    path, tensors = weights
    model = detector(2)
    table = load_weights(model, path, CATS)
    assert loaded(model, tensors) == set(tensors)
    total = len(tensors)
    lines = table.splitlines()
    assert lines[0] == f"{path}: {total} of {total} tensors loaded, 0 start anew"
    parts = [line.split() for line in lines[1:]]
    assert [part for part, *_ in parts][:2] == ["backbone", "neck"]
    assert sum(int(part[1]) for part in parts) == total and all(part[3] == "0" for part in parts)


@pytest.mark.parametrize(
    "names", [("cat", "dog", "fish"), ("dog", "cat", "bird"), ("cat", "dog"), ("cat", "dog", "bird", "fish")]
)
def test_other_classes_start_anew_with_their_prior(weights, names):
    path, tensors = weights
    model = detector(2, len(names))
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = load_weights(model, path, names)
    anew = {name for name in fresh if name.startswith("head.cls_outputs.")}
    assert len(anew) == 6  # weight and bias at three levels
    found = model.state_dict()
    for name, tensor in found.items():
        assert torch.equal(tensor, fresh[name] if name in anew else tensors[name])
    for layer in model.head.cls_outputs:
        assert layer.bias.tolist() == pytest.approx([-math.log(99)] * len(names))
    assert f"{len(tensors) - 6} of {len(tensors)} tensors loaded, 6 start anew" in table
    assert all(name in table for name in anew)


def test_another_architecture_takes_what_fits_and_says_what_not(weights):
    path, tensors = weights
    wider = load_config(cfg="demo", sets=["model.width=0.25"]).config.model
    model = detector(2, cfg=wider)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = load_weights(model, path, CATS)
    taken = 0
    for name, tensor in model.state_dict().items():
        fits = name in tensors and tensors[name].shape == tensor.shape
        assert torch.equal(tensor, tensors[name] if fits else fresh[name])
        taken += fits
    total = len(fresh)
    assert 0 < taken < total
    lines = table.splitlines()
    assert lines[0] == f"{path}: {taken} of {total} tensors loaded, {total - taken} start anew"
    stem = "backbone.stem.conv.weight"
    there, here = tuple(tensors[stem].shape), tuple(fresh[stem].shape)
    assert any(stem in line and f"shape {there} there, {here} here" in line for line in lines)
    assert f"  ... and {total - taken - 12} more" in lines
    assert sum("  anew: " in line for line in lines) == 12


def test_weights_of_which_nothing_fits_are_refused(weights, tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1))
    with pytest.raises(UserError, match="not one of its tensors fits"):
        load_weights(model, weights[0], CATS)


def test_a_deeper_model_has_new_tensors(weights):
    path, _ = weights
    deeper = load_config(cfg="demo", sets=["model.depth=1.0"]).config.model
    assert "new: not in the weights" in load_weights(detector(2, cfg=deeper), path, CATS)


def test_the_model_keeps_training_after_a_transfer(weights):
    model = detector(2)
    load_weights(model, weights[0], CATS)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


def test_foreign_weights_are_refused_before_the_model_is_touched(tmp_path):
    path, model = tmp_path / "x.pt", detector(2)
    path.write_bytes(b"no weights")
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(model, path, CATS)
    assert loaded(model, fresh) == set(fresh)


def test_load_tensors_by_hand():
    model = torch.nn.Linear(2, 1)
    skipped = load_tensors(
        model, {"weight": torch.full((1, 2), 7.0), "bias": torch.zeros(3), "more": torch.zeros(1)}
    )
    assert model.weight.tolist() == [[7, 7]]
    assert skipped == [("bias", "shape (3,) there, (1,) here")]
    assert load_tensors(model, {})[1] == ("bias", "new: not in the weights, or of other classes")
