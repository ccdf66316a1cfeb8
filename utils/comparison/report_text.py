"""The words and tables of report.html, as HTML in which all that comes from data is escaped."""

import html
import math
import statistics
from collections.abc import Iterable, Sequence
from string import Template

from utils.comparison.matching import MEASURES
from utils.comparison.report_charts import loss_styles
from utils.comparison.statistics import MIN_SEEDS
from utils.comparison.tables import (
    SHOWN,
    difference_of,
    mean_and_sd,
    missing_line,
    ordered_losses,
    summary_line,
    verdict_line,
)
from utils.metrics.coco import KEYS
from utils.wording import NOTHING, figure, is_value

BADGES = {  # verdict -> style and text
    "better": ("better", "▲ better"),
    "worse": ("worse", "▼ worse"),
    "no evidence": ("none", "? no evidence"),
    None: ("none", "no verdict"),
}
PROTOCOL = {  # key of the protocol -> how it is called; others follow under their own names
    "data": "data",
    "fingerprint": "fingerprint of the validation data",
    "num_pictures": "validation pictures",
    "num_boxes": "validation boxes",
    "model": "model",
    "epochs": "epochs",
    "batch_size": "batch size",
    "started_from": "started from",
    "imgsz": "input size (px)",
    "rect": "rectangular input",
    "conf": "lowest confidence",
    "iou": "IoU of the NMS",
    "max_det": "most detections a picture",
    "weights": "weights",
    "evaluator": "evaluator",
    "versions": "versions",
    "commit": "commit",
    "hardware": "hardware",
}
STATISTICS = (
    "mean",
    "low",
    "high",
    "se",
    "se_seeds",
    "se_pictures",
    "df",
    "p",
    "p_holm",
    "p_sign_flip",
    "smallest",
)
DECISION = Template("""
<p>Every figure is that of the EMA of the weights at the end of a run, never of the best epoch, which would
be chosen by the same pictures. Runs of one seed see the same data in the same order, so each loss is compared
with the baseline seed by seed.</p>
<p>A difference is uncertain for two reasons: another seed and other pictures. Its variance is the variance
between the seeds divided by their number, plus what the choice of the ${pictures}validation pictures does to
all seeds alike, by bootstrap. The interval is that of Student's t with Satterthwaite's degrees of
freedom.</p>
<p>The verdicts are about AP. "Better" and "worse" need p of at most 0.05 after Holm's correction for all the
losses that are compared with the baseline, and at least $seeds seeds; AP50 and AP75 are corrected in the same
way, each by itself. "No evidence" does not say that two losses are equal: differences below the smallest one
that this design finds with 80 % power, Holm's correction counted, may well be there.</p>
""")


def escape(text) -> str:
    """Anything as text of a page or of an attribute."""
    return html.escape(str(text))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide; the cells are HTML."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    inside = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inside}</table></div>'


