"""Train a detector: ``python train.py --data data.yaml --cfg n``; without arguments, the demo."""

import os

from utils.command import begin_command

if __name__ == "__main__":
    begin_command()  # before the imports that take seconds

import copy
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice

import torch
from tqdm import tqdm

from data.dataset import Batch
from data.index import fingerprint
from data.preview import draw_plans
from inference import load_detector
from run_setup import Run, build_run, describe_run, read_data, read_settings
from utils.arguments import train_parser
from utils.assigners.statistics import COLUMNS as ASSIGNMENT_COLUMNS
from utils.config import config_to_plain
from utils.errors import NON_FINITE, NOT_SAVED, OUR_FAULT, HalfDoneError, UserError, first_line, run_main
from utils.plots.curves import plot_run
from utils.training import distributed
from utils.training.console import epoch_line, left_note, table_line, waiting_advice, waiting_note
from utils.training.device import on_device, select_device
from utils.training.logger import RunLog, check_loggers, epoch_row
from utils.training.optimizer import frozen_norms
from utils.training.reproducibility import make_deterministic
from utils.training.run_folder import make_run_folder, results_into
from utils.training.run_lock import RunLock
from utils.training.signals import Stop
from val import (
    describe_measurement,
    evaluate,
    format_metrics,
    nothing_to_measure,
    save_val_pictures,
    uncounted,
    write_metrics,
)

ASK_EVERY = 10  # steps of the optimiser between two questions to all ranks whether to save or to stop
SAVE = 1  # their answer; a larger one is the exit code that a signal asks for


def main() -> int:
    """Command line."""
    with RunLock() as lock:
        with distributed.told_once():
            args = train_parser().parse_args()
            check_loggers(args.loggers)
            settings, resumed = read_settings(args, lock)
        if settings.config.train.deterministic:
            make_deterministic()
        device = select_device(args.device, launch=shlex.join(sys.argv))
        with distributed.session(device), Stop() as stop:
            return set_up_and_train(args, settings, resumed, device=device, stop=stop, lock=lock)


def set_up_and_train(args, settings, resumed, *, device, stop: Stop, lock: RunLock) -> int:
    """All that has to be gone before the process leaves its group: see ``distributed.stop``."""
    with stop.at_once():
        settings, data = read_data(settings, resumed, device, download=args.download)
        if args.show_plan:
            if distributed.rank() == 0:
                folder = make_run_folder(args.project, args.name, exist_ok=args.exist_ok)
                with results_into(folder):
                    draw_plans(folder / "plan", data, args.show_plan)
            return 0
        run = build_run(settings, data, resumed, args, device=device, stop=stop, lock=lock)
        if run.is_finished():
            return 0
    return train(run, args)


def train(run: Run, args) -> int:
    """A run, from where its state stands to its results; returns the exit code."""
    log = open_log(run, args) if distributed.rank() == 0 else None
    try:
        code = train_epochs(run, log, last_only=args.nosave)
    finally:
        run.data.train.close()  # here, as processes left to the garbage collector are waited for
        if log:
            log.close()
    if code or not log:
        return code
    try:
        finish(run, plots=not args.noplots)
    except SystemExit:
        print(f"trained, but not measured: {run.summary(stopped=run.stop.name)}")
        raise
    return NOT_SAVED if run.saver.failed or log.failed else 0


def open_log(run: Run, args) -> RunLog:
    """What is about to run, on the screen and in the folder, and the tables that it will fill."""
    with run.stop.at_once():
        describe_run(run, plots=not args.noplots)
    tables = {"anatomy.csv": run.step.anatomy.columns, "assignment.csv": ASSIGNMENT_COLUMNS}
    done, settings = run.state.epoch, config_to_plain(run.cfg)
    return RunLog(run.folder, args.loggers, settings=settings, epochs_done=done, tables=tables)


def train_epochs(run: Run, log: RunLog | None, *, last_only: bool) -> int:
    """The epochs that are left; returns the exit code that a signal asks for, else 0.

    ``last_only``: last.pt is written at the end alone.
    """
    cfg, state = run.cfg, run.state
    while not state.is_over(cfg.train):
        code, metrics, epoch = train_epoch(run), {}, state.epoch + 1
        due = epoch == cfg.train.epochs or epoch % cfg.train.val_every == 0
        if not code and due and run.measurable:
            code, metrics = validate(run)
        if code:
            return leave(run, code)
        row, looked, counted = end_epoch(run)
        if log:
            run.lock.confirm()
            log.write(row | metrics, anatomy=looked, assignment=[counted])
        save_epoch(run, last=state.is_over(cfg.train) or not last_only)
        if log:
            print(epoch_line(row | metrics, cfg.train.epochs, run.shape, left=run.time_left()))
            if advice := waiting_advice(row, workers=run.data.train.workers, cache=cfg.data.cache):
                print(advice)
    return 0


