"""Matrices, boxes through them and what they bring into view: by hand and against torchvision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as oracle
from torchvision.tv_tensors import BoundingBoxes

from data.augment.homography import (
    is_straight,
    jacobians,
    polygon_areas,
    project,
    shift_matrix,
    transform_boxes,
    visible_polygons,
    warp_matrix,
)

SHAPE = (4000, 4000)  # torchvision cuts boxes to the canvas: large enough to cut none
STILL = {"degrees": 0.0, "shear": (0.0, 0.0), "tilt": (0.0, 0.0)}
angles = st.floats(-180, 180)
shears = st.tuples(st.floats(-45, 45), st.floats(-45, 45))
tilts = st.tuples(st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
warps = st.builds(lambda d, s, t: warp_matrix((96, 128), degrees=d, shear=s, tilt=t), angles, shears, tilts)


def random_boxes(rng, count=20, low=1700, high=2300) -> np.ndarray:
    corners = rng.uniform(low, high, (count, 2, 2))
    return np.concatenate((corners.min(1), corners.max(1)), 1)


def as_torch(boxes, shape=SHAPE) -> BoundingBoxes:
    return BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=shape, dtype=torch.float64)


def bounds(polygons) -> np.ndarray:
    return np.concatenate((polygons.min(1), polygons.max(1)), 1)


# the matrix


def test_warp_matrix_by_hand():
    # About the centre (50, 30) of a 60 x 100 output. A quarter turn brings the point right of it below it.
    turn = warp_matrix((60, 100), **STILL | {"degrees": 90.0})
    assert np.allclose(turn @ (60, 30, 1), (50, 40, 1))
    # 45 degrees along x: 20 px lower is 20 px further right; then along y: x = 20 is 20 px lower.
    sheared = warp_matrix((60, 100), **STILL | {"shear": (45.0, 0.0)})
    assert np.allclose(sheared @ (50, 50, 1), (70, 50, 1))
    sheared = warp_matrix((60, 100), **STILL | {"shear": (45.0, 45.0)})
    assert np.allclose(sheared @ (50, 50, 1), (70, 70, 1))
    # The right edge, 50 px from the centre, at 1.25 times its depth: 40 px from it; the left at 0.75: 66.7.
    tilted = warp_matrix((60, 100), **STILL | {"tilt": (0.25, 0.0)})
    assert np.allclose(project(np.array(((100, 30, 1), (0, 30, 1))), tilted), ((90, 30), (50 - 200 / 3, 30)))


@given(warps)
@settings(deadline=None)
def test_no_point_of_the_output_is_behind_the_horizon(warp):
    back = np.linalg.inv(warp)
    corners = np.array(((0, 0, 1), (128, 0, 1), (128, 96, 1), (0, 96, 1)))
    assert (corners @ back[2] > 0.19).all()  # 1 - 2 * 0.4 at the worst corner
    assert np.allclose(warp @ (64, 48, 1), (64, 48, 1))


def test_is_straight():
    assert is_straight(np.eye(3)) and is_straight(np.array(((-2.0, 0, 5), (0, 3, -7), (0, 0, 1))))
    for row, column in ((0, 1), (1, 0), (2, 0), (2, 1)):
        matrix = np.eye(3)
        matrix[row, column] = 1e-9
        assert not is_straight(matrix)


def test_jacobians_by_hand():
    # x' = x / (1 + x / 100): the slope is 1 / (1 + x / 100)^2; y' = y / (1 + x / 100), at y = 0.
    matrix = np.array(((1.0, 0, 0), (0, 1, 0), (0.01, 0, 1)))
    found = jacobians(matrix, np.array(((0.0, 0, 1), (100, 0, 1))))
    assert np.allclose(found, (((1, 0), (0, 1)), ((0.25, 0), (0, 0.5))))


# boxes, against torchvision


def test_boxes_agree_with_torchvision_turned_and_sheared():
    rng = np.random.default_rng(0)
    for _ in range(100):
        degrees, shear = rng.uniform(-180, 180), rng.uniform(-40, 40, 2)
        boxes, gain, shift = random_boxes(rng), rng.uniform(0.5, 1.5), rng.uniform(-100, 100, 2)
        # torchvision turns and shears after scaling, all about the centre; its shears count against the axes.
        matrix = shift_matrix(*shift) @ warp_matrix(SHAPE, degrees=degrees, shear=shear, tilt=(0, 0))
        scaling = shift_matrix(2000, 2000) @ np.diag((gain, gain, 1)) @ shift_matrix(-2000, -2000)
        theirs = oracle.affine(
            as_torch(boxes),
            angle=degrees,
            translate=shift.tolist(),
            scale=gain,
            shear=(-shear).tolist(),
            center=[2000.0, 2000.0],
        )
        assert np.allclose(transform_boxes(boxes, matrix @ scaling), theirs.numpy(), rtol=0, atol=1e-2)


def test_boxes_agree_with_torchvision_in_perspective():
    rng = np.random.default_rng(1)
    for _ in range(100):
        warp = warp_matrix(
            SHAPE, degrees=rng.uniform(-30, 30), shear=rng.uniform(-10, 10, 2), tilt=rng.uniform(-0.4, 0.4, 2)
        )
        back = np.linalg.inv(warp)
        coefficients = (back / back[2, 2]).ravel()[:8].tolist()
        boxes = random_boxes(rng)
        theirs = oracle.perspective(as_torch(boxes), None, None, coefficients=coefficients)
        assert np.allclose(transform_boxes(boxes, warp), theirs.numpy(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("axis", [0, 1])
def test_flips_and_resizes_agree_with_torchvision(axis):
    boxes = random_boxes(np.random.default_rng(2), low=0, high=400)
    flip = np.eye(3)
    flip[axis, axis], flip[axis, 2] = -1, (500, 400)[axis]
    turn = (oracle.horizontal_flip, oracle.vertical_flip)[axis]
    assert np.allclose(transform_boxes(boxes, flip), turn(as_torch(boxes, (400, 500))).numpy())
    theirs = oracle.resize(as_torch(boxes, (400, 500)), [200, 750])
    assert np.allclose(transform_boxes(boxes, np.diag((1.5, 0.5, 1))), theirs.numpy(), atol=1e-3)


def test_transform_boxes_takes_the_bounds_of_a_turned_box():
    # A quarter turn, x' = -y, y' = x: corners (1, 2), (3, 2), (3, 5), (1, 5) go to (-2, 1) ... (-5, 3).
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert transform_boxes(np.array([[1.0, 2, 3, 5]]), turn).tolist() == [[-5, 1, -2, 3]]
    assert transform_boxes(np.zeros((0, 4)), turn).shape == (0, 4)


# what is in view


def test_a_turned_box_cut_by_hand():
    # Turned by 45 degrees about (0, 0) and shifted by 10: the square 0..sqrt(2) * 10 becomes the diamond
    # (10, 10), (20, 20), (10, 30), (0, 20). Of it an output 15 px wide shows all but the triangle right of
    # x = 15, with corners (15, 15), (20, 20), (15, 25): 25 of 200 px^2.
    side, root = 200**0.5, 0.5**0.5
    turn = np.array(((root, -root, 10), (root, root, 10), (0, 0, 1)))
    (polygon,) = polygons = visible_polygons(np.array([[0, 0, side, side]]), turn, (100, 15))
    assert np.allclose(bounds(project(polygon, turn)[None]), [[0, 10, 15, 30]])
    assert np.allclose(polygon_areas(polygons), 175)
    # 12 px tall, only the tip is left, 4 px wide: not the 20 px of the whole.
    polygon = visible_polygons(np.array([[0, 0, side, side]]), turn, (12, 100))[0]
    assert np.allclose(bounds(project(polygon, turn)[None]), [[8, 10, 12, 12]])


def test_out_of_view_is_nan_and_without_area():
    boxes = np.array([[200.0, 0, 210, 10], [10, 10, 20, 20]])
    polygons = visible_polygons(boxes, np.eye(3), (100, 100))
    assert np.isnan(polygons[0]).all() and not np.isnan(polygons[1]).any()
    assert polygon_areas(polygons).tolist() == [0, 100]
    assert visible_polygons(np.zeros((0, 4)), np.eye(3), (100, 100)).shape[0] == 0


def test_a_matrix_for_each_rectangle():
    boxes = np.array([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    matrices = np.stack((np.eye(3), shift_matrix(-5, 0)))
    assert polygon_areas(visible_polygons(boxes, matrices, (100, 100))).tolist() == [100, 50]


def test_a_box_across_the_horizon_is_cut_to_what_is_in_view():
    # Depth 1 - x / 100: the horizon is at x = 100, and beyond it points come out at negative x. The output,
    # 100 px wide, shows x / (1 - x / 100) <= 100, that is x <= 50.
    matrix = np.array(((1.0, 0, 0), (0, 1, 0), (-0.01, 0, 1)))
    boxes = np.array([[20.0, 0, 300, 10], [120, 0, 200, 10], [-900, 0, 0, 10]])
    polygons = visible_polygons(boxes, matrix, (100, 100))
    seen = project(polygons[0], matrix)
    assert np.allclose(bounds(seen[None]), [[25, 0, 100, 20]])
    assert polygon_areas(polygons) == pytest.approx([300, 0, 0])


@given(warps, st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_what_is_in_view_by_sampling(warp, seed):
    """Of a grid of points in each box, the share that lands in the output, and its bounds."""
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 5, -400, 500)
    polygons = visible_polygons(boxes, warp, (96, 128))
    shares = polygon_areas(polygons) / np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    steps = (np.arange(60) + 0.5) / 60
    for box, polygon, share in zip(boxes, polygons, shares, strict=True):
        grid = np.stack(np.meshgrid(*(box[:2, None] + (box[2:] - box[:2])[:, None] * steps)), -1).reshape(
            -1, 2
        )
        moved = np.concatenate((grid, np.ones((len(grid), 1))), 1) @ warp.T
        ahead = moved[:, 2] > 0
        points = moved[ahead, :2] / moved[ahead, 2:]
        inside = ((points >= 0) & (points <= (128, 96))).all(1)
        assert inside.sum() / len(grid) == pytest.approx(share, abs=0.05)
        if inside.any():
            low, high = np.split(bounds(project(polygon, warp)[None])[0], 2)
            assert (points[inside] >= low - 1e-6).all() and (points[inside] <= high + 1e-6).all()
            assert (low >= -1e-6).all() and (high <= np.array((128, 96)) + 1e-6).all()
