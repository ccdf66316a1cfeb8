"""The optional logs: TensorBoard for real; W&B and MLflow as modules that record what they are told.

The stand-ins take the arguments by the names and orders of wandb 0.31 and mlflow 3.17, with which the same
calls were tried for real, offline.
"""

import inspect
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest

from utils.training.trackers import MlflowLog, RunStart, TensorBoardLog, WandbLog, flatten

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {"train": {"lr": 0.1, "epochs": 3, "freeze": None}, "data": {"imgsz": [64, 96], "rect": True}}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """The user's variables do not count here, and those set here do not last."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "MLFLOW_"))}
    monkeypatch.setattr(os, "environ", kept)


def start(folder: Path, *, done: int = 0, continued: bool = True, settings=SETTINGS) -> RunStart:
    folder.mkdir(exist_ok=True)
    return RunStart(folder, settings, epochs_done=done, continued=continued)


def row(epoch: int, ap: float = 0.5) -> dict:
    return {"epoch": epoch, "train/box": 1 / epoch, "metrics/AP": ap}


def test_settings_by_dotted_key():
    found = flatten(SETTINGS | {"loss": {}, "seed": 1})
    assert found == {
        "train.lr": 0.1,
        "train.epochs": 3,
        "train.freeze": None,
        "data.imgsz": [64, 96],
        "data.rect": True,
        "seed": 1,
    }


# TensorBoard


def events(folder: Path):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    return accumulators.EventAccumulator(str(folder)).Reload()


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_reads_every_value_at_its_epoch(tmp_path):
    log = TensorBoardLog(start(tmp_path))
    for epoch in (1, 2, 4):
        log.write(row(epoch))
        assert [step for step, _ in scalars(tmp_path, "train/box")][-1] == epoch  # without a flush or an end
    log.close()
    assert scalars(tmp_path, "train/box") == [(1, 1), (2, 0.5), (4, 0.25)]
    assert set(events(tmp_path).Tags()["scalars"]) == set(row(1))


@pytest.mark.usefixtures("tensorboard")
@pytest.mark.parametrize("done", [0, 2, 3])
def test_tensorboard_shows_no_epoch_twice_after_a_resume(tmp_path, done):
    log = TensorBoardLog(start(tmp_path))
    for epoch in (1, 2, 3):
        log.write(row(epoch, ap=0.25))
    if done == 3:
        log.close()  # the others died
    log = TensorBoardLog(start(tmp_path, done=done))
    for epoch in range(done + 1, 6):
        log.write(row(epoch, ap=0.5))
    log.close()
    assert scalars(tmp_path, "metrics/AP") == [
        (epoch, 0.25 if epoch <= done else 0.5) for epoch in range(1, 6)
    ]


@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_has_the_settings_as_hyper_parameters(tmp_path):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    TensorBoardLog(start(tmp_path)).close()
    tags = events(tmp_path).summary_metadata
    content = HParamsPluginData.FromString(tags["_hparams_/session_start_info"].plugin_data.content)
    found = content.session_start_info.hparams
    assert found["train.lr"].number_value == 0.1 and found["train.epochs"].number_value == 3
    texts = {key: found[key].string_value for key in ("data.rect", "data.imgsz", "train.freeze")}
    assert texts == {"data.rect": "True", "data.imgsz": "[64, 96]", "train.freeze": "None"}


FULL_DISK = """
import resource, sys
from pathlib import Path
from utils.training.logger import RunLog
log = RunLog(Path(sys.argv[1]), ["tensorboard"], settings={"train": {"lr": 0.1}})
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
for epoch in range(1, 41):
    log.write({"epoch": epoch, "train/box": 1 / epoch, "metrics/AP": 0.5})
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.close()
assert not log.failed
"""


@pytest.mark.usefixtures("tensorboard")
def test_a_full_disk_ends_tensorboard_and_not_the_run(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stderr.splitlines()  # and no traceback of a thread
    assert first.startswith("warning: tensorboard is off") and "its rows wait" in second
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 41
    assert 0 < len(scalars(tmp_path, "train/box")) < 40  # what was there before can be read


# Weights & Biases


class Run:
    """wandb.Run: drops what does not belong to a later step than the last."""

    def __init__(self, given: dict):
        self.given, self.rows, self.finished = given, {}, False

    def log(self, data: dict, step: int | None = None, commit: bool | None = None) -> None:
        if step > max(self.rows, default=-1):
            self.rows[step] = data

    def finish(self, exit_code: int | None = None, quiet: bool | None = None) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A server: ``wandb.runs`` by id; ``wandb.imported`` the environment while it was imported."""
    runs = {}

    def init(
        entity=None,
        project=None,
        dir=None,
        id=None,
        name=None,
        config=None,
        allow_val_change=None,
        mode=None,
        resume=None,
    ):
        given = inspect.currentframe().f_locals
        if resume != "allow" or id not in runs:
            runs[id] = Run({})
        runs[id].given = {key: value for key, value in given.items() if value is not None and key != "runs"}
        return runs[id]

    module = types.SimpleNamespace(init=init, runs=runs)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_is_told_name_folder_and_settings(tmp_path, wandb):
    log = WandbLog(start(tmp_path / "exp7"))
    log.write(row(1))
    log.close()
    ((run_id, run),) = wandb.runs.items()
    assert len(run_id) == 32 and run_id.isalnum()
    assert run.given == {
        "id": run_id,
        "project": "ltrb",
        "name": "exp7",
        "dir": str(tmp_path / "exp7"),
        "resume": "allow",
        "config": SETTINGS,
        "allow_val_change": True,
    }  # and no mode: WANDB_MODE decides
    assert run.rows == {1: row(1)} and run.finished


