"""Class-quality losses: golden numbers, formulas in float64, gradients, and logits of +-1e4."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torchvision import ops

from utils.config import LossConfig
from utils.losses.quality import (
    binary_cross_entropy,
    class_loss,
    matchability_aware_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    sparse_quality_focal_loss,
    varifocal_loss,
)

LOGITS = [[0.5, -1, -2], [1.25, 0, -1.25], [1.5, 2, -1.4]]
TARGET = [[0.6225, 0, 0], [0.9, 0, 0], [1, 0, 0]]
BALANCED = [  # beta 1.5, alpha 0.25
    [7.537268e-08, 3.276840e-02, 3.917864e-03],
    [4.860135e-03, 1.837984e-01, 1.985730e-02],
    [3.923347e-03, 1.318645e00, 1.454453e-02],
]
FOCAL = [  # sigmoid focal loss of the same: gamma 1.5, alpha 0.25
    [0.093705, 0.032768, 0.003918],
    [0.016589, 0.183798, 0.019857],
    [0.003923, 1.318645, 0.014545],
]
EXPONENTS = (0.5, 1.0, 1.5, 2.0, 3.0)
ALPHAS = (None, 0.0, 0.25, 1.0)
LOSSES = {  # name -> loss of logits, target, exponent, alpha
    "qfl": quality_focal_loss,
    "focal": sigmoid_focal_loss,
    "vfl": varifocal_loss,
    "mal": lambda logits, target, gamma, alpha: matchability_aware_loss(logits, target, gamma),
    "bce": lambda logits, target, gamma, alpha: binary_cross_entropy(logits, target, alpha and alpha / 2),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


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


def test_golden_numbers_of_the_sigmoid_focal_loss():
    loss = sigmoid_focal_loss(torch.tensor(LOGITS), torch.tensor(TARGET), gamma=1.5, alpha=0.25)
    torch.testing.assert_close(loss, torch.tensor(FOCAL), atol=6e-7, rtol=0)


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
def test_gradcheck_with_a_target_that_carries_a_gradient(beta, alpha):
    # With it the IoU would be trained by the class loss.
    logits, target = (values.requires_grad_() for values in random_case((4, 5), seed=3))
    assert torch.autograd.gradcheck(lambda z, y: quality_focal_loss(z, y, beta, alpha), (logits, target))


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5, 2.0, 2.5])
def test_the_gradient_is_that_of_the_formula(beta):
    logits, target = random_case((300,), seed=6)
    logits.requires_grad_(), target.requires_grad_()
    weight = torch.linspace(-1, 2, 300).double()  # what flows in is not all ones
    ours = torch.autograd.grad((quality_focal_loss(logits, target, beta) * weight).sum(), (logits, target))
    theirs = torch.autograd.grad((formula(logits, target, beta) * weight).sum(), (logits, target))
    torch.testing.assert_close(ours, theirs)


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
    st.sampled_from(ALPHAS),
)
@settings(max_examples=80, deadline=None)
def test_any_logits_give_finite_losses_and_gradients(pairs, exponent, alpha):
    logits, target = (torch.tensor(values) for values in zip(*pairs, strict=True))
    logits.requires_grad_()
    for name, loss in LOSSES.items():
        value = loss(logits, target, exponent, alpha)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all() and (value >= 0).all(), name
        assert gradient.isfinite().all(), name


def test_gradient_is_finite_where_score_and_target_are_equal():
    for beta in (0.5, 1.0, 1.5, 2.0):
        logits = torch.zeros(1, requires_grad=True)
        quality_focal_loss(logits, torch.tensor([0.5]), beta).sum().backward()
        assert logits.grad.item() == pytest.approx(0, abs=1e-6)


@every_loss
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(loss, half):
    logits, target = random_case((50,), seed=5, dtype=torch.float32)
    value = loss(logits.to(half), target, 2.0, 0.25)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.to(half).float(), target, 2.0, 0.25))
    full = loss(logits, target, 2.0, 0.25)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(logits, target, 2.0, 0.25), full)
    assert loss(logits, target.to(half), 2.0, 0.25).dtype == torch.float32
    assert loss(logits.double(), target, 2.0, 0.25).dtype == torch.float64


@every_loss
@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_gradcheck_of_every_loss(loss, exponent, alpha):
    logits, target = random_case((4, 5), seed=3)
    target[0], target[1] = 0, 1
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, target, exponent, alpha), (logits,))


@every_loss
def test_the_target_of_every_loss_may_be_all_that_is_extreme(loss):
    logits = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]).repeat(6, 1).requires_grad_()
    target = torch.tensor([0.0, 1e-30, 1e-7, 0.5, 1 - 1e-7, 1.0])[:, None].expand(6, 7)
    for exponent in (0.25, 1.0, 2.0):
        value = loss(logits, target, exponent, None)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all() and gradient.isfinite().all()
        assert value[0, 0] == value[-1, -1] == 0  # sure and right


@every_loss
def test_every_loss_leaves_its_inputs_as_they_were(loss):
    logits, target = random_case((20,), seed=7)
    target[:5] = 0
    before = logits.clone(), target.clone()
    logits.requires_grad_()
    value = loss(logits, target, 2.0, 0.25)
    (first,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
    (second,) = torch.autograd.grad(value.sum(), logits)
    assert torch.equal(first, second)
    assert torch.equal(logits, before[0]) and torch.equal(target, before[1])
    with torch.no_grad():
        assert torch.equal(loss(logits, target, 2.0, 0.25), value)


@pytest.mark.parametrize(
    ("loss", "target", "expected"),
    [  # score 0.3: ln 0.7 = -0.356675, ln 0.3 = -1.203973
        (lambda x, y: sigmoid_focal_loss(x, y, 2.0, 0.25), 1.0, 0.25 * 0.49 * 1.203973),
        (lambda x, y: sigmoid_focal_loss(x, y, 2.0, 0.25), 0.0, 0.75 * 0.09 * 0.356675),
        # Halfway: 1 - p = 0.3 * 0.2 + 0.7 * 0.8 = 0.62, cross entropy 0.2 * 0.356675 + 0.8 * 1.203973.
        (lambda x, y: sigmoid_focal_loss(x, y, 2.0), 0.8, 0.62**2 * 1.034513),
        (lambda x, y: varifocal_loss(x, y, 2.0, 0.75), 0.8, 0.8 * 1.034513),
        (lambda x, y: varifocal_loss(x, y, 2.0, 0.75), 0.0, 0.75 * 0.09 * 0.356675),
        (lambda x, y: varifocal_loss(x, y, 2.0), 0.0, 0.09 * 0.356675),
        # 0.8^1.5 = 0.715542: 0.284458 * 0.356675 + 0.715542 * 1.203973; 0.3^1.5 = 0.164317.
        (lambda x, y: matchability_aware_loss(x, y, 1.5), 0.8, 0.962952),
        (lambda x, y: matchability_aware_loss(x, y, 1.5), 0.0, 0.164317 * 0.356675),
        (lambda x, y: matchability_aware_loss(x, y, 1.5), 1.0, 1.203973),
        (lambda x, y: binary_cross_entropy(x, y), 0.8, 1.034513),
        # A tenth of the target is one half: 0.9 * 0.8 + 0.05 = 0.77.
        (lambda x, y: binary_cross_entropy(x, y, 0.1), 0.8, 0.23 * 0.356675 + 0.77 * 1.203973),
        (lambda x, y: binary_cross_entropy(x, y, 0.1), 0.0, 0.95 * 0.356675 + 0.05 * 1.203973),
    ],
)
def test_by_hand(loss, target, expected):
    assert loss(torch.tensor(0.3).logit(), torch.tensor(target)).item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.6), (0.5, None), (0.0, 0.25)])
def test_torchvision_agrees_on_the_sigmoid_focal_loss(gamma, alpha, dtype):
    logits, target = random_case((300,), seed=8, dtype=dtype)
    target[:100], target[100:200] = 0, 1  # the rest soft
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    value = sigmoid_focal_loss(ours, target, gamma, alpha)
    oracle = ops.sigmoid_focal_loss(theirs, target, -1 if alpha is None else alpha, gamma)
    torch.testing.assert_close(value, oracle, atol=1e-6, rtol=0)
    value.sum().backward(), oracle.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", EXPONENTS)
def test_varifocal_and_matchability_aware_loss_as_written(gamma):
    logits, target = random_case((200,), seed=9)
    target[:80] = 0
    score = logits.sigmoid()

    def entropy(aim):
        return -((1 - aim) * (1 - score).log() + aim * score.log())

    background = score**gamma * entropy(0)
    vfl = torch.where(target > 0, target * entropy(target), 0.75 * background)
    torch.testing.assert_close(varifocal_loss(logits, target, gamma, 0.75), vfl)
    mal = torch.where(target > 0, entropy(target**gamma), background)
    torch.testing.assert_close(matchability_aware_loss(logits, target, gamma), mal)


def test_how_the_losses_are_related():
    logits, target = random_case((200,), seed=10)
    hard = (target > 0.5).double()
    plain = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, target), plain)
    torch.testing.assert_close(sigmoid_focal_loss(logits, target, 0), plain)
    # Hard targets: QFL is the focal loss, and all four treat the background alike.
    torch.testing.assert_close(quality_focal_loss(logits, hard, 1.5), sigmoid_focal_loss(logits, hard, 1.5))
    negative = hard == 0
    for loss in (varifocal_loss, matchability_aware_loss, sigmoid_focal_loss):
        torch.testing.assert_close(
            loss(logits, hard, 1.5)[negative], quality_focal_loss(logits, hard, 1.5)[negative]
        )
    # A positive of quality 1 weighs 1 in both, and without an exponent MAL aims at 1 for every positive.
    torch.testing.assert_close(varifocal_loss(logits, hard, 2), matchability_aware_loss(logits, hard, 2))
    target[:50] = 0
    one = matchability_aware_loss(logits, target, 0)
    torch.testing.assert_close(one, binary_cross_entropy(logits, (target > 0).double()))


@pytest.mark.parametrize(
    ("loss", "best"),
    [
        (quality_focal_loss, 0.6),
        (varifocal_loss, 0.6),
        (binary_cross_entropy, 0.6),
        (matchability_aware_loss, 0.6**1.5),
        (lambda x, y: binary_cross_entropy(x, y, 0.2), 0.58),  # 0.8 * 0.6 + 0.1
    ],
)
def test_where_the_score_is_best(loss, best):
    logits = torch.linspace(-4, 4, 8001).double()
    lowest = loss(logits, torch.full_like(logits, 0.6)).argmin()
    assert logits[lowest].sigmoid().item() == pytest.approx(best, abs=1e-3)


def test_what_a_positive_of_low_quality_weighs():
    # At a score of 0.5 and quality 0.1: VFL hardly cares, MAL and BCE push the score down.
    logits, target = torch.zeros(1, requires_grad=True), torch.tensor([0.1])
    slopes = {
        name: torch.autograd.grad(LOSSES[name](logits, target, 1.5, None), logits)[0] for name in LOSSES
    }
    assert slopes["vfl"].item() == pytest.approx(0.1 * (0.5 - 0.1))
    assert slopes["bce"].item() == pytest.approx(0.5 - 0.1)
    assert slopes["mal"].item() == pytest.approx(0.5 - 0.1**1.5)


@pytest.mark.parametrize("name", LOSSES)
def test_class_loss_is_the_one_the_configuration_names(name):
    logits, target = random_case((2, 3, 4), seed=11)
    target[0] = 0
    config = LossConfig(quality_loss=name, beta=1.25, gamma=1.75, alpha=0.3, label_smoothing=0.1)
    expected = {
        "qfl": lambda: quality_focal_loss(logits, target, 1.25, 0.3),
        "focal": lambda: sigmoid_focal_loss(logits, target, 1.75, 0.3),
        "vfl": lambda: varifocal_loss(logits, target, 1.75, 0.3),
        "mal": lambda: matchability_aware_loss(logits, target, 1.75),
        "bce": lambda: binary_cross_entropy(logits, target, 0.1),
    }[name]()
    value = class_loss(logits, target, config)
    assert torch.equal(value, expected)
    assert value.shape == logits.shape


def test_class_loss_knows_every_name_of_the_configuration():
    names = LossConfig.model_json_schema()["properties"]["quality_loss"]["enum"]
    assert set(names) == set(LOSSES)
    values = [class_loss(torch.zeros(1), torch.ones(1), LossConfig(quality_loss=name)) for name in names]
    assert all(isinstance(value, torch.Tensor) for value in values)


SPARSE_LABELS = [2, 4, 0, 4, 3]  # of 4 classes: 4 is the background
SPARSE_SCORES = [0.7, 0.9, 0.0, 0.0, 1.0]  # the background's 0.9 is not read


def sparse_case():
    logits = random_case((5, 4), seed=12)[0].requires_grad_()
    labels, scores = torch.tensor(SPARSE_LABELS), torch.tensor(SPARSE_SCORES).double()
    dense = torch.zeros(5, 4).double()
    dense[0, 2], dense[4, 3] = 0.7, 1.0
    return logits, labels, scores, dense


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_sparse_quality_focal_loss_is_the_dense_one(beta):
    logits, labels, scores, dense = sparse_case()
    rows = quality_focal_loss(logits, dense, beta).sum(1)
    weight = torch.tensor([1.0, 0.5, 2, 0, 3]).double()
    for ours, theirs in (
        (sparse_quality_focal_loss(logits, labels, scores, beta=beta), rows.mean()),
        (
            sparse_quality_focal_loss(logits, labels, scores, beta=beta, weight=weight, avg_factor=1.7),
            (rows * weight).sum() / 1.7,
        ),
        (
            sparse_quality_focal_loss(logits, labels, scores, beta=beta, avg_factor=torch.tensor(2.0)),
            rows.sum() / 2,
        ),
    ):
        assert ours.shape == ()
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (ours, theirs)]
        torch.testing.assert_close(*gradients)


def test_sparse_labels_that_are_no_class_are_background():
    logits, labels, scores, _ = sparse_case()
    expected = sparse_quality_focal_loss(logits, labels, scores)
    labels[1], labels[3] = -1, 99
    torch.testing.assert_close(sparse_quality_focal_loss(logits, labels, scores), expected)


def test_sparse_quality_focal_loss_without_rows():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = sparse_quality_focal_loss(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 4)


def test_gradcheck_of_the_sparse_quality_focal_loss():
    logits, labels, scores, _ = sparse_case()
    scores[2] = 0.5  # off the corner at 0
    scores.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, y: sparse_quality_focal_loss(z, labels, y, beta=1.5, avg_factor=3), (logits, scores)
    )
