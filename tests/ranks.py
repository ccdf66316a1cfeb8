"""Several ranks as torchrun would start them, for tests: gloo on the CPU, one thread each."""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    """How a rank ended."""

    code: int  # negative for a signal
    out: str
    err: str
    seconds: float  # from the start of all


def run_ranks(command: Sequence, count: int, *, timeout: float = 120, cwd: Path = ROOT) -> list[Ended]:
    """Run ``python *command`` as ``count`` ranks of one machine until all have ended."""

    def start(rank: int, out: Path, err: Path) -> subprocess.Popen:
        environment = {**os.environ, **environments[rank]}
        line = [sys.executable, *map(str, command)]
        with open(out, "w") as first, open(err, "w") as second:
            return subprocess.Popen(line, cwd=cwd, env=environment, stdout=first, stderr=second)

    environments = _environments(count)
    return _run(start, count, code=lambda child: child.poll(), timeout=timeout)


def run_text(
    program: str, count: int, *, arguments: Sequence = (), timeout: float = 60, **variables: Sequence[str]
) -> list[Ended]:
    """As ``run_ranks``, for the text of a program, in processes that have torch already: ten times as quick.

    ``variables`` of the environment have one value for each rank. The interpreter does not end as it does in
    a real process: what is to be seen of that needs ``run_ranks``.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "utils.training.distributed"])

    def start(rank: int, out: Path, err: Path) -> multiprocessing.Process:
        own = environments[rank] | {name: values[rank] for name, values in variables.items()}
        task = (program, list(arguments), own, str(out), str(err))
        child = context.Process(target=_run_text, args=task, daemon=True)
        child.start()
        return child

    environments = _environments(count)
    return _run(start, count, code=lambda child: child.exitcode, timeout=timeout)


def _run_text(program: str, arguments: list[str], variables: Mapping[str, str], out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(variables)
    sys.argv = ["-c", *arguments]
    exec(program, {"__name__": "__main__"})


def _run(start: Callable, count: int, *, code: Callable, timeout: float) -> list[Ended]:
    begun, children, ends = time.monotonic(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        files = [[Path(folder, f"{kind}{rank}") for kind in ("out", "err")] for rank in range(count)]
        try:
            for rank in range(count):
                children.append(start(rank, *files[rank]))
            while len(ends) < count:
                assert time.monotonic() < begun + timeout, "still running: " + str(
                    set(range(count)) - set(ends)
                )
                time.sleep(0.01)
                for rank, child in enumerate(children):
                    if rank not in ends and code(child) is not None:
                        ends[rank] = code(child), time.monotonic() - begun
            texts = [[path.read_text() for path in pair] for pair in files]
        finally:
            for child in children:
                child.kill()
    return [Ended(ends[rank][0], *texts[rank], ends[rank][1]) for rank in range(count)]


def _environments(count: int) -> list[dict[str, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
