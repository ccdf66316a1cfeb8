"""Changes of colour as a matrix: hand-worked gains, and what hue and saturation leave alone."""

import colorsys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.augment.colour import colour_matrix


def test_no_change_of_colour_is_the_identity():
    assert np.abs(colour_matrix(0, 0, 0) - np.eye(3)).max() * 255 < 0.5
    assert colour_matrix(0.1, 0.2, 0.3).dtype == np.float32


@given(st.floats(-0.5, 0.5), st.floats(-1, 1))
def test_grey_stays_grey_under_hue_and_saturation(hue, saturation):
    for level in (0, 100, 255):
        assert np.allclose(colour_matrix(hue, saturation, 0) @ np.full(3, level), level, rtol=0, atol=0.05)


def test_value_is_a_gain_of_everything():
    assert np.allclose(colour_matrix(0, 0, 0.4), 1.4 * np.eye(3), atol=1e-6)
    assert np.allclose(colour_matrix(0, 0, -1), 0, atol=1e-6)


def test_no_saturation_gives_the_luma_of_video():
    # ITU-R BT.601: Y = 0.299 R + 0.587 G + 0.114 B.
    matrix = colour_matrix(0.3, -1, 0)
    assert np.allclose(matrix, np.tile((0.299, 0.587, 0.114), (3, 1)), atol=1e-3)


def test_hue_turns():
    assert np.allclose(colour_matrix(1, 0, 0), np.eye(3), atol=1e-5)
    assert np.allclose(colour_matrix(0.2, 0, 0) @ colour_matrix(-0.2, 0, 0), np.eye(3), atol=1e-5)
    assert np.allclose(
        colour_matrix(0.1, 0, 0) @ colour_matrix(0.2, 0, 0), colour_matrix(0.3, 0, 0), atol=1e-5
    )


def test_a_small_hue_turns_every_colour_one_way():
    """By about the same angle as HSV's hue: the spaces differ in shape."""
    changes = []
    for colour in ((0.6, 0.4, 0.4), (0.4, 0.6, 0.4), (0.4, 0.4, 0.6), (0.55, 0.5, 0.42)):
        turned = colour_matrix(0.03, 0, 0) @ colour
        change = colorsys.rgb_to_hsv(*turned)[0] - colorsys.rgb_to_hsv(*colour)[0]
        changes.append((change + 0.5) % 1 - 0.5)
    assert len(set(np.sign(changes))) == 1
    assert all(0.01 < abs(change) < 0.07 for change in changes)
