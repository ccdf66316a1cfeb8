"""The ltrb code: encode and decode, the integral, and the spread of a side."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.geometry.ltrb import boxes_to_ltrb, integral, ltrb_to_boxes, side_sigma

NUM_BINS = 16


def log_of(probabilities: dict[float, float], num_bins: int = NUM_BINS, dtype=torch.float32):
    """Logits of a distribution given as {bin: probability}; the other bins get nothing."""
    logits = torch.full((num_bins,), -200.0, dtype=dtype)
    for place, probability in probabilities.items():
        logits[place] = math.log(probability)
    return logits


def random_logits(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_encoding_by_hand():
    # The point (20, 12) of stride 8 in the box from (4, 4) to (28, 36): 16, 8, 8 and 24 px to its sides.
    point, stride, box = torch.tensor([20.0, 12]), torch.tensor([8.0]), torch.tensor([4.0, 4, 28, 36])
    assert boxes_to_ltrb(box, point, stride).tolist() == [2, 1, 1, 3]
    assert ltrb_to_boxes(torch.tensor([2.0, 1, 1, 3]), point, stride).tolist() == [4, 4, 28, 36]
    # Seen from (32, 0), right of it and above: 4 px past the right side, 4 px short of the top.
    assert boxes_to_ltrb(box, torch.tensor([32.0, 0]), stride).tolist() == [3.5, -0.5, -0.5, 4.5]


@given(
    st.lists(st.floats(-2000, 2000, width=32), min_size=4, max_size=4),
    st.tuples(st.floats(0, 4096, width=32), st.floats(0, 4096, width=32)),
    st.sampled_from((4.0, 8.0, 16.0, 32.0, 64.0, 10.0)),
)
@settings(max_examples=100, deadline=None)
def test_decoding_inverts_encoding(box, point, stride):
    box, point, stride = torch.tensor(box), torch.tensor(point), torch.tensor([stride])
    ltrb = boxes_to_ltrb(box, point, stride)
    torch.testing.assert_close(ltrb_to_boxes(ltrb, point, stride), box, atol=2e-3, rtol=0)
    torch.testing.assert_close(
        boxes_to_ltrb(ltrb_to_boxes(box, point, stride), point, stride), box, atol=2e-3, rtol=1e-5
    )
    exact = boxes_to_ltrb(box.double(), point.double(), stride.double())
    decoded = ltrb_to_boxes(exact, point.double(), stride.double())
    torch.testing.assert_close(decoded, box.double(), atol=1e-9, rtol=0)


def test_encoding_broadcasts_over_pictures():
    points, strides = torch.rand(5, 2) * 64, torch.tensor([[8.0], [8], [8], [16], [32]])
    boxes = torch.rand(3, 5, 4) * 64
    ltrb = boxes_to_ltrb(boxes, points, strides)
    assert ltrb.shape == (3, 5, 4)
    torch.testing.assert_close(ltrb[2, 3], boxes_to_ltrb(boxes[2, 3], points[3], strides[3]))
    torch.testing.assert_close(ltrb_to_boxes(ltrb, points, strides), boxes, atol=1e-4, rtol=0)


def test_integral_by_hand():
    assert integral(log_of({2: 0.7, 3: 0.3})).item() == pytest.approx(2.3, abs=1e-6)  # the worked example
    assert integral(log_of({0: 1})).item() == 0
    assert integral(log_of({15: 1})).item() == 15
    assert integral(log_of({0: 0.5, 15: 0.5})).item() == pytest.approx(7.5, abs=1e-5)
    assert integral(torch.zeros(16)).item() == pytest.approx(7.5, abs=1e-5)  # mean of 0..15
    # The number of bins is the tensor's: reg_max = R - 1 is the last value, not the count.
    assert integral(torch.zeros(4)).item() == pytest.approx(1.5, abs=1e-6)
    assert integral(torch.zeros(2)).item() == pytest.approx(0.5, abs=1e-6)


def test_integral_ignores_a_common_shift_and_stays_within_the_bins():
    logits = random_logits(20, 4, NUM_BINS) * 10
    values = integral(logits)
    assert values.shape == (20, 4)
    torch.testing.assert_close(integral(logits + 7), values)
    assert (values >= 0).all() and (values <= NUM_BINS - 1).all()


def test_gradient_of_the_integral():
    logits = random_logits(3, 4, NUM_BINS).requires_grad_()
    assert torch.autograd.gradcheck(integral, (logits,))
    # d mu / d z_i = p_i (i - mu)
    (gradient,) = torch.autograd.grad(integral(logits).sum(), logits)
    expected = logits.softmax(-1) * (torch.arange(NUM_BINS) - integral(logits).unsqueeze(-1))
    torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(half):
    # 0.01 in bin 14, 0.99 in bin 15: a bf16 result could only be 14.9375 or 15.
    logits = log_of({14: 0.01, 15: 0.99}).to(half)
    value = integral(logits)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(14.99, abs=1e-3)
    assert side_sigma(logits).dtype == torch.float32
    assert integral(logits.double()).dtype == torch.float64


def test_autocast_leaves_them_in_float32():
    logits = log_of({14: 0.01, 15: 0.99})
    with torch.autocast("cpu", torch.bfloat16):
        value, sigma = integral(logits), side_sigma(logits)
    assert value.dtype == sigma.dtype == torch.float32
    assert value.item() == pytest.approx(14.99, abs=1e-5)


def test_extreme_logits():
    logits = torch.full((3, NUM_BINS), -1e4)
    logits[0, 3], logits[1, 0], logits[2] = 1e4, 1e4, 1e4
    logits.requires_grad_()
    values = integral(logits)
    assert values.tolist() == pytest.approx([3, 0, 7.5], abs=1e-5)
    values.sum().backward()
    assert logits.grad.isfinite().all()
    assert side_sigma(logits.detach()).isfinite().all()


def coded(distances: np.ndarray) -> torch.Tensor:
    """Logits of what a head learns for these true distances: the mean of their two-bin targets."""
    mass = np.zeros(NUM_BINS)
    low = np.floor(distances).astype(int)
    np.add.at(mass, low, 1 - (distances - low))
    np.add.at(mass, low + 1, distances - low)
    return torch.from_numpy(np.log(np.maximum(mass / len(distances), 1e-30)))


@pytest.mark.parametrize("spread", [0.2, 0.3, 0.5, 0.7, 1.0, 1.5])
def test_sigma_recovers_the_spread_of_a_side(spread):
    random = np.random.default_rng(7)
    for centre in (7.0, 7.25, 7.5, 7.6, 7.9):  # on a bin, between two, near one
        distances = random.normal(centre, spread, 40_000)
        logits = coded(distances)
        assert integral(logits).item() == pytest.approx(distances.mean(), abs=1e-6)
        assert side_sigma(logits).item() == pytest.approx(spread, rel=0.04)


def test_sigma_covers_what_it_says():
    random = np.random.default_rng(8)
    inside = {1.2815516: [], 1.9599640: []}  # half widths of the 80 % and the 95 % interval of a Gaussian
    for spread in (0.2, 0.3, 0.5, 1.0, 1.5):
        for centre in random.uniform(6, 9, 6):
            logits = coded(random.normal(centre, spread, 20_000))
            mu, sigma = integral(logits).item(), side_sigma(logits).item()
            fresh = random.normal(centre, spread, 4_000)
            for width, shares in inside.items():
                shares.append(np.mean(np.abs(fresh - mu) <= width * sigma))
    shares = [np.mean(values) for values in inside.values()]
    assert shares == pytest.approx([0.80, 0.95], abs=0.006)


def test_sigma_at_and_below_the_limit_of_the_bins():
    # A certain side is coded with variance f (1 - f), up to 0.25: that is no spread of 0.5 bins.
    for fraction in (0, 0.1, 0.3, 0.5, 0.8):
        logits = log_of({2: 1 - fraction, 3: fraction} if fraction else {2: 1.0})
        assert side_sigma(logits).item() == pytest.approx(0.15, abs=0.01)
    for centre in (5.0, 5.3, 5.5):
        logits = coded(np.random.default_rng(9).normal(centre, 0.05, 40_000))
        assert side_sigma(logits).item() == pytest.approx(0.15, abs=0.01)
    # And the limit is the limit: whatever the logits, sigma is at least 0.15, and a number.
    sigma = side_sigma(random_logits(500, NUM_BINS, seed=3) * torch.logspace(-3, 3, 500).unsqueeze(1))
    assert sigma.isfinite().all() and (sigma >= 0.15 - 1e-6).all()


def test_sigma_of_a_wide_distribution_by_hand():
    # All 16 bins alike: variance (16^2 - 1) / 12 = 21.25; two-bin coding added its mean f (1 - f) = 1/6.
    assert side_sigma(torch.zeros(16)).item() == pytest.approx(math.sqrt(21.25 - 1 / 6), abs=1e-3)
