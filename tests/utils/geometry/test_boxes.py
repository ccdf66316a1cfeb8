"""Overlap of boxes: hand-worked numbers, torchvision as the oracle, the edges where torchvision is NaN."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from utils.geometry.boxes import aligned_ciou, aligned_iou, box_area, pairwise_iou

# Coordinates in eighths of a pixel: float32 holds them and their areas exactly.
EIGHTH = st.integers(-800, 8000).map(lambda n: n / 8)
SIDE = st.integers(0, 4000).map(lambda n: n / 8)
PROPER_SIDE = st.integers(8, 4000).map(lambda n: n / 8)

DEGENERATE = {
    "zero width": ((5, 5, 5, 9), (4, 4, 8, 8)),
    "zero height": ((5, 5, 9, 5), (4, 4, 8, 8)),
    "a point": ((5, 5, 5, 5), (4, 4, 8, 8)),
    "both of zero width": ((5, 5, 5, 9), (6, 5, 6, 9)),
    "both of zero height": ((5, 5, 9, 5), (5, 6, 9, 6)),
    "one line, one column": ((5, 5, 5, 9), (4, 6, 8, 6)),
    "the same point twice": ((5, 5, 5, 5), (5, 5, 5, 5)),
    "two points": ((5, 5, 5, 5), (7, 8, 7, 8)),
    "identical": ((4, 4, 8, 8), (4, 4, 8, 8)),
    "touching": ((0, 0, 4, 4), (4, 0, 8, 4)),
    "disjoint": ((0, 0, 4, 4), (100, 200, 104, 204)),
    "far apart": ((0, 0, 1, 1), (9999, 9999, 10000, 10000)),
    "inside out": ((8, 8, 4, 4), (4, 4, 8, 8)),
}


def boxes_of(sides):
    return st.tuples(EIGHTH, EIGHTH, sides, sides).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def random_boxes(count, seed, dtype=torch.float64):
    """Proper boxes, 1 to 201 px a side, in a picture of 300 px."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 300
    return torch.cat((corner, corner + 1 + torch.rand(count, 2, generator=generator, dtype=dtype) * 200), -1)


def test_area():
    boxes = torch.tensor([[1.0, 2, 4, 7], [1, 2, 1, 7], [4, 7, 1, 2], [4, 2, 1, 7]])
    assert box_area(boxes).tolist() == [15, 0, 0, 0]  # 3 x 5; a line; turned inside out on two axes, on one


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 4, 4), (2, 1, 6, 5), 6 / 26),  # 2 x 3 shared; 16 + 16 - 6
        ((0, 0, 8, 4), (0, 0, 4, 4), 16 / 32),  # one half of the other
        ((0, 0, 8, 8), (2, 2, 4, 4), 4 / 64),  # inside
        ((0, 0, 4, 4), (0, 0, 4, 4), 1),
        ((0, 0, 4, 4), (4, 0, 8, 4), 0),  # they share a side
        ((0, 0, 4, 4), (4, 4, 8, 8), 0),  # a corner
        ((0, 0, 4, 4), (6, 6, 8, 8), 0),  # nothing, apart on both axes: two negative overlaps are no area
        ((5, 5, 5, 5), (5, 5, 5, 5), 0),  # both empty
    ],
)
def test_iou_by_hand(first, second, expected):
    first, second = torch.tensor([first]).float(), torch.tensor([second]).float()
    assert aligned_iou(first, second).item() == pytest.approx(expected, abs=1e-6)
    assert pairwise_iou(first, second).item() == pytest.approx(expected, abs=1e-6)


def test_ciou_by_hand():
    # 4 x 2 at the origin and 2 x 4 from (2, 0) share 2 x 2: IoU 4 / 12. Centres (2, 1) and (3, 2): d^2 = 2.
    # Enclosing box 4 x 4: c^2 = 32. Angles atan(1/2) and atan(2): v = 4/pi^2 * 0.6435011^2 = 0.1678266,
    # alpha = v / (1 - 1/3 + v) = 0.2011120.  CIoU = 0.3333333 - 0.0625 - 0.0337519.
    first, second = torch.tensor([0.0, 0, 4, 2]), torch.tensor([2.0, 0, 4, 4])
    assert aligned_ciou(first, second).item() == pytest.approx(0.2370814, abs=1e-6)
    # Two unit squares, three apart: IoU 0, the same shape, d^2 = 9, enclosing box 4 x 1.
    first, second = torch.tensor([0.0, 0, 1, 1]), torch.tensor([3.0, 0, 4, 1])
    assert aligned_ciou(first, second).item() == pytest.approx(-9 / 17, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchvision_agrees_on_proper_boxes(dtype):
    first, second = random_boxes(60, 1, dtype), random_boxes(50, 2, dtype)
    assert (ops.box_iou(first, second) > 0.3).sum() > 20
    torch.testing.assert_close(pairwise_iou(first, second), ops.box_iou(first, second), atol=1e-6, rtol=0)
    ours = aligned_ciou(first.unsqueeze(1), second.unsqueeze(0))
    torch.testing.assert_close(ours, ops.complete_box_iou(first, second), atol=1e-6, rtol=0)


def test_gradient_of_ciou_is_torchvisions_on_proper_boxes():
    first, second = random_boxes(40, 3).requires_grad_(), random_boxes(40, 4)
    (ours,) = torch.autograd.grad((1 - aligned_ciou(first, second)).sum(), first)
    (theirs,) = torch.autograd.grad(ops.complete_box_iou_loss(first, second, reduction="sum"), first)
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-6)


