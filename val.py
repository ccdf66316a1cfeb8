"""Measure a detector by COCO's metrics.

``python val.py --weights runs/train/exp/weights/best.pt --data data.yaml``
"""

from utils.command import begin_command

if __name__ == "__main__":
    begin_command()  # before the imports that take seconds

import json
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.class_match import match_classes
from data.dataset import unpad
from data.doctor.inspect_pictures import load_sound_split
from data.formats.labels import format_report
from data.formats.sources import DataSpec, format_classes, show_names
from data.index import Index, fingerprint, path_of
from data.letterbox import input_shape, restore, rounding_note
from data.loader import Loader, make_val_loader
from data.prepare import prepare_data
from data.run_data import check_reachable, ground_truth_of
from data.spec import check_there, load_data_spec, remembered
from inference import load_detector
from models.detector import Detector
from models.memory import check_use_memory
from utils.arguments import val_parser
from utils.config import Config, ValConfig, config_to_plain
from utils.environment import describe_environment
from utils.errors import UserError, run_main
from utils.files import write_whole
from utils.metrics.coco import (
    KEYS,
    RECALLS,
    Metrics,
    evaluate_detections,
    is_measurable,
    pack_detections,
    to_results,
)
from utils.metrics.crowding import crowding_of, describe_crowding
from utils.plots.curves import plot_pr_curves
from utils.plots.grid import save_grid
from utils.postprocess import postprocess
from utils.settings import VAL_SETTINGS, check_download, resolve_use
from utils.training import distributed
from utils.training.device import free_memory, on_device, select_device
from utils.training.run_folder import make_run_folder, results_into
from utils.wording import figure, show_class


class Evaluation(NamedTuple):
    """What a validation found."""

    metrics: Metrics
    rows: np.ndarray  # (D, 7) all detections by picture id, best first, as COCO's evaluators take them
    seconds: dict[str, float]  # load, forward, postprocess of a picture of this rank; evaluation_total


def evaluate(
    model: Detector, loader: Loader, truth: dict, *, cfg: ValConfig, device: torch.device
) -> Evaluation:
    """Run ``model`` over ``loader`` in float32; compare to ``truth`` (its index's ``make_ground_truth``).

    A collective: each rank takes its batches, with rank 0's weights; the metrics are those of one process, to
    the bit where the arithmetic is the same. All ranks get them; the others than rank 0 get no rows.
    """
    begun = time.perf_counter()
    distributed.barrier("validation")  # which some begin late: the weights travel in the impatient group
    distributed.weights_from_rank_zero(model)
    own, seconds = detect_all(model, loader, [c["id"] for c in truth["categories"]], cfg=cfg, device=device)
    rows = distributed.gather_rows(torch.from_numpy(own)).numpy()
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    metrics = distributed.on_rank_zero(
        lambda: evaluate_detections(truth, rows, cfg.evaluator, max_det=cfg.max_det)
    )
    return Evaluation(metrics, rows, {**seconds, "evaluation_total": time.perf_counter() - begun})


def detect_all(
    model: Detector, loader: Loader, category_ids: list[int], *, cfg: ValConfig, device: torch.device
) -> tuple[np.ndarray, dict[str, float]]:
    """(D, 7) rows of the detections in this rank's batches, and the seconds a picture of each stage."""
    ids, rows, seen = loader.dataset.index.picture_ids, [np.zeros((0, 7))], 0
    clock, start = {"load": 0.0, "forward": 0.0, "postprocess": 0.0}, time.perf_counter()
    silent = True if distributed.rank() else None  # None: silent where there is no terminal
    with torch.inference_mode():
        arriving = on_device(loader, device)
        for batch in tqdm(arriving, total=len(loader), desc="validating", leave=False, disable=silent):
            loaded = time.perf_counter()
            pred = model(batch.images)
            _wait(device)
            forwarded = time.perf_counter()
            found = postprocess(pred, conf=cfg.conf, iou=cfg.iou, max_det=cfg.max_det)
            for picture, letterbox, detections in zip(batch.pictures, batch.letterboxes, found, strict=True):
                rows.append(pack_detections(restore(detections, letterbox), ids[picture], category_ids))
            end, seen = time.perf_counter(), seen + len(found)
            for stage, spent in zip(
                clock, (loaded - start, forwarded - loaded, end - forwarded), strict=True
            ):
                clock[stage] += spent
            start = end
    return np.concatenate(rows), {stage: spent / max(1, seen) for stage, spent in clock.items()}


