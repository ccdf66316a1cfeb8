"""Train a detector: ``python train.py --data data.yaml --cfg n``; without arguments, the demo."""

import copy
import math
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.augment.show_plan import show_plan
from data.dataset import unpad
from data.index import fingerprint
from data.letterbox import rounding_note
from data.loader import Loader
from data.run_data import Data, load_data
from inference import load_detector
from models.detector import Detector, build_detector, count_flops, count_parameters
from utils.arguments import train_parser
from utils.assigners.build import build_assigner
from utils.assigners.statistics import COLUMNS as ASSIGNMENT_COLUMNS
from utils.assigners.statistics import AssignmentStatistics
from utils.config import Config, Resolved, config_to_plain
from utils.config_files import config_from_plain
from utils.config_text import dump_config, format_config
from utils.errors import run_main
from utils.losses.anatomy import LossAnatomy
from utils.losses.compute import compute_loss
from utils.plots.curves import plot_labels, plot_run
from utils.plots.grid import save_grid
from utils.settings import resolve_training
from utils.structures import Predictions
from utils.training import distributed
from utils.training.checkpoint import find_latest, load_checkpoint, save_checkpoint
from utils.training.device import autocast_dtype, on_device, select_device
from utils.training.logger import (
    CsvLog,
    DelayedValues,
    ResultsLog,
    epoch_line,
    epoch_row,
    table_header,
    table_line,
    waiting_advice,
    waiting_note,
)
from utils.training.optimizer import freeze, frozen_norms
from utils.training.reproducibility import seed_everything
from utils.training.run_folder import make_run_folder
from utils.training.schedule import lr_factor, warmup_steps
from utils.training.state import TrainState, start_state
from utils.training.transfer import load_weights
from val import (
    check_names,
    describe_measurement,
    evaluate,
    format_metrics,
    save_val_pictures,
    write_metrics,
)

FEW_STEPS = 1000  # of the optimiser: below it a detector has barely begun to learn


def main() -> None:
    """Command line."""
    args = train_parser().parse_args()
    content = last = None
    if args.resume:
        last = find_latest(args.project) if args.resume == "latest" else Path(args.resume)
        content = load_checkpoint(last, key="optimizer")
        settings = Resolved(config_from_plain(content["config"], where=str(last)), content["origins"])
        print(
            f"resuming {last} after epoch {content['epoch']}; settings are its own, not those of other flags"
        )
    else:
        settings = resolve_training(args)
    device = select_device(args.device, launch=shlex.join(sys.argv))
    distributed.start(device)
    try:
        cfg = settings.config
        data = load_data(cfg, device, download=args.download)
        if content:
            check_names(tuple(content["names"]), data.spec.names, weights=str(last), data=data.spec.yaml)
        if args.show_plan:
            show_plans(data, args)
            return
        state = start(cfg, data, device, weights="" if content else args.weights, content=content)
        folder = last.parent.parent if last else None  # made only now: what is refused leaves nothing behind
        if distributed.rank() == 0 and not folder:
            folder = make_run_folder(args.project, args.name, exist_ok=args.exist_ok)
            (folder / "config.yaml").write_text(dump_config(settings))
        train(settings, data, state, distributed.from_rank_zero(folder), device=device, args=args)
    finally:
        distributed.stop()


def show_plans(data: Data, args) -> None:
    """Write ``--show-plan`` pictures of the first epoch, annotated with what was done to them."""
    if distributed.rank() == 0:
        folder = make_run_folder(args.project, args.name, exist_ok=args.exist_ok) / "plan"
        shown = data.train.dataset
        options = {"epoch": 0, "count": args.show_plan, "names": data.spec.names}
        show_plan(folder, shown.planner, shown.index, shown.pictures, **options)
        print(f"the first {args.show_plan} training pictures and how they were made: {folder}")


def start(cfg: Config, data: Data, device: torch.device, *, weights: str, content: dict | None) -> TrainState:
    """The model, fresh, from ``weights`` or as in the checkpoint ``content``, and all that trains it."""
    seed_everything(cfg.train.seed)
    model = build_detector(cfg.model, len(data.spec.names))
    if weights:
        table = load_weights(model, weights, data.spec.names)
        if distributed.rank() == 0:
            print(table)
    freeze(model, cfg.train.freeze)
    model = model.to(device, memory_format=torch.channels_last)
    state = start_state(model, cfg.train, num_updates(cfg, data), device)
    if content:
        state.restore(content)
    return state


