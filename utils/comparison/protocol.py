"""How a comparison was measured: the data, the settings all runs share, software, hardware."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from utils.comparison.plan import Plan
from utils.config_files import ROOT

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "hotcoco", "pycocotools", "scipy")


def describe_protocol(plan: Plan, metrics: dict) -> dict:
    """The protocol of comparison.json; ``metrics``: the metrics.json of any of the runs."""
    config, measured = plan.groups[plan.baseline].config, metrics["protocol"]
    return {
        "data": metrics["data"]["path"],
        **{key: metrics["data"][key] for key in ("fingerprint", "num_pictures", "num_boxes")},
        **{key: measured[key] for key in ("imgsz", "rect", "conf", "iou", "max_det", "evaluator")},
        "weights": "last EMA",
        "epochs": config.train.epochs,
        "batch_size": config.train.batch_size,
        "model": f"depth {config.model.depth}, width {config.model.width}, backbone {config.model.backbone}",
        "started_from": plan.weights or "scratch",
        "versions": find_versions(),
        "commit": find_commit(),
        "hardware": find_hardware(),
    }


def find_versions() -> dict[str, str]:
    """Python's version, and those of the packages that decide a result; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def find_commit() -> str:
    """The commit of this folder, with "and changes" where files differ from it; "unknown" without git."""
    answers = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        try:
            answer = subprocess.run(
                ["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        answers.append(answer.stdout.strip())
    return answers[0] + (" and changes" if answers[1] else "")


def find_hardware() -> str:
    """The GPUs, or the processor and its cores."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {len(models) or 1} cores"
