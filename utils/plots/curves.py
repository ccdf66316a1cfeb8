"""Charts of a run: its tables (results, anatomy, assignment), the labels it trains on, precision over recall.

T boxes of a whole data set, C classes. Every chart is a ``Figure`` of its own: no global state of pyplot's is
touched.
"""

import csv
import errno
from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import open_regular, replacing
from utils.plots.draw import as_array, display_name

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"
LINES = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#5A4B00", "#870F2D", "#785A87", "#005A3C")
PANELS = (  # title, label of the y axis, columns of results.csv and their names in the legend
    ("Training loss", "weighted loss", {"train/quality": "quality", "train/box": "box", "train/dfl": "dfl"}),
    ("Average precision", "AP", {"metrics/AP": "AP", "metrics/AP50": "AP50", "metrics/AP75": "AP75"}),
    (
        "Precision and recall",
        "share",
        {"metrics/precision": "precision", "metrics/recall": "recall"},
    ),
    ("Learning rate", "learning rate", {"lr": "learning rate"}),
    ("Gradient norm", "L2 norm", {"train/grad_norm": "gradient norm"}),
)
ANATOMY_PANELS = (  # of anatomy.csv
    (
        "Pull of each term",
        "gradient's L2 norm at the head's input",
        {"gradient/quality": "quality", "gradient/box": "box", "gradient/dfl": "dfl"},
    ),
    (
        "Who pays the class loss",
        "share",
        {"share/positives": "positives", "share/negatives": "negatives"},
    ),
    ("IoU of the positives", "mean IoU", {"iou": "IoU"}),
    (
        "Spread of the positives' distributions",
        "entropy, nats",
        {f"entropy/stride{2**level}": f"stride {2**level}" for level in range(2, 7)},
    ),
)
SIZES = ("small", "medium", "large")
ASSIGNMENT_PANELS = (  # of assignment.csv
    ("Positives per box", "points", {f"{size}/positives_per_box": size for size in SIZES}),
    ("Boxes served by the fallback", "share", {f"{size}/fallback": size for size in SIZES}),
    (
        "Out of reach",
        "share",
        {
            "unmatched": "boxes without a point",
            "unrepresentable": "boxes no level can express",
            "saturated": "sides in or beyond the last half bin",
        },
    ),
)
MOST_CLASSES = 40  # bars that stay legible
SMALL, LARGE = 32, 96  # px, COCO's limits on the square root of the area


def plot_run(folder: Path) -> None:
    """results.png, anatomy.png and assignment.png of a run, from the tables beside them that have rows."""
    for name, panels, x in (
        ("results", PANELS, "epoch"),
        ("anatomy", ANATOMY_PANELS, "step"),
        ("assignment", ASSIGNMENT_PANELS, "epoch"),
    ):
        if Path(folder, f"{name}.csv").exists():
            plot_table(Path(folder, f"{name}.csv"), Path(folder, f"{name}.png"), panels, x=x)


def plot_table(csv_path, png_path, panels=PANELS, *, x: str = "epoch") -> None:
    """Draw a table, one panel a theme, over the column ``x``; what it lacks and empty cells are left out."""
    columns = _read_columns(csv_path)
    steps = columns.get(x, np.arange(len(next(iter(columns.values()), ()))))
    panels = [p for p in panels if any(np.isfinite(columns.get(c, np.nan)).any() for c in p[2])]
    across = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    down = max(1, -(-len(panels) // across))
    figure = Figure(figsize=(5 * across, 3.9 * down), layout="constrained")
    for i, (title, unit, names) in enumerate(panels):
        axes = figure.add_subplot(down, across, i + 1)
        _style(axes, title, x=x, y=unit)
        for colour, (column, name) in zip(LINES, names.items(), strict=False):
            _plot_series(axes, steps, columns.get(column), label=name, colour=colour)
        if "metrics/AP" in names:
            _mark_best(axes, steps, columns.get("metrics/AP"))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if title != "Training loss":
            axes.set_ylim(0, max(axes.get_ylim()[1], 1e-6))
        if len(names) > 1:
            _legend(axes)
    _save(figure, png_path)


def plot_labels(path, *, labels, boxes, sizes, names) -> None:
    """Draw what a data set's boxes are like: classes, centres, relative width and height, size in px.

    ``labels`` (T,), ``boxes`` (T, 4) xyxy px, ``sizes`` (T, 2) height and width of each box's picture.
    """
    labels = as_array(labels).reshape(-1).astype(int)
    boxes = as_array(boxes).reshape(-1, 4).astype(float)
    frame = np.maximum(as_array(sizes).reshape(-1, 2)[:, ::-1].astype(float), 1)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    figure = Figure(figsize=(16, 9.5), layout="constrained")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.15, 1, 1))
    _plot_classes(figure.add_subplot(grid[:, 0]), labels, names)
    centres = figure.add_subplot(grid[0, 1])
    _style(centres, "Box centres in the picture", x="x / picture width", y="y / picture height")
    _plot_density(centres, (boxes[:, :2] + boxes[:, 2:]) / 2 / frame)
    centres.invert_yaxis()  # as in a picture: y points down
    extent = figure.add_subplot(grid[0, 2])
    _style(extent, "Box width and height", x="width / picture width", y="height / picture height")
    _plot_density(extent, sides / frame)
    _plot_sizes(figure.add_subplot(grid[1, 1:]), np.sqrt(sides.prod(1)))
    _save(figure, path)


