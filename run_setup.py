"""From flags to a training that is ready to begin, or to go on: settings, data, model, run folder."""

import os
import shlex
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from data.dense_batch import dense_batch
from data.letterbox import rounding_note
from data.preview import draw_training_data
from data.run_data import Data, check_same_data, describe_data, load_data
from inference import load_detector
from models.detector import build_detector, count_flops, count_parameters
from models.memory import check_training_memory
from utils.config import Config, Resolved, TrainConfig, config_to_plain
from utils.config_text import dump_config, format_config
from utils.environment import describe_session, find_versions, write_environment
from utils.epoch import Epoch
from utils.errors import UserError
from utils.files import discard_parts, write_whole
from utils.losses.anatomy import LossAnatomy
from utils.metrics.coco import is_measurable
from utils.probe import find_batch_size
from utils.resumable import check_place, check_resumable
from utils.settings import check_download, find_resumed, resolve_training, resume_training
from utils.step import TrainStep, settle_buckets
from utils.training import distributed
from utils.training.batch_size import default_batch_size, set_batch_size
from utils.training.checkpoint import epoch_of, load_checkpoint, tidy
from utils.training.console import last_line, remaining, table_header
from utils.training.device import autocast_dtype, free_memory
from utils.training.optimizer import freeze
from utils.training.reproducibility import seed_everything
from utils.training.run_folder import make_run_folder
from utils.training.run_lock import RunLock
from utils.training.saver import Saver
from utils.training.schedule import Rate
from utils.training.signals import Stop
from utils.training.state import TrainState, start_state
from utils.training.step_watch import StepWatch
from utils.training.transfer import load_weights
from utils.wording import printable
from val import check_names

FEW_STEPS = 1000  # of the optimiser: below it a detector has barely begun to learn


class Resumed(NamedTuple):
    """The run that goes on."""

    last: Path  # its last.pt
    content: dict


