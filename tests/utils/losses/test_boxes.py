"""Box losses: hand-worked numbers, torchvision as the oracle, and the edges where torchvision is NaN."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from utils.config import LossConfig
from utils.geometry.boxes import aligned_iou
from utils.losses.boxes import SIMILARITIES, aligned_ciou, aligned_siou, box_loss

# Coordinates in eighths of a pixel: float32 holds them and their areas exactly.
EIGHTH = st.integers(-800, 8000).map(lambda n: n / 8)
PROPER_SIDE = st.integers(8, 4000).map(lambda n: n / 8)
LOWEST = {"iou": 0, "giou": -1, "diou": -1, "ciou": -1.5, "eiou": -2.25, "siou": -1.025}
every_similarity = pytest.mark.parametrize("name", SIMILARITIES)


def proper_boxes():
    return st.tuples(EIGHTH, EIGHTH, PROPER_SIDE, PROPER_SIDE).map(
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
    )


def random_boxes(count, seed, dtype=torch.float64):
    """Proper boxes, 1 to 201 px a side, in a picture of 300 px."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 300
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator, dtype=dtype) * 200), -1)


def overlapping_boxes(count, seed):
    second = random_boxes(count, seed)
    return second + torch.tensor([3.0, -2, 5, 4]), second


HAND = [
    # 4 x 2 at the origin and 4 x 4 from (1, 0): they share 3 x 2, union 8 + 16 - 6 = 18, IoU 1/3.
    # Enclosing 5 x 4: C = 20, c^2 = 41. Centres (2, 1), (3, 2): d^2 = 2.
    # CIoU: angles atan 1 and atan 2 differ by 0.321751: v = 0.0419561, alpha = v / (2/3 + v) = 0.0592074.
    # EIoU: widths equal, heights differ by 2 of 4: 2^2 / 4^2.
    # SIoU: |dx| = |dy|, so the angle is 1 and the distance (1 - e^(-1/25)) + (1 - e^(-1/16)) = 0.0392106 +
    # 0.0605869; shape 0 for the widths, (1 - e^(-2/4))^4 = 0.0239681 for the heights.
    (
        ((0, 0, 4, 2), (1, 0, 5, 4)),
        {
            "iou": 1 / 3,
            "giou": 1 / 3 - 2 / 20,
            "diou": 1 / 3 - 2 / 41,
            "ciou": 1 / 3 - 2 / 41 - 0.0592074 * 0.0419561,
            "eiou": 1 / 3 - 2 / 41 - 4 / 16,
            "siou": 1 / 3 - (0.0392106 + 0.0605869 + 0.0239681) / 2,
        },
    ),
    # 4 x 2 at the origin and 2 x 4 from (2, 0): they share 2 x 2, union 8 + 8 - 4 = 12. Enclosing 4 x 4.
    # Centres (2, 1), (3, 2). Angles atan 1/2, atan 2: v = 0.1678266, alpha = v / (2/3 + v) = 0.2011120.
    (
        ((0, 0, 4, 2), (2, 0, 4, 4)),
        {
            "iou": 1 / 3,
            "giou": 1 / 3 - 4 / 16,
            "diou": 1 / 3 - 2 / 32,
            "ciou": 1 / 3 - 2 / 32 - 0.2011120 * 0.1678266,
            "eiou": 1 / 3 - 2 / 32 - 2 * 4 / 16,
            "siou": 1 / 3 - (2 * 0.0605869 + 2 * 0.0239681) / 2,
        },
    ),
    # Two unit squares, three apart: no overlap, one shape, d^2 = 9, enclosing 4 x 1: c^2 = 17.
    # SIoU: dy = 0, so the angle is 0 and the exponent 2 (3/4)^2 = 9/8.
    (
        ((0, 0, 1, 1), (3, 0, 4, 1)),
        {
            "iou": 0,
            "giou": -2 / 4,
            "diou": -9 / 17,
            "ciou": -9 / 17,
            "eiou": -9 / 17,
            "siou": -(1 - math.exp(-9 / 8)) / 2,
        },
    ),
    # A 2 x 4 box in the middle of a 6 x 4 one: 8 of 24, one centre, the enclosing box is the larger.
    # atan(2/4) and atan(6/4) differ by 0.519146: v = 0.1092289, alpha = v / (2/3 + v) = 0.1407784.
    # SIoU: (1 - e^(-4/6))^4 = 0.0560567.
    (
        ((2, 0, 4, 4), (0, 0, 6, 4)),
        {
            "iou": 1 / 3,
            "giou": 1 / 3,
            "diou": 1 / 3,
            "ciou": 1 / 3 - 0.1407784 * 0.1092289,
            "eiou": 1 / 3 - 16 / 36,
            "siou": 1 / 3 - 0.0560567 / 2,
        },
    ),
]


