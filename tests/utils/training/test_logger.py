"""The records of a run: rows once each, whole on the disk or kept; loggers that cannot end a training."""

import csv
import importlib.machinery
import math
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.errors import USAGE, UserError
from utils.files import discard_parts
from utils.training import logger
from utils.training.logger import COLUMNS, CsvLog, RunLog, check_loggers, epoch_row

ROOT = Path(__file__).resolve().parents[3]


def row(epoch: int, **more) -> dict:
    means = torch.tensor([1 / 3, 2.0, 0.25, 9.5])
    return epoch_row(epoch, means, step=7 * epoch, lr=1e-3, seconds=12.34, waited=0.1) | more


def run_log(folder: Path, *loggers: str, done: int = 0) -> RunLog:
    return RunLog(folder, loggers, settings={"train": {"lr": 0.1}}, epochs_done=done)


def read(folder: Path) -> list[dict]:
    with open(folder / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


# results.csv


def test_a_row_an_epoch(tmp_path):
    log = run_log(tmp_path)
    for epoch in (1, 2, 3):
        log.write(row(epoch, **{"metrics/AP": 0.1 * epoch}))
    log.close()
    rows = read(tmp_path)
    assert list(rows[0]) == list(COLUMNS)
    assert [int(found["epoch"]) for found in rows] == [1, 2, 3]
    assert [float(found["metrics/AP"]) for found in rows] == [0.1, 0.2, 0.1 * 3]  # in full precision
    assert rows[0]["metrics/AP50"] == ""  # not measured
    assert float(rows[0]["train/quality"]) == torch.tensor(1 / 3).item()
    assert os.listdir(tmp_path) == ["results.csv"]  # no logger was asked for


def test_each_row_is_on_disk_at_once(tmp_path):
    log = run_log(tmp_path)
    for epoch in (1, 2):
        log.write(row(epoch))
        assert len(read(tmp_path)) == epoch


def test_a_resumed_run_drops_the_rows_it_writes_again(tmp_path):
    log = run_log(tmp_path)
    for epoch in range(1, 13):
        log.write(row(epoch, lr=1.0))
    log = run_log(tmp_path, done=10)
    assert [int(found["epoch"]) for found in read(tmp_path)] == list(range(1, 11))
    for epoch in (11, 12, 13):
        log.write(row(epoch, lr=2.0))
    rows = read(tmp_path)
    assert [int(found["epoch"]) for found in rows] == list(range(1, 14))
    assert [float(found["lr"]) for found in rows] == [1.0] * 10 + [2.0] * 3
    assert (tmp_path / "results.csv").read_text().count("epoch") == 1


def test_a_table_with_nothing_to_drop_is_not_touched(tmp_path):
    log = run_log(tmp_path)
    for epoch in range(1, 13):
        log.write(row(epoch))
    before, file = (tmp_path / "results.csv").read_bytes(), os.stat(tmp_path / "results.csv")
    run_log(tmp_path, done=12)
    run_log(tmp_path, done=100)
    assert (tmp_path / "results.csv").read_bytes() == before
    assert os.stat(tmp_path / "results.csv").st_mtime_ns == file.st_mtime_ns


def test_a_resumed_run_leaves_the_kept_rows_as_they_are(tmp_path):
    log = run_log(tmp_path)
    for epoch in (1, 2, 3):
        log.write(row(epoch))
    before = (tmp_path / "results.csv").read_bytes()
    run_log(tmp_path, done=2).write(row(3))
    assert (tmp_path / "results.csv").read_bytes() == before


def test_a_new_run_in_an_old_folder_starts_over(tmp_path):
    run_log(tmp_path).write(row(1))
    run_log(tmp_path).write(row(1, lr=5.0))
    assert [float(found["lr"]) for found in read(tmp_path)] == [5]


def test_an_empty_file_gets_its_header(tmp_path):
    (tmp_path / "results.csv").write_bytes(b"")
    run_log(tmp_path).write(row(1))
    assert read(tmp_path)[0]["epoch"] == "1"


TORN = [
    b"3,0.",
    b"3,0.1,0.2\n",
    b"3" + b",0.25" * (len(COLUMNS) - 1),  # all cells but no end of the line: the last one may be cut
    b"3" + b",x" * (len(COLUMNS) - 1) + b"\n",
    b"nan" + b",0.25" * (len(COLUMNS) - 1) + b"\n",
    b"\n",
    b"garbage\n",
    b"\x00" * 40,  # what some file systems leave after a power cut
    b"\xff\xfe\n",
    "³,".encode() * len(COLUMNS) + b"\n",
]


@pytest.mark.parametrize("torn", TORN)
def test_a_row_cut_off_by_a_crash_is_dropped_on_resume(tmp_path, torn):
    log = run_log(tmp_path)
    for epoch in (1, 2):
        log.write(row(epoch))
    whole = (tmp_path / "results.csv").read_bytes()
    (tmp_path / "results.csv").write_bytes(whole + torn)
    log = run_log(tmp_path, done=3)
    assert (tmp_path / "results.csv").read_bytes() == whole
    log.write(row(4))
    assert [found["epoch"] for found in read(tmp_path)] == ["1", "2", "4"]


def test_an_unknown_column_is_our_mistake(tmp_path):
    log = run_log(tmp_path)
    with pytest.raises(ValueError, match="train/typo"):
        log.write({"epoch": 1, "train/typo": 2})
    log.write(row(1))
    assert len(read(tmp_path)) == 1


def test_a_table_of_several_rows_an_epoch(tmp_path):
    path = tmp_path / "anatomy.csv"
    log = CsvLog(path, ("epoch", "step", "iou"))
    log.write([{"epoch": 1, "step": 0, "iou": 1 / 3}, {"epoch": 1, "step": 50, "iou": math.nan}])
    log.write([])
    log.write([{"epoch": 2, "step": 100}])
    assert path.read_text() == f"epoch,step,iou\n1,0,{1 / 3!r}\n1,50,nan\n2,100,\n"
    CsvLog(path, log.columns, epochs_done=1).write([{"epoch": 2, "step": 100, "iou": 0.5}])
    assert path.read_text() == f"epoch,step,iou\n1,0,{1 / 3!r}\n1,50,nan\n2,100,0.5\n"
    with pytest.raises(ValueError, match="typo"):
        log.write([{"typo": 1}])


def test_numbers_of_numpy_look_as_all_others(tmp_path):
    log = CsvLog(tmp_path / "t.csv", ("epoch", "a", "b"))
    log.write([{"epoch": np.int64(1), "a": np.float64(0.1), "b": np.float32(0.5)}])
    log.write([{"epoch": 2, "a": math.inf, "b": -math.inf}])
    CsvLog(log.path, log.columns, epochs_done=2)
    assert log.path.read_text() == "epoch,a,b\n1,0.1,0.5\n2,inf,-inf\n"


# a disk that fails


def _fail(*_):
    raise OSError(28, "No space left on device")


def test_rows_wait_for_the_disk(tmp_path, monkeypatch, capfd):
    log = CsvLog(tmp_path / "t.csv", ("epoch", "a"))
    log.write([{"epoch": 1, "a": 0.5}])
    before = log.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fail)  # bytes were written, then the disk says no
        for epoch in (2, 3):
            log.write([{"epoch": epoch, "a": 0.5}])
            assert log.failed and log.path.read_bytes() == before
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1 and "t.csv" in shown.err and "No space left on device" in shown.err
    log.write([])
    assert not log.failed
    log.write([{"epoch": 4, "a": 0.5}])
    assert log.path.read_text() == "epoch,a\n" + "".join(f"{epoch},0.5\n" for epoch in (1, 2, 3, 4))
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(os, "fsync", _fail)
    log.write([{"epoch": 5, "a": 0.5}])
    assert capfd.readouterr().err.count("\n") == 1  # after it worked in between, it is said again


