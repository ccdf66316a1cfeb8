"""What a run was made with: versions, commit, machine."""

import os
import subprocess

import torch

from utils import environment
from utils.environment import describe_environment, find_commit, find_hardware, find_versions


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
