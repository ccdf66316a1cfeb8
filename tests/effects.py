"""What reading something hostile may have done: processes, sockets, changed files, all memory taken."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.data.test_unpack import content_of

PROCESSES = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.")
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watches: list[tuple[list[str], list[str]]] = []  # (folders that may change, effects seen) of ``watched``


def _watch(event: str, arguments: tuple) -> None:
    if not _watches:
        return
    folders, seen = _watches[-1]
    if event.startswith((*PROCESSES, "socket.")):
        seen.append(f"{event} {arguments}")
    elif event in CHANGES or (event == "open" and arguments[2] & WRITES):
        paths = [path for path in arguments[:2] if isinstance(path, str | bytes | os.PathLike)]
        paths = paths if event in ("os.rename", "os.link") else paths[:1]
        relative = event in CHANGES and -1 not in arguments[1:]  # to a folder that is held open
        outside = [
            path for path in map(os.path.abspath, map(os.fsdecode, paths)) if not _is_below(path, folders)
        ]
        if outside and not relative:
            seen.append(f"{event} {outside}")


def _is_below(path: str, folders: list[str]) -> bool:
    return path == os.devnull or any(path == item or path.startswith(item + os.sep) for item in folders)


sys.addaudithook(_watch)


@contextmanager
def watched(*folders: Path) -> Iterator[list[str]]:
    """Effects from here on: processes, sockets, and changes of files outside of ``folders``."""
    _watches.append(([os.path.abspath(folder) for folder in folders], []))
    try:
        yield _watches[-1][1]
    finally:
        _watches.pop()


def state_of(folder: Path) -> dict:
    """Every path below a folder with its mode, links and content."""
    content = content_of(folder)
    return {name: (os.lstat(folder / name).st_mode, content[name]) for name in content}


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """At most ``more`` bytes beyond those this process has now: a failing test must not take the machine."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
