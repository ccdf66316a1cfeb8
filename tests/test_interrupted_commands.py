"""Signals at random moments of data.check, data.convert, val, detect and compare, in processes of their own.

From the import of torch to the last file: one line, the signal's exit code, no process left, and the next run
as if nothing had been. ``python -m tests.test_interrupted_commands 50`` tries that many moments of each.
"""

import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from data.shapes import make_shapes
from tests.ranks import ROOT
from tests.resume import FLAGS
from utils.command import ENDING
from utils.errors import OK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc, pseudo-terminals"),
]
TINY = ["--cfg", "demo", "--imgsz", "64", "--workers", "0", "--device", "cpu"]
COMMANDS = ("check", "convert", "val", "detect", "compare")
LAST_ALARM = 60  # seconds


class Left(NamedTuple):
    """What an interrupted command left."""

    code: int
    err: str
    seconds: float  # from the signal to its end
    processes: list[int]


def command_of(name: str, home: Path) -> list[str]:
    """A command that has all that it needs in ``home``: set, weights.pt, compare.yaml."""
    data, weights = home / "set", home / "weights" / "weights" / "last.pt"
    use = ["--weights", weights, "--device", "cpu", "--project", home / name, "--name", "x", "--exist-ok"]
    few = [*TINY, "--jobs", "1", "--epochs", "1", "--batch-size", "8", "--data", data]
    words = {
        "check": ["-m", "data.check", "--data", data, "--img", "64"],
        "convert": ["-m", "data.convert", "--data", data, "--to", "coco", "--out", home / name / "x"],
        "val": ["val.py", *use, "--workers", "1", "--save-json"],
        "detect": ["detect.py", *use, "--source", data / "images" / "train", "--save-txt", "--save-crop"],
        "compare": ["compare.py", home / "compare.yaml", *few, "--project", home / name, "--name", "x"],
    }
    return [sys.executable, *map(str, words[name])]


def prepare(home: Path) -> dict[str, str]:
    """The environment of the commands; what they need is made in ``home``."""
    make_shapes(home / "set", num_train=40, num_val=20, sides=(100, 160))
    (home / "compare.yaml").write_text("losses: [gfl, giou]\nbaseline: gfl\nseeds: 1\n", encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LTRB_CACHE": str(home / "cache")}
    flags = [*TINY, "--batch-size", "8", "--epochs", "1", "--noplots", "--data", home / "set"]
    command = [sys.executable, "train.py", *flags, "--project", home, "--name", "weights"]
    subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=True, capture_output=True)
    return environment


def forget(name: str, home: Path) -> None:
    """What would make the next run of a command shorter, or refuse it."""
    shutil.rmtree(home / {"check": "cache"}.get(name, name), ignore_errors=True)


def whole(name: str, home: Path, environment: dict) -> float:
    """Seconds of an undisturbed run."""
    begun = time.monotonic()
    command = command_of(name, home)
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == OK, ended.stderr
    return time.monotonic() - begun


def interrupt(name: str, home: Path, environment: dict, *, sign: str, after: float) -> Left:
    """Run a command, and send it a signal ``after`` seconds."""
    process = subprocess.Popen(
        command_of(name, home),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        time.sleep(after)
        process.send_signal(getattr(signal, sign))
        begun = time.monotonic()
        err = process.communicate(timeout=LAST_ALARM)[1]
    finally:
        process.kill()
        process.communicate()
    return Left(process.returncode, err, time.monotonic() - begun, processes_of(home))


def processes_of(home: Path) -> list[int]:
    """All whose command line names the folder: those that a command has started do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:  # gone in between
            continue
        if os.fsencode(home) in words and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def faults(left: Left, sign: str) -> list[str]:
    """What is wrong with an end: its code (0 where the command was faster), its words, what it left."""
    lines = [line for line in left.err.replace("\r", "\n").splitlines() if line.startswith("interrupted")]
    found = []
    if left.code not in (ENDING[sign], OK):
        found.append(f"code {left.code}")
    if left.code and len(lines) != 1:
        found.append(f"{len(lines)} lines say so")
    if "Traceback" in left.err or "Exception" in left.err:
        found.append(left.err[-2000:])
    if left.processes:
        found.append(f"processes left: {left.processes}")
    if left.seconds > 20:
        found.append(f"{left.seconds:.0f} s until the end")
    return found


def litter_in(home: Path) -> list[Path]:
    """Half-written files."""
    return [path for path in home.rglob(".*") if "cache" not in path.parts and path.name != ".lock"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    return folder, prepare(folder)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_at_any_moment(name, home):
    folder, environment = home
    forget(name, folder)
    assert report(name, folder, environment, moments=4, rng=random.Random(name)) == []


def report(name: str, home: Path, environment: dict, *, moments: int, rng: random.Random) -> list[str]:
    """The faults of a command in as many moments, the last of which is followed by a whole run."""
    span, found = whole(name, home, environment), []
    for _ in range(moments):
        forget(name, home)
        sign, after = rng.choice(list(ENDING)), rng.uniform(0.3, span)  # Python itself starts before
        left = interrupt(name, home, environment, sign=sign, after=after)
        found += [f"{name}, {sign} after {after:.2f} s: {fault}" for fault in faults(left, sign)]
        found += [f"{name}: left {path}" for path in litter_in(home)]
    if name != "convert" or not (home / name / "x").exists():  # which writes into no folder with content
        whole(name, home, environment)
    return found


def test_a_training_outlives_its_terminal(more_shapes, tmp_path):
    """Output and errors end in EIO from the second epoch on; nohup has the hang-up ignored."""
    master, slave = pty.openpty()
    command = [
        sys.executable,
        "train.py",
        *FLAGS,
        "--data",
        more_shapes,
        "--workers",
        1,
        "--project",
        tmp_path,
    ]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(slave)
    shown = b""
    while b" 1/5 " not in shown:
        shown += os.read(master, 1000)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == OK and (tmp_path / "exp" / "metrics.json").is_file()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        where = prepare(Path(made))
        for each in COMMANDS:
            counted = report(each, Path(made), where, moments=int(sys.argv[1]), rng=random.Random(each))
            print(f"{each}: {len(counted)} faults", *counted, sep="\n  ", flush=True)
