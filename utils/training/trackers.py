"""The optional logs of a run: TensorBoard, Weights & Biases, MLflow; none is imported before it is asked for.

Each is told of a run by a ``RunStart``, gets one row an epoch, and shows it over the epoch. Whatever these
packages raise is for the caller (``RunLog``) to survive. No address is built in: what leaves the machine, and
where to, is decided by the packages' own environment variables.
"""

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from utils.files import open_regular, write_whole


class RunStart(NamedTuple):
    """What a log is told of a run that begins or goes on."""

    folder: Path  # the run's; its name is the run's name
    settings: Mapping  # nested plain configuration
    epochs_done: int  # rows after these are to be forgotten
    continued: bool  # whether the ids kept in the folder are this run's


class TensorBoardLog:
    """Scalars in an event file in the run's folder, and the settings for TensorBoard's HPARAMS page.

    Written by TensorBoard's own record writer but without its thread: an epoch is on the disk when ``write``
    returns, and an error comes out here. What an earlier process wrote after ``epochs_done`` is purged by
    TensorBoard when it reads the first events below.
    """

    def __init__(self, start: RunStart):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import hparams

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time_ns()}"  # read in the order of their names
        self._file = open(start.folder / name, "xb")  # noqa: SIM115 (held until close)
        self._records = RecordWriter(self._file)
        first = start.epochs_done + 1
        self._add(file_version="brain.Event:2", step=first)
        self._add(session_log=SessionLog(status=SessionLog.START), step=first)
        values = {key: _plain(value) for key, value in flatten(start.settings).items()}
        for summary in hparams(values, {"metrics/AP": 0.0}):
            self._add(summary=summary)
        self._file.flush()

    def write(self, row: Mapping[str, float]) -> None:
        """One scalar a column."""
        values = [self._summary.Value(tag=key, simple_value=value) for key, value in row.items()]
        self._add(summary=self._summary(value=values), step=int(row["epoch"]))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _add(self, **content) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())


class WandbLog:
    """A run on Weights & Biases, in the mode and project that its variables say (WANDB_MODE, WANDB_PROJECT).

    The run's id is drawn once and kept in the folder, not made of its path, which other machines may have
    too. W&B drops the rows of epochs it has, so a run that goes on from an older checkpoint has none twice.
    """

    def __init__(self, start: RunStart):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its crash reports go elsewhere
        import wandb

        run_id = _kept_id(start, "wandb") or uuid.uuid4().hex
        _keep_id(start, "wandb", run_id)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "ltrb",
            name=start.folder.name,
            id=run_id,
            resume="allow",
            dir=str(start.folder),
            config=dict(start.settings),
            allow_val_change=True,  # a run may go on with more epochs or other workers
        )

    def write(self, row: Mapping[str, float]) -> None:
        """One step of the run; W&B sends it in its own time."""
        self._run.log(dict(row), step=int(row["epoch"]))

    def close(self) -> None:
        """End the run; W&B sends the rest first."""
        self._run.finish()


class MlflowLog:
    """A run in MLflow's experiment "ltrb" (MLFLOW_EXPERIMENT_NAME), its id kept in the folder.

    The store is MLFLOW_TRACKING_URI's, else an SQLite file in the run's folder; to look at it: ``mlflow ui
    --backend-store-uri sqlite:///<folder>/mlflow.db``. Parameters are those of the first start, as MLflow
    lets none change. A server that does not answer is given up after three tries of 20 s, not MLflow's eight
    of 120 s, unless its variables say otherwise.
    """

    def __init__(self, start: RunStart):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, folder = Metric, start.folder.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{folder / 'mlflow.db'}")
        self._run_id = _kept_id(start, "mlflow")
        if self._run_id:
            logged = self._client.get_metric_history(self._run_id, "epoch")
            self._last = max((metric.step for metric in logged), default=0)
            self._client.update_run(self._run_id, status="RUNNING")
            return
        artifacts = None if uri else (folder / "mlartifacts").as_uri()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ltrb", artifacts)
        self._run_id, self._last = self._client.create_run(experiment, run_name=folder.name).info.run_id, 0
        _keep_id(start, "mlflow", self._run_id)
        settings = flatten(start.settings)
        self._client.log_batch(self._run_id, params=[Param(key, str(settings[key])) for key in settings])

    def write(self, row: Mapping[str, float]) -> None:
        """One step of each metric; epochs that the store has are left as they are there."""
        epoch = int(row["epoch"])
        if epoch <= self._last:
            return
        now = int(time.time() * 1000)
        metrics = [self._metric(key, float(value), now, epoch) for key, value in row.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        """Say that the run has ended."""
        self._client.set_terminated(self._run_id)

    def _experiment(self, name: str, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found else self._client.create_experiment(name, artifacts)


def flatten(settings: Mapping, above: str = "") -> dict[str, object]:
    """Nested settings by dotted key: {"train": {"lr": 1}} -> {"train.lr": 1}; an empty section vanishes."""
    flat: dict[str, object] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def _plain(value: object) -> int | float | str:
    """A value as TensorBoard's HPARAMS page shows it; a truth value would become 0 or 1 there."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _kept_id(start: RunStart, package: str) -> str:
    """The id this run has with ``package``; '' if it has none yet."""
    path = start.folder / f"{package}_id.txt"
    if not start.continued or not os.path.exists(path):
        return ""
    with open_regular(path) as file:
        return file.read().decode().strip()


def _keep_id(start: RunStart, package: str, run_id: str) -> None:
    write_whole(start.folder / f"{package}_id.txt", f"{run_id}\n")
