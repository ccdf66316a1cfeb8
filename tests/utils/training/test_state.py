"""One step of the optimiser: taken, skipped, or skipped and bad; and the way into a checkpoint and back."""

import copy

import pytest
import torch
from torch import Tensor, nn

from utils.config import TrainConfig
from utils.training import state as module
from utils.training.state import TrainState, Update, start_state

CPU = torch.device("cpu")
OPTIMISERS = ({"optimizer": "AdamW"}, {"optimizer": "SGD"}, {"optimizer": "SGD", "momentum": 0.0})
KEPT = ("model", "ema", "ema_updates", "optimizer")


def make(scale: float | None = None, **settings) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = start_state(model, TrainConfig(**settings), 1_000, CPU, micro_batch=8)
    if scale is not None:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return state


def step(state: TrainState, number: int, *, sound: bool | None = True, factor: float = 1.0) -> Update:
    """Forward, backward and update; the gradient of the weights times ``factor``."""
    state.statistics.keep()
    images = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(number))
    state.scaler.scale(state.model(images).square().mean()).backward()
    state.model[0].weight.grad *= factor
    return state.update(lr=0.1, clip_norm=1.0, sound=None if sound is None else torch.tensor(sound))


def parts(state: TrainState) -> dict:
    content = state.to_plain()
    for group in content["optimizer"]["param_groups"]:
        group.pop("lr")
    return copy.deepcopy({key: content[key] for key in KEPT})


def flatten(value) -> list[Tensor]:
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in flatten(item)]
    if isinstance(value, list):
        return [tensor for item in value for tensor in flatten(item)]
    return [value] if isinstance(value, Tensor) else []


def same(one, other) -> bool:
    first, second = flatten(one), flatten(other)
    return len(first) == len(second) and all(map(torch.equal, first, second))


# taken


def test_a_step_by_hand():
    # SGD without momentum or decay, gradient 3, 4: norm 5, clipped to 1, so 0.6, 0.8; lr 0.5.
    layer = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(layer.weight)
    cfg = TrainConfig(optimizer="SGD", momentum=0.0, weight_decay=0.0)
    state = start_state(layer, cfg, 1_000, CPU)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    update = state.update(lr=0.5, clip_norm=1.0)
    assert update.norm.item() == pytest.approx(5)
    assert layer.weight.tolist()[0] == pytest.approx([-0.3, -0.4], rel=1e-5)
    assert state.ema.model.weight.tolist()[0] == pytest.approx([-0.3 * 9 / 11, -0.4 * 9 / 11], rel=1e-5)
    assert (update.taken, update.bad, state.ema.updates) == (True, False, 1)
    assert layer.weight.grad is None and {group["lr"] for group in state.optimizer.param_groups} == {0.5}


# skipped


@pytest.mark.parametrize("settings", OPTIMISERS)
@pytest.mark.parametrize("skipped", [0, 1, 2])
@pytest.mark.parametrize(
    ("sound", "factor"), [(True, torch.nan), (None, torch.nan), (True, torch.inf), (False, 1.0)]
)
def test_a_bad_step_leaves_no_trace(settings, skipped, sound, factor):
    """Not in weights, moments, statistics or average, wherever it stands; the next ones are the same."""
    state, plain = make(**settings), make(**settings)
    for number in range(4):
        if number == skipped:
            before = parts(state) if number else None
            update = step(state, number, sound=sound, factor=factor)
            assert (update.taken, update.bad) == (False, True)
            assert before is None or same(parts(state), before)
            assert all(parameter.grad is None for parameter in state.model.parameters())
            continue
        assert step(state, number).taken and step(plain, number).taken
    assert same(parts(state), parts(plain))
    assert state.ema.updates == 3


def test_statistics_that_are_not_finite_go_too():
    state = make()
    state.statistics.keep()
    state.model(torch.full((2, 3, 4, 4), torch.nan)).mean().backward()
    assert state.model[1].running_var.isnan().any()
    assert state.update(lr=0.1, clip_norm=1.0).bad
    assert state.model[1].running_var.tolist() == [1] * 4 and state.model[1].num_batches_tracked == 0


def test_all_ranks_skip_together(monkeypatch):
    """Where the loss of another rank alone was not finite."""
    state = make()
    before = parts(state)
    monkeypatch.setattr(module.distributed, "global_sum", lambda flags: flags + torch.tensor([1.0, 1.0]))
    update = step(state, 0)
    assert (update.taken, update.bad) == (False, True)
    assert all(same(parts(state)[key], before[key]) for key in ("model", "ema", "ema_updates"))


def test_two_ranks_that_skip_are_one_skip(monkeypatch):
    """The sum of their flags is 2, and optimisers know 0 and 1 only."""
    state = make(optimizer="SGD")
    before = parts(state)
    monkeypatch.setattr(module.distributed, "global_sum", lambda flags: 2 * flags)
    assert not step(state, 0, factor=torch.nan).taken
    assert same(parts(state), before)


# half precision


