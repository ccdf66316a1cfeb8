"""Output that nobody can take, and signals, in processes of their own; nothing here imports torch."""

import io
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ranks import ROOT
from utils.command import ENDING, Guarded

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, pseudo-terminals")
TALK = """
import sys
from utils.command import begin_command
begin_command()
from utils.errors import run_main
def main():
    for number in range(3000):
        print("line", number, TEXT)
        print("line", number, TEXT, file=sys.stderr, flush=True)
    open(sys.argv[1], "w").close()
    return 7
run_main(main)
"""
MOMENTS = """
import atexit, os, signal, sys, time
from utils.command import begin_command
begin_command()
moment, number = sys.argv[1], getattr(signal, sys.argv[2])

class Late:
    def __init__(self, moment):
        self.moment, self.kill, self.words = moment, os.kill, (os.getpid(), number)
    def __del__(self):
        if self.moment == moment:
            self.kill(*self.words)
            for _ in range(100):
                pass

def now(here):
    if here == moment:
        os.kill(os.getpid(), number)
        time.sleep(0.1)

now("import")
from utils.errors import UserError, run_main
kept = Late("clearing up")
atexit.register(now, "exit")

class Word(UserError):
    def __str__(self):
        now("printing")
        return super().__str__()

def main():
    print("said before")
    now("work")
    late = Late("swallowed")
    del late
    if moment == "swallowed":
        time.sleep(20)
    raise Word("planted", 7)
run_main(main)
"""
ENCODINGS = (
    "cp1252",
    "latin-1",
    "ascii",
    "utf-8:strict",
    "utf-16",
    "utf-32",
    "cp037",
    "shift_jis",
    "idna",
    "koi8-r",
)


def in_shell(line: str, tmp_path: Path, *, text: str = "''", **environment) -> tuple[int, bool]:
    """Exit code of ``$TALK`` in a line of bash, and whether it came to its end."""
    script = tmp_path / "talk.py"
    script.write_text(TALK.replace("TEXT", text), encoding="utf-8")
    done = tmp_path / "done"
    own = os.environ | {"TALK": f"{sys.executable} {script} {done}"} | environment
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", line], env=own, cwd=tmp_path, timeout=60)
    return ended.returncode, done.exists()


@LINUX
@pytest.mark.parametrize(
    "line",
    [
        "$TALK 2>err | head -1 >/dev/null",
        "$TALK 2>&1 | head -1 >/dev/null",
        "$TALK >&- 2>err",
        "$TALK >&- 2>&-",
        "$TALK <&- >&- 2>&-",
        "$TALK 2>/dev/full",
        "$TALK >/dev/full 2>/dev/full",
        "PYTHONUNBUFFERED=1 $TALK 2>err | head -1 >/dev/null",
        "(ulimit -f 1; $TALK >out 2>err)",
    ],
)
def test_output_that_nobody_takes_ends_nothing(line, tmp_path):
    assert in_shell(line, tmp_path) == (7, True)
    if (err := tmp_path / "err").exists():
        assert "Traceback" not in err.read_text() and "Exception ignored" not in err.read_text()


@LINUX
def test_a_full_disk_behind_the_output_is_said_once(tmp_path):
    assert in_shell("$TALK >/dev/full 2>err", tmp_path) == (7, True)
    warnings = [line for line in (tmp_path / "err").read_text().splitlines() if "warning" in line]
    assert warnings == [
        "warning: <stdout> cannot be written, so lines are missing there (No space left on device)"
    ]


@LINUX
@pytest.mark.parametrize("reader", ["sleep 1; cat", "head -1"])
def test_a_pipe_that_does_not_block_loses_nothing_while_it_is_read(reader, tmp_path):
    unblock = "import os, sys; os.set_blocking(1, False); os.execv(sys.argv[1], sys.argv[1:])"
    line = f'(python="{sys.executable}"; $python -c "{unblock}" $TALK 2>err) | ({reader}) >out'
    assert in_shell(line, tmp_path) == (7, True)
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines == [f"line {number} " for number in range(3000)][: 1 if "head" in reader else None]


def test_a_pipe_that_nobody_empties_is_waited_for_once(monkeypatch):
    monkeypatch.setattr("utils.command.SLOW_READER", 0.2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text = b"x" * 2**20
    with open(writing, "wb", buffering=0) as raw, open(reading, "rb", buffering=0) as reader:
        guarded, begun = Guarded(raw), time.monotonic()
        assert [guarded.write(text) for _ in range(20)] == [len(text)] * 20
        assert time.monotonic() - begun < 2
        os.set_blocking(reading, False)
        while reader.read(2**20):  # None once it is empty
            pass
        guarded.write(b"again")
        assert reader.read(100) == b"again"


def test_what_is_written_in_parts_arrives_whole():
    class Slow(io.RawIOBase):
        taken = b""

        def write(self, data):
            Slow.taken += bytes(data[:3])
            return min(3, len(data))

    assert Guarded(Slow()).write(b"0123456789") == 10 and Slow.taken == b"0123456789"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_name_is_printed_in_every_encoding(encoding, tmp_path):
    names = r"'\u81ea\u8ee2\u8eca \xe9 \U0001f600 \ud800 \udcff'"
    line = "$TALK >out 2>err"
    assert in_shell(line, tmp_path, text=names, PYTHONIOENCODING=encoding) == (7, True)
    name = encoding.partition(":")[0]
    name = "utf-8" if name == "idna" else name  # it has no escapes
    for file in ("out", "err"):
        text = (tmp_path / file).read_bytes().decode(name)
        assert text.splitlines()[2999].startswith("line 2999 ") and "\\ud800" in text
        assert ("\u81ea" if name[:3] == "utf" else "é" if name == "latin-1" else "line") in text


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("moment", ["import", "work", "swallowed", "printing", "exit", "clearing up"])
def test_a_signal_at_any_moment(name, moment):
    """One line and its exit code; as Python clears up, the command's own."""
    command = [sys.executable, "-c", MOMENTS, moment, name]
    ended = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    if moment == "clearing up":
        assert (ended.returncode, ended.stderr) == (7, "error: planted\n")
        return
    word = "interrupted" if name == "SIGINT" else f"interrupted by {name}"
    before = "error: planted\n" if moment == "exit" else ""
    assert (ended.returncode, ended.stderr) == (ENDING[name], f"{before}{word}\n")
    assert ended.stdout == ("" if moment == "import" else "said before\n")


@LINUX
def test_a_terminal_that_goes_away(tmp_path):
    """Its descriptors give EIO from then on; a hang-up that was ignored (nohup) stays so."""
    master, slave = pty.openpty()
    talk = TALK.replace("for number", "sys.stdin.readline()\n    for number")
    child = subprocess.Popen(
        [sys.executable, "-c", talk.replace("TEXT", "''"), str(tmp_path / "done")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    os.close(slave)
    os.close(master)
    os.kill(child.pid, signal.SIGHUP)
    child.communicate(b"go\n", timeout=60)
    assert child.returncode == 7 and (tmp_path / "done").exists()
