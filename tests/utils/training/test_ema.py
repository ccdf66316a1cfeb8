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
    for decay in ema.decay_at(torch.arange(1, steps + 1)).tolist():
        age = decay * (age + 1)
    return age


def decay_at(update: int, **settings) -> float:
    return EMA(nn.Identity(), **settings).decay_at(torch.tensor(update)).item()


@pytest.mark.parametrize("steps", [1, 20, 100, 1_000, 10_000, 100_000])
def test_mean_age_is_a_small_share_of_the_run(steps):
    assert mean_age(steps) <= 0.06 * steps


@pytest.mark.parametrize("steps", [1_000, 10_000, 100_000])
def test_long_runs_average_over_many_steps(steps):
    assert mean_age(steps) >= 0.04 * steps


def test_decay_by_hand():
    # 1,000 steps: the limit is 1 - 1 / 50 = 0.98; before it (1 + t) / (10 + t): 2 / 11, 3 / 12, ..., 11 / 20.
    assert [decay_at(t, steps=1_000) for t in (1, 2, 10)] == pytest.approx([2 / 11, 0.25, 0.55])
    assert decay_at(1_000, steps=1_000) == pytest.approx(0.98)
    assert decay_at(10**7, steps=10**7) == pytest.approx(0.9998)
    assert decay_at(10, steps=10) == 0  # so short: the last weights alone
    assert decay_at(10**7, steps=10**7, decay=0.9) == pytest.approx(0.9)
    assert decay_at(10**6, steps=1_000, share=0.1) == pytest.approx(0.99)


def test_average_by_hand():
    # Weights 1, 2, 3, ... and decays 2 / 11, 3 / 12, 4 / 13 from 0: 9 / 11; 0.25 * 9 / 11 + 0.75 * 2; ...
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema, expected = EMA(model, steps=10_000), 0.0
    for update in range(1, 30):
        nn.init.constant_(model.weight, float(update))
        ema.update()
        decay = (1 + update) / (10 + update)
        expected = decay * expected + (1 - decay) * update
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-5)
    assert ema.updates == 29


def test_floating_buffers_are_averaged_and_integers_copied():
    model = tiny()
    ema = EMA(model, steps=10_000)
    model[1].running_mean.fill_(11.0)
    model[1].num_batches_tracked.fill_(7)
    ema.update()  # decay 2 / 11 from 0: 9 / 11 of 11
    assert ema.model[1].running_mean.tolist() == pytest.approx([9.0] * 4)
    assert ema.model[1].num_batches_tracked == 7
    assert ema.model[1].num_batches_tracked.dtype == torch.int64


def test_average_of_constant_weights_is_constant():
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema = EMA(model, steps=50)
    for _ in range(50):
        ema.update()
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
    ema.update()
    assert torch.allclose(ema.model[0].weight, torch.full((4, 3, 1, 1), 9.0))


def test_a_step_that_was_not_taken_changes_nothing():
    """Between steps that were: as if it had not been, to the bit."""
    model = tiny()
    skipping, plain = EMA(model, steps=1_000), EMA(model, steps=1_000)
    for number, taken in enumerate((True, False, True)):
        nn.init.constant_(model[0].weight, 0.1 * number + 0.1)
        model[1].running_var.fill_(1e30)
        model[1].num_batches_tracked.fill_(number)
        before = {name: tensor.clone() for name, tensor in skipping.model.state_dict().items()}
        skipping.update(torch.tensor(taken))
        if taken:
            plain.update()
            continue
        for name, tensor in skipping.model.state_dict().items():
            assert torch.equal(tensor, before[name]) or not tensor.is_floating_point(), name
    assert skipping.updates == plain.updates == 2
    for mine, theirs in zip(
        skipping.model.state_dict().values(), plain.model.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_weights_that_are_loaded_are_seen():
    """The tensors stay, also where normalisations become others of a run of several GPUs."""
    model, other = tiny(), tiny()
    ema = EMA(model, steps=10)  # so short: the last weights alone
    nn.init.constant_(other[0].weight, 3.0)
    other[1].running_mean.fill_(4.0)
    model.load_state_dict(other.state_dict())
    ema.update()
    assert (ema.model[0].weight == 3).all() and (ema.model[1].running_mean == 4).all()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    converted[1].weight.data.fill_(5.0)
    converted[1].running_mean.fill_(6.0)
    ema.update()
    assert (ema.model[1].weight == 5).all() and (ema.model[1].running_mean == 6).all()
