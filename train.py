"""Train a detector: ``python train.py --data data.yaml --cfg n --epochs 100``; without arguments, the demo."""

import argparse
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.dataset import TrainSet
from data.index import Index, load_split
from data.loader import TrainSampler, choose_workers, make_loader
from data.plan import Planner
from data.shapes import ensure_shapes
from data.spec import DataSpec, find_data_yaml, load_data_spec
from data.yolo import format_report
from inference import input_shape, load_detector
from models.detector import build_detector, count_flops, count_parameters
from utils.arguments import resolve_training, train_parser
from utils.assigners.task_aligned import TaskAlignedAssigner
from utils.config import Config, Resolved, config_to_plain, dump_config, format_config
from utils.config_files import config_from_plain
from utils.errors import NON_FINITE, UserError, run_main
from utils.losses.compute import compute_loss
from utils.plots.curves import plot_labels, plot_results
from utils.plots.grid import save_grid
from utils.structures import Targets
from utils.training import distributed
from utils.training.checkpoint import find_latest, load_checkpoint, save_checkpoint
from utils.training.device import autocast_dtype, select_device
from utils.training.ema import EMA
from utils.training.logger import DelayedValues, ResultsLog, epoch_line, table_header, table_line
from utils.training.optimizer import build_optimizer, freeze, frozen_norms
from utils.training.reproducibility import seed_everything
from utils.training.run_folder import make_run_folder
from utils.training.schedule import lr_factor, warmup_steps
from utils.training.state import TrainState
from utils.training.transfer import load_weights
from val import evaluate, format_metrics, ground_truth_of, make_val_loader, save_val_pictures, write_metrics

FEW_STEPS = 1000  # of the optimiser: below it a detector has barely begun to learn


class Data(NamedTuple):
    """The pictures of a run."""

    spec: DataSpec
    index: Index  # of the training pictures
    train: DataLoader
    val: DataLoader
    truth: dict  # COCO ground truth of the validation pictures


def main() -> None:
    """Command line."""
    args = train_parser().parse_args()
    content = last = None
    if args.resume:
        last = find_latest(args.project) if args.resume == "latest" else Path(args.resume)
        content = load_checkpoint(last, key="optimizer")
        settings = Resolved(config_from_plain(content["config"], where=str(last)), content["origins"])
    else:
        settings = resolve_training(args)
    device = select_device(args.device)
    distributed.start(device)
    try:
        data = load_data(settings.config, device)
        folder = last.parent.parent if last else None
        if distributed.rank() == 0 and not folder:
            folder = make_run_folder(args.project, args.name, exist_ok=args.exist_ok)
            (folder / "config.yaml").write_text(dump_config(settings))
        folder = distributed.from_rank_zero(folder)
        train(settings, data, folder, device=device, args=args, content=content)
    finally:
        distributed.stop()


def train(settings: Resolved, data: Data, folder: Path, *, device, args: argparse.Namespace, content) -> None:
    """One run, from its data and configuration to the results in ``folder``; ``content`` is a checkpoint to resume."""
    cfg, first_rank = settings.config, distributed.rank() == 0
    seed_everything(cfg.train.seed)
    state = start_state(cfg, data, device, weights="" if content else args.weights)
    if content:
        state.restore(content)
    if first_rank:
        describe(settings, state.model, data, folder, plots=not args.noplots)
    wrapped = wrap(state.model, device, sync_bn=args.sync_bn)
    log = ResultsLog(folder, epochs_done=state.epoch) if first_rank else None
    while state.epoch < cfg.train.epochs:
        row = train_epoch(wrapped, state, data.train, cfg, device=device)
        last_epoch = state.epoch == cfg.train.epochs
        if first_rank:
            validated = state.epoch % cfg.train.val_every == 0 or last_epoch
            if validated:
                row |= validate(state, data, cfg, device)
            log.write(row)
            print(epoch_line(row, cfg.train.epochs, data.train.dataset.planner.shape))
            save(folder, state, settings, data, final=last_epoch or not args.nosave)
        stale = cfg.train.patience and state.epoch - state.best["epoch"] >= cfg.train.patience
        if distributed.from_rank_zero(stale and state.best["epoch"] > 0):
            break
    if first_rank:
        log.close()
        finish(folder, data, cfg, device, plots=not args.noplots)