@every_similarity
@pytest.mark.parametrize(("pair", "expected"), HAND)
def test_by_hand(name, pair, expected):
    first, second = (torch.tensor(box).float() for box in pair)
    assert SIMILARITIES[name](first, second).item() == pytest.approx(expected[name], abs=1e-6)
    assert box_loss(first, second, name).item() == pytest.approx(1 - expected[name], abs=1e-6)


def test_the_names_are_those_of_the_configuration():
    names = LossConfig.model_json_schema()["properties"]["box_loss"]["enum"]
    assert set(names) == set(SIMILARITIES) == set(LOWEST)
    with pytest.raises(KeyError):
        box_loss(torch.zeros(4), torch.zeros(4), "wiou")


ORACLES = {
    "iou": (ops.box_iou, None),
    "giou": (ops.generalized_box_iou, ops.generalized_box_iou_loss),
    "diou": (ops.distance_box_iou, ops.distance_box_iou_loss),
    "ciou": (ops.complete_box_iou, ops.complete_box_iou_loss),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchvision_agrees_on_proper_boxes(name, dtype):
    first, second = random_boxes(60, 1, dtype), random_boxes(50, 2, dtype)
    ours = SIMILARITIES[name](first.unsqueeze(1), second.unsqueeze(0))
    torch.testing.assert_close(ours, ORACLES[name][0](first, second), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "iou"])
def test_the_gradient_is_torchvisions_on_proper_boxes(name):
    first, second = random_boxes(40, 3).requires_grad_(), random_boxes(40, 4)
    (ours,) = torch.autograd.grad(box_loss(first, second, name).sum(), first)
    (theirs,) = torch.autograd.grad(ORACLES[name][1](first, second, reduction="sum"), first)
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-6)


def test_siou_as_the_paper_writes_it():
    first, second = random_boxes(200, 5), random_boxes(200, 6)
    dx, dy = ((first[:, k] + first[:, k + 2] - second[:, k] - second[:, k + 2]).abs() / 2 for k in (0, 1))
    enclosing = torch.maximum(first, second)[:, 2:] - torch.minimum(first, second)[:, :2]
    angle = 1 - 2 * torch.sin(torch.asin(dy / torch.hypot(dx, dy)) - math.pi / 4) ** 2
    gamma = 2 - angle
    distance = sum(1 - torch.exp(-gamma * (d / enclosing[:, k]) ** 2) for k, d in enumerate((dx, dy)))
    shape = 0
    for k in (0, 1):
        one, two = first[:, k + 2] - first[:, k], second[:, k + 2] - second[:, k]
        shape = shape + (1 - torch.exp(-(one - two).abs() / torch.maximum(one, two))) ** 4
    expected = ops.box_iou(first, second).diagonal() - (distance + shape) / 2
    torch.testing.assert_close(aligned_siou(first, second), expected, atol=1e-7, rtol=0)


@every_similarity
@given(first=proper_boxes(), second=proper_boxes())
@settings(max_examples=40, deadline=None)
def test_laws(name, first, second):
    similarity = SIMILARITIES[name]
    first, second = torch.tensor(first).double(), torch.tensor(second).double()
    value = similarity(first, second)
    assert torch.allclose(value, similarity(second, first), atol=1e-9)
    assert torch.allclose(value, similarity(first - 64, second - 64), atol=1e-9)
    larger = similarity(first * 4, second * 4)
    assert torch.allclose(value, larger, atol=1e-6)  # EPS weighs less in larger boxes
    turned = similarity(first[[1, 0, 3, 2]], second[[1, 0, 3, 2]])  # x and y changed places
    assert torch.allclose(value, turned, atol=1e-7)
    assert LOWEST[name] <= value <= aligned_iou(first, second) + 1e-7
    assert similarity(first, first).item() == pytest.approx(1, abs=1e-6)
    assert box_loss(first, second, name) >= 0
    if not torch.equal(first, second):
        assert value < 1 - 1e-6


