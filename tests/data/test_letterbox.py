"""Resize and pad, and the way back: numbers by hand, laws over all sizes, and pixels against boxes."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.letterbox import (
    PAD_VALUE,
    apply_letterbox,
    plan_letterbox,
    rect_shape,
    resize,
    restore,
    round_up,
)
from utils.structures import Detections

sides = st.integers(1, 3000)
inputs = st.integers(1, 40).map(lambda n: 32 * n)


def boxes_in(size, count=20, seed=0):
    """(count, 4) proper boxes in a picture of ``size``."""
    corners = np.random.default_rng(seed).uniform(0, 1, (count, 2, 2)) * size[::-1]
    return np.concatenate((corners.min(1), corners.max(1)), 1)


def test_by_hand():
    # 480 x 640 into 320 x 320: ratio min(320 / 480, 320 / 640) = 0.5 gives 240 x 320; (320 - 240) / 2 = 40.
    letterbox = plan_letterbox((480, 640), (320, 320))
    assert letterbox.scale == (0.5, 0.5)
    assert letterbox.offset == (0, 40)
    assert letterbox.resized == (240, 320)
    assert letterbox.forward(np.array([[10.0, 20, 640, 480]])).tolist() == [[5, 50, 320, 280]]
    assert letterbox.inverse(np.array([[5.0, 50, 320, 280]])).tolist() == [[10, 20, 640, 480]]


def test_by_hand_with_two_scales():
    # 100 x 333 into 64 x 64: ratio 64 / 333, 100 * 64 / 333 = 19.2 rounds to 19, so y is scaled by 0.19 and x
    # by 64 / 333; (64 - 19) // 2 = 22 above.
    letterbox = plan_letterbox((100, 333), (64, 64))
    assert letterbox.scale == pytest.approx((64 / 333, 0.19))
    assert letterbox.offset == (0, 22)
    assert letterbox.forward(np.array([[0.0, 0, 333, 100]]))[0] == pytest.approx([0, 22, 64, 41])


def test_enlarges_small_pictures():
    letterbox = plan_letterbox((10, 20), (64, 64))
    assert letterbox.scale == (3.2, 3.2)
    assert letterbox.resized == (32, 64)


def test_inverse_clips_to_the_picture():
    letterbox = plan_letterbox((480, 640), (320, 320))
    assert letterbox.inverse(np.array([[-10.0, 0, 400, 320]])).tolist() == [[0, 0, 640, 480]]


@given(sides, sides, inputs, inputs)
@example(1, 3000, 32, 32)  # thinner than a pixel: at least one is left
@settings(max_examples=200, deadline=None)
def test_laws(height, width, rows, columns):
    letterbox = plan_letterbox((height, width), (rows, columns))
    boxes = boxes_in((height, width))
    moved = letterbox.forward(boxes)
    assert np.allclose(letterbox.inverse(moved), boxes, rtol=0, atol=1e-7)
    (left, top), (tall, wide) = letterbox.offset, letterbox.resized
    whole = letterbox.forward(np.array([[0.0, 0, width, height]]))[0]
    assert np.allclose(whole, (left, top, left + wide, top + tall), rtol=0, atol=1e-7)
    assert left >= 0 and top >= 0 and left + wide <= columns and top + tall <= rows
    assert 0 <= columns - wide - 2 * left <= 1 and 0 <= rows - tall - 2 * top <= 1  # centred
    assert tall == rows or wide == columns  # fills one side
    if min(tall, wide) > 1:  # aspect kept up to half a pixel
        assert abs(tall / height - wide / width) <= 0.5 / min(height, width) + 1e-9


@given(st.integers(1, 5000), st.sampled_from((8, 16, 32, 64)))
@settings(max_examples=100, deadline=None)
def test_round_up(size, stride):
    assert round_up(size, stride) % stride == 0
    assert 0 <= round_up(size, stride) - size < stride


@given(sides, sides, inputs, inputs, st.sampled_from((16, 32)))
@settings(max_examples=200, deadline=None)
def test_rect_shape(height, width, rows, columns, stride):
    size, limit = (height, width), (rows, columns)
    shape = rect_shape(size, limit, stride)
    fitted = plan_letterbox(size, limit).resized
    for side, needed, most in zip(shape, fitted, limit, strict=True):
        assert side % stride == 0
        assert needed <= side <= most
        assert side - needed < stride
    # Fitted once more, the short side, rounded to whole pixels above, may decide: half a pixel of it at most.
    again = plan_letterbox(size, shape).resized
    aspect = max(size) / min(size)
    assert np.abs(np.subtract(again, fitted)).max() <= 0.5 * aspect + 1


def test_rect_shape_by_hand():
    assert rect_shape((480, 640), (640, 640), 32) == (480, 640)
    assert rect_shape((481, 640), (640, 640), 32) == (512, 640)
    assert rect_shape((640, 480), (640, 640), 32) == (640, 480)


def test_resize_leaves_a_picture_of_the_size_alone():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert resize(picture, (2, 4)) is picture


def test_resize_averages_areas():
    # Each output pixel is the mean of 2 x 2 input pixels: (0 + 40 + 80 + 120) / 4 = 60.
    picture = np.repeat(np.array([[0, 40], [80, 120]], np.uint8)[..., None], 3, 2)
    assert resize(picture, (1, 1)).tolist() == [[[60, 60, 60]]]


def test_resize_interpolates_between_the_centres_of_pixels():
    # Doubled, the centres of the new pixels lie a quarter pixel beside the old ones: 1/4 and 3/4 of the way.
    picture = np.repeat(np.array([[0, 100]], np.uint8)[..., None], 3, 2)
    assert resize(picture, (1, 4))[0, :, 0].tolist() == [0, 25, 75, 100]


def test_padding_is_grey():
    letterbox = plan_letterbox((10, 20), (64, 64))
    image = apply_letterbox(np.zeros((10, 20, 3), np.uint8), letterbox)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert (image[:16] == PAD_VALUE).all() and (image[48:] == PAD_VALUE).all()
    assert (image[16:48] == 0).all()


@given(
    st.tuples(st.integers(8, 300), st.integers(8, 300)),
    st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda n: (32 * n[0], 32 * n[1])),
    st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_painted_box_lands_where_the_boxes_go(size, shape, seed):
    rng = np.random.default_rng(seed)
    letterbox = plan_letterbox(size, shape)
    least = np.ceil(2 / np.array(letterbox.scale)).astype(int)  # two pixels of the output
    low = [int(rng.integers(0, max(1, n - m))) for n, m in zip(size[::-1], least, strict=True)]
    high = [int(rng.integers(min(n, a + m), n + 1)) for n, a, m in zip(size[::-1], low, least, strict=True)]
    picture = np.zeros((*size, 3), np.uint8)
    picture[low[1] : high[1], low[0] : high[0]] = 255
    image = apply_letterbox(picture, letterbox)
    expected = letterbox.forward(np.array([[*low, *high]], float))[0]
    if (expected[2:] - expected[:2] < 2).any():
        return  # a picture of less than two pixels across in the output
    y, x = np.nonzero(image[..., 0] > 127)
    painted = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert np.abs(painted - expected).max() <= 1


def test_restore():
    # 480 x 640 into 320 x 320: halved, 40 px above. The second box reaches into the padding and is clipped.
    letterbox = plan_letterbox((480, 640), (320, 320))
    found = Detections(
        torch.tensor([[5.0, 50, 105, 90], [-10, 0, 320, 320]]),
        torch.tensor([0.9, 0.8]),
        torch.tensor([2, 1]),
        torch.tensor([[1.0, 2, 3, 4], [1, 1, 1, 1]]),
        (320, 320),
    )
    original = restore(found, letterbox)
    assert original.boxes.tolist() == [[10, 20, 210, 100], [0, 0, 640, 480]]
    assert original.sigma.tolist() == [[2, 4, 6, 8], [2, 2, 2, 2]]
    assert original.scores.tolist() == found.scores.tolist()
    assert original.labels.tolist() == [2, 1] and original.labels.dtype == torch.int64
    assert original.boxes.dtype == original.sigma.dtype == torch.float32
    assert original.size == (480, 640)


def test_restore_divides_sigma_by_the_scale_of_its_axis():
    letterbox = plan_letterbox((100, 333), (64, 64))
    found = Detections(
        torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64), torch.ones(1, 4), ()
    )
    x, y = 333 / 64, 1 / 0.19
    assert restore(found, letterbox).sigma[0].tolist() == pytest.approx([x, y, x, y], rel=1e-6)


def test_restore_of_nothing():
    nothing = Detections(
        torch.zeros(0, 4),
        torch.zeros(0),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 4),
        (320, 320),
    )
    original = restore(nothing, plan_letterbox((480, 640), (320, 320)))
    assert original.boxes.shape == original.sigma.shape == (0, 4)
    assert original.size == (480, 640)
