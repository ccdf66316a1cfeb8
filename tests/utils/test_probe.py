"""Trying batch sizes: each trial is a real one, of a training of its own, with everything a step can hold."""

from types import SimpleNamespace

import pytest
import torch

from models.detector import build_detector
from tests.utils.test_step import CPU, config, make_batch
from utils import probe
from utils.errors import UserError
from utils.losses import anatomy
from utils.probe import find_batch_size, try_out
from utils.training.state import TrainState, start_state


def build(cfg) -> TrainState:
    torch.manual_seed(0)
    return start_state(build_detector(cfg.model, 2), cfg.train, 100, CPU)


@pytest.fixture
def gpu(monkeypatch):
    """A memory of 1,000 bytes, of which a trial of n pictures takes 100 + 30 n; ``real``: run the trials."""
    found = SimpleNamespace(total=1000, sizes=[], states=[], real=True)

    def peak_of(trial, device):
        assert device == CPU
        if 100 + 30 * found.sizes[-1] > found.total:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if found.real:
            trial()
        return 100 + 30 * found.sizes[-1]

    monkeypatch.setattr(probe, "peak_of", peak_of)
    monkeypatch.setattr(probe, "usable_memory", lambda device: found.total)
    return found


def find(gpu, cfg, most: int = 10**6) -> int:
    def remember() -> TrainState:
        gpu.states.append(build(cfg))
        return gpu.states[-1]

    def dense(size: int):
        gpu.sizes.append(size)
        return make_batch(0, size)

    return find_batch_size(cfg, remember, dense, device=CPU, most=most)


def test_the_largest_that_fits(gpu):
    """88 % of 1,000 are 880 bytes: 26 pictures, and 26 is even."""
    gpu.real = False
    assert find(gpu, config()) == 26 and gpu.sizes[:3] == [1, 2, 4]
    assert len(set(map(id, gpu.states))) == len(gpu.sizes)  # nothing is left over from one to the next
    assert [state.micro_batch for state in gpu.states] == gpu.sizes  # in one part


def test_no_more_than_the_most(gpu):
    gpu.real, gpu.total = False, 10**9
    assert find(gpu, config(), most=12) == 12


def test_not_even_one(gpu):
    gpu.total = 50
    with pytest.raises(UserError, match="not even one picture"):
        find(gpu, config())


def test_a_trial_trains_and_validates(gpu):
    gpu.total = 250
    assert find(gpu, config()) == 4
    for state in gpu.states[:3]:
        assert state.optimizer.state and state.ema.updates == 2
        assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.parametrize(("asked", "validated"), [(None, 3), (2, 2), (8, 3)])
def test_what_runs_in_a_trial(monkeypatch, asked, validated):
    """Two training steps in one part, the second with the optimiser's state there; one of validation."""
    cfg = config() if asked is None else config(f"val.batch_size={asked}")
    state, seen = build(cfg), []
    state.micro_batch = 3
    looked = []
    monkeypatch.setattr(anatomy, "gradient_norm", lambda value, _: looked.append(value) or value.detach())
    for model in (state.model, state.ema.model):
        model.register_forward_hook(
            lambda model, images, _: seen.append((model.training, len(images[0]), torch.is_grad_enabled()))
        )
    try_out(state, make_batch(0, 3), cfg)
    assert seen == [(True, 3, True), (True, 3, True), (False, validated, False)]
    assert len(looked) >= 3  # the gradients of the loss anatomy, which keep the graph


def test_weights_are_not_moved_by_trials():
    """The learning rate is 0, so a trial cannot diverge."""
    cfg = config("train.weight_decay=0")
    state, untouched = build(cfg), build(cfg)
    try_out(state, make_batch(0, 3)._replace(), cfg)
    for mine, theirs in zip(state.model.parameters(), untouched.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