def train_epoch(model: nn.Module, state: TrainState, loader: DataLoader, cfg: Config, *, device) -> dict:
    """One pass over the training pictures; returns the epoch's row of results.csv."""
    model.train()
    for norm in frozen_norms(model):
        norm.eval()
    close = state.epoch >= cfg.train.epochs * (1 - cfg.augment.close_mosaic)
    loader.batch_sampler.set_epoch(state.epoch, mosaic=not close)
    assign = TaskAlignedAssigner(top_k=cfg.assigner.top_k, alpha=cfg.assigner.alpha, beta=cfg.assigner.beta)
    dtype, steps = autocast_dtype(cfg.train.amp, device), len(loader) * cfg.train.epochs
    warmup = warmup_steps(cfg.train, steps, len(loader))
    accumulate = max(1, round((cfg.train.nominal_batch or cfg.train.batch_size) / cfg.train.batch_size))
    sums, shown, norm = torch.zeros(4, device=device), DelayedValues(), torch.zeros((), device=device)
    start, waited = time.perf_counter(), 0.0
    bar = tqdm(
        loader, desc=table_line(f"{state.epoch + 1}/{cfg.train.epochs}", [], ""), leave=False, disable=None
    )
    asked = time.perf_counter()
    for number, batch in enumerate(bar, 1):
        waited += time.perf_counter() - asked
        factor = lr_factor(state.step, steps, warmup, cfg.train)
        for group in state.optimizer.param_groups:
            group["lr"] = cfg.train.lr * factor
        images = batch.images.to(device, non_blocking=True)
        truth = Targets(*(tensor.to(device, non_blocking=True) for tensor in batch.truth))
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            pred = model(images)
        loss, terms = compute_loss(pred, truth, assign, cfg.loss)
        state.scaler.scale(loss / accumulate).backward()
        state.step += 1
        if number % accumulate == 0 or number == len(loader):
            state.scaler.unscale_(state.optimizer)
            norm = nn.utils.clip_grad_norm_(state.model.parameters(), cfg.train.clip_norm, foreach=True)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
            state.ema.update(state.model)
        values = torch.stack((*(term.detach() for term in terms.values()), norm))
        sums += values
        latest = shown.push(values)
        bar.set_description_str(
            table_line(f"{state.epoch + 1}/{cfg.train.epochs}", latest, f"{images.shape[-1]}")
        )
        asked = time.perf_counter()
    state.epoch += 1
    return epoch_row(sums / len(loader), state, seconds=time.perf_counter() - start, waited=waited)


def epoch_row(means: torch.Tensor, state: TrainState, *, seconds: float, waited: float) -> dict:
    """The training's part of a row of results.csv; a loss that is not finite ends the run."""
    quality, box, dfl, norm = means.tolist()
    if not math.isfinite(quality + box + dfl):
        raise UserError(
            f"the loss is not finite in epoch {state.epoch} (quality {quality}, box {box}, dfl {dfl}). Lower the "
            "learning rate (--set train.lr=...) or train without mixed precision (--set train.amp=off)",
            NON_FINITE,
        )
    row = {
        "epoch": state.epoch,
        "train/quality": quality,
        "train/box": box,
        "train/dfl": dfl,
        "train/grad_norm": norm,
    }
    return row | {"lr": state.optimizer.param_groups[0]["lr"], "seconds": seconds, "data_seconds": waited}


def load_data(cfg: Config, device: torch.device) -> Data:
    """Read both splits and make their loaders."""
    yaml = find_data_yaml(cfg.data.path)
    if distributed.rank() == 0:
        ensure_shapes(yaml)
    distributed.barrier()
    spec, indexes = load_data_spec(yaml), []
    for split in ("train", "val"):
        index, report = load_split(spec, split, single_cls=cfg.data.single_cls)
        indexes.append(index)
        if distributed.rank() == 0:
            print(f"{split}: {format_report(report)}")
    if cfg.data.single_cls:
        spec = spec._replace(names=("object",), category_ids=(0,))
    stride = 2 ** max(cfg.model.levels)
    shape = input_shape(cfg.data.imgsz, stride)
    planner = Planner(indexes[0].sizes, shape, cfg.augment, group=cfg.data.group, seed=cfg.train.seed)
    sampler = TrainSampler(len(indexes[0].sizes), cfg.train.batch_size)
    workers = choose_workers(cfg.data.workers, len(sampler))
    train_set = TrainSet(indexes[0], planner, cfg.augment)
    train_loader = make_loader(train_set, sampler, workers, pin=device.type == "cuda")
    val_loader = make_val_loader(indexes[1], cfg, stride=stride, device=device)
    return Data(spec, indexes[0], train_loader, val_loader, ground_truth_of(indexes[1], spec))


