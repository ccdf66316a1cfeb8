"""The assigner that a configuration names."""

from utils.assigners.atss import ATSSAssigner
from utils.assigners.center import CenterAssigner
from utils.assigners.simota import SimOTAAssigner
from utils.assigners.task_aligned import TaskAlignedAssigner
from utils.config import Config


def build_assigner(cfg: Config) -> TaskAlignedAssigner | ATSSAssigner | SimOTAAssigner | CenterAssigner:
    """From ``cfg.assigner``, for the levels of ``cfg.model`` and the distances that it can express."""
    rule, reach, num_levels = cfg.assigner, cfg.model.reach, len(cfg.model.levels)
    if rule.name == "atss":
        return ATSSAssigner(top_k=rule.top_k, num_levels=num_levels, reach=reach)
    if rule.name == "simota":
        return SimOTAAssigner(top_k=rule.top_k, iou_weight=rule.iou_weight, reach=reach)
    if rule.name == "center":
        return CenterAssigner(num_levels=num_levels, reach=reach)
    return TaskAlignedAssigner(top_k=rule.top_k, alpha=rule.alpha, beta=rule.beta, reach=reach)