class HalfAFile:
    """Takes half of what it is given, then nothing, and cannot be cut back."""

    def __init__(self, file):
        self._file, self._written = file, False

    def write(self, content) -> int:
        if self._written:
            _fail()
        self._written = True
        return self._file.write(content[: len(content) // 2])

    def truncate(self, size) -> None:
        _fail()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_half_a_row_that_could_not_be_cut_is_cut_before_the_next(tmp_path, monkeypatch):
    log = CsvLog(tmp_path / "t.csv", ("epoch", "a"))
    log.write([{"epoch": 1, "a": 0.5}])
    with monkeypatch.context() as patch:
        patch.setattr(logger, "open", lambda *a, **k: HalfAFile(open(*a, **k)), raising=False)  # noqa: SIM115
        log.write([{"epoch": 2, "a": 0.123456789}])
    assert log.failed and log.path.read_text().startswith("epoch,a\n1,0.5\n2,0")
    log.write([{"epoch": 3, "a": 0.5}])
    assert log.path.read_text() == "epoch,a\n1,0.5\n2,0.123456789\n3,0.5\n"


def test_a_table_that_was_deleted_meanwhile_goes_on(tmp_path, monkeypatch):
    log = CsvLog(tmp_path / "t.csv", ("epoch", "a"))
    log.write([{"epoch": 1, "a": 0.5}])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fail)
        log.write([{"epoch": 2, "a": 0.5}])
    log.path.unlink()
    log.write([{"epoch": 3, "a": 0.5}])
    assert log.path.read_text() == "epoch,a\n2,0.5\n3,0.5\n"


def test_a_resumed_table_that_cannot_be_replaced_is_left_whole_and_replaced_later(
    tmp_path, monkeypatch, capfd
):
    log = CsvLog(tmp_path / "t.csv", ("epoch", "a"))
    log.write([{"epoch": epoch, "a": 0.5} for epoch in (1, 2, 3)])
    before = log.path.read_bytes()
    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, _fail)
            resumed = CsvLog(log.path, log.columns, epochs_done=1)
            resumed.write([{"epoch": 2, "a": 0.25}])
            assert CsvLog(log.path, log.columns, epochs_done=1).failed
        assert resumed.failed and log.path.read_bytes() == before
        assert os.listdir(tmp_path) == ["t.csv"]
        assert capfd.readouterr().err.count("\n") == 2  # one a table
    resumed.write([{"epoch": 3, "a": 0.25}])
    assert log.path.read_text() == "epoch,a\n1,0.5\n2,0.25\n3,0.25\n" and not resumed.failed


