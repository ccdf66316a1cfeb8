"""The epoch's counts against plain loops, and by hand."""

import math

import numpy as np
import pytest
import torch
from torch import distributed

from tests.utils.assigners.scenes import SCENES, make_pred, make_truth, random_scene, start_of_training
from tests.utils.assigners.test_candidates import find_all
from utils.assigners.statistics import COLUMNS, AssignmentStatistics, expressible
from utils.assigners.task_aligned import TaskAlignedAssigner
from utils.geometry.ltrb import boxes_to_ltrb


def count_by_loops(steps, reach):
    """The row of several ``(match, truth, pred)``."""
    sizes = {size: {"boxes": 0, "points": 0, "fallback": 0, "unmatched": 0} for size in COLUMNS_OF}
    lost = beyond = sides = 0
    for match, truth, pred in steps:
        able = find_all(truth, pred.levels, reach).allowed.any(-1)
        ltrb = boxes_to_ltrb(match.boxes, pred.points, pred.strides)
        for b, m in np.ndindex(*truth.labels.shape):
            if not truth.valid[b, m] or truth.ignore[b, m]:
                continue
            x1, y1, x2, y2 = truth.boxes[b, m].tolist()
            side = math.sqrt(max(x2 - x1, 0) * max(y2 - y1, 0))
            facts = sizes["small" if side < 32 else "medium" if side < 96 else "large"]
            points = int((match.positive[b] & (match.truth[b] == m)).sum())
            facts["boxes"] += 1
            facts["points"] += points
            facts["fallback"] += int(match.fallback[b, m])
            facts["unmatched"] += points == 0
            lost += not able[b, m]
        for values in ltrb[match.positive].tolist():
            sides += 4
            beyond += sum(value > reach - 0.5 for value in values)
    total = sum(facts["boxes"] for facts in sizes.values())
    row = {}
    for size, facts in sizes.items():
        row[f"{size}/boxes"] = facts["boxes"]
        row[f"{size}/positives_per_box"] = share(facts["points"], facts["boxes"])
        row[f"{size}/fallback"] = share(facts["fallback"], facts["boxes"])
        row[f"{size}/unmatched"] = share(facts["unmatched"], facts["boxes"])
    row["unmatched"] = share(sum(facts["unmatched"] for facts in sizes.values()), total)
    return row | {"unrepresentable": share(lost, total), "saturated": share(beyond, sides)}


COLUMNS_OF = ("small", "medium", "large")


def share(part, whole):
    return part / whole if whole else math.nan


@pytest.mark.parametrize(("size", "strides", "reg_max", "crowd"), SCENES)
def test_the_reference_counts_the_same(size, strides, reg_max, crowd):
    statistics, steps, assign = AssignmentStatistics(), [], TaskAlignedAssigner(top_k=4)
    for seed in range(3):
        scores, boxes, pred, truth = random_scene(size, strides, reg_max, seed=seed, **crowd)
        match = assign(scores, boxes, pred, truth)
        statistics.add(match, truth, pred, reg_max)
        steps.append((match, truth, pred))
    row = statistics.row()
    assert tuple(row) == COLUMNS[1:]
    assert row == pytest.approx(count_by_loops(steps, reg_max), nan_ok=True)
    assert row["small/boxes"] > 0


def test_by_hand():
    # Reach 3: 24 px on P3, 96 px on P5. 20 px, 40 px, the whole picture, and two that do not count.
    boxes = [(0, 0, 20, 20), (100, 100, 140, 140), (0, 0, 320, 320), (0, 0, 50, 50), (9, 9, 80, 80)]
    truth = make_truth(boxes, valid=[1, 1, 1, 0, 1], ignore=[0, 0, 0, 0, 1])
    scene = start_of_training(truth, (320, 320), reg_max=3)
    statistics = AssignmentStatistics()
    match = TaskAlignedAssigner(top_k=2)(*scene)
    statistics.add(match, truth, scene[2], 3)
    row = statistics.row()
    assert [row[f"{size}/boxes"] for size in COLUMNS_OF] == [1, 1, 1]
    assert [row[f"{size}/positives_per_box"] for size in COLUMNS_OF] == [2, 2, 1]
    assert [row[f"{size}/fallback"] for size in COLUMNS_OF] == [0, 0, 1]
    assert row["unmatched"] == 0
    assert row["unrepresentable"] == pytest.approx(1 / 3)
    # Five positives have 20 sides. 2.5 strides are 20 px on P3 and 80 px on P5: the four sides of the whole
    # picture, 144 px off or more, and of the 40 px box, from (116, 116) or such, the two of 24 px each.
    ltrb = boxes_to_ltrb(match.boxes, scene[2].points, scene[2].strides)[match.positive]
    assert row["saturated"] == (ltrb > 2.5).sum().item() / 20
    assert (ltrb > 2.5).sum() >= 4


