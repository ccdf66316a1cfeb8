"""Draw which anchor points answer for which box: ``python -m scripts.show_assignment --data data.yaml``.

Pictures of the validation split, letterboxed and not augmented, one file each, with one column for every
``--loss``: boxes, and the points that are positive for them, in the box's colour; a point's shape is its
level. With ``--weights`` the detector's own predictions choose; without, those of a freshly started model, as
at the first step of a training (seed 0). A table counts what was drawn.
"""

from utils.command import begin_command

if __name__ == "__main__":
    begin_command()  # before the imports that take seconds

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from data.dataset import Batch, ValSet
from data.index import Index, load_split, path_of
from data.letterbox import input_shape, rounding_note
from data.pictures import DecodedPictures, fitted_sizes
from data.pixels import pixels_of
from data.prepare import prepare_data
from data.spec import load_data_spec
from inference import LoadedDetector, load_detector
from models.detector import Detector, build_detector
from utils.arguments import add_data_flags, add_imgsz, add_set
from utils.assigners.build import build_assigner
from utils.assigners.statistics import AssignmentStatistics
from utils.config import Config, config_to_plain
from utils.config_files import load_config
from utils.errors import DATA, USAGE, UserError, run_main
from utils.geometry.ltrb import decode_sides, ltrb_to_boxes
from utils.plots.draw import PALETTE, display_text
from utils.settings import given_settings
from utils.structures import Assignment, Predictions, Targets
from utils.training.device import on_device, select_device
from utils.training.reproducibility import seed_everything
from utils.training.run_folder import make_run_folder
from val import check_names

SETTINGS = {
    "data": "data.path",
    "data_root": "data.root",
    "imgsz": "data.imgsz",
    "label_errors": "data.label_errors",
}
MARKERS = "osD^p"  # by level, finest first: circle, square, diamond, triangle, pentagon
LARGEST, FILLED = 6.5, 0.55  # of the finest level's markers: points, share of a cell
GROWTH = 0.35  # of the markers from level to level, share of the finest
RING = 2.2  # of what the fallback gave, in diameters of its marker
TILE, WIDEST, DPI = 6.4, 26.0, 100  # inches of a column, most of a file; dots per inch
FADED = 0.45  # how far the picture is mixed with white, so that points stand out


class Column(NamedTuple):
    """One loss configuration: its rule, the predictions it works on, and its counts."""

    name: str
    config: Config
    model: Detector
    statistics: AssignmentStatistics