KILLED = """
import os, signal, sys
from pathlib import Path
from utils.training.logger import CsvLog
setattr(os, sys.argv[2], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
CsvLog(Path(sys.argv[1]), ("epoch", "a"), epochs_done=1)
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_resume_that_is_killed_leaves_the_old_table(tmp_path, call):
    log = CsvLog(tmp_path / "t.csv", ("epoch", "a"))
    log.write([{"epoch": epoch, "a": 0.5} for epoch in (1, 2, 3)])
    before = log.path.read_bytes()
    command = [sys.executable, "-c", KILLED, log.path, call]
    assert subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode == -signal.SIGKILL
    assert log.path.read_bytes() == before and len(os.listdir(tmp_path)) == 2
    CsvLog(log.path, log.columns, epochs_done=1)
    discard_parts(tmp_path)  # as a run does when it goes on
    assert os.listdir(tmp_path) == ["t.csv"] and log.path.read_text() == "epoch,a\n1,0.5\n"


def test_a_folder_that_is_gone_ends_nothing(tmp_path, capfd):
    log = run_log(tmp_path / "gone")
    log.write(row(1))
    log.close()
    assert log.failed and capfd.readouterr().err.count("\n") == 1
    (tmp_path / "gone").mkdir()
    log.close()  # tries once more
    assert [found["epoch"] for found in read(tmp_path / "gone")] == ["1"] and not log.failed


FULL_DISK = """
import resource, sys
from pathlib import Path
from utils.training.logger import CsvLog
limit = int(sys.argv[2])
log = CsvLog(Path(sys.argv[1]), ("epoch", "a"))
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
for epoch in range(1, 21):
    log.write([{"epoch": epoch, "a": 1 / 3}, {"epoch": epoch, "a": 2 / 3}])
    whole = log.path.read_text() if log.path.exists() else ""
    assert not whole or whole.endswith("\\n"), whole
    assert whole.count("\\n") in (0, *range(1, 42, 2)), whole
    assert len(whole) <= limit and log.failed == (whole.count("\\n") < 2 * epoch + 1)