def start_state(cfg: Config, data: Data, device: torch.device, *, weights: str) -> TrainState:
    """A model, fresh or from ``weights``, and all that trains it."""
    model = build_detector(cfg.model, len(data.spec.names))
    if weights:
        table = load_weights(model, weights, data.spec.names)
        if distributed.rank() == 0:
            print(table)
    freeze(model, cfg.train.freeze)
    layout = torch.channels_last if cfg.train.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    return TrainState(
        model,
        EMA(
            model,
            steps=len(data.train) * cfg.train.epochs,
            decay=cfg.train.ema_decay,
            share=cfg.train.ema_share,
        ),
        build_optimizer(model, cfg.train),
        torch.amp.GradScaler(device.type, enabled=autocast_dtype(cfg.train.amp, device) == torch.float16),
    )


def wrap(model: nn.Module, device: torch.device, *, sync_bn: bool) -> nn.Module:
    """The model as several processes train it; itself in a run of one."""
    if distributed.world_size() == 1:
        return model
    if sync_bn and device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def validate(state: TrainState, data: Data, cfg: Config, device: torch.device) -> dict:
    """COCO metrics of the average's weights as columns of results.csv; remembers the best AP."""
    metrics = evaluate(state.ema.model, data.val, data.truth, cfg=cfg.val, device=device).metrics
    if metrics.values["AP"] > state.best["AP"]:
        state.best = {"AP": metrics.values["AP"], "epoch": state.epoch}
    row = {f"metrics/{key}": metrics.values[key] for key in ("AP", "AP50", "AP75")}
    return row | {"metrics/precision": metrics.precision, "metrics/recall": metrics.recall}


def save(folder: Path, state: TrainState, settings: Resolved, data: Data, *, final: bool) -> None:
    """last.pt, and best.pt where this epoch is the best so far."""
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
    if final:
        save_checkpoint(weights / "last.pt", common | state.to_plain())
    period = settings.config.train.save_period
    if period > 0 and state.epoch % period == 0:
        save_checkpoint(weights / f"epoch{state.epoch}.pt", common | state.to_plain())


def describe(settings: Resolved, model, data: Data, folder: Path, *, plots: bool) -> None:
    """Print what is about to run, and draw the labels and the first batch."""
    cfg, shape = settings.config, data.train.dataset.planner.shape
    print(format_config(settings))
    flops = count_flops(model, shape) / 1e9
    print(f"model: {count_parameters(model):,} parameters, {flops:.2f} GFLOPs at {shape[0]}x{shape[1]}")
    accumulate = max(1, round((cfg.train.nominal_batch or cfg.train.batch_size) / cfg.train.batch_size))
    steps = math.ceil(len(data.train) / accumulate) * cfg.train.epochs
    print(f"run: {cfg.train.epochs} epochs, {steps} optimiser steps, results in {folder}")
    if steps < FEW_STEPS:
        print(
            f"warning: {steps} optimiser steps are few; below {FEW_STEPS:,} a detector has barely begun to learn"
        )
    print(table_header())
    if not plots:
        return
    index, names = data.index, data.spec.names
    sizes = np.repeat(index.sizes, np.diff(index.offsets), axis=0)
    plot_labels(folder / "labels.jpg", labels=index.labels, boxes=index.boxes, sizes=sizes, names=names)
    batch = next(iter(data.train))
    boxes = [boxes[valid] for boxes, valid in zip(batch.truth.boxes, batch.truth.valid, strict=True)]
    labels = [labels[valid] for labels, valid in zip(batch.truth.labels, batch.truth.valid, strict=True)]
    save_grid(folder / "train_batch0.jpg", batch.images, boxes, labels, names=names)


def finish(folder: Path, data: Data, cfg: Config, device: torch.device, *, plots: bool) -> None:
    """Validate best.pt as val.py does, draw the results, and say what to do next."""
    best = folder / "weights" / "best.pt"
    detector = load_detector(best, str(device))
    result = evaluate(detector.model, data.val, data.truth, cfg=cfg.val, device=device)
    print(f"\n{best}:\n{format_metrics(result.metrics, len(data.val.dataset.index.sizes))}")
    write_metrics(folder, result)
    if plots:
        plot_results(folder / "results.csv", folder / "results.png")
        save_val_pictures(folder, detector.model, data.val, data.spec.names, cfg=cfg.val)
    print(
        f"\nresults: {folder}\n"
        f"to detect:             python detect.py --weights {best} --source <pictures>\n"
        f"to train on your data: python train.py --data <your data.yaml> --cfg n --epochs 100"
    )


if __name__ == "__main__":
    run_main(main)
