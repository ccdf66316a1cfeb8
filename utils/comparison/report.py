"""report.html of a comparison: one file that needs no network, from the content of comparison.json.

The page is page/report.html with its style and script; what is written here is the text. Whatever comes from
data is escaped, and the page's own policy lets no script run but its two and loads nothing from anywhere.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

from utils.comparison.matching import MEASURES
from utils.comparison.report_charts import (
    FIRST_SHOWN,
    calibration_chart,
    class_chart,
    curve_chart,
    interval_chart,
    loss_styles,
    seed_values,
)
from utils.comparison.report_text import (
    class_table,
    cost_table,
    decision,
    difference_table,
    escape,
    protocol_card,
    recipe_table,
    result_table,
    run_table,
    swatch,
    verdicts,
)
from utils.comparison.tables import ordered_losses
from utils.errors import UserError
from utils.files import write_whole
from utils.wording import figure, is_value

PAGE = Path(__file__).parent / "page"
FIRST_COLUMNS = ("metrics/AP", "metrics/AP50", "metrics/AP75")  # on top of the curves' drop-down
NOT_DRAWN = ("epoch",)
INTERVALS = (
    "Point and line: the mean difference over the seeds and its 95 % interval, for that comparison alone. "
    "Grey: differences so small that this design would find them in less than 80 % of such comparisons, with "
    "Holm's correction for all losses here."
)
CURVES = (
    "Line: mean of the seeds. Band: from the lowest to the highest seed. "
    "Drag to zoom, double-click to go back."
)
CLASSES = (
    "Difference in AP and its 95 % interval for every class that has boxes. These are many comparisons and "
    "no verdicts: of twenty equal classes, one interval leaves out 0 by chance."
)
CALIBRATION = (
    "Detections by their score: the mean IoU they reach against the score they were given. On the dashed "
    "line the two agree; below it the scores promise too much. In brackets above: the calibration error, the "
    "mean distance from the line, each point counted by its detections."
)
PICTURES = (
    '<p class="note">The figure is the difference of the picture\'s own score, right minus left, mean over '
    "the seeds. Single pictures show what differs, not which loss is better.</p>"
)


class ComparedPicture(NamedTuple):
    """One picture with what two configurations find in it: captions and JPEG or PNG files."""

    name: str
    difference: float  # of the picture's score, right minus left, mean over the seeds
    left: tuple[str, bytes]
    right: tuple[str, bytes]


def write_report(content: dict, folder: Path, pictures: Sequence[ComparedPicture]) -> Path:
    """Write ``folder/report.html`` and return its path; a ``UserError`` where plotly is not installed."""
    plotly = _plotly_script()
    script = (PAGE / "report.js").read_text(encoding="utf-8")
    charts = _charts(content)
    page = Template((PAGE / "report.html").read_text(encoding="utf-8")).substitute(
        policy=_policy(plotly, script),
        title=escape(f"{content['name']}: comparison of losses"),
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        body="\n".join(_sections(content, charts, pictures)),
        charts=json.dumps(charts, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        plotly=plotly,
        script=script,
    )
    path = folder / "report.html"
    write_whole(path, page.encode(errors="backslashreplace"))
    return path


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError(
            "report.html carries plotly's JavaScript, and plotly is not installed; comparison.json and "
            "comparison.csv need none of it. Install it (python -m pip install plotly), then run the same "
            "command again: finished runs are kept"
        ) from error
    return get_plotlyjs()


def _policy(*scripts: str) -> str:
    """Content Security Policy: only these inline scripts run, and nothing is loaded from anywhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


