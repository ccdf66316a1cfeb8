"""Which weights train, which decay, and which normalisations stay still."""

import pytest
import torch
from torch import nn

from models.detector import Detector, build_detector
from utils.config import TrainConfig
from utils.config_files import load_config
from utils.errors import USAGE, UserError
from utils.training.optimizer import build_optimizer, freeze, frozen_norms

NUM_PARTS = 6  # stem, four stages, neck


@pytest.fixture
def model() -> Detector:
    torch.manual_seed(0)
    return build_detector(load_config(cfg="demo").config.model, 2)


def parts(model: Detector) -> list[nn.Module]:
    return [model.backbone.stem, *model.backbone.stages, model.neck, model.head]


def frozen_parts(model: Detector) -> list[bool]:
    """For each part whether it is frozen; no part is so in half."""
    found = [{not parameter.requires_grad for parameter in part.parameters()} for part in parts(model)]
    assert all(len(states) == 1 for states in found)
    return [states.pop() for states in found]


# freezing


@pytest.mark.parametrize(
    ("what", "count"), [(0, 0), (1, 1), (3, 3), (5, 5), (6, 6), ("backbone", 5), ("neck", 6)]
)
def test_freeze(model, what, count):
    tensors = freeze(model, what)
    assert frozen_parts(model) == [True] * count + [False] * (NUM_PARTS + 1 - count)
    assert tensors == sum(not parameter.requires_grad for parameter in model.parameters())
    assert (tensors > 0) == (count > 0)


@pytest.mark.parametrize("what", [7, 10, 1000])
def test_too_many_parts(model, what):
    with pytest.raises(UserError, match=f"--freeze {what}.* 6 parts.*0 to 6") as error:
        freeze(model, what)
    assert error.value.code == USAGE
    assert not any(frozen_parts(model))


def batch_norms(module: nn.Module) -> set[nn.Module]:
    return {child for child in module.modules() if isinstance(child, nn.BatchNorm2d)}


def test_frozen_norms_are_those_of_the_frozen_parts(model):
    assert frozen_norms(model) == []
    freeze(model, "backbone")
    assert set(frozen_norms(model)) == batch_norms(model.backbone)
    assert len(frozen_norms(model)) > 5


def test_statistics_of_frozen_parts_do_not_drift(model):
    freeze(model, "backbone")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
    model.train()
    for norm in frozen_norms(model):
        norm.eval()
    model(torch.rand(2, 3, 64, 64))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, model.state_dict()[name])}
    assert changed == {name for name in before if not name.startswith("backbone.")}


def test_frozen_norms_are_found_after_conversion_to_sync_bn(model):
    freeze(model, "backbone")
    count = len(frozen_norms(model))
    assert len(frozen_norms(nn.SyncBatchNorm.convert_sync_batchnorm(model))) == count


# the optimiser


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_weight_decay_spares_one_dimensional_tensors(model, name):
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.03, lr=0.02))
    assert type(optimizer).__name__ == name
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.03 if parameter.ndim > 1 else 0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.02}
    assert {type(module) for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {
        nn.BatchNorm2d
    }


def test_every_trained_tensor_is_in_one_group(model):
    freeze(model, 2)
    optimizer = build_optimizer(model, TrainConfig())
    found = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_step_moves_what_trains_and_nothing_else(model, name):
    freeze(model, "neck")
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, TrainConfig(optimizer=name, lr=0.1))
    pred = model(torch.rand(1, 3, 64, 64))
    (pred.cls_logits.square().mean() + pred.ltrb_logits.square().mean()).backward()
    optimizer.step()
    moved = {key for key, parameter in model.named_parameters() if not torch.equal(parameter, before[key])}
    assert moved == {key for key in before if key.startswith("head.")}


def test_sgd_has_momentum():
    optimizer = build_optimizer(nn.Linear(2, 2), TrainConfig(optimizer="SGD", momentum=0.8))
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.8, True)}


def test_sgd_without_momentum():
    build_optimizer(nn.Linear(2, 2), TrainConfig(optimizer="SGD", momentum=0.0))


SETTINGS = [{"optimizer": "AdamW"}, {"optimizer": "SGD"}, {"optimizer": "SGD", "momentum": 0.0}]


def descend(layer: nn.Linear, optimizer, gradients, skipped=()) -> None:
    for number, value in enumerate(gradients):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, value)
        optimizer.found_inf = torch.tensor(float(number in skipped))
        optimizer.step()


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("skipped", [0, 1])
def test_a_step_is_skipped_where_found_inf_is_1(settings, skipped):
    """The first one too: neither weights, moments nor counters remember it."""
    cfg, gradients = TrainConfig(lr=0.1, weight_decay=0.1, **settings), [0.3, -0.2, 0.5]
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [build_optimizer(layer, cfg) for layer in layers]
    poisoned = [torch.nan if number == skipped else value for number, value in enumerate(gradients)]
    descend(layers[0], optimizers[0], poisoned, {skipped})
    descend(layers[1], optimizers[1], [value for i, value in enumerate(gradients) if i != skipped])
    for mine, theirs in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(mine, theirs)
        states = [
            optimizer.state.get(weight, {})
            for optimizer, weight in zip(optimizers, (mine, theirs), strict=True)
        ]
        assert states[0].keys() == states[1].keys()
        assert all(
            torch.equal(value, states[1][key]) for key, value in states[0].items() if value is not None
        )


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_is_pytorchs(momentum):
    """Its first step, too: a buffer of zeros is as good as none."""
    layers = [nn.Linear(3, 2), nn.Linear(3, 2)]
    layers[1].load_state_dict(layers[0].state_dict())
    ours = build_optimizer(
        layers[0], TrainConfig(optimizer="SGD", momentum=momentum, lr=0.1, weight_decay=0.0)
    )
    descend(layers[0], ours, [0.3, -0.2, 0.5])
    theirs = torch.optim.SGD(layers[1].parameters(), lr=0.1, momentum=momentum, nesterov=momentum > 0)
    for value in (0.3, -0.2, 0.5):
        for parameter in layers[1].parameters():
            parameter.grad = torch.full_like(parameter, value)
        theirs.step()
    for mine, other in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.allclose(mine, other, rtol=1e-6)


def test_frozen_weights_have_no_buffer():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(layer, TrainConfig(optimizer="SGD"))
    assert set(optimizer.state) == {layer.weight}