@dataclass
class Run:
    """A training at work."""

    settings: Resolved
    data: Data
    state: TrainState
    folder: Path
    device: torch.device
    stop: Stop
    rate: Rate
    step: TrainStep
    epoch: Epoch
    watch: StepWatch
    saver: Saver
    lock: RunLock
    begun: int  # epochs that were done when this process took over
    started: float = field(default_factory=time.perf_counter)
    training: list[float] = field(default_factory=list)  # seconds of each epoch since then
    validating: list[float] = field(default_factory=list)

    @property
    def cfg(self) -> Config:
        """Its settings."""
        return self.settings.config

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the input, without multi-scale."""
        return self.data.train.dataset.planner.shape

    @property
    def measurable(self) -> bool:
        """Whether the validation data, which is the same in all epochs, has boxes to measure by."""
        return is_measurable(self.data.truth)

    def is_finished(self) -> bool:
        """Whether nothing is left to do; then it says so. A collective: rank 0 looks for metrics.json."""
        finished = self.state.is_over(self.cfg.train) and os.path.exists(self.folder / "metrics.json")
        if finished and distributed.rank() == 0:
            done, asked = self.state.epoch, self.cfg.train.epochs
            how = f"--epochs {2 * done}" if done >= asked else "--patience 0"
            why = "" if done >= asked else f" of {asked}, as AP no longer rose"
            print(
                f"this run is finished, after {done} epochs{why}: {self.folder}\n"
                f"to go on: python train.py --resume {shlex.quote(str(self.folder))} {how}"
            )
        return distributed.from_rank_zero(finished)

    def time_left(self) -> float:
        """Seconds until all epochs are done, by those of the last ones."""
        cfg, spent = self.cfg.train, {"training": self.training, "validating": self.validating}
        return remaining(self.state.epoch, cfg.epochs, **spent, val_every=cfg.val_every)

    def summary(self, *, stopped: str = "") -> str:
        """The last line of the run; ``stopped``: by which signal, if by one."""
        if not stopped and self.state.epoch < self.cfg.train.epochs:
            stopped = "patience"
        return last_line(
            self.folder,
            epoch=self.state.epoch,
            epochs=self.cfg.train.epochs,
            seconds=time.perf_counter() - self.started,
            best=self.state.best,
            stopped=stopped,
            begun=self.begun,
            saved=not self.saver.failed,
            measurable=self.measurable,
        )

    def to_plain(self) -> dict:
        """What last.pt holds, beside what all checkpoints do. A collective."""
        return self.state.to_plain() | {"epoch_parts": self.epoch.to_plain()}


def read_settings(args: Namespace, lock: RunLock) -> tuple[Resolved, Resumed | None]:
    """The settings that the flags ask for, and the run that ``--resume`` means, whose own then count.

    A folder that is there already is locked before its last.pt is read, by the first rank.
    """
    last = find_resumed(args)
    if last:
        check_download(args)
    folder = last.parent.parent if last else Path(args.project) / args.name
    goes_there = last or args.exist_ok or args.resume == "auto"
    if goes_there and os.path.isdir(folder) and not args.show_plan and distributed.is_first_process():
        lock.take(folder)
        last = find_resumed(args)  # as whoever had it until now has left it
    if not last:
        if args.weights:
            load_detector(args.weights, "cpu")  # refuses a configuration that its own tensors do not bear out
        return resolve_training(args), None
    if args.weights:
        print(f"--weights {args.weights} is not used: the run goes on from its own, {last}")
    content = load_checkpoint(last, key="optimizer")
    check_resumable(content, where=last, build=build_detector)
    return resume_training(args, content, where=last), Resumed(last, content)


def read_data(
    asked: Resolved, resumed: Resumed | None, device: torch.device, *, download: bool
) -> tuple[Resolved, Data]:
    """The data, and the settings with what was found in place of ``auto``: batch size, range of the pixels.

    A run goes on with the data that it began with, or not at all.
    """
    check_same_start(asked, resumed)
    auto, settings = asked.config.train.batch_size == "auto", asked
    if auto:
        settings = set_batch_size(asked, default_batch_size(distributed.world_size()))
    data = load_data(settings.config, device, download=download, source=remembers_data(asked, resumed))
    settings, asked = (set_pixel_range(item, data.pixel_range) for item in (settings, asked))
    if resumed:
        names, last = tuple(resumed.content["names"]), resumed.last
        check_names(names, data.spec.names, weights=str(last), data=data.spec.yaml)
        check_same_data(data, resumed.content["data"], where=last)
        check_place(resumed.content, len(data.train), where=last)
        then, now = resumed.content["versions"], find_versions()
        for name in (name for name in then if then[name] != now.get(name) and distributed.rank() == 0):
            changed = f"{name} was {then[name]} and is {now.get(name)}"
            print(f"{printable(changed)}: results may differ in their last bits")
    if auto and device.type == "cuda":
        check_memory(settings.config, data, device)
        settings = set_batch_size(asked, fit_batch_size(settings.config, data, device))
        data = data.with_loaders(settings.config, device)
    if auto and distributed.rank() == 0:
        why = "" if device.type == "cuda" else ", the default: there is no GPU whose memory could be filled"
        print(f"--batch-size auto: {settings.config.train.batch_size}{why}")
    return settings, data


def set_pixel_range(settings: Resolved, found: str | tuple[float, float]) -> Resolved:
    """The settings with the range that ``data.pixel_range: auto`` stands for in these training pictures."""
    if settings.config.data.pixel_range == found:
        return settings
    data = settings.config.data.model_copy(update={"pixel_range": found})
    config = settings.config.model_copy(update={"data": data})
    return Resolved(config, settings.origins | {"data.pixel_range": "the training pictures"})


def remembers_data(asked: Resolved, resumed: Resumed | None) -> str:
    """The checkpoint that the path of the data is from; '' where it is from a flag of now."""
    if not resumed or resumed.content["config"].get("data", {}).get("path") != asked.config.data.path:
        return ""
    return str(resumed.last)


def check_same_start(settings: Resolved, resumed: Resumed | None) -> None:
    """All ranks train with the same settings, from the same batch on; each has read the files of its machine.

    A collective.
    """
    plain = config_to_plain(settings.config)
    own = {f"{section}.{key}": value for section, values in plain.items() for key, value in values.items()}
    own["batches done"] = resumed.content["step"] if resumed else 0
    first, *others = distributed.gather(own)
    for rank, other in enumerate(others, 1):
        if differing := [key for key in first if first[key] != other[key]]:
            lines = "".join(f"  {key}: {first[key]} and {other[key]}\n" for key in differing)
            raise UserError(
                f"ranks 0 and {rank} do not begin alike:\n{lines}All machines need the same files; where "
                "they share no disk, --resume needs a copy of the run's folder on each"
            )


def check_memory(cfg: Config, data: Data, device: torch.device) -> None:
    """Refuse what certainly does not fit. A collective; on each machine its first rank looks."""
    shape, ranks = (
        data.train.dataset.planner.shape,
        (distributed.world_size(), distributed.local_world_size()),
    )
    distributed.on_each_node(
        lambda: check_training_memory(cfg, len(data.spec.names), shape, device, ranks=ranks, free=free_memory)
    )


def fit_batch_size(cfg: Config, data: Data, device: torch.device) -> int:
    """What ``--batch-size auto`` is on GPUs: rank 0 tries, all are taken to be like its own."""
    ranks = distributed.world_size()

    def find() -> int:
        with distributed.alone():
            build, dense = partial(build_state, cfg, data, device), partial(dense_batch, data.index, cfg)
            return find_batch_size(cfg, build, dense, device=device, most=-(-len(data.index.sizes) // ranks))

    return distributed.on_rank_zero(find) * ranks


def build_state(cfg: Config, data: Data, device: torch.device, *, weights: str = "") -> TrainState:
    """The model, fresh or from ``weights``, and all that trains it."""
    seed_everything(cfg.train.seed)
    model = build_detector(cfg.model, len(data.spec.names))
    if weights:
        table = load_weights(model, weights, data.spec.names)
        if distributed.rank() == 0:
            print(table)
    freeze(model, cfg.train.freeze)
    model = model.to(device, memory_format=torch.channels_last)
    share = cfg.train.batch_size // distributed.world_size()
    micro_batch = min(cfg.train.micro_batch or share, share)
    return start_state(model, cfg.train, num_updates(cfg, data), device, micro_batch=micro_batch)


def build_run(
    settings: Resolved, data: Data, resumed: Resumed | None, args: Namespace, *, device, stop: Stop, lock
) -> Run:
    """Everything a training works with, and its folder; where it goes on, in the state that it was in."""
    cfg = settings.config
    check_memory(cfg, data, device)
    state = build_state(cfg, data, device, weights="" if resumed else args.weights)
    model = distributed.wrap(state.model, device, sync_bn=cfg.train.sync_bn)
    settle_buckets(model, state, data.train.dataset.planner.shape)
    step = TrainStep(model, state, cfg, LossAnatomy(cfg.train.anatomy_every, state.model.strides))
    epoch = Epoch(device, step.anatomy)
    if resumed:
        restore(state, epoch, resumed, cfg.train)

    def find_folder() -> Path:  # made only now: what is refused leaves nothing behind
        exist_ok = args.exist_ok or args.resume == "auto"
        folder = make_run_folder(args.project, args.name, exist_ok=exist_ok)
        lock.take(folder)
        if args.resume == "auto" and find_resumed(args):
            raise UserError(f"{folder}: another process has begun this run meanwhile; give the command again")
        return folder

    folder = resumed.last.parent.parent if resumed else distributed.on_rank_zero(find_folder)
    about = {"config": config_to_plain(cfg), "origins": settings.origins, "names": list(data.spec.names)}
    about |= {"strides": list(state.model.strides), "data": describe_data(data), "versions": find_versions()}
    saver = Saver(folder, about, minutes=0 if args.nosave else cfg.train.save_minutes, confirm=lock.confirm)
    if state.best["epoch"] > 0 and epoch_of(folder / "weights" / "best.pt") != state.best["epoch"]:
        saver.miss("best.pt")
    watch = StepWatch(folder if distributed.rank() == 0 else None)
    rate = Rate(cfg.train, len(data.train))
    return Run(
        settings, data, state, folder, device, stop, rate, step, epoch, watch, saver, lock, state.epoch
    )


def restore(state: TrainState, epoch: Epoch, resumed: Resumed, cfg: TrainConfig) -> None:
    """Go on where the checkpoint was written. One whose parts do not fit this model is a ``UserError``."""
    asked, share = cfg.micro_batch, cfg.batch_size // distributed.world_size()
    try:
        state.restore(resumed.content)
        epoch.restore(resumed.content["epoch_parts"])
        if asked != resumed.content["config"]["train"].get("micro_batch"):  # it was given now
            state.micro_batch = min(asked or share, share)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        reason = printable(error).partition("\\n")[0][:200]
        raise UserError(
            f"{resumed.last} is damaged, or was changed: its state does not fit its own configuration "
            f"({type(error).__name__}: {reason}). Start a new run: --weights {resumed.last} without --resume"
        ) from error


def num_updates(cfg: Config, data: Data) -> int:
    """Steps of the optimiser in the whole run."""
    return -(-len(data.train) // cfg.train.accumulation) * cfg.train.epochs


def write_missing_form(run: Run) -> None:
    """best.safetensors from best.pt, where a run goes on that began before there was one, or lost it."""
    best, epoch = run.folder / "weights" / "best.pt", run.state.best["epoch"]
    if epoch > 0 and not run.saver.lacks("best.pt") and epoch_of(best.with_suffix(".safetensors")) != epoch:
        run.saver.save("best.safetensors", load_checkpoint(best))


def describe_run(run: Run, *, plots: bool) -> None:
    """Print what is about to run, write what it is run with, and draw the labels and the first batch."""
    cfg, model, shape = run.cfg, run.state.model, run.shape
    precision = autocast_dtype(cfg.train.amp, run.device) or torch.float32
    precision = str(precision).removeprefix("torch.")
    discard_parts(run.folder)
    tidy(run.folder / "weights")
    write_missing_form(run)
    session = describe_session(
        sys.argv,
        run.settings,
        done=(run.state.epoch, run.state.batch),
        processes=(distributed.world_size(), distributed.local_world_size()),
        device=str(run.device),
        precision=precision,
    )

    def write() -> None:
        (run.folder / "metrics.json").unlink(missing_ok=True)  # of the run's end, which is still to come
        if not run.state.step:
            (run.folder / "nan_report.json").unlink(missing_ok=True)  # of another run that was here
        write_whole(run.folder / "config.yaml", dump_config(run.settings))
        write_environment(run.folder, session, resumed=run.state.step > 0)

    run.saver.attempt("config.yaml, environment.json", write)
    print(format_config(run.settings))
    if note := rounding_note(cfg.data.imgsz, max(model.strides)):
        print(note)
    flops, steps = count_flops(model, shape) / 1e9, num_updates(cfg, run.data)
    print(f"model: {count_parameters(model):,} parameters, {flops:.2f} GFLOPs at {shape[0]}x{shape[1]}")
    print(f"run: {cfg.train.epochs} epochs, {steps} optimiser steps, {precision} on {run.device}")
    if run.state.step:
        print(
            f"goes on: after epoch {run.state.epoch} and {run.state.batch} batches of {len(run.data.train)}"
        )
    print(f"results: {run.folder}")
    if steps < FEW_STEPS:
        print(f"warning: {steps} optimiser steps are few; a detector needs {FEW_STEPS:,} to begin to learn")
    if plots:
        run.saver.attempt("labels.jpg, train_batch0.jpg", lambda: draw_training_data(run.folder, run.data))
    print(table_header())