def _charts(content: dict) -> dict[str, dict[str, dict]]:
    """Chart -> choice of its drop-down -> figure."""
    names = ordered_losses(content)
    classes = {name: class_chart(content, name) for name in names[1:]}
    calibration = calibration_chart(content)
    return {
        "intervals": {key: interval_chart(content, key) for key in MEASURES} if names[1:] else {},
        "curves": {column: curve_chart(content, column) for column in _columns(content)},
        "classes": {name: chart for name, chart in classes.items() if chart["data"][-1]["x"]},
        "calibration": {"": calibration} if any(trace["x"] for trace in calibration["data"][1:]) else {},
    }


def _columns(content: dict) -> list[str]:
    """Columns of results.csv that any run has a value in: AP first, then in the order of the files."""
    runs = [run for loss in content["losses"].values() for run in loss["runs"]]
    found = dict.fromkeys(column for run in runs for column in run["curves"])
    kept = [c for c in found if c not in NOT_DRAWN and seed_values(runs, c)[0]]
    return sorted(kept, key=lambda c: FIRST_COLUMNS.index(c) if c in FIRST_COLUMNS else len(FIRST_COLUMNS))


def _sections(content: dict, charts: dict, pictures: Sequence[ComparedPicture]) -> Iterable[str]:
    """The page from top to bottom; a section without data is left out."""
    yield verdicts(content)
    if charts["intervals"]:
        yield "<h2>Differences from the baseline</h2>"
        yield _chart("intervals", charts, "Value", caption=INTERVALS)
    yield f"<h2>Results</h2>{result_table(content)}"
    if charts["curves"]:
        yield "<h2>Training curves</h2>" + _legend(content)
        yield _chart("curves", charts, "Column", caption=CURVES, losses=True)
    if charts["classes"]:
        yield "<h2>Differences by class</h2>"
        yield _chart("classes", charts, "Loss", caption=CLASSES, tall=True)
    if charts["calibration"]:
        yield "<h2>Calibration: does the score say the IoU?</h2>" + _legend(content, errors=True)
        yield _chart("calibration", charts, "", caption=CALIBRATION, losses=True)
    yield f"<h2>Time and memory</h2>{cost_table(content)}"
    if pictures:
        yield f"<h2>Pictures on which they differ most</h2>{PICTURES}" + "".join(map(_pair, pictures))
    yield f"<h2>Protocol</h2>{protocol_card(content['protocol'])}{recipe_table(content)}"
    yield f"<h2>How it was decided</h2>{decision(content)}"
    yield "<h2>Exact figures</h2>"
    yield difference_table(content) + class_table(content) + run_table(content)


def _chart(name: str, charts: dict, choice: str, *, caption: str, losses=False, tall=False) -> str:
    """A figure with a drop-down of its choices; ``losses``: its lines follow the ticked losses."""
    options = "".join(f'<option value="{escape(c)}">{escape(c)}</option>' for c in charts[name])
    select = f"<label>{choice} <select>{options}</select></label>" if choice else ""
    return (
        f'<figure data-chart="{name}"{" data-losses" if losses else ""}>{select}'
        f'<div class="{"tall" if tall else ""}"><div class="plot"></div></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _legend(content: dict, *, errors: bool = False) -> str:
    """Boxes to tick, one a loss; ``errors`` names the calibration error of each."""
    items = []
    for number, (name, style) in enumerate(loss_styles(content).items()):
        error = (content["losses"][name].get("calibration") or {}).get("error") if errors else None
        note = f" ({figure(error)})" if is_value(error) else ""
        tick = f'<input type="checkbox" value="{number}"{" checked" if number < FIRST_SHOWN else ""}>'
        items.append(f"<label>{tick}{swatch(style)}{escape(name)}{note}</label>")
    return f'<div class="legend">{"".join(items)}</div>'


def _pair(picture: ComparedPicture) -> str:
    sides = "".join(
        f'<figure><img src="{_data_url(file)}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, file in (picture.left, picture.right)
    )
    return (
        f'<div class="pair"><h3>{escape(picture.name)}: {figure(picture.difference, "+.3f")}</h3>'
        f"<div>{sides}</div></div>"
    )


def _data_url(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
