"""The cell that holds a truth's centre, on each level: the plainest rule there is, for comparison.

B images, M padded truths, A anchor points.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from utils.assigners.candidates import Levels, award, find_candidates, level_starts, reach_of
from utils.assigners.finish import finish
from utils.structures import Assignment, Predictions, Targets


class CenterAssigner:
    """Each truth takes the one cell of each level that holds its centre, where that passes the range mask.

    So a level takes part if the cell's point lies inside the truth and can express it (``find_candidates``).
    A cell that holds several centres goes to the truth whose centre is nearest to its point. Predictions play
    no part.
    """

    def __init__(self, *, num_levels: int = 3, reach: int | None = None):
        self.reach, self.most_per_truth = reach, num_levels

    def __call__(self, scores: Tensor, boxes: Tensor, pred: Predictions, truth: Targets) -> Assignment:
        """Assign by position alone; ``scores`` lends the number of points, ``boxes`` (B, A, 4) nothing."""
        assert len(pred.levels) <= self.most_per_truth, "most_per_truth would be too small"
        reach = reach_of(pred, self.reach)
        candidates = find_candidates(truth, pred.levels, reach)
        wanted, point, distance = [], [], []
        for level, cell in zip(candidates, _centre_cells(truth.boxes, pred.levels), strict=True):
            here = level.allowed & (level.index == cell.unsqueeze(-1))
            place = here.int().argmax(-1, keepdim=True)
            wanted.append(here.any(-1, keepdim=True))
            point.append(level.index.gather(-1, place))
            distance.append(level.distance.gather(-1, place))
        wanted, point, distance = (torch.cat(part, -1) for part in (wanted, point, distance))
        owner = award(wanted, point, torch.zeros_like(distance), distance, num_points=scores.shape[1])
        return finish(owner, truth, pred.levels, reach)


def _centre_cells(boxes: Tensor, levels: Levels) -> Iterator[Tensor]:
    """For each level (B, M) the point of the cell that holds the centre; none of the level's if outside."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    for start, (_, width, stride) in level_starts(levels):
        column, row = (centre / stride).floor().long().unbind(-1)
        inside = (column >= 0) & (column < width)  # in a row outside, no number is one of the level's
        yield (start + row * width + column).where(inside, -1)
