"""How a comparison was measured: the data, the settings all runs share, software, hardware."""

from collections.abc import Mapping, Sequence

from utils.comparison.plan import Plan


def describe_protocol(plan: Plan, metrics: Mapping, environments: Sequence[Mapping]) -> dict:
    """The protocol of comparison.json.

    ``metrics``: the metrics.json of any run's measurement; ``environments``: what each run was trained with
    (``describe_environment``; {} where a run does not say).
    """
    config, measured = plan.groups[plan.baseline].config, metrics["protocol"]
    versions = [environment.get("versions", {}) for environment in environments]
    packages = dict.fromkeys(package for found in versions for package in found)
    return {
        "data": metrics["data"]["path"],
        **{key: metrics["data"][key] for key in ("fingerprint", "num_pictures", "num_boxes")},
        **{key: measured[key] for key in ("imgsz", "rect", "conf", "iou", "max_det", "evaluator")},
        "weights": "last EMA",
        "epochs": config.train.epochs,
        "batch_size": config.train.batch_size,
        "model": f"depth {config.model.depth}, width {config.model.width}, backbone {config.model.backbone}",
        "started_from": plan.weights or "scratch",
        "versions": {
            package: join_distinct(found.get(package) for found in versions) for package in packages
        },
        "commit": join_distinct(environment.get("commit") for environment in environments),
        "hardware": join_distinct(environment.get("hardware") for environment in environments),
    }


def join_distinct(values) -> str:
    """Each of the values once, None as "unknown": one, where all runs agree."""
    return " / ".join(dict.fromkeys(value or "unknown" for value in values))