FAR = 1e7  # px
WORST = {  # a first and a second box that come near the lowest value there is
    "iou": ((0, 0, 1, 1), (2, 2, 3, 3)),
    "giou": ((0, 0, 1, 1), (FAR, FAR, FAR + 1, FAR + 1)),
    "diou": ((0, 0, 1, 1), (FAR, FAR, FAR + 1, FAR + 1)),
    "ciou": ((0, 0, 1e-3, 10), (0, FAR, 1e4, FAR + 1e-3)),  # upright and lying, one far above the other
    "eiou": ((0, 0, FAR, 1e-3), (FAR - 1e-3, 0, FAR, FAR)),  # two sides of a square: d^2 / c^2 = 1/4
    "siou": ((0, 0, 1, 1e-3), (1e4, FAR, 1e4 + 1e-3, FAR + 10)),  # far in x, farther in y: 1 - e^-2 twice
}


@every_similarity
def test_the_lowest_value_is_reached(name):
    first, second = (torch.tensor(box).double() for box in WORST[name])
    assert SIMILARITIES[name](first, second).item() == pytest.approx(LOWEST[name], abs=5e-3)


def test_what_each_adds_to_the_iou():
    # Boxes of one IoU with their truth, and one enclosing box: whatever else tells them apart shows.
    second = torch.tensor([0.0, 0, 8, 8])
    middle, corner = torch.tensor([2.0, 2, 6, 6]), torch.tensor([0.0, 0, 4, 4])  # 16 of 64, both inside
    sees_place = {name for name, f in SIMILARITIES.items() if f(middle, second) > f(corner, second) + 1e-3}
    assert sees_place == {"diou", "ciou", "eiou", "siou"}  # inside a box, GIoU is IoU
    flat = torch.tensor([0.0, 3, 8, 5])  # 8 x 2 in the middle: 16 of 64 again
    sees_shape = {name for name, f in SIMILARITIES.items() if f(middle, second) > f(flat, second) + 1e-3}
    assert sees_shape == {"ciou", "eiou", "siou"}


@every_similarity
def test_leading_axes_broadcast(name):
    first, second = random_boxes(30, 7).view(2, 3, 5, 4), random_boxes(10, 8).view(2, 1, 5, 4)
    value = box_loss(first, second, name)
    assert value.shape == (2, 3, 5)
    torch.testing.assert_close(value[1, 2, 3], box_loss(first[1, 2, 3], second[1, 0, 3], name))
    assert box_loss(first[:, :, :0], second[:, :, :0], name).shape == (2, 3, 0)


COORDINATES = (-3.0, 0.0, 5.0, 5.5)
ALL_BOXES = torch.tensor(list(itertools.product(COORDINATES, repeat=4)))  # 256: proper, empty, turned


@every_similarity
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4, 1e9])
def test_every_pair_of_boxes_has_a_finite_value_and_gradient(name, scale):
    # All pairs of a grid: zero width, zero height, points, equal, touching, disjoint, turned inside out.
    first = (ALL_BOXES * scale).requires_grad_()
    second = (ALL_BOXES * scale).requires_grad_()
    value = box_loss(first.unsqueeze(1), second.unsqueeze(0), name)
    gradients = torch.autograd.grad(value.sum(), (first, second))
    assert value.isfinite().all()
    assert (value >= 0).all() and (value <= 1 - LOWEST[name] + 1e-6).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@every_similarity
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((5, 5, 5, 5), (5, 5, 5, 5)),  # the same point twice
        ((5, 5, 5, 5), (5 + 1e-6, 5, 5 + 1e-6, 5)),
        ((0, 0, 1, 1), (9999, 9999, 10000, 10000)),
        ((0, 0, 1e9, 1e9), (1e9, 1e9, 1e9, 1e9)),
        ((-1e15, -1e15, 1e15, 1e15), (0, 0, 1, 1)),
        ((0, 0, 1e-20, 1e-20), (0, 0, 1e-20, 1e-20)),
        ((1e9, 1e9, -1e9, -1e9), (1e9, -1e9, -1e9, 1e9)),
    ],
)
def test_single_pairs_at_the_limits(name, first, second):
    first = torch.tensor(first).float().requires_grad_()
    second = torch.tensor(second).float().requires_grad_()
    value = box_loss(first, second, name)
    value.backward()
    assert 0 <= value.item() <= 1 - LOWEST[name]
    assert first.grad.isfinite().all() and second.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "iou"])
