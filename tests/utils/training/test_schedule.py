"""The learning rate over a run: warm-up, peak, decay and end."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.config import TrainConfig
from utils.training.schedule import Rate, lr_factor, warmup_steps

DEFAULT = TrainConfig()
shapes = st.sampled_from(("cosine", "linear"))


def factors(steps: int, warmup: int, cfg: TrainConfig) -> list[float]:
    return [lr_factor(step, steps, warmup, cfg) for step in range(steps)]


def test_cosine_by_hand():
    # 101 steps without warm-up, ending at 0.05: 1 at the start, (1 + 0.05) / 2 half way, 0.05 at the end.
    found = factors(101, 0, DEFAULT)
    assert found[0] == 1
    assert found[50] == pytest.approx(0.525)
    assert found[100] == pytest.approx(0.05)
    assert found[25] == pytest.approx(0.05 + 0.95 * (1 + math.cos(math.pi / 4)) / 2)


def test_linear_by_hand():
    found = factors(101, 0, TrainConfig(schedule="linear", final_lr=0.2))
    assert [found[step] for step in (0, 25, 50, 100)] == pytest.approx([1, 0.8, 0.6, 0.2])


def test_warmup_by_hand():
    # 4 steps of warm-up: 1/5, 2/5, 3/5, 4/5 of the decayed rate, then all of it.
    found, plain = (factors(101, warmup, TrainConfig(schedule="linear", final_lr=0.0)) for warmup in (4, 0))
    assert [a / b for a, b in zip(found[:6], plain, strict=False)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0, 0.3), shapes)
@settings(max_examples=60, deadline=None)
def test_laws(steps, final, share, shape):
    cfg = TrainConfig(final_lr=final, schedule=shape)
    warmup = int(share * steps)
    found = factors(steps, warmup, cfg)
    assert all(0 <= factor <= 1 for factor in found)
    assert all(a <= b + 1e-12 for a, b in pairwise(found[:warmup]))  # rises
    assert all(a >= b - 1e-12 for a, b in pairwise(found[warmup:]))  # falls
    assert max(found) == max(found[max(0, warmup - 1) :])
    if steps > 1:
        assert found[-1] == pytest.approx(final)


def test_peak_of_the_default_recipe_is_near_the_learning_rate():
    # A tenth of the run is warm-up; the cosine has then fallen to 0.05 + 0.95 (1 + cos(0.1 pi)) / 2 = 0.977.
    found = factors(10_000, 1_000, DEFAULT)
    assert max(found) == pytest.approx(0.05 + 0.95 * (1 + math.cos(0.1 * math.pi)) / 2, abs=1e-3)
    assert found.index(max(found)) == pytest.approx(1_000, abs=1)


def test_a_step_beyond_the_end_keeps_the_final_rate():
    for shape in ("cosine", "linear"):
        assert lr_factor(150, 100, 0, TrainConfig(schedule=shape)) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("epochs", "steps", "share", "expected"),
    [
        (3.0, 0, 1.0, 300),  # three epochs of 100 steps
        (3.0, 500, 1.0, 500),  # the longer of the two
        (3.0, 500, 0.1, 200),  # at most a tenth of 2,000 steps
        (0.0, 0, 0.1, 0),
        (3.0, 500, 0.0, 0),
    ],
)
def test_warmup_steps(epochs, steps, share, expected):
    cfg = TrainConfig(warmup_epochs=epochs, warmup_steps=steps, warmup_share=share)
    assert warmup_steps(cfg, 2_000, 100) == expected


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.floats(0, 50), st.integers(0, 10**5), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_warmup_is_at_most_its_share(steps, per_epoch, epochs, least, share):
    cfg = TrainConfig(warmup_epochs=epochs, warmup_steps=least, warmup_share=share)
    found = warmup_steps(cfg, steps, per_epoch)
    assert type(found) is int
    assert 0 <= found <= share * steps


def test_rate_by_hand():
    # 5 epochs of 4 batches: 20 steps, of which the warm-up takes two, a tenth. Peak 0.5, linear down to 0.
    cfg = TrainConfig(lr=0.5, epochs=5, schedule="linear", final_lr=0.0, warmup_epochs=1, warmup_steps=0)
    rate = Rate(cfg, 4)
    decayed = [0.5 * (1 - step / 19) for step in range(20)]
    assert [rate(step) for step in range(20)] == pytest.approx(
        [decayed[0] / 3, decayed[1] * 2 / 3, *decayed[2:]]
    )


def test_rate_counts_batches_and_not_updates():
    """Accumulation does not change the course of an epoch."""
    one, four = TrainConfig(epochs=3, batch_size=4), TrainConfig(epochs=3, batch_size=4, nominal_batch=16)
    assert four.accumulation == 4
    assert [Rate(one, 8)(step) for step in range(24)] == [Rate(four, 8)(step) for step in range(24)]
