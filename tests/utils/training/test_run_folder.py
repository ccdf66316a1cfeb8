"""A run's folder: the first free name, never shared by two runs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.training.run_folder import make_run_folder


def test_names_count_up(tmp_path):
    project = tmp_path / "runs" / "train"
    found = [make_run_folder(project, "exp") for _ in range(4)]
    assert found == [project / name for name in ("exp", "exp2", "exp3", "exp4")]
    assert all(folder.is_dir() for folder in found)
    assert make_run_folder(project, "other") == project / "other"


def test_a_gap_is_filled(tmp_path):
    for name in ("exp", "exp3"):
        (tmp_path / name).mkdir()
    assert make_run_folder(tmp_path, "exp") == tmp_path / "exp2"
    assert make_run_folder(tmp_path, "exp") == tmp_path / "exp4"


def test_exist_ok_takes_the_folder_and_keeps_its_files(tmp_path):
    folder = make_run_folder(tmp_path, "exp")
    (folder / "results.csv").write_text("x")
    assert make_run_folder(tmp_path, "exp", exist_ok=True) == folder
    assert (folder / "results.csv").read_text() == "x"
    assert make_run_folder(tmp_path, "new", exist_ok=True) == tmp_path / "new"


def test_strings_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_run_folder("runs", "exp") == Path("runs/exp")
    assert (tmp_path / "runs" / "exp").is_dir()


def test_a_file_of_the_name_is_passed_over(tmp_path):
    (tmp_path / "exp").write_text("x")
    assert make_run_folder(tmp_path, "exp") == tmp_path / "exp2"
    assert make_run_folder(tmp_path, "exp", exist_ok=True).is_dir()


def test_many_runs_at_once_share_no_folder(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: make_run_folder(tmp_path / "runs", "exp"), range(32)))
    assert len(set(found)) == 32
    assert {folder.name for folder in found} == {"exp", *(f"exp{number}" for number in range(2, 33))}


def test_two_runs_that_see_the_same_free_name(tmp_path, monkeypatch):
    """The other run makes the folder between our look and our making of it."""
    make, others = Path.mkdir, []

    def make_second(self, *args, **options):
        if self.name == "exp" and not others:
            others.append(self)
            make(self, *args, **options)
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", make_second)
    assert make_run_folder(tmp_path, "exp") == tmp_path / "exp2"
    assert others == [tmp_path / "exp"]


def test_a_dangling_link_as_project_ends(tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    monkeypatch.setattr("itertools.count", lambda start: range(start, 50))
    with pytest.raises(Exception) as error:  # whichever, but an end
        make_run_folder(tmp_path / "runs", "exp")
    assert not isinstance(error.value, AssertionError)


def test_a_project_below_a_file_is_refused(tmp_path):
    (tmp_path / "runs").write_text("x")
    with pytest.raises(UserError):
        make_run_folder(tmp_path / "runs", "exp")
