"""Distribution focal loss: the worked example, its gradient, its minimum, targets at the ends of the bins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.geometry.ltrb import integral
from utils.losses.distribution import distribution_focal_loss, two_bin_entropy, two_bins

REG_MAX = 15
NUM_BINS = REG_MAX + 1


def random_logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2


def two_hot(distance: float, num_bins: int = NUM_BINS) -> list[float]:
    """The target distribution, bin by bin: the closer a bin lies to the distance, the more it gets."""
    distance = min(max(distance, 0), num_bins - 1)
    return [max(0.0, 1 - abs(distance - place)) for place in range(num_bins)]


@pytest.mark.parametrize(
    ("distance", "low", "above"),
    [
        (2.3, 2, 0.3),  # the worked example: 0.7 in bin 2, 0.3 in bin 3
        (0.0, 0, 0.0),
        (0.25, 0, 0.25),
        (1.0, 1, 0.0),
        (14.0, 14, 0.0),
        (14.99, 14, 0.99),
        (15.0, 14, 1.0),  # the last value is all in the last bin, and bin 16 is never asked for
        (15.01, 14, 1.0),
        (1000.0, 14, 1.0),
        (-0.5, 0, 0.0),
        (-1000.0, 0, 0.0),
    ],
)
def test_two_bins_by_hand(distance, low, above):
    bins, weight = two_bins(torch.tensor([distance]), NUM_BINS)
    assert bins.dtype == torch.int64
    assert bins.item() == low
    assert weight.item() == pytest.approx(above, abs=2e-6)


def test_two_bins_where_there_are_only_two():
    bins, weight = two_bins(torch.tensor([-1.0, 0, 0.4, 1, 3]), 2)
    assert bins.tolist() == [0] * 5
    assert weight.tolist() == pytest.approx([0, 0, 0.4, 1, 1])


@given(st.floats(-5, 70, width=32), st.sampled_from((2, 4, 16, 17, 65)))
@settings(max_examples=200, deadline=None)
def test_the_two_bins_have_the_distance_as_their_mean(distance, num_bins):
    low, above = two_bins(torch.tensor([distance]), num_bins)
    assert 0 <= low.item() <= num_bins - 2
    assert 0 <= above.item() <= 1
    clipped = min(max(distance, 0), num_bins - 1)
    assert low.item() + above.item() == pytest.approx(clipped, abs=1e-5)


def test_worked_example():
    # Bin 2 holds 0.5, bin 3 holds 0.25, the 14 others share 0.25.
    probabilities = torch.full((NUM_BINS,), 0.25 / 14)
    probabilities[2], probabilities[3] = 0.5, 0.25
    loss = distribution_focal_loss(probabilities.log(), torch.tensor(2.3))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(-(0.7 * math.log(0.5) + 0.3 * math.log(0.25)), abs=1e-5)
    # Uniform bins: ln 16 whatever the distance.
    loss = distribution_focal_loss(torch.zeros(3, 4, NUM_BINS), torch.rand(3, 4) * 15)
    torch.testing.assert_close(loss, torch.full((3, 4), math.log(16)))


def test_the_formula_of_the_paper():
    logits, distance = random_logits(50, 4, NUM_BINS), torch.linspace(0, REG_MAX, 200).double().view(50, 4)
    loss = distribution_focal_loss(logits, distance)
    target = torch.tensor([two_hot(value) for value in distance.flatten().tolist()], dtype=torch.float64)
    expected = -(target.view_as(logits) * logits.softmax(-1).log()).sum(-1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        distribution_focal_loss(logits + 5, distance), loss
    )  # a common shift is nothing


DISTANCES = [0, 1e-6, 2.3, 7, 7.5, 14, 14.99, 15, 15.5, 99, -3]


def test_gradient_is_softmax_minus_two_hot():
    logits = random_logits(len(DISTANCES), NUM_BINS).requires_grad_()
    loss = distribution_focal_loss(logits, torch.tensor(DISTANCES, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    target = torch.tensor([two_hot(distance) for distance in DISTANCES], dtype=torch.float64)
    torch.testing.assert_close(gradient, logits.detach().softmax(-1) - target)


def test_gradcheck():
    logits = random_logits(6, 5).requires_grad_()
    distance = torch.tensor([0, 0.25, 2.3, 3, 4, 9], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: distribution_focal_loss(z, distance), (logits,))


@given(st.integers(0, 10_000), st.floats(-1, 17, width=32))
@settings(max_examples=100, deadline=None)
def test_the_entropy_of_the_two_bins_is_the_minimum(seed, distance):
    distance = torch.tensor(distance).double()
    entropy = two_bin_entropy(distance, NUM_BINS)
    assert 0 <= entropy <= math.log(2) + 1e-12
    assert distribution_focal_loss(random_logits(NUM_BINS, seed=seed), distance) >= entropy - 1e-9
    best = torch.tensor(two_hot(distance.item())).double().clamp(min=1e-30).log()
    torch.testing.assert_close(distribution_focal_loss(best, distance), entropy, atol=1e-9, rtol=0)
    # There the integral decodes the distance itself.
    torch.testing.assert_close(integral(best), distance.clamp(0, REG_MAX), atol=1e-6, rtol=0)


def test_two_bin_entropy_by_hand():
    distances = torch.tensor([0.0, 3, 15, 20, 2.5, 2.3])
    at_2_3 = -(0.7 * math.log(0.7) + 0.3 * math.log(0.3))
    assert two_bin_entropy(distances, NUM_BINS).tolist() == pytest.approx(
        [0, 0, 0, 0, math.log(2), at_2_3], abs=1e-6
    )


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_logits_and_a_target_of_14_99(half):
    logits = random_logits(NUM_BINS, seed=1).to(half)
    loss = distribution_focal_loss(logits, torch.tensor(14.99))
    assert loss.dtype == torch.float32
    log_probabilities = logits.float().log_softmax(-1)
    expected = -(0.01 * log_probabilities[14] + 0.99 * log_probabilities[15])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    # The target itself in bf16 is 15.0, the last value: no bin 16 is asked for.
    rounded = distribution_focal_loss(logits, torch.tensor(14.99, dtype=torch.bfloat16))
    assert rounded.item() == pytest.approx(-log_probabilities[15].item(), rel=1e-5)


@pytest.mark.parametrize("distance", [0.0, 2.3, 15.0, 40.0])
def test_extreme_logits(distance):
    logits = torch.full((3, NUM_BINS), -1e4)
    logits[0, 9], logits[1, 0], logits[2] = 1e4, 1e4, 1e4
    logits.requires_grad_()
    loss = distribution_focal_loss(logits, torch.full((3,), distance))
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    assert (loss >= 0).all()
