"""DFL: worked example, gradient, minimum, targets at the ends of the bins; GFL and its two special cases."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.geometry.ltrb import integral
from utils.losses.distribution import (
    distribution_focal_loss,
    generalized_focal_loss,
    two_bin_entropy,
    two_bins,
)
from utils.losses.quality import quality_focal_loss

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


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5, 2.0])
def test_qfl_is_the_gfl_of_the_values_0_and_1(beta):
    logits = random_logits(200, seed=3).requires_grad_()
    target = torch.rand(200, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    target[:20], target[20:40] = 0, 1
    pair = torch.stack((torch.zeros_like(logits), logits), -1)  # its softmax is 1 - s, s
    general = generalized_focal_loss(pair, target, torch.tensor([0.0, 1.0]), beta)
    special = quality_focal_loss(logits, target, beta)
    torch.testing.assert_close(general, special)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (general, special)]
    torch.testing.assert_close(*gradients)


def test_dfl_is_the_gfl_of_beta_0_and_neighbouring_bins():
    logits = random_logits(len(DISTANCES), NUM_BINS).requires_grad_()
    distance = torch.tensor(DISTANCES, dtype=torch.float64)
    general = generalized_focal_loss(logits, distance, torch.arange(16.0), 0)
    special = distribution_focal_loss(logits, distance)
    torch.testing.assert_close(general, special)
    gradients = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (general, special)]
    torch.testing.assert_close(*gradients)


def test_gfl_by_hand():
    # Values 1, 2, 4, 8 of probability 1/8, 1/4, 1/2, 1/8; target 3 lies between 2 and 4. Estimate of the two:
    # 2/4 + 4/2 = 2.5, off by 0.5. Loss 0.5^2 ((4 - 3) ln 4 + (3 - 2) ln 2) = 0.25 * 3 ln 2.
    logits = torch.tensor([1 / 8, 1 / 4, 1 / 2, 1 / 8]).log()
    loss = generalized_focal_loss(logits, torch.tensor(3.0), torch.tensor([1.0, 2, 4, 8]), 2)
    assert loss.item() == pytest.approx(0.75 * math.log(2), rel=1e-6)
    # Beyond the last value the target is 8: p_l = 1/2 at 4, p_r = 1/8 at 8. Off by 8 - 3; (8 - 4) ln 8.
    loss = generalized_focal_loss(logits, torch.tensor(11.0), torch.tensor([1.0, 2, 4, 8]), 1)
    assert loss.item() == pytest.approx(5 * 4 * math.log(8), rel=1e-6)


def test_gfl_of_two_values_is_least_at_the_target():
    # The paper's remark: the minimum is where the estimate y_l p_l + y_r p_r is y.
    logits = torch.linspace(-4, 4, 4001).double()
    pair = torch.stack((torch.zeros_like(logits), logits), -1)
    loss = generalized_focal_loss(pair, torch.tensor(2.3).double().expand(4001), torch.tensor([2.0, 5.0]), 2)
    assert 2 + 3 * logits[loss.argmin()].sigmoid().item() == pytest.approx(2.3, abs=1e-2)


@pytest.mark.parametrize("beta", [0, 0.5, 1.0, 2.0])
def test_gradcheck_of_gfl(beta):
    logits = random_logits(6, 5).requires_grad_()
    target = torch.tensor([0, 0.25, 2.3, 3, 7, 9], dtype=torch.float64)
    values = torch.tensor([0.0, 1, 2.5, 4, 8])
    assert torch.autograd.gradcheck(lambda z: generalized_focal_loss(z, target, values, beta), (logits,))


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    st.floats(-1, 5, width=32),
    st.sampled_from((0.0, 0.5, 1.0, 2.0)),
)
@settings(max_examples=100, deadline=None)
def test_any_logits_give_a_finite_gfl_and_gradient(logits, target, beta):
    logits = torch.tensor(logits, requires_grad=True)
    loss = generalized_focal_loss(logits, torch.tensor(target), torch.arange(4.0), beta)
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_logits_of_gfl(half):
    logits = random_logits(3, NUM_BINS, seed=1).to(half)
    target = torch.tensor([0.0, 7.25, 14.99])
    loss = generalized_focal_loss(logits, target, torch.arange(16.0), 1.5)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, generalized_focal_loss(logits.float(), target, torch.arange(16.0), 1.5))