def save_val_pictures(folder: Path, model: Detector, loader: Loader, names, *, cfg: ValConfig) -> None:
    """val_batch0_labels.jpg and val_batch0_pred.jpg: the first batch with its truths and its detections."""
    batch = loader.first_batch()
    titles = [path_of(loader.dataset.index, picture).name for picture in batch.pictures]
    device = next(model.parameters()).device
    with torch.inference_mode():
        pred = model(batch.images.to(device))
    found = postprocess(pred, conf=cfg.detect_conf, iou=cfg.detect_iou, max_det=cfg.max_det)
    show = {"names": names, "titles": titles}
    save_grid(folder / "val_batch0_labels.jpg", batch.images, *unpad(batch.truth), **show)
    save_grid(
        folder / "val_batch0_pred.jpg",
        batch.images,
        [detections.boxes.cpu() for detections in found],
        [detections.labels.cpu() for detections in found],
        scores=[detections.scores.cpu() for detections in found],
        **show,
    )


def format_metrics(metrics: Metrics, num_pictures: int) -> str:
    """The table of a validation: all classes, then each; ``-`` where no box is there to measure by."""
    lines = [f"{'Class':>20}{'Images':>9}{'Boxes':>9}{'P':>9}{'R':>9}{'AP50':>9}{'AP75':>9}{'AP':>9}"]
    values, total = metrics.values, sum(row["boxes"] for row in metrics.per_class.values())
    first = (metrics.precision, metrics.recall, values["AP50"], values["AP75"], values["AP"])
    lines.append(f"{'all':>20}{num_pictures:>9}{total:>9}" + "".join(f"{figure(x):>9}" for x in first))
    for name, row in metrics.per_class.items():
        shown = "".join(f"{figure(row[key]):>9}" for key in ("AP50", "AP75", "AP"))
        lines.append(f"{show_class(name)[:19]:>20}{num_pictures:>9}{row['boxes']:>9}{'':>18}{shown}")
    return "\n".join(lines)


def uncounted(metrics: Metrics, truth: dict, max_det: int) -> str:
    """What COCO's limit, or ``max_det``, leaves out of the figures: lines to follow their table, or ''."""
    return "".join(
        f"note: {line}\n" for line in describe_crowding(crowding_of(truth), max_det, metrics.beyond)
    )


def nothing_to_measure(split: str, data: Path) -> str:
    """Said where AP is not a number, as ``is_measurable`` does not hold of the split."""
    return f"warning: no box in {split} of {data} counts, so there is nothing to measure: AP is not a number"


def describe_measurement(index: Index, spec: DataSpec, config: Config, *, weights: Path | str) -> dict:
    """What is measured, how and with what: "data" (boxes without ignored ones), "protocol", "environment"."""
    cfg = config.val
    data = {
        "path": str(spec.yaml),
        "fingerprint": fingerprint(index, spec.names),
        "num_pictures": len(index.sizes),
        "num_boxes": int((~index.ignore).sum()),
    }
    protocol = {"weights": str(weights), "imgsz": config_to_plain(config)["data"]["imgsz"]}
    protocol |= {"rect": config.data.rect}
    protocol |= {key: getattr(cfg, key) for key in ("conf", "iou", "max_det", "evaluator")}
    return {"data": data, "protocol": protocol, "environment": describe_environment()}


def write_metrics(folder: Path, evaluation: Evaluation, measurement: Mapping) -> None:
    """metrics.json: COCO's twelve figures, precision and recall, each class, the time of each stage.

    null stands where there is nothing to measure. Keys with _max_det are there where pictures hold more
    objects than COCO counts. ``measurement`` is ``describe_measurement``'s.
    """
    metrics = evaluation.metrics
    content = {key: metrics.values[key] for key in KEYS}
    content |= {"precision": metrics.precision, "recall": metrics.recall, "confidence": metrics.confidence}
    if metrics.beyond:
        beyond = metrics.beyond._asdict()
        content |= {f"{key}_max_det": value for key, value in beyond.items() if key != "max_det"}
    content |= {"per_class": metrics.per_class, "seconds": evaluation.seconds}
    write_json(folder / "metrics.json", {**content, **measurement}, indent=2)


