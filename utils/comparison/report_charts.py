"""The charts of a comparison as plotly's plain dictionaries: {"data": traces, "layout": layout}.

Each loss has one colour in all charts. Names come from files, so they are escaped (plotly reads tags) and
stand on numbered axes (plotly reads dates and numbers out of words, and merges equal ones).
"""

import html
from collections.abc import Sequence

from utils.comparison.tables import (
    difference_of,
    interval_figures,
    interval_text,
    ordered_losses,
)
from utils.plots.curves import LINES
from utils.wording import NOTHING, figure, is_value

BLACK = "#222222"  # the baseline
DASHES = ("solid", "dash", "dot")  # the second and third round through the colours
SYMBOLS = ("circle", "diamond", "square")
LONGEST_NAME = 26
FEW_EPOCHS = 10  # each of them gets its number on the axis; plotly would write fractions between them
FIRST_SHOWN = 6  # losses whose curves are shown before anybody asks for more
Rows = list[tuple[str, dict]]  # label and difference, top first


def loss_styles(content: dict) -> dict[str, dict[str, str]]:
    """Colour, dash and symbol of each loss, in the order of the content; the baseline is black and first."""
    styles = {content["baseline"]: {"color": BLACK, "dash": "solid", "symbol": "circle"}}
    for i, name in enumerate(name for name in content["losses"] if name != content["baseline"]):
        turn = i // len(LINES) % len(DASHES)
        styles[name] = {"color": LINES[i % len(LINES)], "dash": DASHES[turn], "symbol": SYMBOLS[turn]}
    return styles


def interval_chart(content: dict, key: str) -> dict:
    """Difference of every loss from the baseline in ``key`` with its 95 % interval, one row a loss.

    The grey bar spans the differences too small to be found with 80 % power.
    """
    styles = loss_styles(content)
    names = ordered_losses(content)[1:]
    rows = [(name, difference_of(content, name, key)) for name in names]
    chart = _forest(rows, [styles[name] for name in names], key=key)
    found = [(i, d["smallest"]) for i, (_, d) in enumerate(rows) if is_value(d.get("smallest"))]
    hidden = {
        "type": "bar",
        "orientation": "h",
        "y": [i for i, _ in found],
        "base": [-_short(smallest) for _, smallest in found],
        "x": [2 * _short(smallest) for _, smallest in found],
        "width": 0.44,
        "marker": {"color": "#E3E5E8"},
        "hoverinfo": "skip",
    }
    chart["layout"]["xaxis"]["range"] = _around_zero([d for _, d in rows], [s for _, s in found])
    chart["layout"]["yaxis"]["ticktext"] = [_tick(name, difference) for name, difference in rows]
    chart["layout"]["height"] = 96 + 50 * max(1, len(rows))
    return {"data": [hidden, *chart["data"]], "layout": chart["layout"]}


def class_chart(content: dict, name: str) -> dict:
    """A loss's difference in AP for every class with a value, best first, and their intervals."""
    per_class = (content["differences"].get(name) or {}).get("per_class") or {}
    rows = [(label_, d) for label_, d in per_class.items() if is_value((d or {}).get("mean"))]
    rows.sort(key=lambda row: -row[1]["mean"])
    chart = _forest(rows, [loss_styles(content)[name]] * len(rows), key="AP")
    chart["layout"]["xaxis"]["range"] = _around_zero([d for _, d in rows])
    chart["layout"]["height"] = 96 + 22 * max(2, len(rows))
    return chart


def curve_chart(content: dict, column: str) -> dict:
    """A column of results.csv over the epochs: mean of the seeds as a line, lowest to highest as a band."""
    traces = []
    for number, (name, style) in enumerate(loss_styles(content).items()):
        epochs, values = seed_values(content["losses"][name]["runs"], column)
        low, high = [_short(min(v)) for v in values], [_short(max(v)) for v in values]
        band = {
            "x": epochs + epochs[::-1],
            "y": high + low[::-1],
            "fill": "toself",
            "fillcolor": style["color"] + "26",
            "line": {"width": 0},
            "mode": "lines",
            "hoverinfo": "skip",
            "meta": number,
        }
        means = [_short(sum(v) / len(v)) for v in values]
        traces += [band, _line(number, name, epochs, means) | {"line": _stroke(style)}]
    every = {"dtick": 1} if max((len(t["x"]) for t in traces[1::2]), default=0) <= FEW_EPOCHS else {}
    layout = _layout(x={"title": "epoch", **every}, y={"title": html.escape(column)})
    layout["hovermode"] = "x unified"
    layout["xaxis"]["uirevision"] = layout["yaxis"]["uirevision"] = column
    return {"data": traces, "layout": layout}


