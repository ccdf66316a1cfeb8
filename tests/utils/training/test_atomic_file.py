"""Two processes that save the same file at once, as only a lock that fails lets happen."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.utils.training.test_checkpoint_crash import content, in_child, loaded
from utils.training.atomic_file import previous_generation
from utils.training.checkpoint import save_checkpoint, tidy

SAVES = 40


def save_often(path: Path, first: int) -> None:
    for number in range(SAVES):
        with suppress(OSError):  # one may fail; what it may not do is to take the other's file away
            save_checkpoint(path, content(float(first + number), 20_000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_writers_never_lose_the_file(tmp_path):
    """At every look one generation is there, and at the end it can be read."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(0.0, 20_000))
    children = []
    for first in (1000, 2000):
        if not (child := os.fork()):
            try:
                save_often(path, first)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    looks = missing = 0
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            assert status == 0
            children.remove(pid)
        looks += 1
        missing += not (path.exists() or previous_generation(path).exists() or path.exists())
    assert looks > 100 and missing == 0
    assert loaded(path) in (1000 + SAVES - 1, 2000 + SAVES - 1)
    tidy(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("moment", ["link", "replace", "posix_fadvise"])
def test_a_save_in_the_midst_of_another_is_kept(moment, tmp_path, monkeypatch):
    """The other process saves, whole, as the first one is about to call the system."""
    path, call = tmp_path / "last.pt", getattr(os, moment)
    save_checkpoint(path, content(1.0))

    def interleaved(*arguments, **options):
        monkeypatch.setattr(os, moment, call)
        assert in_child(lambda: save_checkpoint(path, content(2.0))) == 0
        if moment == "posix_fadvise":
            raise OSError(errno.EIO, "broken")  # and the first one fails after that
        return call(*arguments, **options)

    monkeypatch.setattr(os, moment, interleaved)
    if moment == "posix_fadvise":
        with pytest.raises(OSError, match="broken"):
            save_checkpoint(path, content(3.0))
    else:
        save_checkpoint(path, content(3.0))
    assert loaded(path) == (2 if moment == "posix_fadvise" else 3)
