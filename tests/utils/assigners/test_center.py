"""The centre cell by hand and against plain loops; what all assigners share: test_laws.py."""

import numpy as np
import pytest
import torch

from tests.utils.assigners.scenes import (
    SCENES,
    make_pred,
    make_truth,
    owners,
    points_of,
    random_scene,
    reference,
)
from utils.assigners.center import CenterAssigner


def scene_of(*boxes):
    """64 x 64 px; P3 has the points 0 to 63, P4 64 to 79, P5 80 to 83. The predictions are nonsense."""
    pred = make_pred((64, 64))
    nonsense = torch.full((1, len(pred.points), 4), float("nan"))
    return torch.full_like(pred.cls_logits, float("nan")), nonsense, pred, make_truth(list(boxes))


def choose_by_loops(scene, b, m, candidates, distance):
    pred, (x1, y1, x2, y2) = scene[2], scene[3].boxes[b, m].tolist()
    chosen = {}
    for a in candidates:
        (x, y), half = pred.points[a].tolist(), pred.strides[a].item() / 2
        if x - half <= (x1 + x2) / 2 < x + half and y - half <= (y1 + y2) / 2 < y + half:
            chosen[a] = 0
    return chosen


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES)
def test_the_reference_assigns_the_same(size, strides, reg_max, crowd, seed):
    scene = random_scene(size, strides, reg_max, seed=seed, **crowd)
    match = CenterAssigner(num_levels=5)(*scene)
    np.testing.assert_array_equal(owners(match).numpy(), reference(scene, choose_by_loops))


def test_one_cell_a_level_by_hand():
    # Centre (32, 32), on borders of cells: the one that begins there. Points (36, 36), (40, 40), (48, 48).
    assert points_of(CenterAssigner()(*scene_of((0, 0, 64, 64)))) == [36, 74, 83]
    # Reach 3: 24, 48 and 96 px; the farthest sides are 36, 40 and 48 px away.
    assert points_of(CenterAssigner(reach=3)(*scene_of((0, 0, 64, 64)))) == [74, 83]
    # 30 px about (41, 25): (44, 28) and (40, 24), but (48, 16) is inside too.
    assert points_of(CenterAssigner()(*scene_of((26, 10, 56, 40)))) == [29, 70, 81]
    # 6 px about (6, 6) count as 8, 2 to 10: (4, 4) and (8, 8) lie inside, (16, 16) does not.
    assert points_of(CenterAssigner()(*scene_of((3, 3, 9, 9)))) == [0, 64]


def test_a_cell_goes_to_the_nearest_centre():
    # Centres (13, 13), (12, 12) and (11, 11) in the cell about (12, 12), number 9; of P4 that about (8, 8),
    # number 64, which lies in all three and is nearest to the third; of P5 (16, 16), number 80: in all three,
    # nearest to the first.
    boxes = [(3, 3, 23, 23), (2, 2, 22, 22), (1, 1, 21, 21)]
    match = CenterAssigner()(*scene_of(*boxes))
    assert [points_of(match, m) for m in range(3)] == [[80], [9], [64]]
    assert not match.fallback.any()
    match = CenterAssigner()(*scene_of(boxes[1], boxes[1]))  # twins: the first
    assert points_of(match, 0) == [9, 64, 80]
    assert points_of(match, 1) == [1] and match.fallback.tolist() == [[False, True]]  # (12, 4), 8 px off


def test_a_centre_outside_the_picture_is_in_no_cell():
    # The last two are wide: the next row's end, or the one after's beginning, lies inside them.
    boxes = [(-40, -40, 10, 10), (60, 20, 68, 44), (20, 63, 44, 90), (-72, 0, 56, 64), (8, 0, 136, 64)]
    for box in boxes:
        match = CenterAssigner()(*scene_of(box))
        assert match.positive.sum() == 1 and match.fallback.all()