def test_wandb_goes_on_with_its_run_and_has_no_epoch_twice(tmp_path, wandb):
    for done, until, ap in ((0, 3, 0.25), (2, 4, 0.5)):
        log = WandbLog(start(tmp_path, done=done))
        for epoch in range(done + 1, until + 1):
            log.write(row(epoch, ap))
    (run,) = wandb.runs.values()
    assert {step: data["metrics/AP"] for step, data in run.rows.items()} == {
        1: 0.25,
        2: 0.25,
        3: 0.25,
        4: 0.5,
    }


def test_another_run_in_the_folder_is_another_run_on_wandb(tmp_path, wandb):
    WandbLog(start(tmp_path))
    WandbLog(start(tmp_path, continued=False))
    assert len(wandb.runs) == 2
    WandbLog(start(tmp_path, done=1))
    assert len(wandb.runs) == 2


def test_two_runs_of_one_path_are_two_on_wandb(tmp_path, wandb):
    """Another machine may have the same path: the id is drawn, not made of it."""
    WandbLog(start(tmp_path))
    (tmp_path / "wandb_id.txt").unlink()
    WandbLog(start(tmp_path))
    assert len(wandb.runs) == 2


def test_wandb_projects_and_crash_reports_are_as_the_environment_says(tmp_path, wandb):
    os.environ["WANDB_PROJECT"] = "mine"
    WandbLog(start(tmp_path))
    (run,) = wandb.runs.values()
    assert run.given["project"] == "mine"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    os.environ["WANDB_ERROR_REPORTING"] = "true"
    WandbLog(start(tmp_path))
    assert os.environ["WANDB_ERROR_REPORTING"] == "true"


# MLflow


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class Client:
    """mlflow.MlflowClient of one store."""

    def __init__(self, store: dict):
        self.store = store

    def get_experiment_by_name(self, name):
        found = self.store["experiments"].get(name)
        return types.SimpleNamespace(experiment_id=found) if found else None

    def create_experiment(self, name, artifact_location=None, tags=None):
        if name in self.store["experiments"]:
            raise ValueError(f"Experiment '{name}' already exists")
        self.store["experiments"][name] = str(len(self.store["experiments"]) + 1)
        self.store["artifacts"] = artifact_location
        return self.store["experiments"][name]

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        run_id = f"run{len(self.store['runs'])}"
        run = {
            "experiment": experiment_id,
            "name": run_name,
            "status": "RUNNING",
            "metrics": [],
            "params": {},
        }
        self.store["runs"][run_id] = run
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        run = self.store["runs"][run_id]
        for key, value in params:
            if run["params"].setdefault(key, value) != value:
                raise ValueError("Changing param values is not allowed")
        run["metrics"] += metrics

    def get_metric_history(self, run_id, key):
        return [metric for metric in self.store["runs"][run_id]["metrics"] if metric.key == key]

    def update_run(self, run_id, status=None, name=None):
        self.store["runs"][run_id]["status"] = status

    def set_terminated(self, run_id, status=None, end_time=None):
        self.store["runs"][run_id]["status"] = status or "FINISHED"