def fold(summary: str, body: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{summary}</summary>{body}</details>"


def swatch(style: dict[str, str]) -> str:
    """A patch of a loss's colour, striped where its line is."""
    return f'<span class="swatch {style["dash"]}" style="background-color:{style["color"]}"></span>'


def named(content: dict, name: str) -> str:
    """A loss's name after a patch of its colour."""
    baseline = " (baseline)" if name == content["baseline"] else ""
    return swatch(loss_styles(content)[name]) + escape(name) + baseline


def verdicts(content: dict) -> str:
    """The head of the page: all verdicts counted, then one line a loss."""
    lines = []
    for name in ordered_losses(content)[1:]:
        style, badge = BADGES[difference_of(content, name).get("verdict")]
        line = escape(verdict_line(content, name))
        lines.append(f'<li><span class="badge {style}">{badge}</span><span>{line}</span></li>')
    missing = f"<p>{escape(missing_line(content))}</p>" if content["missing"] else ""
    return (
        f'<h1>Comparison of losses: {escape(content["name"])}</h1><p class="summary">'
        f'{escape(summary_line(content))}</p>{missing}<ul class="verdicts">{"".join(lines)}</ul>'
    )


def result_table(content: dict) -> str:
    """COCO's figures of every loss."""
    rows = (
        [named(content, name), *(mean_and_sd(content["losses"][name], key, "±") for key in SHOWN)]
        for name in ordered_losses(content)
    )
    seeds = len(content["seeds"])
    spread = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    note = (
        f'<p class="note">{spread}. APs, APm, APl: of boxes with an area below 32², from 32² to 96² and '
        'above 96² px². "-": nothing to measure.</p>'
    )
    return table(["loss", *SHOWN], rows) + note


def cost_table(content: dict) -> str:
    """Milliseconds and gigabytes of a training step, and the time as a multiple of the baseline's."""
    names = ordered_losses(content)
    times = {name: _finite(content, name, "seconds_per_step") for name in names}
    means = {name: statistics.mean(times[name]) if times[name] else math.nan for name in names}
    rows = []
    for name in names:
        spread = f" ± {statistics.stdev(times[name]) * 1e3:.1f}" if len(times[name]) > 1 else ""
        ratio = means[name] / (means[names[0]] or math.nan)
        memory = max(_finite(content, name, "memory_gb"), default=None)
        time = figure(means[name] * 1e3, ".1f") + spread
        rows.append([named(content, name), time, figure(ratio, ".2f"), figure(memory, ".2f")])
    note = (
        '<p class="note">Mean ± standard deviation over the runs; the largest memory of any run. Runs that '
        "shared the machine (--jobs above 1) slowed one another: their times do not compare.</p>"
    )
    return table(["loss", "ms per step", "times the baseline's", "memory (GB)"], rows) + note


def _finite(content: dict, name: str, field: str) -> list[float]:
    return [run[field] for run in content["losses"][name]["runs"] if is_value(run[field])]


def protocol_card(protocol: dict) -> str:
    """What was measured on what; a value nobody knows is "unknown"."""
    keys = [*PROTOCOL, *(key for key in protocol if key not in PROTOCOL)]
    items = (f"<dt>{escape(PROTOCOL.get(key, key))}</dt><dd>{_plain(protocol.get(key))}</dd>" for key in keys)
    return f"<dl>{''.join(items)}</dl>"


def _plain(value) -> str:
    if value is None or value == "" or value == {}:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return escape(", ".join(f"{key} {part}" for key, part in value.items()))
    return escape(f"{value:,}" if isinstance(value, int) else value)


def recipe_table(content: dict) -> str:
    """What each loss changes in the configuration of the baseline."""
    rows = []
    for name in ordered_losses(content):
        loss = content["losses"][name]
        changes = [escape(f"{key}: {_change(*pair)}") for key, pair in (loss.get("changes") or {}).items()]
        text = "the baseline" if name == content["baseline"] else "<br>".join(changes) or "nothing"
        rows.append([named(content, name), text, escape(loss.get("origin") or "unknown")])
    return table(["loss", "changes against the baseline", "from"], rows)


def _change(old, new) -> str:
    return f"{'none' if old is None else old} → {'none' if new is None else new}"


def decision(content: dict) -> str:
    """The method, for a reader who wants to know whether to believe it."""
    pictures = content["protocol"].get("num_pictures")
    return DECISION.substitute(pictures="" if pictures is None else escape(f"{pictures:,} "), seeds=MIN_SEEDS)


def difference_table(content: dict) -> str:
    """All statistics of the differences, folded."""
    rows = []
    for name in ordered_losses(content)[1:]:
        for key in MEASURES:
            difference = difference_of(content, name, key)
            numbers = (figure(difference.get(field), ".5g") for field in STATISTICS)
            rows.append([named(content, name), key, *numbers, escape(difference.get("verdict") or NOTHING)])
    head = ["loss", "value", *STATISTICS, "verdict"]
    return fold("Statistics of the differences", table(head, rows)) if rows else ""


def class_table(content: dict) -> str:
    """Mean AP of every class over the runs of each loss, folded."""
    names = ordered_losses(content)
    runs = {name: [run.get("per_class") or {} for run in content["losses"][name]["runs"]] for name in names}
    boxes = {label: values["boxes"] for run in runs[names[0]] for label, values in run.items()}
    rows = [
        [escape(label), escape(count), *(_mean_ap(runs[name], label) for name in names)]
        for label, count in boxes.items()
    ]
    head = ["class", "boxes", *(named(content, name) for name in names)]
    return fold("AP of every class, mean of the seeds", table(head, rows)) if rows else ""


def _mean_ap(runs: Sequence[dict], label: str) -> str:
    values = [run[label]["AP"] for run in runs if label in run and is_value(run[label]["AP"])]
    return figure(statistics.mean(values)) if values else NOTHING


def run_table(content: dict) -> str:
    """The values of every run in full precision, folded."""
    rows = [
        [
            named(content, name),
            escape(run["seed"]),
            *(figure(run["values"].get(key), "") for key in KEYS),
            figure(run["seconds_per_step"], ""),
            figure(run["memory_gb"], ""),
            escape(run["folder"]),
        ]
        for name in ordered_losses(content)
        for run in content["losses"][name]["runs"]
    ]
    head = ["loss", "seed", *KEYS, "seconds_per_step", "memory_gb", "folder"]
    return fold("Values of every run, in full precision", table(head, rows))