@given(st.lists(st.tuples(boxes_of(SIDE), boxes_of(SIDE)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_iou_laws(pairs):
    first, second = (torch.tensor(boxes) for boxes in zip(*pairs, strict=True))
    pairwise = pairwise_iou(first, second)
    aligned = aligned_iou(first, second)
    assert torch.equal(pairwise.diagonal(), aligned)
    assert torch.equal(pairwise, pairwise_iou(second, first).T)
    assert (aligned >= 0).all() and (aligned <= 1).all()
    shifted = aligned_iou(first + 16, second + 16)
    torch.testing.assert_close(shifted, aligned, atol=1e-6, rtol=0)
    turned = aligned_iou(first[:, [1, 0, 3, 2]], second[:, [1, 0, 3, 2]])  # x and y changed places
    assert torch.equal(turned, aligned)


@given(boxes_of(PROPER_SIDE), boxes_of(PROPER_SIDE))
@settings(max_examples=60, deadline=None)
def test_ciou_laws(first, second):
    first, second = torch.tensor(first).double(), torch.tensor(second).double()
    ciou = aligned_ciou(first, second)
    assert torch.allclose(ciou, aligned_ciou(second, first), atol=1e-9)
    assert torch.allclose(ciou, aligned_ciou(first - 64, second - 64), atol=1e-9)
    assert torch.allclose(
        ciou, aligned_ciou(first * 4, second * 4), atol=1e-6
    )  # EPS weighs less in larger boxes
    assert torch.allclose(ciou, aligned_ciou(first[[1, 0, 3, 2]], second[[1, 0, 3, 2]]), atol=1e-7)
    assert -1.5 <= ciou <= aligned_iou(first, second) + 1e-12
    assert aligned_ciou(first, first).item() == pytest.approx(1, abs=1e-6)


def test_leading_axes_broadcast():
    first, second = random_boxes(30, 5).view(2, 3, 5, 4), random_boxes(14, 6).view(2, 1, 7, 4)
    pairwise = pairwise_iou(first, second)
    assert pairwise.shape == (2, 3, 5, 7)
    torch.testing.assert_close(pairwise[1, 2, 3, 4], aligned_iou(first[1, 2, 3], second[1, 0, 4]))
    assert pairwise_iou(first[:, :, :0], second).shape == (2, 3, 0, 7)


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("swapped", [False, True])
def test_degenerate_boxes_have_finite_values_and_gradients(name, swapped):
    pair = [torch.tensor([box]).float().requires_grad_() for box in DEGENERATE[name]]
    first, second = reversed(pair) if swapped else pair
    for overlap in (aligned_iou, aligned_ciou):
        value = overlap(first, second)
        gradients = torch.autograd.grad(value.sum(), (first, second))
        assert value.isfinite().all(), overlap.__name__
        assert all(gradient.isfinite().all() for gradient in gradients), overlap.__name__


@pytest.mark.parametrize("name", [name for name in DEGENERATE if name != "inside out"])
def test_degenerate_boxes_agree_with_torchvision_where_it_has_a_number(name):
    first, second = (torch.tensor([box]).float() for box in DEGENERATE[name])
    theirs = 1 - ops.complete_box_iou_loss(first, second).item()  # NaN where a box is a point (0.29.2)
    ours = aligned_ciou(first, second).item()
    assert math.isnan(theirs) or ours == pytest.approx(theirs, abs=1e-5)


@given(
    boxes_of(st.sampled_from((0.0, 0.125, 1.0, 500.0))), boxes_of(st.sampled_from((0.0, 0.125, 1.0, 500.0)))
)
@settings(max_examples=100, deadline=None)
def test_thin_boxes_have_finite_values_and_gradients(first, second):
    first, second = torch.tensor(first).requires_grad_(), torch.tensor(second)
    value = aligned_ciou(first, second)
    (gradient,) = torch.autograd.grad(value, first)
    assert -1.5 <= value.item() <= 1
    assert gradient.isfinite().all()


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
    assert torch.autograd.gradcheck(aligned_iou, (first, second), atol=1e-6)


def test_ciou_pulls_a_disjoint_box_nearer():
    first, second = torch.tensor([0.0, 0, 4, 4]).requires_grad_(), torch.tensor([20.0, 0, 24, 4])
    (gradient,) = torch.autograd.grad(aligned_ciou(first, second), first)
    assert gradient[0] + gradient[2] > 0  # to the right as a whole; plain IoU has no gradient here
    assert torch.autograd.grad(aligned_iou(first, second), first)[0].eq(0).all()