def train(settings: Resolved, data: Data, state: TrainState, folder: Path, *, device, args) -> None:
    """One run, from where ``state`` stands to the results in ``folder``."""
    cfg, first_rank = settings.config, distributed.rank() == 0
    if first_rank:
        describe(settings, state.model, data, folder, device=device, plots=not args.noplots)
    model = distributed.wrap(state.model, device, sync_bn=cfg.train.sync_bn)
    anatomy = LossAnatomy(cfg.train.anatomy_every, state.model.strides)
    if first_rank:
        log = ResultsLog(folder, epochs_done=state.epoch)
        inside = CsvLog(folder / "anatomy.csv", anatomy.columns, epochs_done=state.epoch)
        assigned = CsvLog(folder / "assignment.csv", ASSIGNMENT_COLUMNS, epochs_done=state.epoch)
    done = state.epoch >= cfg.train.epochs
    while not done:
        statistics = AssignmentStatistics(device)
        row = train_epoch(
            model, state, data.train, cfg, device=device, statistics=statistics, anatomy=anatomy
        )
        done = state.epoch >= cfg.train.epochs
        looked, assignment = anatomy.rows(state.epoch), {"epoch": state.epoch} | statistics.row()
        if first_rank:
            inside.write(looked)
            assigned.write([assignment])
            if done or state.epoch % cfg.train.val_every == 0:
                row |= validate(state, data, cfg, device)
                done = done or gone_stale(state, cfg.train.patience)
            log.write(row)
            print(epoch_line(row, cfg.train.epochs, data.train.dataset.planner.shape))
            if advice := waiting_advice(row, workers=data.train.workers, cache=cfg.data.cache):
                print(advice)
            save(folder, state, settings, data, last=done or not args.nosave)
        done = distributed.from_rank_zero(done)
    if first_rank:
        log.close()
        finish(folder, data, cfg, device, plots=not args.noplots)