assert log.failed
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.write([{"epoch": 21, "a": 1.0}])
assert not log.failed
"""


@pytest.mark.parametrize("limit", [0, 9, 300, 311, 400])
def test_a_full_disk(tmp_path, limit):
    """No file of the process may grow beyond ``limit`` bytes, until the disk has room again."""
    command = [sys.executable, "-c", FULL_DISK, tmp_path / "t.csv", str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1 and "File too large" in done.stderr
    lines = [f"{epoch},{value!r}" for epoch in range(1, 21) for value in (1 / 3, 2 / 3)]
    assert (tmp_path / "t.csv").read_text().split("\n") == ["epoch,a", *lines, "21,1.0", ""]


# the training's part of a row


def test_the_row_of_an_epoch():
    found = row(3)
    assert list(found) == [column for column in COLUMNS if not column.startswith("metrics/")]
    assert [found[name] for name in ("epoch", "step", "lr", "seconds", "data_seconds")] == [
        3,
        21,
        1e-3,
        12.34,
        0.1,
    ]
    assert [found[f"train/{name}"] for name in ("box", "dfl", "grad_norm")] == [2, 0.25, 9.5]


def test_an_epoch_whose_steps_were_all_skipped_has_a_row(tmp_path):
    nothing = epoch_row(1, torch.full((4,), math.nan), step=7, lr=0.1, seconds=1.0, waited=0.0)
    run_log(tmp_path).write(nothing)
    assert read(tmp_path)[0]["train/quality"] == "nan"


# loggers by name


class Fake:
    """A tracker that keeps what it is told, and raises in the method that ``broken`` names."""

    def __init__(self, start, broken=""):
        self.told, self._broken = [start], broken
        self._tell("start")

    def write(self, row):
        self._tell("write", row)

    def close(self):
        self._tell("close")

    def _tell(self, *what):
        if self._broken == what[0]:
            raise ConnectionError("no route\nto host")
        self.told.append(what)


@pytest.fixture
def trackers(monkeypatch):
    """The trackers made, by name; packages by these names seem to be installed."""
    made = {}

    def maker(name):
        def make(start):
            assert name not in made or made[name].told[0] != start  # each once a run
            made[name] = Fake(start, broken.get(name, ""))
            return made[name]

        return make

    broken = {}
    for name in logger.TRACKERS:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="a fake")
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(logger.TRACKERS, name, maker(name))
    return types.SimpleNamespace(made=made, broken=broken)


def test_a_logger_that_was_asked_for_gets_every_row(tmp_path, trackers):
    log = run_log(tmp_path, "wandb", "mlflow", "wandb")  # named twice, made once
    rows = [row(1), row(2)]
    for one in rows:
        log.write(one)
    log.close()
    assert set(trackers.made) == {"wandb", "mlflow"}
    for fake in trackers.made.values():
        start, *told = fake.told
        assert start == (tmp_path, {"train": {"lr": 0.1}}, 0, True)
        assert told == [("start",), ("write", rows[0]), ("write", rows[1]), ("close",)]


def test_no_logger_is_made_that_was_not_asked_for(tmp_path, trackers):
    log = run_log(tmp_path)
    log.write(row(1))
    log.close()
    assert trackers.made == {}


def test_loggers_are_told_whether_the_run_is_the_one_in_the_folder(tmp_path, trackers):
    def continued(done):
        run_log(tmp_path, "wandb", done=done)
        return trackers.made["wandb"].told[0].continued

    assert continued(0)  # a new folder, or stopped before its first epoch was over
    run_log(tmp_path).write(row(1))
    assert continued(1)
    assert not continued(0)  # --exist-ok: another run takes the folder


@pytest.mark.parametrize("broken", ["start", "write", "close"])
def test_a_logger_that_fails_is_dropped_with_one_line(tmp_path, trackers, capfd, broken):
    trackers.broken["wandb"] = broken
    log = run_log(tmp_path, "wandb", "mlflow")
    for epoch in (1, 2):
        log.write(row(epoch))
    log.close()
    shown = capfd.readouterr().err
    assert shown.count("\n") == 1 and shown.startswith("warning: wandb is off")
    assert "ConnectionError: no route to host" in shown
    assert [found["epoch"] for found in read(tmp_path)] == ["1", "2"] and not log.failed
    assert [told[0] for told in trackers.made["mlflow"].told[1:]] == ["start", "write", "write", "close"]


def test_an_interrupt_is_not_a_failure_of_a_logger(tmp_path, trackers):
    def stop(row):
        raise KeyboardInterrupt

    log = run_log(tmp_path, "wandb")
    trackers.made["wandb"].write = stop
    with pytest.raises(KeyboardInterrupt):
        log.write(row(1))


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        UserError, match=r"--loggers wandb: .*not installed.*python -m pip install wandb"
    ) as error:
        run_log(tmp_path, "wandb")
    assert error.value.code == USAGE and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_named_wandb_is_not_the_package(tmp_path, monkeypatch):
    """W&B itself leaves such a folder where it ran; Python would import it as a package without content."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(UserError, match="not installed"):
        check_loggers(["wandb"])
    (tmp_path / "wandb" / "__init__.py").write_text("raise AssertionError('imported')")
    importlib.invalidate_caches()
    check_loggers(["wandb"])
    assert "wandb" not in sys.modules


def test_an_unknown_logger_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"--loggers comet: .*tensorboard, wandb, mlflow"):
        run_log(tmp_path, "comet")
    assert os.listdir(tmp_path) == []


def test_importing_the_logger_imports_no_tracker():
    code = "import sys, utils.training.logger; print({'tensorboard', 'wandb', 'mlflow'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "set()", done.stderr