def write_predictions(folder: Path, truth: dict, rows: np.ndarray) -> Path:
    """predictions.json in COCO's result form, unrounded."""
    path = folder / "predictions.json"
    write_json(path, to_results(truth, rows))
    return path


def write_json(path: Path, content: dict | list, *, indent: int | None = None) -> None:
    """Write a file whole or not at all: who finds it can read it."""
    write_whole(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")  # JSON has no nan


def check_names(ours: tuple[str, ...], theirs: tuple[str, ...], *, weights: str, data: Path) -> None:
    """Weights measure only data of the same classes, in the same order."""
    if ours != theirs:
        raise UserError(
            f"the classes of the weights are not those of the data:\n  {weights}: {show_names(ours)}\n"
            f"  {data}: {show_names(theirs)}\nMeasure on the data set it was trained on, or train on this one"
        )


def main() -> None:
    """Command line."""
    with distributed.told_once():
        args = val_parser().parse_args()
    device = select_device(args.device, launch=shlex.join(sys.argv))
    with distributed.session(device):
        measure(args)


def measure(args: Namespace) -> None:
    """Everything that follows from the flags; rank 0 alone reads labels, prints and writes."""
    check_download(args)
    detector = load_detector(args.weights, args.device)
    config = resolve_use(args, detector.config, VAL_SETTINGS)
    shape = input_shape(config.data.imgsz, detector.stride)
    distributed.on_each_node(
        lambda: check_use_memory(detector.model, config, shape, pictures=config.val_batch, free=free_memory)
    )
    given = args.data or config.data.path != detector.config.data.path
    source = "" if given else args.weights

    def read() -> tuple[DataSpec, Index]:
        with remembered(source):
            prepare_data(config.data.path, root=config.data.root, download=args.download)
            spec = load_data_spec(config.data.path, root=config.data.root, single_cls=config.data.single_cls)
            check_there(spec, [args.task])
        spec = match_classes(spec, detector.names, weights=args.weights)
        index, report = load_sound_split(spec, args.task, config.data)
        print(f"{format_classes(spec)}\n{args.task}: {format_report(report)}")
        return spec, index

    spec, index = distributed.on_rank_zero(read)
    check_reachable([index])
    loader = make_val_loader(index, config, pin=detector.device.type == "cuda")
    first_rank = distributed.rank() == 0
    folder = distributed.on_rank_zero(
        lambda: make_run_folder(args.project, args.name, exist_ok=args.exist_ok)
    )
    if first_rank and (note := rounding_note(config.data.imgsz, detector.stride)):
        print(note)
    truth = ground_truth_of(index, spec)
    result = evaluate(detector.model, loader, truth, cfg=config.val, device=detector.device)
    if first_rank:
        show(result, len(index.sizes))
        print(uncounted(result.metrics, truth, config.val.max_det), end="")
        if not is_measurable(truth):
            print(nothing_to_measure(args.task, spec.yaml))
        with results_into(folder):
            write_metrics(folder, result, describe_measurement(index, spec, config, weights=args.weights))
            if args.save_json:
                print(f"predictions: {write_predictions(folder, truth, result.rows)}")
            if not args.noplots:
                save_val_pictures(folder, detector.model, loader, spec.names, cfg=config.val)
                plot_pr_curves(folder / "PR_curve.png", RECALLS, result.metrics.curves, spec.names)
        print(f"results: {folder}\nto detect: python detect.py --weights {args.weights} --source <pictures>")


def show(result: Evaluation, num_pictures: int) -> None:
    """Print the metrics and the time of each stage."""
    print(format_metrics(result.metrics, num_pictures))
    print("  ".join(f"{key} {figure(value, '.4f')}" for key, value in result.metrics.values.items()))
    stages = ", ".join(
        f"{stage} {1000 * result.seconds[stage]:.1f}" for stage in ("load", "forward", "postprocess")
    )
    print(f"ms a picture: {stages}; evaluation {result.seconds['evaluation_total']:.2f} s")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    run_main(main)