def test_sizes_by_hand():
    # 32^2 px^2 is medium, 96^2 large; the shape does not matter.
    boxes = [(0, 0, 32, 31.9), (0, 0, 32, 32), (0, 0, 16, 64), (0, 0, 96, 95.9), (0, 0, 48, 192)]
    truth = make_truth(boxes)
    scene = start_of_training(truth, (320, 320))
    statistics = AssignmentStatistics()
    statistics.add(TaskAlignedAssigner()(*scene), truth, scene[2], 15)
    assert [statistics.row()[f"{size}/boxes"] for size in COLUMNS_OF] == [1, 3, 1]


def test_saturation_by_hand():
    # One point, (16, 16), stride 32, reach 2: beyond 1.5 strides, 48 px. Sides 16, 48, 49 and 60 px.
    pred, truth = make_pred((32, 32), (32,), reg_max=2), make_truth([(0, -32, 65, 76)])
    scores, boxes = torch.full_like(pred.cls_logits, 0.5), torch.zeros(1, 1, 4)
    statistics = AssignmentStatistics()
    statistics.add(TaskAlignedAssigner()(scores, boxes, pred, truth), truth, pred, 2)
    assert statistics.row()["saturated"] == 0.5


def test_nothing_to_divide_by():
    statistics = AssignmentStatistics()
    for _ in range(2):
        row = statistics.row()
        assert [row[f"{size}/boxes"] for size in COLUMNS_OF] == [0, 0, 0]
        assert all(math.isnan(value) for key, value in row.items() if not key.endswith("/boxes"))
        truth = make_truth([[(0, 0, 9, 9)]], valid=False)
        scene = start_of_training(truth, (64, 64))
        statistics.add(TaskAlignedAssigner()(*scene), truth, scene[2], 15)


def test_more_truths_than_points():
    truth = make_truth([(10, 10, 20, 20)] * 30)  # 21 points; see test_task_aligned.py
    scene = start_of_training(truth, (32, 32))
    statistics = AssignmentStatistics()
    statistics.add(TaskAlignedAssigner()(*scene), truth, scene[2], 15)
    row = statistics.row()
    assert row["unmatched"] == row["small/unmatched"] == pytest.approx(13 / 30)
    assert row["small/fallback"] == pytest.approx(16 / 30)
    assert row["small/positives_per_box"] == pytest.approx(21 / 30)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("size", "strides", "reach"), [((320, 192), (8, 16, 32), 15), ((64, 96), (4, 8), 2)])
def test_expressible_is_to_have_a_candidate(size, strides, reach, seed):
    random = np.random.default_rng(seed)
    corner = random.integers(-40, max(size), (2, 200, 2)).astype(float)
    truth = make_truth(np.concatenate((corner, corner + random.integers(0, max(size), (2, 200, 2))), -1))
    levels = make_pred(size, strides).levels
    able = expressible(truth.boxes, levels, reach)
    assert torch.equal(able, find_all(truth, levels, reach).allowed.any(-1))
    assert able.any() and not able.all()


def test_the_ranks_are_added_up(monkeypatch):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: tensor.mul_(3))  # two more ranks alike
    truth = make_truth([(0, 0, 20, 20)])
    scene = start_of_training(truth, (64, 64))
    statistics = AssignmentStatistics()
    statistics.add(TaskAlignedAssigner(top_k=4)(*scene), truth, scene[2], 15)
    for _ in range(2):  # reading changes nothing
        row = statistics.row()
        assert (row["small/boxes"], row["small/positives_per_box"]) == (3, 4)


def test_counts_are_one_tensor_that_can_be_put_back():
    """As when a step is taken anew, or a run goes on."""
    truth = make_truth([(0, 0, 20, 20)])
    scene = start_of_training(truth, (64, 64))
    statistics, assign = AssignmentStatistics(), TaskAlignedAssigner(top_k=4)
    statistics.add(assign(*scene), truth, scene[2], 15)
    row, kept = statistics.row(), statistics.counts.clone()
    statistics.add(assign(*scene), truth, scene[2], 15)
    assert statistics.row() != row
    statistics.counts.copy_(kept)
    assert str(statistics.row()) == str(row)  # nan where there is no medium box
