"""Softmax focal losses: golden numbers of both forms, twice in a row, gradients, and logits of +-1e4."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from utils.losses.softmax import focal_loss_of_mean, softmax_focal_loss

LOGITS = [[2.0, -1, 3], [1, 0, -0.5], [2, 1, -0.5], [1, 8, 2]]
LABELS = [2, 0, 1, 1]
WEIGHT = [0.25, 0.75, 0.75]
PER_SAMPLE = [0.02534727, 0.06407765, 0.7638642, 3.864905e-08]
LOSSES = [softmax_focal_loss, focal_loss_of_mean]


def case(dtype=torch.float32):
    return torch.tensor(LOGITS, dtype=dtype), torch.tensor(LABELS), torch.tensor(WEIGHT, dtype=dtype)


def test_golden_numbers_of_the_mean():
    logits, labels, weight = case()
    for _ in range(2):  # a published version alters its class weights in the first call
        cross_entropy = focal_loss_of_mean(logits, labels, gamma=0)
        assert cross_entropy.item() == pytest.approx(0.541464, abs=1e-6)
        weighted = focal_loss_of_mean(logits, labels, gamma=0, weight=weight).item()
        focal = focal_loss_of_mean(logits, labels, gamma=2, weight=weight).item()
        assert focal == pytest.approx(0.101539, abs=1e-6)
        assert focal == pytest.approx((1 - math.exp(-weighted)) ** 2 * weighted, rel=1e-6)
    assert weight.tolist() == WEIGHT


def test_golden_numbers_per_sample():
    logits, labels, weight = case()
    for _ in range(2):
        loss = softmax_focal_loss(logits, labels, gamma=2)
        assert loss.shape == (4,)
        assert loss[:3].tolist() == pytest.approx(PER_SAMPLE[:3], rel=2e-6)
        assert loss[3].item() == pytest.approx(PER_SAMPLE[3], rel=2e-4)  # 4 digits in float32
        weighted = softmax_focal_loss(logits, labels, gamma=2, weight=weight)
        assert weighted.mean().item() == pytest.approx(0.151982, abs=1e-6)
        torch.testing.assert_close(weighted, loss * torch.tensor([0.75, 0.25, 0.75, 0.75]))
    assert weight.tolist() == WEIGHT


def test_golden_number_in_float64():
    loss = softmax_focal_loss(*case(torch.float64)[:2], gamma=2)
    assert loss.dtype == torch.float64
    assert loss[3].item() == pytest.approx(3.865160e-08, rel=1e-6)


def test_one_sample_by_hand():
    # Logits 0 and ln 3: probabilities 1/4 and 3/4. Label 0: -(3/4)^2 ln(1/4) = 0.5625 * 1.386294 = 0.779791.
    logits = torch.tensor([[0.0, math.log(3)]])
    assert softmax_focal_loss(logits, torch.tensor([0])).item() == pytest.approx(0.779791, abs=1e-6)
    assert focal_loss_of_mean(logits, torch.tensor([0])).item() == pytest.approx(0.779791, abs=1e-6)


def test_gamma_0_is_the_cross_entropy():
    logits, labels, weight = case(torch.float64)
    torch.testing.assert_close(
        softmax_focal_loss(logits, labels, 0, weight),
        functional.cross_entropy(logits, labels, weight, reduction="none"),
    )
    torch.testing.assert_close(
        focal_loss_of_mean(logits, labels, 0, weight), functional.cross_entropy(logits, labels, weight)
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_laws(loss):
    logits, labels, weight = case(torch.float64)
    value = loss(logits, labels, 1.5, weight)
    torch.testing.assert_close(loss(logits + 7, labels, 1.5, weight), value)  # softmax knows differences only
    order = torch.tensor([2, 0, 1])  # classes renamed: class order[k] is now k
    renamed = loss(logits[:, order], order.argsort()[labels], 1.5, weight[order])
    torch.testing.assert_close(renamed, value)
    assert (loss(logits, labels, 3.0, weight) <= value).all()  # a larger gamma never weighs more


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gamma", [0, 0.5, 1.0, 2.0, 3.5])
def test_gradcheck(loss, gamma):
    logits, labels, weight = case(torch.float64)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, gamma, weight), (logits,))


@given(
    st.lists(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 3, st.integers(0, 2)), min_size=1, max_size=6),
    st.sampled_from((0.0, 0.5, 1.0, 2.0)),
    st.sampled_from(LOSSES),
)
@settings(max_examples=150, deadline=None)
def test_any_logits_give_finite_losses_and_gradients(rows, gamma, loss):
    logits = torch.tensor([row[:3] for row in rows], requires_grad=True)
    value = loss(logits, torch.tensor([row[3] for row in rows]), gamma, torch.tensor(WEIGHT))
    value.sum().backward()
    assert value.isfinite().all() and (value >= 0).all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_extreme_logits(gamma):
    logits = torch.tensor([[1e4, -1e4], [1e4, -1e4]], requires_grad=True)
    loss = softmax_focal_loss(logits, torch.tensor([0, 1]), gamma)
    loss.sum().backward()
    assert loss.tolist() == [0, 2e4]  # sure and right; sure and wrong: -log p is the distance of the logits
    assert logits.grad.tolist() == [[0, 0], [1, -1]]


def test_no_samples():
    logits = torch.zeros(0, 3, requires_grad=True)
    labels = torch.zeros(0, dtype=torch.int64)
    assert softmax_focal_loss(logits, labels).shape == (0,)
    mean = focal_loss_of_mean(logits, labels)
    mean.backward()
    assert mean.item() == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(loss, half):
    logits, labels, weight = case()
    value = loss(logits.to(half), labels, 2.0, weight.to(half))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.to(half).float(), labels, 2.0, weight))