def train_epoch(run: Run) -> int:
    """The batches of an epoch that are left; returns the exit code that a signal asks for, else 0."""
    cfg, state, loader = run.cfg, run.state, run.data.train
    run.step.model.train()
    for frozen in frozen_norms(run.step.model):
        frozen.eval()
    mosaic = state.epoch < cfg.train.epochs * (1 - cfg.augment.close_mosaic)
    loader.set_epoch(state.epoch, mosaic=mosaic, start=state.batch)
    arriving, begun = on_device(loader, run.device), time.perf_counter() - run.epoch.seconds
    name = f"{state.epoch + 1}/{cfg.train.epochs}"
    silent = True if distributed.rank() else None  # None: silent where there is no terminal
    bar = tqdm(total=len(loader), initial=state.batch, leave=False, disable=silent)
    bar.set_description_str(table_line(name, [], ""))
    try:
        while (answer := ask(run)) <= SAVE:
            if answer == SAVE:
                save_last(run)
            asked = time.perf_counter()
            with kept(run):
                batches = list(islice(arriving, cfg.train.accumulation))
                run.epoch.waited += time.perf_counter() - asked
                if not batches:
                    answer = 0
                    break
                shown = take_step(run, batches)
            bar.set_description_str(table_line(name, shown, str(batches[0].images.shape[-1])), refresh=False)
            run.epoch.seconds = time.perf_counter() - begun
            notes = left_note(run.time_left()), waiting_note(run.epoch.waited, run.epoch.seconds)
            bar.set_postfix_str(", ".join(filter(None, notes)), refresh=False)
            bar.update(len(batches))
        with kept(run):
            run.watch.flush()
    finally:
        bar.close()
    return answer


@contextmanager
def kept(run: Run) -> Iterator[None]:
    """Inside, a ``UserError`` (pictures, a killed process, memory, what is not finite) costs no step.

    Between two steps the state is sound. Of several ranks only those that all fail alike can save.
    """
    try:
        yield
    except UserError as error:
        alike = distributed.world_size() == 1 or error.code == NON_FINITE
        if alike and not isinstance(error, HalfDoneError):
            save_last(run)  # if the weights are not finite themselves, that is the error
        raise


def take_step(run: Run, batches: list[Batch]) -> list[float]:
    """One step of the optimiser; returns losses and gradient's norm of the one before, for the bar."""
    state, epoch, first = run.state, run.state.epoch, run.state.batch
    update, terms = run.step(batches, lr=run.rate(state.step + len(batches) - 1), counts=run.epoch.assigned)
    state.batch += len(batches)
    state.step += len(batches)
    run.epoch.add(terms, update)

    def name_pictures() -> list[dict]:
        numbers = range(first, first + len(batches))
        return [{"epoch": epoch + 1, "batch": i, "pictures": run.data.train.sources(i)} for i in numbers]

    return run.watch.push(update, terms, step=state.step - len(batches), describe=name_pictures)


def ask(run: Run) -> int:
    """0 to go on, SAVE, or the exit code that a signal asks for; the same on all ranks.

    Several ranks talk about it before every ``ASK_EVERY``-th step of an epoch.
    """
    if distributed.world_size() > 1 and run.state.batch // run.cfg.train.accumulation % ASK_EVERY:
        return 0
    due = distributed.rank() == 0 and run.saver.is_due
    return distributed.agree(run.stop.code or SAVE * due)


