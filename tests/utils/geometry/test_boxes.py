"""Overlap of boxes: hand-worked numbers, torchvision as the oracle, and boxes without width or height."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from utils.geometry.boxes import aligned_iou, box_area, pairwise_iou

# Coordinates in eighths of a pixel: float32 holds them and their areas exactly.
EIGHTH = st.integers(-800, 8000).map(lambda n: n / 8)
SIDE = st.integers(0, 4000).map(lambda n: n / 8)

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchvision_agrees_on_proper_boxes(dtype):
    first, second = random_boxes(60, 1, dtype), random_boxes(50, 2, dtype)
    assert (ops.box_iou(first, second) > 0.3).sum() > 20
    torch.testing.assert_close(pairwise_iou(first, second), ops.box_iou(first, second), atol=1e-6, rtol=0)


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
    value = aligned_iou(first, second)
    gradients = torch.autograd.grad(value.sum(), (first, second))
    assert 0 <= value.item() <= 1
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_gradcheck():
    first, second = random_boxes(12, 7).requires_grad_(), random_boxes(12, 8)
    first.data[6:] = second[6:] + torch.tensor((3.0, -2, 5, 4))  # overlapping ones too
    assert torch.autograd.gradcheck(aligned_iou, (first, second.requires_grad_()), atol=1e-6)
