"""Checkpoints: killed, interrupted or refused by the system at any moment, the old or the new one is there.

A boundary is a moment before, in the middle of or after a call to the system. Children are forked; none of
them returns into the tests.
"""

import contextlib
import errno
import os
import random
import signal
import time
from itertools import count
from pathlib import Path

import pytest
import torch

from utils.errors import UserError
from utils.training.atomic_file import previous_generation
from utils.training.checkpoint import load_checkpoint, save_checkpoint, tidy

pytestmark = pytest.mark.usefixtures("one_thread")  # others would be lost in a fork

resource = pytest.importorskip("resource", reason="limits of processes are those of Unix")
nothing = contextlib.nullcontext()
CALLS = ("open", "fsync", "link", "replace", "unlink", "posix_fadvise", "read", "close")


def content(number: float, size: int = 1000) -> dict:
    """A checkpoint that shows whether it is whole: every number in it is ``number``."""
    tensors = {"w": torch.full((size,), number)}
    return {"ema": tensors, "config": {"model": {}}, "names": ["a"], "epoch": 3, "number": number}


def loaded(path: Path) -> float:
    """The number of the content, whole."""
    found = load_checkpoint(path)
    assert (found["ema"]["w"] == found["number"]).all()
    return found["number"]


def failure(path: Path) -> OSError | None:
    """The error of a save of 2.0, or None."""
    try:
        save_checkpoint(path, content(2.0))
    except OSError as error:
        return error
    return None