def test_empty_boxes_agree_with_torchvision_where_it_has_a_number(name):
    proper = (ALL_BOXES[:, 2:] >= ALL_BOXES[:, :2]).all(1)  # empty ones among them
    first, second = ALL_BOXES[proper].unsqueeze(1), ALL_BOXES[proper].unsqueeze(0)
    theirs = ORACLES[name][1](*torch.broadcast_tensors(first, second))
    known = theirs.isfinite()  # NaN where a box is a point (0.29.2, CIoU)
    assert known.float().mean() > 0.6
    ours = box_loss(first, second, name)
    torch.testing.assert_close(ours[known], theirs[known], atol=1e-5, rtol=0)


@every_similarity
def test_a_box_turned_inside_out_counts_as_empty_at_its_first_corner(name):
    turned, empty = torch.tensor([8.0, 2, 4, 6]), torch.tensor([8.0, 2, 8, 6])
    second = torch.tensor([3.0, 3, 9, 8])
    assert torch.equal(box_loss(turned, second, name), box_loss(empty, second, name))
    assert torch.equal(box_loss(second, turned, name), box_loss(second, empty, name))


@pytest.mark.parametrize("name", [name for name in SIMILARITIES if name != "ciou"])
@pytest.mark.parametrize(
    "make", [overlapping_boxes, lambda n, seed: (random_boxes(n, seed), random_boxes(n, 9))]
)
def test_gradcheck(name, make):
    first, second = (boxes.requires_grad_() for boxes in make(8, 10))
    assert torch.autograd.gradcheck(lambda a, b: box_loss(a, b, name), (first, second), atol=1e-6)


def aspect_terms(first, second):
    """v and alpha of CIoU, written with plain quotients."""
    v = 0
    for boxes, sign in ((first, 1), (second, -1)):
        v = v + sign * torch.atan((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))
    v = 4 / math.pi**2 * v**2
    return v, v / (1 - ops.box_iou(first, second).diagonal() + v)


def test_gradient_of_ciou_holds_alpha_fixed():
    first, second = random_boxes(8, 7).requires_grad_(), random_boxes(8, 8)
    first.data[4:] = second[4:] + torch.tensor((3.0, -2, 5, 4))  # overlapping ones too
    fixed = aspect_terms(first, second)[1].detach()

    def with_fixed_alpha(boxes):
        v, alpha = aspect_terms(boxes, second)
        return aligned_ciou(boxes, second) + (alpha.detach() - fixed) * v

    assert torch.autograd.gradcheck(with_fixed_alpha, (first,), atol=1e-6)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(aligned_ciou, (first, second), atol=1e-6)  # alpha does change with the boxes


def test_gradcheck_of_ciou_between_boxes_of_one_shape():
    # At equal aspect ratios v = 0 to second order, so a fixed alpha makes no difference.
    second = torch.tensor([[10.0, 20, 50, 40], [0, 0, 30, 30], [5, 5, 9, 45]]).double()
    moves = torch.tensor([[7.0, 3, 7, 3], [50, 60, 50, 60], [1, 2, 1, 2]]).double()
    first = (second + moves).requires_grad_()
    assert torch.autograd.gradcheck(aligned_ciou, (first, second), atol=1e-6)


@every_similarity
def test_all_but_iou_pull_a_disjoint_box_nearer(name):
    first, second = torch.tensor([0.0, 0, 4, 4]).requires_grad_(), torch.tensor([20.0, 0, 24, 4])
    (gradient,) = torch.autograd.grad(SIMILARITIES[name](first, second), first)
    if name == "iou":
        assert gradient.eq(0).all()
    else:
        assert gradient[0] + gradient[2] > 0  # to the right as a whole


@every_similarity
def test_the_gradient_leads_to_the_truth(name):
    boxes = torch.tensor([[2.0, 3, 9, 7], [1, 1, 4, 9]], requires_grad=True)
    truth = torch.tensor([[1.0, 2, 8, 8], [0, 0, 6, 6]])
    optimizer = torch.optim.Adam([boxes], lr=0.05)
    before = box_loss(boxes, truth, name).detach()
    for _ in range(250):
        optimizer.zero_grad()
        box_loss(boxes, truth, name).sum().backward()
        optimizer.step()
    assert (box_loss(boxes, truth, name) < 0.2 * before).all()
    torch.testing.assert_close(boxes.detach(), truth, atol=0.3, rtol=0)