def seed_values(runs: Sequence[dict], column: str) -> tuple[list[int], list[list[float]]]:
    """The epochs in which any run has a value, and the values of each; every list has at least one."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for epoch, value in zip(run["epochs"] or (), run["curves"].get(column) or (), strict=False):
            if is_value(value):
                found.setdefault(epoch, []).append(value)
    epochs = sorted(found)
    return epochs, [found[epoch] for epoch in epochs]


def calibration_chart(content: dict) -> dict:
    """Mean IoU of the detections over their mean score, by bins of the score; dashed: where the two agree."""
    even = {
        "x": [0, 1],
        "y": [0, 1],
        "mode": "lines",
        "line": {"color": "#999999", "width": 1, "dash": "dash"},
        "hoverinfo": "skip",
    }
    traces = [even]
    for number, (name, style) in enumerate(loss_styles(content).items()):
        calibration = content["losses"][name].get("calibration") or {}
        bins = [b for b in calibration.get("bins", ()) if _is_bin(b)]
        line = _line(number, name, [_short(b["score"]) for b in bins], [_short(b["iou"]) for b in bins])
        marks = {"color": style["color"], "symbol": style["symbol"], "size": 7}
        counts = [f"{b['count']:,} detections" for b in bins]
        hover = {"text": counts, "hovertemplate": "%{y:.3f} at score %{x:.3f}, %{text}"}
        traces.append(line | hover | {"mode": "lines+markers", "line": _stroke(style), "marker": marks})
    share = {"range": [0, 1], "dtick": 0.2}
    layout = _layout(x={"title": "score", **share}, y={"title": "mean IoU", **share})
    return {"data": traces, "layout": layout | {"height": 420}}


def _is_bin(values: dict) -> bool:
    return bool(values.get("count")) and is_value(values.get("score")) and is_value(values.get("iou"))


def label(name: str) -> str:
    """A name for a chart: at most 26 characters, as text and not as tags."""
    short = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1].rstrip() + "…"
    return html.escape(short, quote=False)


def _forest(rows: Rows, styles: Sequence[dict], *, key: str) -> dict:
    """Means with intervals about a line at 0, row i at y = i counted from the top."""
    means, lows, highs = ([_short(d.get(field)) for _, d in rows] for field in ("mean", "low", "high"))
    whole = [None not in triple for triple in zip(means, lows, highs, strict=True)]
    traces = [
        {
            "x": [low, high] if there else [],
            "y": [i, i],
            "mode": "lines",
            "line": {"color": styles[i]["color"], "width": 3},
            "hoverinfo": "skip",
        }
        for i, (low, high, there) in enumerate(zip(lows, highs, whole, strict=True))
    ]
    points = {
        "x": means,
        "y": list(range(len(rows))),
        "mode": "markers",
        "marker": {
            "color": [style["color"] for style in styles],
            "symbol": [style["symbol"] for style in styles],
            "size": 10,
            "line": {"color": "white", "width": 1},
        },
        "text": [_hover(name, difference, key) for name, difference in rows],
        "hovertemplate": "%{text}<extra></extra>",
    }
    ticks = {
        "title": "",
        "tickvals": list(range(len(rows))),
        "ticktext": [label(name) for name, _ in rows],
        "range": [max(1, len(rows)) - 0.4, -0.6],
        "automargin": True,
        "showgrid": False,
    }
    axis = {"title": f"{key}: worse ← 0 → better", "nticks": 5}
    zero = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper"}
    zero["line"] = {"color": "#555555", "width": 1}
    layout = _layout(x=axis | {"fixedrange": True}, y=ticks | {"fixedrange": True})
    return {"data": [*traces, points], "layout": layout | {"shapes": [zero], "hovermode": "closest"}}


def _tick(name: str, difference: dict) -> str:
    """A name over its figures: ``-0.012 (-0.019 to -0.005)``."""
    mean, low, high = interval_figures(difference)
    numbers = mean if NOTHING in (low, high) else f"{mean} ({low} to {high})"
    return f"{label(name)}<br><span style='font-size:11px;color:#666'>{numbers}</span>"


def _hover(name: str, difference: dict, key: str) -> str:
    lines = [f"<b>{label(name)}</b>", interval_text(difference, key)]
    if difference.get("verdict"):
        lines.append(f"{difference['verdict']}, p {figure(difference.get('p_holm'), '.2g')} (Holm)")
    return "<br>".join(lines)


def _around_zero(differences: Sequence[dict], spans: Sequence[float] = ()) -> list[float]:
    """A range that holds 0, all means and intervals, and +-``spans``."""
    fields = [d.get(field) for d in differences for field in ("mean", "low", "high")]
    values = [0.0, *filter(is_value, fields), *spans, *(-span for span in spans)]
    margin = 0.06 * (max(values) - min(values)) or 0.01
    return [_short(min(values) - margin), _short(max(values) + margin)]


def _line(number: int, name: str, x: list, y: list) -> dict:
    """A line of loss ``number``; the page hides the traces whose ``meta`` is a loss that was unticked."""
    return {"x": x, "y": y, "name": label(name), "mode": "lines", "meta": number}


def _stroke(style: dict) -> dict:
    return {"color": style["color"], "dash": style["dash"], "width": 2}


def _short(number) -> float | None:
    """Five digits, which no eye tells from more, or None where there is no number."""
    return float(f"{number:.5g}") if is_value(number) else None


def _layout(*, x: dict, y: dict) -> dict:
    axis = {"gridcolor": "#E9EAEC", "zeroline": False, "linecolor": "#AAAAAA", "automargin": True}
    axis["exponentformat"] = "none"  # 0.0004, not 400µ
    return {
        "xaxis": axis | x | {"title": {"text": x["title"], "font": {"size": 13}}},
        "yaxis": axis | y | {"title": {"text": y["title"], "font": {"size": 13}}},
        "height": 380,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": BLACK},
        "hoverlabel": {"bgcolor": "white", "bordercolor": "#AAAAAA", "font": {"size": 13}, "namelength": -1},
        "plot_bgcolor": "white",
        "paper_bgcolor": "white",
        "showlegend": False,
        "dragmode": "zoom",
    }
