"""Patterns of --source: what Python's glob finds, and an end."""

import glob
import os

import pytest

import data.formats.globbing
from data.formats.globbing import find_matching
from utils.errors import DATA, UserError


@pytest.fixture(autouse=True)
def _tree(tmp_path, monkeypatch):
    """Folders with pictures, hidden ones, a pipe, a link to itself, two links in a circle."""
    for name in ("a/x.jpg", "a/b/y.jpg", "a/b/.h/z.jpg", "a/.k.jpg", "a/[1].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "up").symlink_to("a/b")
    monkeypatch.chdir(tmp_path)


PATTERNS = (
    "a/**/*.jpg **/*.jpg ** a/* a/?.jpg ./a/[xy].jpg a/b/.*/*.jpg a/x.jpg nope a/b/../x.jpg a/[[]1].jpg"
)


@pytest.mark.parametrize("pattern", PATTERNS.split())
@pytest.mark.parametrize("absolute", [False, True])
def test_as_glob_finds_them(pattern, absolute, tmp_path):
    pattern = str(tmp_path / pattern) if absolute else pattern
    found = find_matching(pattern)
    wanted = {os.path.realpath(path) for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)}
    assert {os.path.realpath(path) for path in found} == wanted and found == sorted(found)
    assert len(found) == len(wanted)  # each once, though links lead there again


def test_links_in_a_circle_end(tmp_path):
    for number in range(12):  # glob would follow 12 ** 40 ways
        (tmp_path / f"round{number}").symlink_to(tmp_path)
    assert len(find_matching("**/x.jpg")) == 1


def test_from_the_root_it_ends_with_a_line(monkeypatch):
    monkeypatch.setattr(data.formats.globbing, "MOST_LOOKS", 5000)
    with pytest.raises(UserError, match=r"--source /\*\*: more than 5,000 files and folders") as error:
        find_matching("/**")
    assert error.value.code == DATA and "\n" not in str(error.value)