@pytest.fixture
def stores(monkeypatch):
    """MLflow's stores by address."""
    found = {}

    def client(tracking_uri=None, registry_uri=None):
        return Client(found.setdefault(tracking_uri, {"experiments": {}, "runs": {}}))

    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(MlflowClient=client))
    entities = types.SimpleNamespace(Metric=Metric, Param=Param)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return found


def test_mlflow_keeps_a_run_in_its_folder(tmp_path, stores):
    folder = tmp_path / "exp 7"
    log = MlflowLog(start(folder))
    log.write(row(1))
    ((uri, store),) = stores.items()
    assert uri == f"sqlite:///{folder}/mlflow.db"  # three strokes and an absolute path
    assert store["experiments"] == {"ltrb": "1"} and store["artifacts"] == (folder / "mlartifacts").as_uri()
    run = store["runs"]["run0"]
    assert (run["experiment"], run["name"], run["status"]) == ("1", "exp 7", "RUNNING")
    assert run["params"] == {
        "train.lr": "0.1",
        "train.epochs": "3",
        "train.freeze": "None",
        "data.imgsz": "[64, 96]",
        "data.rect": "True",
    }
    assert {metric.key: metric.value for metric in run["metrics"]} == row(1)
    assert {metric.step for metric in run["metrics"]} == {1}
    assert all(type(metric.value) is float and type(metric.timestamp) is int for metric in run["metrics"])
    log.close()
    assert run["status"] == "FINISHED"


def test_mlflow_goes_on_with_its_run_and_has_no_epoch_twice(tmp_path, stores):
    for done, until, ap in ((0, 3, 0.25), (2, 4, 0.5)):
        settings = {"train": {"epochs": until}}  # a run may go on with more epochs; parameters cannot change
        log = MlflowLog(start(tmp_path, done=done, settings=settings))
        assert stores[f"sqlite:///{tmp_path}/mlflow.db"]["runs"]["run0"]["status"] == "RUNNING"
        for epoch in range(done + 1, until + 1):
            log.write(row(epoch, ap))
        log.close()
    ((run_id, run),) = stores[f"sqlite:///{tmp_path}/mlflow.db"]["runs"].items()
    found = [(metric.step, metric.value) for metric in run["metrics"] if metric.key == "metrics/AP"]
    assert run_id == "run0" and found == [(1, 0.25), (2, 0.25), (3, 0.25), (4, 0.5)]
    assert run["params"] == {"train.epochs": "3"}


def test_another_run_in_the_folder_is_another_run_of_mlflow(tmp_path, stores):
    MlflowLog(start(tmp_path))
    log = MlflowLog(start(tmp_path, continued=False))
    log.write(row(1))
    (store,) = stores.values()
    assert len(store["runs"]) == 2 and len(store["experiments"]) == 1
    assert [bool(run["metrics"]) for run in store["runs"].values()] == [False, True]


def test_mlflow_writes_where_the_environment_says(tmp_path, stores):
    os.environ |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "MLFLOW_EXPERIMENT_NAME": "mine"}
    MlflowLog(start(tmp_path))
    ((uri, store),) = stores.items()
    assert uri == "http://127.0.0.1:5000"
    assert store["experiments"] == {"mine": "1"} and store["artifacts"] is None  # the server's own


def test_mlflow_reports_to_nobody_unless_told_to(tmp_path, stores):
    MlflowLog(start(tmp_path))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "false"
    MlflowLog(start(tmp_path))
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