def show_parser() -> argparse.ArgumentParser:
    """Flags of this program."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.show_assignment", description="Draw which anchor points answer for which box."
    )
    add = parser.add_argument
    add("--data", required=True, metavar="YAML", help="data set: a YAML file, or a folder")
    add_data_flags(parser)
    add("--weights", default="", metavar="PT", help="whose predictions choose (default: a fresh model)")
    add("--cfg", default="n", metavar="YAML", help="model, without --weights (default %(default)s)")
    add("--loss", nargs="+", default=["gfl"], metavar="YAML", help="names in configs/losses or files")
    add("--count", type=int, default=8, metavar="N", help="pictures (default %(default)s)")
    add_imgsz(parser)
    add("--device", default="", help="cpu or 0 (default: a GPU if there is one)")
    add("--project", default="runs/assignment", metavar="DIR", help="default %(default)s")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="write into an existing folder")
    add_set(parser)
    return parser


def main() -> None:
    """Command line."""
    args = show_parser().parse_args()
    if args.count < 1:
        raise UserError(f"--count {args.count}: at least one picture must be drawn", USAGE)
    detector = load_detector(args.weights, args.device) if args.weights else None
    device = detector.device if detector else select_device(args.device)
    configs = {loss: resolve(args, loss, detector) for loss in args.loss}
    config = next(iter(configs.values()))
    prepare_data(config.data.path, root=config.data.root, download=args.download)
    spec = load_data_spec(config.data.path, root=config.data.root)
    if detector:
        check_names(detector.names, spec.names, weights=args.weights, data=spec.yaml)
    index, _ = load_split(spec, "val", label_errors=config.data.label_errors)
    chosen = choose_pictures(index, args.count)
    if note := rounding_note(config.data.imgsz, 2 ** max(config.model.levels)):
        print(note)
    columns = [
        make_column(loss, cfg, detector, len(spec.names), device=device) for loss, cfg in configs.items()
    ]
    shape = input_shape(config.data.imgsz, 2 ** max(config.model.levels))
    needed, pixels = fitted_sizes(index.sizes, shape), pixels_of(config.data)
    pictures = ValSet(index, DecodedPictures(index, needed, keep=0, pixels=pixels), shape)
    folder = make_run_folder(args.project, args.name, exist_ok=args.exist_ok)
    for number in chosen:
        batch = pictures[[(number, shape)]]
        if isinstance(batch, UserError):
            raise batch
        path = path_of(index, number)
        draw(folder / f"{number:05d}_{path.stem}.png", batch, columns, title=path.name, device=device)
    print(f"{len(chosen)} of {len(index.sizes)} pictures at {shape[0]}x{shape[1]}\n{format_counts(columns)}")
    print(f"results: {folder}")


def resolve(args: argparse.Namespace, loss: str, detector: LoadedDetector | None) -> Config:
    """The configuration of one column; weights bring their architecture, which stands above --loss."""
    flags = {}
    if detector:
        model = config_to_plain(detector.config)["model"]
        flags = {f"model.{key}": (args.weights, value) for key, value in model.items()}
        flags["data.imgsz"] = (args.weights, config_to_plain(detector.config)["data"]["imgsz"])
    flags |= given_settings(args, SETTINGS)
    cfg = None if detector else args.cfg
    return load_config(cfg=cfg, loss=loss, flags=flags, sets=args.sets).config


def choose_pictures(index: Index, count: int) -> list[int]:
    """Up to ``count`` pictures that hold boxes, evenly spread over the split."""
    holding = np.flatnonzero(np.diff(index.offsets))
    if not len(holding):
        raise UserError("no picture of the validation split holds a box: there is nothing to draw", DATA)
    places = np.linspace(0, len(holding) - 1, min(count, len(holding)))
    return holding[places.round().astype(int)].tolist()


def make_column(
    loss: str, cfg: Config, detector: LoadedDetector | None, num_classes: int, *, device: torch.device
) -> Column:
    """With the detector's model, or one that starts as a training with seed 0 does."""
    if detector is None:
        seed_everything(0)
        model = build_detector(cfg.model, num_classes).eval().to(device)
    else:
        model = detector.model
    return Column(Path(loss).stem, cfg, model, AssignmentStatistics(device))


@torch.inference_mode()
def assign(column: Column, batch: Batch) -> tuple[Assignment, Predictions]:
    """The column's assignment of a batch on its device, counted."""
    pred = column.model(batch.images)
    boxes = ltrb_to_boxes(decode_sides(pred.ltrb_logits), pred.points, pred.strides)
    match = build_assigner(column.config)(pred.cls_logits.sigmoid(), boxes, pred, batch.truth)
    column.statistics.add(match, batch.truth, pred, column.config.model.reach)
    return match, pred


def draw(path: Path, batch: Batch, columns: list[Column], *, title: str, device: torch.device) -> None:
    """One picture: a column for each loss, a legend below."""
    height, width = batch.images.shape[-2:]
    tile = min(TILE, WIDEST / len(columns))
    figure = Figure(figsize=(tile * len(columns), tile * height / width + 1.0), dpi=DPI, layout="constrained")
    figure.suptitle(display_text(title), fontsize=10)
    picture = batch.images[0].permute(1, 2, 0).numpy()
    (moved,) = on_device([batch], device)
    for place, column in enumerate(columns):
        match, pred = assign(column, moved)
        axes = figure.add_subplot(1, len(columns), place + 1)
        axes.imshow(np.uint8(picture * (1 - FADED) + 255 * FADED), extent=(0, width, height, 0))
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        _draw_boxes(axes, batch)
        _draw_points(axes, match, pred, batch.truth, _diameters(tile, width, pred.levels))
        points, fallen = int(match.positive.sum()), int(match.fallback.sum())
        real = int((batch.truth.valid & ~batch.truth.ignore).sum())
        name = f"{column.name}: {column.config.assigner.name}"
        axes.set_title(f"{name}\n{points} points for {real} boxes, {fallen} by the fallback", fontsize=10)
    legend = _legend(_diameters(tile, width, pred.levels), pred.levels)
    figure.legend(handles=legend, loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    figure.savefig(path)


def _draw_boxes(axes, batch: Batch) -> None:
    """Truths in their colours, the smaller on top; ignore regions hatched."""
    truth = batch.truth
    boxes = truth.boxes[0].numpy()
    for m in np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(1), kind="stable"):
        (x1, y1, x2, y2), ignored = boxes[m], bool(truth.ignore[0, m])
        style = {"hatch": "////", "edgecolor": "0.35"} if ignored else {"edgecolor": _colour(m)}
        if truth.valid[0, m]:
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=1.8, **style))


