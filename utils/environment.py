"""What a figure was made with: software, commit, machine."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from utils.config_files import ROOT

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "hotcoco", "pycocotools", "scipy")


def describe_environment() -> dict:
    """``{"versions": {package: version}, "commit", "hardware"}`` of this process."""
    return {"versions": find_versions(), "commit": find_commit(), "hardware": find_hardware()}


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
    """The commit of this folder, with "and changes" where files differ from it; "unknown" without git.

    A folder inside the working tree of another project is not under git.
    """
    answers = []
    for command in (["rev-parse", "--show-toplevel", "HEAD"], ["status", "--porcelain", "-uno"]):
        try:
            answer = subprocess.run(
                ["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        answers.append(answer.stdout.strip())
    top, commit = answers[0].splitlines()
    return "unknown" if Path(top) != ROOT else commit + (" and changes" if answers[1] else "")


def find_hardware() -> str:
    """The processor with its cores, and the GPUs that are to be seen, used or not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = [f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found += [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join(found)