def test_the_scaler_is_asked_as_pytorch_does():
    """Without faults, the course of ``GradScaler.step``: the same weights, the same scale."""
    state, plain = make(scale=64.0, weight_decay=0.0), make(weight_decay=0.0)
    for number in range(3):
        assert step(state, number).norm.item() == pytest.approx(step(plain, number).norm.item(), rel=1e-6)
    for mine, theirs in zip(flatten(parts(state)), flatten(parts(plain)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-7)
    assert state.scaler.get_scale() == 64


@pytest.mark.parametrize(
    ("scale", "sound", "bad"),
    [
        (64.0, True, False),
        (2.0, None, False),
        (2.0, True, False),
        (1.0, True, True),
        (1.0, None, True),
        (0.5, True, True),
        (64.0, False, True),
    ],
)
def test_which_overflows_are_bad(scale, sound, bad):
    """Those that a smaller scale does not mend: with a scale of at most 1, or in the losses themselves."""
    state = make(scale=scale)
    step(state, 0, factor=0.0)  # makes the optimiser's state
    before = parts(state)
    update = step(state, 1, sound=sound, factor=torch.inf)
    assert (update.taken, update.bad) == (False, bad)
    assert state.scaler.get_scale() == scale / 2
    after = parts(state)
    assert all(same(after[key], before[key]) for key in ("optimizer", "ema_updates"))
    assert torch.equal(after["model"]["0.weight"], before["model"]["0.weight"])
    moved = not torch.equal(after["model"]["1.running_mean"], before["model"]["1.running_mean"])
    assert moved == (not bad)  # the pictures were sound, so their statistics count
    assert step(state, 2).taken


def test_losses_that_are_not_finite_are_skipped_where_gradients_are():
    state = make(scale=64.0)
    step(state, 0)
    before = parts(state)
    update = step(state, 1, sound=False)
    assert (update.taken, update.bad) == (False, True) and same(parts(state), before)


# into a checkpoint and back


@pytest.mark.parametrize("settings", OPTIMISERS)
@pytest.mark.parametrize("scale", [None, 64.0])
def test_a_restored_state_goes_on_as_the_first(settings, scale):
    state, resumed = make(scale, **settings), make(scale, **settings)
    for number in range(3):
        step(state, number, factor=torch.nan if number == 1 else 1.0)
    state.epoch, state.batch, state.step, state.best = 2, 1, 9, {"AP": 0.5, "epoch": 1}
    resumed.restore(copy.deepcopy(state.to_plain()))
    for number in range(3, 6):
        one, other = (step(s, number, factor=torch.inf if number == 4 else 1.0) for s in (state, resumed))
        assert all(map(torch.equal, one, other)) or one.norm.isnan()
    assert same(state.to_plain(), resumed.to_plain())
    assert (resumed.epoch, resumed.batch, resumed.step, resumed.best) == (2, 1, 9, {"AP": 0.5, "epoch": 1})
    assert resumed.scaler.state_dict() == state.scaler.state_dict()


def test_what_is_restored_can_be_taken_back():
    """The buffers of a restored model are still those that are kept before each step."""
    state = make()
    step(state, 0)
    resumed = make()
    resumed.restore(state.to_plain())
    before = parts(resumed)
    step(resumed, 1, sound=False)
    assert same(parts(resumed), before)


def test_precision_may_differ_from_that_of_the_checkpoint():
    half, full = make(scale=64.0), make()
    half.restore(full.to_plain())
    assert half.scaler.get_scale() == 64
    full.restore(make(scale=8.0).to_plain())
    assert not full.scaler.is_enabled()


@pytest.mark.parametrize(("asked", "saved", "used"), [(8, 4, 4), (4, 8, 4), (8, 8, 8)])
def test_parts_never_grow_on_the_way(asked, saved, used):
    state, before = make(), make()
    state.micro_batch, before.micro_batch = asked, saved
    state.restore(before.to_plain())
    assert state.micro_batch == used


@pytest.mark.parametrize(
    ("saved", "restored"),
    [
        ({"AP": -1.0, "epoch": 1}, {"AP": -1.0, "epoch": -1}),  # older: COCO's -1 as the best
        ({"AP": 0.0, "epoch": 3}, {"AP": 0.0, "epoch": 3}),  # a number
    ],
)
def test_nothing_to_measure_is_no_best_ap(saved, restored):
    state = make()
    state.restore(make().to_plain() | {"best": saved})
    assert state.best == restored


# the end


@pytest.mark.parametrize(
    ("epoch", "best", "settings", "over"),
    [
        (5, 3, {"epochs": 10, "patience": 2}, True),
        (4, 3, {"epochs": 10, "patience": 2}, False),
        (9, 1, {"epochs": 10, "patience": 0}, False),  # never
        (10, 10, {"epochs": 10, "patience": 2}, True),
        (5, 3, {"epochs": 10, "patience": 2, "val_every": 3}, False),  # no validation since
        (6, 3, {"epochs": 10, "patience": 2, "val_every": 3}, True),
        (5, -1, {"epochs": 10, "patience": 2}, False),  # nothing validated
        (0, -1, {"epochs": 10, "patience": 1}, False),
    ],
)
def test_when_it_is_over(epoch, best, settings, over):
    state = make()
    state.epoch, state.best = epoch, {"AP": 0.1, "epoch": best}
    assert state.is_over(TrainConfig(**settings)) is over