def plot_pr_curves(path, recall_grid, precision, names) -> None:
    """Draw precision over recall at IoU 0.5: (101,) and (C, 101), each class thin, their mean bold.

    Classes without truths (NaN, or COCO's -1) are left out, of the mean too. Up to ten classes are named.
    """
    recall, precision = as_array(recall_grid), as_array(precision).reshape(-1, len(recall_grid))
    present = np.flatnonzero((precision >= 0).all(1))
    present = present[np.argsort(-precision[present].mean(1), kind="stable")]
    figure = Figure(figsize=(8, 6.2), layout="constrained")
    axes = figure.add_subplot()
    _style(axes, "Precision over recall at IoU 0.5", x="recall", y="precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    entries = []
    if len(present) > len(LINES):
        lines = [np.column_stack([recall, precision[i]]) for i in present]
        thin = LineCollection(lines, colors=GREY, linewidths=0.7, alpha=max(0.1, min(0.6, 25 / len(present))))
        axes.add_collection(thin)
        entries.append(f"{len(present)} classes, one line each")
    else:
        for colour, i in zip(LINES, present, strict=False):
            axes.plot(recall, precision[i], color=colour, linewidth=1.2)
            entries.append(f"{display_name(i, names)}  {precision[i].mean():.3f}")
    if len(present):
        mean = precision[present].mean(0)
        axes.plot(recall, mean, color="black", linewidth=3)
        _legend(axes, [*entries, f"mean  {mean.mean():.3f}"], title="AP50")
    else:
        _say(axes, "no class with truths")
    _save(figure, path)


def _read_columns(path) -> dict[str, np.ndarray]:
    """Column name -> float64, one value a row; NaN where the cell is empty, missing or no finite number.

    Older runs wrote COCO's -1 where there was nothing to measure: NaN, too.
    """
    try:
        with open_regular(path) as file:
            text = file.read().decode(errors="replace")
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    header, *rows = [*csv.reader(text.splitlines())] or [[]]
    rows = [row for row in rows if row]
    cells = [[_number(row[i]) if i < len(row) else np.nan for row in rows] for i in range(len(header))]
    columns = {name.strip(): np.array(column, float) for name, column in zip(header, cells, strict=True)}
    for name in (name for name in columns if name.startswith("metrics/")):
        columns[name][columns[name] == -1] = np.nan
    return columns


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        return np.nan
    return value if np.isfinite(value) else np.nan


def _plot_series(axes, epochs, values, *, label: str, colour: str) -> None:
    """One line over the rows that have a value; dots too while they are few."""
    if values is None or not np.isfinite(values).any():
        return
    known = np.isfinite(values) & np.isfinite(epochs)
    marker = "o" if known.sum() <= 30 else None
    axes.plot(epochs[known], values[known], color=colour, linewidth=1.8, marker=marker, ms=3.5, label=label)


def _mark_best(axes, epochs, values) -> None:
    """A ring at the highest value and its epoch in the title."""
    if values is None or not np.isfinite(values).any():
        return
    best = np.nanargmax(values)
    axes.plot(epochs[best], values[best], "o", ms=10, mfc="none", mec="black", mew=1.6)
    axes.axvline(epochs[best], color=GREY, linewidth=0.9, linestyle=":")
    axes.set_title(f"Average precision: best {values[best]:.3f} at epoch {epochs[best]:.0f}", fontsize=12)


def _plot_classes(axes, labels: np.ndarray, names) -> None:
    """Boxes per class, most frequent first, with their counts."""
    num_classes = max(len(names), labels.max(initial=-1) + 1)
    counts = np.bincount(labels, minlength=num_classes)
    shown = np.argsort(-counts, kind="stable")[:MOST_CLASSES]
    rest = (
        f"the {len(shown)} most frequent of {num_classes} classes"
        if num_classes > len(shown)
        else "every class"
    )
    _style(axes, f"Boxes per class: {rest}", x="boxes", y="")
    rows = np.arange(len(shown))
    axes.barh(rows, counts[shown], height=0.75, color=BLUE)
    axes.set_yticks(rows, [display_name(label, names) for label in shown], fontsize=9)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)  # a name may hold $
    for row, count in zip(rows, counts[shown], strict=True):
        axes.annotate(
            f"{count:,}", (count, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set(xlim=(0, max(1, counts.max(initial=0)) * 1.14), ylim=(max(len(shown), 8) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _plot_density(axes, points: np.ndarray) -> None:
    """How many of the relative points (T, 2) fall into each cell of the unit square; logarithmic colours."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if not len(points):
        _say(axes, "no boxes")
        return
    bins = 50 if len(points) > 2000 else 25
    counts, *_ = np.histogram2d(*np.clip(points, 0, 1).T, bins=bins, range=((0, 1), (0, 1)))
    scale = LogNorm(1, max(10, counts.max()))
    image = axes.pcolormesh(
        *[np.linspace(0, 1, bins + 1)] * 2, np.ma.masked_equal(counts.T, 0), cmap="viridis_r", norm=scale
    )
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("boxes per cell", fontsize=10)
    bar.ax.tick_params(labelsize=9)
    bar.outline.set_visible(False)


def _plot_sizes(axes, lengths: np.ndarray) -> None:
    """Histogram of the square root of the area over a logarithmic axis, with COCO's shares."""
    _style(axes, "Box size, with COCO's limits of small, medium and large", x="√area (px)", y="boxes")
    top = max(512, lengths.max(initial=0) * 1.05)
    axes.hist(np.clip(lengths, 2, None), bins=np.geomspace(2, top, 61), color=BLUE)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlim=(2, top), ylim=(0, max(1, axes.get_ylim()[1]) * 1.15))
    edges = (2, SMALL, LARGE, top)
    shares = np.bincount(np.digitize(lengths, edges[1:3]), minlength=3) / max(1, len(lengths))
    for name, share, low, high in zip(
        ("small", "medium", "large"), shares, edges[:3], edges[1:], strict=True
    ):
        at = (np.log(np.sqrt(low * high) / 2) / np.log(top / 2), 0.93)
        axes.text(*at, f"{name} {share:.0%}", transform=axes.transAxes, ha="center", fontsize=11)
    for limit in (SMALL, LARGE):
        axes.axvline(limit, color=ORANGE, linewidth=1.4, linestyle="--")


def _style(axes, title: str, *, x: str, y: str) -> None:
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.tick_params(labelsize=10, length=0, pad=6)
    axes.grid(color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _legend(axes, entries: list[str] | None = None, title: str | None = None) -> None:
    """A legend; ``entries`` are set afterwards, as names may open with ``_`` or hold ``$``."""
    handles = [*axes.collections, *axes.lines] if entries else axes.get_legend_handles_labels()[0]
    placeholders = ["x"] * len(handles) if entries else [h.get_label() for h in handles]
    legend = axes.legend(
        handles, placeholders, title=title, fontsize=10, loc="lower left" if entries else "best"
    )
    legend.get_frame().set(edgecolor="none", alpha=0.85)
    for text, entry in zip(legend.get_texts(), entries or placeholders, strict=True):
        text.set(text=entry, parse_math=False)


def _say(axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=12, color=GREY)


def _save(figure: Figure, path) -> None:
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110, facecolor="white")
