"""Task-aligned assignment (arXiv:2108.07755, section 3.2).

B images, M padded truths, A anchor points, C classes, K candidates of a truth.
"""

from torch import Tensor

from utils.assigners.candidates import award, find_candidates, in_blocks, pick, rate_candidates, reach_of
from utils.assigners.finish import finish
from utils.structures import Assignment, Predictions, Targets


class TaskAlignedAssigner:
    """Each truth takes its ``top_k`` candidates of largest score^alpha * IoU^beta.

    Candidates lie inside the truth *and* can express it with their bins (``find_candidates``). Equal metrics,
    as at the start of training, are ranked by distance to the centre. A point wanted by several truths goes
    to the one for which its metric is largest. Every truth gets a point while there are free ones
    (``finish``).
    """

    def __init__(self, *, top_k: int = 13, alpha: float = 1.0, beta: float = 6.0, reach: int | None = None):
        self.top_k, self.alpha, self.beta, self.reach = top_k, alpha, beta, reach
        self.most_per_truth = max(top_k, 1)

    def __call__(self, scores: Tensor, boxes: Tensor, pred: Predictions, truth: Targets) -> Assignment:
        """Assign by detached scores (B, A, C) in [0, 1] and decoded boxes (B, A, 4) xyxy px."""
        reach = reach_of(pred, self.reach)

        def choose(some: Targets) -> tuple[Tensor, ...]:
            candidates = find_candidates(some, pred.levels, reach)
            rated = (rate_candidates(level, scores, boxes, some) for level in candidates)
            metrics = (iou.pow_(self.beta).mul_(score.pow(self.alpha)) for score, iou in rated)
            return pick(candidates, metrics, self.top_k)

        owner = award(*in_blocks(choose, truth), num_points=scores.shape[1])
        return finish(owner, truth, pred.levels, reach)
