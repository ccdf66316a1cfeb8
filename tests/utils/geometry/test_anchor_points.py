"""Anchor points: the centres of the cells, row by row, level by level."""

import pytest
import torch

from utils.geometry.anchor_points import make_anchor_points


def test_points_by_hand():
    # 2 rows of 3 cells of 8 px, then 1 row of 2 cells of 16 px.
    points, strides = make_anchor_points([(2, 3), (1, 2)], [8, 16])
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12], [8, 8], [24, 8]]
    assert strides.tolist() == [[8], [8], [8], [8], [8], [8], [16], [16]]


def test_points_follow_the_order_of_a_flattened_feature_map():
    height, width, stride = 5, 7, 32
    points, _ = make_anchor_points([(height, width)], [stride])
    grid = points.view(height, width, 2)
    for row in range(height):
        for column in range(width):
            assert grid[row, column].tolist() == [(column + 0.5) * stride, (row + 0.5) * stride]


@pytest.mark.parametrize("size", [(320, 320), (192, 448), (64, 64), (1280, 64)])
def test_every_level_tiles_the_picture(size):
    strides = (4, 8, 16, 32, 64)
    sizes = [(size[0] // stride, size[1] // stride) for stride in strides]
    points, cells = make_anchor_points(sizes, strides)
    assert len(points) == len(cells) == sum(height * width for height, width in sizes)
    assert (points - cells / 2 >= 0).all()
    assert (points + cells / 2 <= torch.tensor(size[::-1])).all()
    for stride, (height, width) in zip(strides, sizes, strict=True):
        level = points[cells[:, 0] == stride]
        assert len(level.unique(dim=0)) == height * width
        # The mean of the centres is the picture's centre; x and y are not mixed up.
        assert level.mean(0).tolist() == [size[1] / 2, size[0] / 2]


def test_points_are_float32_and_exact_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        points, strides = make_anchor_points([(2, 128)], [8])
    assert points.dtype == strides.dtype == torch.float32
    assert points[125].tolist() == [1004, 4]  # bf16 has 1000 and 1008 there
    assert points[127].tolist() == [1020, 4]


def test_levels_and_strides_must_pair_up():
    with pytest.raises(ValueError):
        make_anchor_points([(2, 3), (1, 2)], [8])