def train_epoch(
    model, state: TrainState, loader: Loader, cfg: Config, *, device, statistics, anatomy: LossAnatomy
) -> dict:
    """One pass over the training pictures; returns the epoch's row of results.csv."""
    model.train()
    for frozen in frozen_norms(model):
        frozen.eval()
    close = state.epoch >= cfg.train.epochs * (1 - cfg.augment.close_mosaic)
    loader.set_epoch(state.epoch, mosaic=not close)
    assign, group = build_assigner(cfg), cfg.train.accumulation
    num_batches = len(loader) * cfg.train.epochs
    warmup = warmup_steps(cfg.train, num_batches, len(loader))
    sums, norm = torch.zeros(3, device=device), torch.zeros((), device=device)
    norms, shown = [], DelayedValues()
    name, begun, waited = f"{state.epoch + 1}/{cfg.train.epochs}", time.perf_counter(), 0.0
    arriving, asked = on_device(loader, device), begun
    bar = tqdm(arriving, total=len(loader), desc=table_line(name, [], ""), leave=False, disable=None)
    for number, batch in enumerate(bar):
        waited += time.perf_counter() - asked
        lr = cfg.train.lr * lr_factor(state.step, num_batches, warmup, cfg.train)
        size = min(group, len(loader) - number // group * group)  # of this group of accumulated batches
        last_of_group = number % group == size - 1
        with distributed.keep_gradients(model, not last_of_group):
            with anatomy.watch(state.model.head, state.step) as features:
                pred = forward(model, batch.images, cfg)
            loss = compute_loss(pred, batch.truth, assign, cfg.loss)
            statistics.add(loss.match, batch.truth, pred, reach=cfg.model.reach)
            anatomy.add(state.step, loss, pred, features, scaler=state.scaler)
            state.scaler.scale(loss.total / size).backward()
        terms = torch.stack([term.detach() for term in loss.terms.values()])
        state.step += 1
        if last_of_group:
            norm = state.update(lr=lr, clip_norm=cfg.train.clip_norm)
            norms.append(torch.where(norm.isfinite(), norm, 0.0))
        sums += terms
        latest = shown.push(torch.cat((terms, norm.view(1))))
        bar.set_description_str(table_line(name, latest, str(batch.images.shape[-1])), refresh=False)
        asked = time.perf_counter()
        bar.set_postfix_str(waiting_note(waited, asked - begun), refresh=False)
    state.epoch += 1
    means = distributed.global_sum(sums) / distributed.world_size() / len(loader)
    means = torch.cat((means, torch.stack(norms).mean().view(1)))
    return epoch_row(state.epoch, means, step=state.step, lr=lr, seconds=asked - begun, waited=waited)


def forward(model: nn.Module, images: Tensor, cfg: Config) -> Predictions:
    """The raw predictions of a batch on the device, in the precision of ``train.amp``."""
    dtype = autocast_dtype(cfg.train.amp, images.device)
    with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        return model(images)


def num_updates(cfg: Config, data: Data) -> int:
    """Steps of the optimiser in the whole run."""
    return math.ceil(len(data.train) / cfg.train.accumulation) * cfg.train.epochs


def validate(state: TrainState, data: Data, cfg: Config, device: torch.device) -> dict:
    """COCO metrics of the average's weights as columns of results.csv; remembers the best AP."""
    model = copy.deepcopy(state.ema.model).fuse()  # as val.py and detect.py use it
    metrics = evaluate(model, data.val, data.truth, cfg=cfg.val, device=device).metrics
    if state.best["epoch"] < 0 or metrics.values["AP"] > state.best["AP"]:
        state.best = {"AP": metrics.values["AP"], "epoch": state.epoch}
    row = {f"metrics/{key}": metrics.values[key] for key in ("AP", "AP50", "AP75")}
    return row | {"metrics/precision": metrics.precision, "metrics/recall": metrics.recall}


def gone_stale(state: TrainState, patience: int) -> bool:
    """Whether the best AP is ``patience`` epochs old (0: never)."""
    return bool(patience) and state.epoch - state.best["epoch"] >= patience and state.best["epoch"] > 0


def save(folder: Path, state: TrainState, settings: Resolved, data: Data, *, last: bool) -> None:
    """Write best.pt if this epoch is the best so far, last.pt if ``last``, epoch<N>.pt by --save-period."""
    common = {
        "config": config_to_plain(settings.config),
        "origins": settings.origins,
        "names": list(data.spec.names),
        "strides": list(state.model.strides),
    }
    weights = folder / "weights"
    if state.best["epoch"] == state.epoch:
        best = {"ema": state.ema.model.state_dict(), "epoch": state.epoch, "best": state.best}
        save_checkpoint(weights / "best.pt", common | best)
    if last:
        save_checkpoint(weights / "last.pt", common | state.to_plain())
    period = settings.config.train.save_period
    if period > 0 and state.epoch % period == 0:
        save_checkpoint(weights / f"epoch{state.epoch}.pt", common | state.to_plain())


def describe(settings: Resolved, model: Detector, data: Data, folder: Path, *, device, plots: bool) -> None:
    """Print what is about to run, and draw the labels and the first batch."""
    cfg, shape = settings.config, data.train.dataset.planner.shape
    print(format_config(settings))
    if note := rounding_note(cfg.data.imgsz, max(model.strides)):
        print(note)
    flops, dtype = count_flops(model, shape) / 1e9, autocast_dtype(cfg.train.amp, device) or torch.float32
    print(f"model: {count_parameters(model):,} parameters, {flops:.2f} GFLOPs at {shape[0]}x{shape[1]}")
    steps = num_updates(cfg, data)
    precision = str(dtype).removeprefix("torch.")
    print(f"run: {cfg.train.epochs} epochs, {steps} optimiser steps, {precision} on {device}")
    print(f"results: {folder}")
    if steps < FEW_STEPS:
        print(f"warning: {steps} optimiser steps are few; a detector needs {FEW_STEPS:,} to begin to learn")
    print(table_header())
    if not plots:
        return
    index, names = data.index, data.spec.names
    sizes = np.repeat(index.sizes, np.diff(index.offsets), axis=0)
    plot_labels(folder / "labels.jpg", labels=index.labels, boxes=index.boxes, sizes=sizes, names=names)
    batch = data.train.first_batch()
    save_grid(folder / "train_batch0.jpg", batch.images, *unpad(batch.truth), names=names)


def finish(folder: Path, data: Data, cfg: Config, device: torch.device, *, plots: bool) -> None:
    """Validate best.pt as val.py does, draw the results, and say what to do next."""
    best = folder / "weights" / "best.pt"
    detector = load_detector(best, str(device))
    result = evaluate(detector.model, data.val, data.truth, cfg=cfg.val, device=device)
    print(f"\n{best}:\n{format_metrics(result.metrics, len(data.val.dataset.index.sizes))}")
    measurement = describe_measurement(data.val.dataset.index, data.spec, cfg, weights=best)
    measurement["training"] = fingerprint(data.index, data.spec.names)
    write_metrics(folder, result, measurement)
    if plots:
        plot_run(folder)
        save_val_pictures(folder, detector.model, data.val, data.spec.names, cfg=cfg.val)
    print(
        f"\nresults: {folder}\n"
        f"to detect:             python detect.py --weights {best} --source <pictures>\n"
        f"to train on your data: python train.py --data <your data.yaml> --cfg n --epochs 100"
    )


if __name__ == "__main__":
    run_main(main)