def _diameters(tile: float, width: int, levels) -> list[float]:
    """Of each level's markers, in points, for a picture of ``width`` px that is ``tile`` inches wide."""
    finest = min(LARGEST, FILLED * 72 * tile * levels[0][2] / width)
    return [finest * (1 + GROWTH * level) for level in range(len(levels))]


def _draw_points(axes, match: Assignment, pred: Predictions, truth: Targets, diameters: list[float]) -> None:
    """Positive points; one that the fallback gave has a ring, and a line to its truth's centre."""
    centres = ((truth.boxes[0, :, :2] + truth.boxes[0, :, 2:]) / 2).numpy()
    points, strides = pred.points.cpu().numpy(), pred.strides[:, 0].cpu().numpy()
    fallback = match.fallback[0].cpu().numpy()
    owners = match.truth[0].where(match.positive[0], -1).cpu().numpy()
    for level, (_, _, stride) in reversed(list(enumerate(pred.levels))):  # small markers on top
        size = diameters[level] ** 2
        of_level = np.flatnonzero((owners >= 0) & (strides == stride))
        colours = [_colour(m) for m in owners[of_level]]
        style = {"marker": MARKERS[level], "edgecolors": "black", "linewidths": 0.7, "zorder": 3}
        axes.scatter(*points[of_level].T, s=size, c=colours, **style)
        fallen = of_level[fallback[owners[of_level]]]
        ring = {"facecolors": "none", "edgecolors": "black", "linewidths": 1.1, "zorder": 4}
        axes.scatter(*points[fallen].T, s=size * RING**2, **ring)
        for a in fallen:
            axes.plot(*zip(points[a], centres[owners[a]], strict=True), color="black", linewidth=0.9)


def _legend(diameters: list[float], levels) -> list:
    """What the markers stand for."""
    style = {"linestyle": "none", "color": "0.7", "markeredgecolor": "black", "markeredgewidth": 0.7}
    handles = [
        Line2D([], [], marker=marker, markersize=diameter, label=f"stride {stride}", **style)
        for marker, diameter, (_, _, stride) in zip(MARKERS, diameters, levels, strict=False)
    ]
    ring = {"marker": "o", "markersize": RING * diameters[0], "linestyle": "none", "color": "black"}
    handles.append(Line2D([], [], fillstyle="none", label="given by the fallback", **ring))
    return [*handles, Patch(fill=False, hatch="////", label="ignore region")]


def _colour(truth: int) -> tuple[float, ...]:
    """RGB in 0..1 of a truth; the palette repeats after 80."""
    return tuple(np.divide(PALETTE[truth % len(PALETTE)], 255))


def format_counts(columns: list[Column]) -> str:
    """A row for each statistic (``AssignmentStatistics.row``), a column for each loss."""
    rows = [column.statistics.row() for column in columns]
    width = max(12, *(len(column.name) + 2 for column in columns))
    lines = [f"{'':>26}" + "".join(f"{column.name:>{width}}" for column in columns)]
    for key in rows[0]:
        digits = 0 if key.endswith("/boxes") else 3
        shown = ("-" if math.isnan(row[key]) else f"{row[key]:.{digits}f}" for row in rows)
        lines.append(f"{key:>26}" + "".join(f"{text:>{width}}" for text in shown))
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
