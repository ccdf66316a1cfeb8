"""Quality focal loss: golden numbers, the formula in float64, gradients, and logits of +-1e4."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from utils.losses.quality import quality_focal_loss

LOGITS = [[0.5, -1, -2], [1.25, 0, -1.25], [1.5, 2, -1.4]]
TARGET = [[0.6225, 0, 0], [0.9, 0, 0], [1, 0, 0]]
BALANCED = [  # beta 1.5, alpha 0.25
    [7.537268e-08, 3.276840e-02, 3.917864e-03],
    [4.860135e-03, 1.837984e-01, 1.985730e-02],
    [3.923347e-03, 1.318645e00, 1.454453e-02],
]
CERTAIN = [[0, 0, 0], [0, 0, 0], [1, 0, 0]]  # without the entries whose target lies between 0 and 1
FOCAL = [  # sigmoid focal loss of the same logits for CERTAIN's targets: gamma 1.5, alpha 0.25
    [math.nan, 0.032768, 0.003918],
    [math.nan, 0.183798, 0.019857],
    [0.003923, 1.318645, 0.014545],
]


def random_case(shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=dtype) * 3
    return logits, torch.rand(shape, generator=generator, dtype=dtype)


def formula(logits, target, beta):
    """Equation 5 as it is written; fit for moderate logits only."""
    score = 1 / (1 + (-logits).exp())
    return -((target - score).abs() ** beta) * ((1 - target) * (1 - score).log() + target * score.log())


def test_golden_numbers():
    loss = quality_focal_loss(torch.tensor(LOGITS), torch.tensor(TARGET), beta=1.5, alpha=0.25)
    assert loss.shape == (3, 3)
    # The first entry's score is 0.62246 for a target of 0.6225: float32 leaves it four digits or so.
    torch.testing.assert_close(loss, torch.tensor(BALANCED), rtol=2e-3, atol=0)
    torch.testing.assert_close(loss.flatten()[1:], torch.tensor(BALANCED).flatten()[1:], rtol=2e-6, atol=0)


def test_golden_numbers_without_balance():
    loss = quality_focal_loss(torch.tensor(LOGITS), torch.tensor(TARGET), beta=1.5)
    target = torch.tensor(TARGET)
    expected = torch.tensor(BALANCED) / (target * 0.25 + (1 - target) * 0.75)
    torch.testing.assert_close(loss.flatten()[1:], expected.flatten()[1:], rtol=2e-6, atol=0)
    # By hand: logit 0 for target 0 is 0.5^1.5 * ln 2.
    assert loss[1, 1].item() == pytest.approx(0.5**1.5 * math.log(2), rel=1e-6)
    assert loss[0, 0].item() == pytest.approx(7.537268e-08 / (0.6225 * 0.25 + 0.3775 * 0.75), rel=2e-3)


def test_golden_number_in_float64():
    loss = quality_focal_loss(
        torch.tensor(LOGITS).double(), torch.tensor(TARGET, dtype=torch.float64), beta=1.5, alpha=0.25
    )
    assert loss.dtype == torch.float64
    assert loss[0, 0].item() == pytest.approx(7.542396e-08, rel=1e-6)


def test_targets_of_0_and_1_give_the_focal_loss():
    loss = quality_focal_loss(torch.tensor(LOGITS), torch.tensor(CERTAIN).float(), beta=1.5, alpha=0.25)
    expected = torch.tensor(FOCAL)
    known = ~expected.isnan()
    torch.testing.assert_close(loss[known], expected[known], atol=1e-6, rtol=0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_the_formula_of_the_paper(beta):
    logits, target = random_case((200,), seed=1)
    target[:20], target[20:40] = 0, 1
    torch.testing.assert_close(quality_focal_loss(logits, target, beta), formula(logits, target, beta))


def test_zero_at_the_target_and_symmetric_in_the_classes():
    logits, target = random_case((200,), seed=2)
    assert quality_focal_loss(logits, logits.sigmoid()).abs().max() < 1e-12
    assert (quality_focal_loss(logits, target) >= 0).all()
    # Score and target of "is it" exchanged for those of "is it not": the same loss.
    mirrored = quality_focal_loss(-logits, 1 - target)
    torch.testing.assert_close(quality_focal_loss(logits, target), mirrored)
    balanced = quality_focal_loss(-logits, 1 - target, alpha=0.75)
    torch.testing.assert_close(quality_focal_loss(logits, target, alpha=0.25), balanced)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0, 3.0])
def test_gradcheck(beta, alpha):
    logits, target = random_case((4, 5), seed=3)
    edges = target.clone()
    edges[0], edges[1] = 0, 1
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: quality_focal_loss(z, edges, beta, alpha), (logits,))
    # The target can carry a gradient too: with it, the IoU would be trained by the class loss.
    target.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, y: quality_focal_loss(z, y, beta, alpha), (logits, target))


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_the_gradient_is_that_of_the_formula(beta):
    logits, target = random_case((300,), seed=6)
    logits.requires_grad_(), target.requires_grad_()
    weight = torch.linspace(-1, 2, 300).double()  # what flows in is not all ones
    ours = torch.autograd.grad((quality_focal_loss(logits, target, beta) * weight).sum(), (logits, target))
    theirs = torch.autograd.grad((formula(logits, target, beta) * weight).sum(), (logits, target))
    torch.testing.assert_close(ours, theirs)


def test_inputs_are_left_as_they_were():
    logits, target = random_case((20,), seed=7)
    before = logits.clone(), target.clone()
    logits.requires_grad_()
    loss = quality_focal_loss(logits, target)
    (first,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (second,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.equal(first, second)
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])
    with torch.no_grad():
        assert torch.equal(quality_focal_loss(logits, target), loss)


@pytest.mark.parametrize("beta", [1.5, 2.0])
def test_the_factor_keeps_its_gradient(beta):
    logits, target = random_case((100,), seed=4)
    logits.requires_grad_()
    (ours,) = torch.autograd.grad(quality_focal_loss(logits, target, beta).sum(), logits)
    score = logits.detach().sigmoid()
    gap = score - target
    entropy = functional.binary_cross_entropy_with_logits(logits.detach(), target, reduction="none")
    # d entropy / dz = gap; d |gap|^beta / dz = beta |gap|^(beta - 1) sign(gap) s (1 - s).
    detached = gap.abs() ** beta * gap
    attached = detached + beta * gap.abs() ** (beta - 1) * gap.sign() * score * (1 - score) * entropy
    torch.testing.assert_close(ours, attached)
    assert (ours - detached).abs().max() > 0.05


@pytest.mark.parametrize("beta", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_extreme_logits(beta, target):
    logits = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4], requires_grad=True)
    loss = quality_focal_loss(logits, torch.full((7,), target), beta)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()
    # Far off the factor is |y - s|^beta with s 0 or 1, and the entropy |z| times the share that disagrees.
    assert loss[0].item() == pytest.approx(1e4 * target ** (1 + beta), abs=1e-3)
    assert loss[-1].item() == pytest.approx(1e4 * (1 - target) ** (1 + beta), abs=1e-3)


@given(
    st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=8),
    st.sampled_from((0.5, 1.0, 1.5, 2.0, 3.0)),
    st.sampled_from((None, 0.0, 0.25, 1.0)),
)
@settings(max_examples=150, deadline=None)
def test_any_logits_give_finite_losses_and_gradients(pairs, beta, alpha):
    logits, target = (torch.tensor(values) for values in zip(*pairs, strict=True))
    logits.requires_grad_()
    loss = quality_focal_loss(logits, target, beta, alpha)
    loss.sum().backward()
    assert loss.isfinite().all() and (loss >= 0).all()
    assert logits.grad.isfinite().all()


def test_gradient_is_finite_where_score_and_target_are_equal():
    for beta in (0.5, 1.0, 1.5, 2.0):
        logits = torch.zeros(1, requires_grad=True)
        quality_focal_loss(logits, torch.tensor([0.5]), beta).sum().backward()
        assert logits.grad.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(half):
    logits, target = random_case((50,), seed=5, dtype=torch.float32)
    loss = quality_focal_loss(logits.to(half), target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, quality_focal_loss(logits.to(half).float(), target))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(quality_focal_loss(logits, target), quality_focal_loss(logits, target))
        assert quality_focal_loss(logits, target).dtype == torch.float32
    assert quality_focal_loss(logits, target.to(half)).dtype == torch.float32
