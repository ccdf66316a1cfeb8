"""What a run was made with: versions, commit, machine; how it can be made once more."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import environment
from utils.arguments import train_parser
from utils.config_files import load_config
from utils.environment import (
    describe_environment,
    describe_session,
    find_commit,
    find_hardware,
    find_versions,
    format_reproduce,
    write_environment,
)
from utils.settings import resolve_training
from utils.training.batch_size import set_batch_size


def test_versions_and_machine(monkeypatch):
    assert find_versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert f"{os.cpu_count()} cores" in find_hardware()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "AAB"[number])
    assert find_hardware().endswith(" cores, 2 x A, 1 x B")
    assert describe_environment().keys() == {"versions", "commit", "hardware"}


def test_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "ROOT", tmp_path.resolve())
    assert find_commit() == "unknown"
    (tmp_path / "inside").mkdir()
    (tmp_path / "a.txt").write_text("a")
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    commit = find_commit()
    assert len(commit) == 40
    (tmp_path / "new.txt").write_text("untracked")
    assert find_commit() == commit
    (tmp_path / "a.txt").write_text("b")
    assert find_commit() == f"{commit} and changes"
    monkeypatch.setattr(environment, "ROOT", tmp_path.resolve() / "inside")  # a copy inside another project
    assert find_commit() == "unknown"


# environment.json and reproduce.sh


def session(
    line: str | list[str], *, done=(0, 0), epochs=10, batch_size=None, processes=(1, 1), **changes
) -> dict:
    """A start of a run by ``train.py LINE``."""
    settings = load_config(
        sets=[f"train.epochs={epochs}"], flags={"train.batch_size": ("--batch-size", "auto")}
    )
    settings = set_batch_size(settings, batch_size or 16)
    if not batch_size:
        settings = load_config(sets=[f"train.epochs={epochs}"])
    words = line.split() if isinstance(line, str) else line
    options = {"done": done, "processes": processes, "device": "cpu", "precision": "float32"}
    found = describe_session(["train.py", *words], settings, **options)
    return found | {"versions": {"python": "3.12.1", "torch": "2.10.0", "numpy": "2.1"}, **changes}


def commands(folder: Path, *flags: str) -> list[list[str]]:
    """What reproduce.sh runs: the arguments that reach Python, NUL between them."""
    stub = folder / "python"
    stub.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >> "$OUT"; printf "\\n\\n" >> "$OUT"\n')
    stub.chmod(0o755)
    out = folder / "out"
    out.unlink(missing_ok=True)
    environment = os.environ | {"PYTHON": str(stub), "OUT": str(out)}
    subprocess.run([folder / "reproduce.sh", *flags], env=environment, check=True, timeout=20)
    texts = out.read_bytes().decode("utf-8", "surrogateescape").split("\0\n\n")[:-1]
    return [text.split("\0") for text in texts]


def write(folder: Path, *sessions: dict) -> str:
    """Start a run and go on with it; its reproduce.sh."""
    for number, one in enumerate(sessions):
        write_environment(folder, one, resumed=number > 0)
    script = folder / "reproduce.sh"
    subprocess.run(["sh", "-n", script], check=True, timeout=20)
    assert script.stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in folder.glob(".*")) == []
    return script.read_bytes().decode("utf-8", "surrogateescape")


def read(folder: Path) -> list[dict]:
    return json.loads((folder / "environment.json").read_text())["sessions"]


def test_a_session_says_what_was_used(monkeypatch):
    monkeypatch.chdir(environment.ROOT)
    found = describe_session(
        ["/somewhere/train.py", "--name", "a b"],
        load_config(),
        done=(2, 7),
        processes=(16, 8),
        device="cuda:0",
        precision="bfloat16",
    )
    assert found["command"] == "train.py --name 'a b'"  # from the root no path is added
    assert (found["epoch"], found["batch"], found["epochs"], found["chosen_batch_size"]) == (2, 7, 100, None)
    assert (found["world_size"], found["local_world_size"]) == (16, 8)
    assert (found["device"], found["precision"]) == ("cuda:0", "bfloat16")
    assert found["versions"] == find_versions() and {"commit", "hardware"} <= found.keys()


def test_elsewhere_the_program_stands_as_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    options = {"done": (0, 0), "processes": (1, 1), "device": "cpu", "precision": "float32"}
    assert describe_session(["../train.py"], load_config(), **options)["command"] == "../train.py"


def test_every_start_adds_a_session(tmp_path):
    first, second = session("--data d"), session("--resume x", done=(2, 5))
    write(tmp_path, first, second)
    assert read(tmp_path) == [first, second]
    write_environment(tmp_path, first, resumed=False)  # a new run in an old folder
    assert read(tmp_path) == [first]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"sessions": 3}', '{"sessions": [{}]}', '{"sessions": ["a"]}', "\udc80"]
)
def test_a_damaged_file_is_begun_anew(tmp_path, text):
    (tmp_path / "environment.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    later = session("--resume x", done=(2, 5))
    write_environment(tmp_path, later, resumed=True)
    assert read(tmp_path) == [later]
    done = subprocess.run(["sh", tmp_path / "reproduce.sh"], capture_output=True, timeout=20, check=False)
    assert done.returncode == 1 and b"not known" in done.stderr  # rather than something else


def test_reproduce_runs_the_command(tmp_path):
    text = write(tmp_path, session("--data d.yaml --cfg n --epochs 10", commit="c0ffee and changes"))
    assert commands(tmp_path) == [["train.py", "--data", "d.yaml", "--cfg", "n", "--epochs", "10"]]
    assert commands(tmp_path, "--project", "a b")[0][-2:] == ["--project", "a b"]
    assert "# git checkout c0ffee\n" in text and "c0ffee and changes" in text
    assert "# python -m pip install torch==2.10.0 numpy==2.1\n" in text
    assert '"${PYTHON:-python}" train.py' in text


def test_reproduce_without_git_and_with_a_build_of_pytorch(tmp_path):
    versions = {"python": "3.12", "torch": "2.10.0+cu128"}
    text = write(tmp_path, session("", commit="unknown", versions=versions))
    assert "checkout" not in text and "commit unknown" in text
    assert "torch==2.10.0+cu128 --extra-index-url https://download.pytorch.org/whl/cu128\n" in text


def test_reproduce_holds_the_batch_size_that_auto_chose(tmp_path):
    write(tmp_path, session("--batch-size auto --set train.batch_size=auto", batch_size=24))
    expected = ["train.py", "--batch-size", "auto", "--set", "train.batch_size=auto"]
    assert commands(tmp_path) == [[*expected, "--set", "train.batch_size=24"]]
    settings = resolve_training(train_parser().parse_args(commands(tmp_path)[0][1:]))
    assert settings.config.train.batch_size == 24


@pytest.mark.parametrize(
    "line", ["--exist-ok --data d", "--exist --data d", "--data d --resume auto", "--res=auto --data d --exi"]
)
def test_reproduce_leaves_the_run_itself_alone(tmp_path, line):
    write(tmp_path, session(line))
    assert commands(tmp_path) == [["train.py", "--data", "d"]]


def test_stop_and_resume_is_the_straight_run(tmp_path):
    again = "--resume runs/train/exp/weights/last.pt"
    write(tmp_path, session("--data d"), session(again, done=(2, 5)), session("--resume", done=(7, 0)))
    assert commands(tmp_path) == [["train.py", "--data", "d"]]


def test_an_extension_is_a_further_command(tmp_path):
    first = session("--data d --set train.epochs=10")
    more = session("--resume runs/x/weights/last.pt --epochs 20 --patience 0", done=(10, 0), epochs=20)
    text = write(tmp_path, first, session("--resume", done=(4, 1)), more)
    straight, extension = commands(tmp_path, "--project", "p")
    assert straight == ["train.py", "--data", "d", "--set", "train.epochs=10", "--project", "p"]
    args = train_parser().parse_args(extension[1:])
    assert (args.resume, args.project, args.patience, args.data) == ("latest", "p", 0, "d")
    assert resolve_training(args).config.train.epochs == 20
    assert "# After epoch 10 and 0 batches of the next it went on as a run of 20 epochs.\n" in text
    assert "Ctrl-C" not in text
    early = session("--resume --epochs 20", done=(4, 3), epochs=20)
    assert "After epoch 4 and 3 batches" in (text := write(tmp_path, first, early)) and "Ctrl-C" in text


def test_reproduce_under_torchrun(tmp_path):
    write(tmp_path, session("--data d", processes=(2, 2)))
    assert commands(tmp_path) == [
        ["-m", "torch.distributed.run", "--nproc_per_node=2", "train.py", "--data", "d"]
    ]
    text = write(tmp_path, session("--data d", processes=(16, 8)))
    assert commands(tmp_path)[0][:4] == ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=8"]
    assert "--rdzv_endpoint" in text


NASTY = [
    "a b",
    "it's",
    '"',
    "$(touch hit)",
    "`touch hit`",
    "a\nb",
    "#",
    "!",
    "*",
    "\\",
    "é",
    "\udcff",
    "-n",
    "",
]


def test_whatever_users_type_is_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, session([f"--name={text}" for text in NASTY]))
    assert commands(tmp_path) == [["train.py", *(f"--name={text}" for text in NASTY)]]
    assert not Path("hit").exists()


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), max_size=4))
def test_any_words_come_back(words):
    words = [f"--name={word}" for word in words]
    text = format_reproduce([TEMPLATE | {"command": shlex.join(["train.py", *words])}])
    line = text.partition("set -e\n")[2].removesuffix(' "$@"\n')
    assert shlex.split(line)[1:] == ["train.py", *words]


TEMPLATE = {"epoch": 0, "batch": 0, "epochs": 1, "chosen_batch_size": None, "world_size": 1}
TEMPLATE |= {"local_world_size": 1, "device": "cpu", "precision": "float32", "commit": "unknown"}
TEMPLATE |= {"versions": {}, "hardware": "a machine"}


def test_texts_of_the_machine_stay_in_their_comments(tmp_path):
    hostile = "x\ntouch hit\r\x1b[2J"
    text = write(tmp_path, session("", hardware=hostile, commit=hostile, device=hostile, precision=hostile))
    assert all(line.startswith(("#", "set -e", '"$')) for line in text.splitlines())
    assert "\x1b" not in text and "\r" not in text


def test_nothing_is_left_where_nothing_can_be_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    write(tmp_path, session("--data d"))
    before = (tmp_path / "environment.json").read_bytes()
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="environment"):
        write_environment(tmp_path, session("--resume", done=(1, 0)), resumed=True)
    assert (tmp_path / "environment.json").read_bytes() == before and len(os.listdir(tmp_path)) == 2