def validate(run: Run) -> tuple[int, dict]:
    """COCO metrics of the average's weights, as columns of results.csv; remembers the best AP.

    A signal ends a run of one process in here, too: its exit code comes first, else 0.
    """
    model = copy.deepcopy(run.state.ema.model).fuse()  # as val.py and detect.py use it
    begun = time.perf_counter()
    try:
        with run.stop.at_once() if distributed.world_size() == 1 else nullcontext():
            found = evaluate(model, run.data.val, run.data.truth, cfg=run.cfg.val, device=run.device)
    except SystemExit:
        if not run.stop.code:
            raise
        return run.stop.code, {}
    except torch.OutOfMemoryError as error:
        size = max(1, run.cfg.val_batch // 2)
        if distributed.world_size() == 1:
            save_last(run)
        raise UserError(
            f"out of memory in the validation after epoch {run.state.epoch + 1} ({first_line(error)}). Go on "
            f"with --resume {shlex.quote(str(run.folder))} --set val.batch_size={size}",
            OUR_FAULT,
        ) from error
    run.validating.append(time.perf_counter() - begun)
    values, epoch = found.metrics.values, run.state.epoch + 1
    if run.state.best["epoch"] < 0 or values["AP"] > run.state.best["AP"]:
        run.state.best = {"AP": values["AP"], "epoch": epoch}
    row = {f"metrics/{key}": values[key] for key in ("AP", "AP50", "AP75")}
    row |= {"metrics/precision": found.metrics.precision, "metrics/recall": found.metrics.recall}
    return 0, row


def end_epoch(run: Run) -> tuple[dict, list[dict], dict]:
    """Rows of results.csv (the training's part), anatomy.csv and assignment.csv; the next epoch begins."""
    state, times = run.state, {"seconds": run.epoch.seconds, "waited": run.epoch.waited}
    means, looked, counted = run.epoch.rows(state.epoch + 1)
    state.epoch, state.batch = state.epoch + 1, 0
    run.training.append(times["seconds"])
    row = epoch_row(state.epoch, means, step=state.step, lr=run.rate(state.step - 1), **times)
    return row, looked, counted


def save_epoch(run: Run, *, last: bool) -> None:
    """best.pt, best.safetensors if the epoch is the best; last.pt if ``last``; epoch<N>.pt by --save-period.

    A collective.
    """
    state, period, content = run.state, run.cfg.train.save_period, run.to_plain()
    if distributed.rank() > 0:
        return
    if state.best["epoch"] == state.epoch:
        best = {"ema": state.ema.model.state_dict(), "epoch": state.epoch, "best": state.best}
        run.saver.save("best.pt", best)
        run.saver.save("best.safetensors", best)
    if last:
        run.saver.save("last.pt", content)
    if period > 0 and state.epoch % period == 0:
        run.saver.save(f"epoch{state.epoch}.pt", content)


def save_last(run: Run) -> None:
    """last.pt inside an epoch. A collective."""
    content = run.to_plain()
    if distributed.rank() == 0:
        run.saver.save("last.pt", content)


def leave(run: Run, code: int) -> int:
    """A signal has ended the run: save it, say how to go on, return the exit code."""
    save_last(run)
    if distributed.rank() == 0:
        where, who = f"batch {run.state.batch} of {len(run.data.train)}", run.stop.name or "another process"
        print(f"epoch {run.state.epoch + 1}, {where}: {run.summary(stopped=who)}")
    return code


def finish(run: Run, *, plots: bool) -> None:
    """Measure the weights as val.py does, draw the results, and say what to do next.

    The weights are best.pt, or last.pt where no epoch could be measured.
    """
    cfg, data = run.cfg, run.data
    name = "best.pt" if run.state.best["epoch"] > 0 else "last.pt"
    weights = run.folder / "weights" / name
    if run.saver.lacks(name):
        print(f"{weights} is not the one it should be, which could not be written: not measured")
        print(run.summary())
        return
    with run.stop.at_once(), distributed.alone():
        detector = load_detector(weights, str(run.device))
        result = evaluate(detector.model, data.val, data.truth, cfg=cfg.val, device=run.device)
        print(f"\n{weights}:\n{format_metrics(result.metrics, len(data.val.dataset.index.sizes))}")
        print(uncounted(result.metrics, data.truth, cfg.val.max_det), end="")
        if not run.measurable:
            print(nothing_to_measure("val", data.spec.yaml))
            if (stale := weights.with_name("best.pt")).exists():
                print(f"warning: {stale} is left from earlier: no AP of this run has chosen it")
        measurement = describe_measurement(data.val.dataset.index, data.spec, cfg, weights=weights)
        measurement["training"] = fingerprint(data.index, data.spec.names)

        def write() -> None:
            if plots:
                plot_run(run.folder)
                save_val_pictures(run.folder, detector.model, data.val, data.spec.names, cfg=cfg.val)
            write_metrics(run.folder, result, measurement)  # last: by it the run is known to be finished

        run.saver.attempt("metrics.json, pictures", write)
    given_on = weights.with_suffix(".safetensors")
    print(
        f"\nresults: {run.folder}\n"
        + (f"to give on:            {given_on}\n" if os.path.exists(given_on) and name == "best.pt" else "")
        + f"to detect:             python detect.py --weights {weights} --source <pictures>\n"
        f"to train on your data: python train.py --data <your data.yaml> --cfg n --epochs 100\n"
        f"{run.summary()}"
    )


if __name__ == "__main__":
    run_main(main)
