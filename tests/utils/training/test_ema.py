"""The average of the weights: neither the initial nor the last ones, on short and on long runs."""

import pytest
import torch
from torch import nn

from utils.training.ema import EMA


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def mean_age(steps: int) -> float:
    """Mean age, in steps, of what the average holds after ``steps``; the initial weights are of step 0."""
    ema, age = EMA(nn.Identity(), steps=steps), 0.0
    for update in range(1, steps + 1):
        age = ema.decay_at(update) * (age + 1)
    return age


@pytest.mark.parametrize("steps", [1, 20, 100, 1_000, 10_000, 100_000])
def test_mean_age_is_a_small_share_of_the_run(steps):
    assert mean_age(steps) <= 0.06 * steps


@pytest.mark.parametrize("steps", [1_000, 10_000, 100_000])
def test_long_runs_average_over_many_steps(steps):
    assert mean_age(steps) >= 0.04 * steps


def test_decay_by_hand():
    # 1,000 steps: the limit is 1 - 1 / 50 = 0.98; before it (1 + t) / (10 + t): 2 / 11, 3 / 12, ..., 11 / 20.
    ema = EMA(nn.Identity(), steps=1_000)
    assert [ema.decay_at(t) for t in (1, 2, 10)] == pytest.approx([2 / 11, 0.25, 0.55])
    assert ema.decay_at(1_000) == pytest.approx(0.98)
    assert EMA(nn.Identity(), steps=10**7).decay_at(10**7) == pytest.approx(0.9998)
    assert EMA(nn.Identity(), steps=10).decay_at(10) == 0  # so short: the last weights alone
    assert EMA(nn.Identity(), steps=10**7, decay=0.9).decay_at(10**7) == pytest.approx(0.9)
    assert EMA(nn.Identity(), steps=1_000, share=0.1).decay_at(10**6) == pytest.approx(0.99)


def test_average_by_hand():
    # Weights 1, 2, 3, ... and decays 2 / 11, 3 / 12, 4 / 13 from 0: 9 / 11; 0.25 * 9 / 11 + 0.75 * 2; ...
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema, expected = EMA(model, steps=10_000), 0.0
    for update in range(1, 30):
        nn.init.constant_(model.weight, float(update))
        ema.update(model)
        decay = (1 + update) / (10 + update)
        expected = decay * expected + (1 - decay) * update
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert ema.updates == 29


def test_floating_buffers_are_averaged_and_integers_copied():
    model = tiny()
    ema = EMA(model, steps=10_000)
    model[1].running_mean.fill_(11.0)
    model[1].num_batches_tracked.fill_(7)
    ema.update(model)  # decay 2 / 11 from 0: 9 / 11 of 11
    assert ema.model[1].running_mean.tolist() == pytest.approx([9.0] * 4)
    assert ema.model[1].num_batches_tracked == 7
    assert ema.model[1].num_batches_tracked.dtype == torch.int64


def test_average_of_constant_weights_is_constant():
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema = EMA(model, steps=50)
    for _ in range(50):
        ema.update(model)
    for name, tensor in ema.model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(model.state_dict()[name], before[name])


def test_the_average_shares_nothing_with_the_model():
    model = tiny()
    ema, before = EMA(model, steps=100), model[0].weight.clone()
    nn.init.zeros_(model[0].weight)
    assert torch.equal(ema.model[0].weight, before)
    assert not ema.model.training and model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_channels_last_models_are_averaged():
    model = tiny().to(memory_format=torch.channels_last)
    ema = EMA(model, steps=10_000)
    nn.init.constant_(model[0].weight, 11.0)
    nn.init.zeros_(ema.model[0].weight)
    ema.update(model)
    assert torch.allclose(ema.model[0].weight, torch.full((4, 3, 1, 1), 9.0))