def in_child(work) -> int:
    """Runs ``work`` in a process of its own for at most 60 s; its exit code, or minus the signal's number."""
    child = os.fork()
    if not child:
        code = 99
        try:
            signal.alarm(60)
            code = work() or 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Boundaries:
    """Counts the moments around calls to the system, and does ``act`` at the one with number ``at``."""

    def __init__(self, monkeypatch, at: int, act):
        self.seen, self.at, self.act = 0, at, act
        for name in CALLS:
            monkeypatch.setattr(os, name, self.around(getattr(os, name)))
        write = os.write

        def halves(number, data):
            self.reach("write")
            done = write(number, data[: len(data) // 2])
            self.reach("write")
            done += write(number, data[len(data) // 2 :])
            self.reach("write")
            return done

        monkeypatch.setattr(os, "write", halves)

    def around(self, call):
        def wrapped(*args, **options):
            self.reach(call.__name__)
            result = call(*args, **options)
            self.reach(call.__name__)
            return result

        return wrapped

    def reach(self, name: str) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.act(name)


def kill(_name: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def old_file(path: Path, monkeypatch) -> None:
    save_checkpoint(path, content(1.0))


def no_file(path: Path, monkeypatch) -> None:
    path.parent.mkdir()


def without_links(path: Path, monkeypatch) -> None:
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    save_checkpoint(path, content(1.0))
    refuse.__name__ = "link"
    monkeypatch.setattr(os, "link", refuse)


def after_a_kill(path: Path, monkeypatch) -> None:
    """The old file with all that a killed save may have left beside it."""
    save_checkpoint(path, content(0.0))
    path.rename(previous_generation(path))
    previous = previous_generation(path).read_bytes()
    save_checkpoint(path, content(1.0))
    previous_generation(path).write_bytes(previous)
    path.with_name(f".{path.name}.part").write_bytes(previous[:100])


def same_file_twice(path: Path, monkeypatch) -> None:
    """Killed between the link and the renaming."""
    save_checkpoint(path, content(1.0))
    os.link(path, previous_generation(path))


def damaged(path: Path, monkeypatch) -> None:
    save_checkpoint(path, content(1.0))
    path.rename(previous_generation(path))
    path.write_bytes(b"PK\3\4")


STATES = [old_file, no_file, without_links, after_a_kill, same_file_twice, damaged]


@pytest.mark.parametrize("state", STATES)
def test_killed_at_every_boundary(tmp_path, monkeypatch, state):
    """The old or the new content is whole, and the next start and save leave one file."""
    for at in count(1):
        path = tmp_path / str(at) / "last.pt"
        with monkeypatch.context() as patch:
            state(path, patch)

            def work(at=at, patch=patch, path=path):
                Boundaries(patch, at, kill)
                save_checkpoint(path, content(2.0))

            code = in_child(work)
        assert code in (0, -signal.SIGKILL)
        with (
            pytest.raises(UserError, match="not found") if not path.exists() and state is no_file else nothing
        ):
            assert loaded(path) in (1, 2)
        tidy(path.parent)
        left = {item.name for item in path.parent.iterdir()}
        assert left == {"last.pt"} or (state in (no_file, without_links, damaged) and code)
        assert not any(name.startswith(".") for name in left)
        save_checkpoint(path, content(3.0))
        assert loaded(path) == 3 and [item.name for item in path.parent.iterdir()] == ["last.pt"]
        if code == 0:
            break
    assert at > 20  # boundaries


@pytest.mark.parametrize("state", STATES)
def test_an_error_at_every_boundary(tmp_path, monkeypatch, state):
    """An OSError that names the file, and the old file byte-identical; or, where it does no harm, a save."""
    failed = 0

    def fail(name):
        raise OSError(errno.EIO, f"broken {name}")

    for at in count(1):
        path = tmp_path / str(at) / "last.pt"
        with monkeypatch.context() as patch:
            state(path, patch)
            before = path.read_bytes() if path.exists() else None
            sound = before if state is not damaged else previous_generation(path).read_bytes()
            boundaries = Boundaries(patch, at, fail)
            error = failure(path)
        saved = error is None
        failed += not saved
        assert saved or (error.errno == errno.EIO and f"{path} could not be written: broken" in str(error))
        if saved:
            assert loaded(path) == 2
        elif sound is None:
            assert list(path.parent.iterdir()) == []
        else:
            assert path.read_bytes() in (before, sound)
            assert loaded(path) == 1
        if not saved and state in (old_file, without_links):
            assert [item.name for item in path.parent.iterdir()] == ["last.pt"]
        tidy(path.parent)
        assert state is damaged or len(list(path.parent.iterdir())) == (sound is not None or saved)
        if boundaries.seen < at:
            break
    assert saved and failed > 12


@pytest.mark.parametrize("state", [old_file, without_links])
def test_interrupted_at_every_boundary(tmp_path, monkeypatch, state):
    def interrupt(_):
        raise KeyboardInterrupt

    for at in count(1):
        path = tmp_path / str(at) / "last.pt"
        with monkeypatch.context() as patch:
            state(path, patch)
            boundaries = Boundaries(patch, at, interrupt)
            try:
                save_checkpoint(path, content(2.0))
            except KeyboardInterrupt:
                assert loaded(path) in (1, 2)
            else:
                break
        tidy(path.parent)
        assert [item.name for item in path.parent.iterdir()] == ["last.pt"]
    assert boundaries.seen < at


def test_killed_at_50_random_moments_of_a_tight_loop(tmp_path):
    """0 unreadable; after tidy 0 stray files. The loop is never cleaned up in between."""
    path, rng, numbers = tmp_path / "last.pt", random.Random(0), []
    save_checkpoint(path, content(0.0, 100_000))
    begun = time.perf_counter()
    for _ in range(3):
        save_checkpoint(path, content(loaded(path), 100_000))
    span = time.perf_counter() - begun  # of some saves, however slow the disk is
    for _ in range(50):
        child = os.fork()
        if not child:
            try:
                signal.alarm(60)
                for number in count(int(loaded(path)) + 1):
                    save_checkpoint(path, content(float(number), 100_000))
            finally:
                os._exit(99)
        try:
            time.sleep(rng.uniform(0.005, 0.02 + 2 * span))
        finally:
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == -signal.SIGKILL
        numbers.append(loaded(path))
        if rng.random() < 0.5:
            tidy(tmp_path)
            assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]
    tidy(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]
    assert numbers == sorted(numbers) and numbers[-1] > 10


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_full_disk(tmp_path, share):
    """As the limit on a file's size: the write is refused in its midst."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(1.0))
    before = path.read_bytes()

    def work():
        limit = int(len(before) * share)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        error = failure(path)
        return 7 if error and error.errno == errno.EFBIG and str(path) in str(error) else 8

    assert in_child(work) == 7
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_file(tmp_path, monkeypatch, number):
    path, plain = tmp_path / "last.pt", os.open
    save_checkpoint(path, content(1.0))
    before = path.read_bytes()

    def refuse(name, flags, *mode):
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number))
        return plain(name, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match=r"last\.pt could not be written: ") as error:
        save_checkpoint(path, content(2.0))
    assert error.value.errno == number
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == ["last.pt"]


def test_a_read_only_folder(tmp_path):
    """By its mode, for those whom modes stop: as root the child takes another user's rights."""
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(1.0))
    before = path.read_bytes()

    def work():
        if os.getuid() == 0:
            os.chdir(tmp_path)  # the folders above may be closed to others
            os.setuid(65534)
        error = failure(Path("last.pt") if os.getuid() == 65534 else path)
        return 7 if error and error.errno == errno.EACCES and "last.pt" in str(error) else 8

    tmp_path.chmod(0o555)
    try:
        assert in_child(work) == 7
    finally:
        tmp_path.chmod(0o755)
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("harm", ["changed", "shorter", "longer"])
@pytest.mark.parametrize("first", [False, True])
def test_a_disk_that_gives_back_other_bytes(tmp_path, monkeypatch, harm, first):
    """Seen when the file is read back: the old one stands again."""
    path, replace = tmp_path / "last.pt", os.replace
    before = b""
    if not first:
        save_checkpoint(path, content(1.0))
        before = path.read_bytes()

    def replace_badly(source, target):
        if str(source).endswith(".part"):
            data = bytearray(Path(source).read_bytes())
            data[1000] ^= harm == "changed"
            Path(source).write_bytes(data[: -5 if harm == "shorter" else None] + b"x" * (harm == "longer"))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_badly)
    with pytest.raises(OSError, match="could not be written: what was read back differs"):
        save_checkpoint(path, content(2.0))
    assert [item.name for item in tmp_path.iterdir()] == ([] if first else ["last.pt"])
    assert first or path.read_bytes() == before


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_flush_folders(tmp_path, monkeypatch, number):
    """It is saved to as well as can be; a flush that fails is another matter."""
    path, sync = tmp_path / "last.pt", os.fsync
    save_checkpoint(path, content(1.0))

    def refuse(file):
        if os.path.isdir(f"/proc/self/fd/{file}"):
            raise OSError(number, os.strerror(number))
        sync(file)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc to tell folders from files")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output") if number == errno.EIO else nothing:
        save_checkpoint(path, content(2.0))
    assert loaded(path) == (1 if number == errno.EIO else 2)
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]
