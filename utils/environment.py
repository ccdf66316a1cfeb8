"""What a figure was made with: software, commit, machine; environment.json and reproduce.sh of a run."""

import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import torch

from utils.config import Resolved
from utils.config_files import ROOT
from utils.files import open_regular, write_whole
from utils.training.batch_size import AUTO
from utils.wording import printable

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "hotcoco",
    "pycocotools",
    "scipy",
)
WHEELS = "https://download.pytorch.org/whl/"  # where builds of PyTorch lie that PyPI does not have


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
                ["git", "-C", str(ROOT), *command],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=20,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        answers.append(answer.stdout.strip())
    top, commit = answers[0].splitlines()
    return "unknown" if Path(top) != ROOT else commit + (" and changes" if answers[1] else "")


def find_hardware() -> str:
    """The processor with its cores, and the GPUs that are to be seen, used or not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = [f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found += [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    return ", ".join(found)


def describe_session(
    argv: Sequence[str],
    settings: Resolved,
    *,
    done: tuple[int, int],
    processes: tuple[int, int],
    device: str,
    precision: str,
) -> dict:
    """One start of a run, plain. ``argv``: sys.argv; ``done``: epochs, and batches of the epoch that runs.

    ``processes``: all, and those on this machine. Beside the command stand the settings that it may leave
    open (the batch size, by auto) and that may change when the run goes on (the epochs). From the root of the
    repository the program is train.py however it was called, so that no path of this machine is added.
    """
    cfg, auto = settings.config.train, settings.origins["train.batch_size"].endswith(AUTO)
    program = "train.py" if Path.cwd() == ROOT else argv[0]
    session = {"epoch": done[0], "batch": done[1], "command": shlex.join([program, *argv[1:]])}
    session |= {"epochs": cfg.epochs, "chosen_batch_size": cfg.batch_size if auto else None}
    session |= {"world_size": processes[0], "local_world_size": processes[1]}
    return session | {"device": device, "precision": precision} | describe_environment()


def write_environment(folder: Path, session: Mapping, *, resumed: bool) -> None:
    """environment.json: ``{"sessions": [...]}``, one for each start, in order; a run that goes on adds one.

    Then reproduce.sh, from all of them. Both are written whole or not at all; OSError where they cannot be. A
    file that cannot be read is begun anew: what it held is lost, the run is not.
    """
    path = folder / "environment.json"
    sessions = [*(_read_sessions(path) if resumed else []), dict(session)]
    write_whole(path, json.dumps({"sessions": sessions}, indent=1) + "\n")
    script = format_reproduce(sessions).encode("utf-8", "surrogateescape")  # file names as they are
    write_whole(folder / "reproduce.sh", script, executable=True)


def format_reproduce(sessions: Sequence[Mapping]) -> str:
    """reproduce.sh: the commands that make the run once more, after comments on what it was made with.

    Flags given to the script go to every command, behind those of the run, and win: ``--project elsewhere``.
    --exist-ok and --resume auto are left out, so that the run itself is neither written over nor gone on
    with. A start with the same epochs as the one before is not repeated: stop + resume is the straight run.
    """
    first = sessions[0]
    lines = ["#!/bin/sh", *_explain(first)]
    if (first["epoch"], first["batch"]) != (0, 0):
        return "\n".join([*lines, "echo 'how this run began is not known any more' >&2", "exit 1", ""])
    program, *words = _split_command(first["command"])
    size = first["chosen_batch_size"]
    words += [] if size is None else ["--set", f"train.batch_size={int(size)}"]
    lines += ["set -e", _command_line(first, [program, *words])]
    for before, session in pairwise(sessions):
        if session["epochs"] == before["epochs"]:
            continue
        place = f"After epoch {int(session['epoch'])} and {int(session['batch'])} batches of the next"
        lines.append(f"# {place} it went on as a run of {int(session['epochs'])} epochs.")
        if (session["epoch"], session["batch"]) != (before["epochs"], 0):
            lines.append("# To repeat that, end the command above there by Ctrl-C and give the next by hand.")
        words += [*_split_command(session["command"])[1:], "--set", f"train.epochs={int(session['epochs'])}"]
        lines.append(_command_line(session, [program, *words, "--resume", "latest"]))
    return "\n".join(lines) + "\n"


def _explain(session: Mapping) -> list[str]:
    """The comments at the head of reproduce.sh."""
    commit = session["commit"].partition(" ")[0]
    pins = [f"{name}=={version}" for name, version in session["versions"].items() if name != "python"]
    build = re.fullmatch(r"[\w.]+\+(\w+)", session["versions"].get("torch", ""))
    index = ["--extra-index-url", WHEELS + build[1]] if build else []
    nodes = session["world_size"] > session["local_world_size"]
    text = [
        "Makes this run once more, from the root of the repository. Further flags are handed on:",
        "  sh reproduce.sh --project runs/again",
        f"commit {session['commit']}; Python {session['versions'].get('python')}",
        f"{session['hardware']}; {session['device']}, {session['precision']}",
        *([] if commit == "unknown" else [f"git checkout {commit}"]),
        shlex.join(["python", "-m", "pip", "install", *pins, *index]),
        *(["on every node, and with --rdzv_backend c10d --rdzv_endpoint HOST:PORT"] if nodes else []),
    ]
    return [f"# {printable(line)}" for line in text]


def _split_command(command: str) -> list[str]:
    """The program and its flags, without those that choose which run to write over or to go on with."""
    words, kept = shlex.split(command), []
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]  # which argparse completes
        if len(name) >= len("--ex") and "--exist-ok".startswith(name):
            continue
        if len(name) >= len("--res") and "--resume".startswith(name):
            if word == name and words and not words[0].startswith("-"):
                words.pop(0)
            continue
        kept.append(word)
    return kept


def _command_line(session: Mapping, words: Sequence[str]) -> str:
    """A line of a shell: train.py with its flags, on as many processes as the session had."""
    world, local = int(session["world_size"]), int(session["local_world_size"])
    nodes = [f"--nnodes={world // local}"] if world > local else []
    launch = ["-m", "torch.distributed.run", *nodes, f"--nproc_per_node={local}"] if world > 1 else []
    return f'"${{PYTHON:-python}}" {shlex.join([*launch, *words])} "$@"'


def _read_sessions(path: Path) -> list[dict]:
    try:
        with open_regular(path) as file:
            sessions = json.loads(file.read())["sessions"]
        for session in sessions:
            format_reproduce([session]).encode("utf-8", "surrogateescape")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    return sessions
