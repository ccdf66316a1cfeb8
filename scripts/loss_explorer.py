"""Write docs/loss_explorer.html, the losses to play with: ``python -m scripts.loss_explorer``.

One page without a library or a connection, put together from scripts/loss_explorer_page/. Its formulas are
JavaScript; the numbers written here from the project's own functions are what the page, on opening, and
tests/scripts/test_loss_explorer.py hold them against. The same file comes out on every machine: what is
written has few digits. Scores and targets are in [0, 1], distances in bins (strides).
"""

import itertools
import json
from pathlib import Path

import torch
from torch import Tensor

from utils.config import ModelConfig
from utils.geometry.ltrb import integral, side_sigma
from utils.losses.distribution import distribution_focal_loss, two_bin_entropy
from utils.losses.quality import (
    matchability_aware_loss,
    quality_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)

PAGE = Path(__file__).parent / "loss_explorer_page"
PATH = Path(__file__).parents[1] / "docs" / "loss_explorer.html"
SCRIPTS = ("formulas.js", "drawing.js", "class_score.js", "side.js", "start.js")
NUM_BINS = ModelConfig().reg_max + 1
DECIMALS = 7  # written; the page asks for six

CLASS_LOSSES = {
    "FL": sigmoid_focal_loss,
    "QFL": quality_focal_loss,
    "VFL": varifocal_loss,
    "MAL": lambda logits, target, exponent, alpha: matchability_aware_loss(logits, target, exponent),
}
FORMULAS = {  # as the table shows them
    "FL": "<i>m</i><sup><i>γ</i></sup> <i>H</i>(<i>s</i>, <i>y</i>)",
    "QFL": "|<i>y</i> − <i>s</i>|<sup><i>β</i></sup> <i>H</i>(<i>s</i>, <i>y</i>)",
    "VFL": "<i>y</i> <i>H</i>(<i>s</i>, <i>y</i>); at <i>y</i> = 0: "
    "<i>α</i> <i>s</i><sup><i>γ</i></sup> <i>H</i>(<i>s</i>, 0)",
    "MAL": "<i>H</i>(<i>s</i>, <i>y</i><sup><i>γ</i></sup>); at <i>y</i> = 0: "
    "<i>s</i><sup><i>γ</i></sup> <i>H</i>(<i>s</i>, 0)",
}
NAMES = {"FL": "focal", "QFL": "quality focal", "VFL": "varifocal", "MAL": "matchability-aware"}

CHECKED_LOGITS = (-6.0, -2.5, -0.8, 0.3, 1.7, 5.0)
CHECKED_TARGETS = (0.0, 0.25, 0.8, 1.0)
CHECKED_EXPONENTS = (0.5, 1.5, 2.0, 4.0)
CHECKED_ALPHAS = (None, 0.25)
CHECKED_DISTANCES = (0.0, 2.3, 7.5, 11.0, 14.9, 15.0)


def class_loss_and_gradient(name: str, logits: Tensor, target: float, exponent: float, alpha: float | None):
    """(N,) logits -> (N,) loss and (N,) its gradient by the logit, for one of ``CLASS_LOSSES``."""
    logits = logits.detach().requires_grad_()
    loss = CLASS_LOSSES[name](logits, torch.full_like(logits, target), exponent, alpha)
    return loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]


def side_numbers(logits: Tensor, distance: float) -> dict[str, float]:
    """(R,) logits of a side and its true distance in bins -> integral, sigma, DFL and DFL's minimum."""
    true = logits.new_tensor(distance)
    return {
        "integral": integral(logits).item(),
        "sigma": side_sigma(logits).item(),
        "dfl": distribution_focal_loss(logits, true).item(),
        "minimum": two_bin_entropy(true, logits.shape[-1]).item(),
    }


def checks() -> dict[str, list]:
    """What the page compares itself with: numbers of the Python functions, in float64, at many settings."""
    logits = torch.tensor(CHECKED_LOGITS, dtype=torch.float64)
    class_rows = []
    grid = itertools.product(CLASS_LOSSES, CHECKED_TARGETS, CHECKED_EXPONENTS, CHECKED_ALPHAS)
    for name, target, exponent, alpha in grid:
        loss, gradient = class_loss_and_gradient(name, logits, target, exponent, alpha)
        row = {"loss": name, "target": target, "exponent": exponent, "alpha": alpha}
        class_rows.append(row | {"values": _rounded(loss), "gradients": _rounded(gradient)})
    side_rows = []
    for number, distance in enumerate(CHECKED_DISTANCES):
        for logits in checked_sides(number):
            values = {key: _round(value) for key, value in side_numbers(logits, distance).items()}
            side_rows.append({"logits": logits.tolist(), "distance": distance} | values)
    return {"logits": CHECKED_LOGITS, "class": class_rows, "side": side_rows}


def checked_sides(number: int) -> list[Tensor]:
    """Two (R,) logits in quarters: a peak, whose place and width vary with ``number``, and a ragged one."""
    bins = torch.arange(NUM_BINS, dtype=torch.float64)
    peak = -(bins - 2.5 * number).abs() * (number + 1)
    ragged = (bins * 7 + number * 5) % 11 / 4
    return [(peak * 4).round() / 4, ragged]


def build_page() -> str:
    """The whole page as text."""
    sure = torch.where(torch.arange(NUM_BINS) == 0, 0.0, -100.0).double()
    constants = {"NUM_BINS": NUM_BINS, "SIGMA_FLOOR": _round(side_sigma(sure).item()), "CHECKS": checks()}
    lines = [f"const {name} = {_json(value)};\n" for name, value in constants.items()]
    parts = {
        "style": _read("page.css"),
        "rows": "".join(map(_table_row, CLASS_LOSSES)),
        "last": str(NUM_BINS - 1),
        "script": "".join(lines) + "".join(_read(name).replace('"use strict";\n\n', "") for name in SCRIPTS),
    }
    page = _read("page.html")
    for name, text in parts.items():
        page = page.replace("{{" + name + "}}", text)
    return page


def _table_row(name: str) -> str:
    tick = f'<input type="checkbox" id="show-{name}" checked aria-label="draw {name}">'
    head = f'<label class="tick-box">{tick}<span class="swatch {name}"></span>{name}</label>'
    cells = "".join(f'<td id="{name}-{column}"></td>' for column in ("loss", "gradient", "rest"))
    formula = f'<td class="math">{FORMULAS[name]}</td>'
    return f'      <tr><th title="{NAMES[name]} loss">{head}</th>{formula}{cells}</tr>\n'


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _json(value) -> str:
    return json.dumps(value, separators=(",", ":"))


def _rounded(values: Tensor) -> list[float]:
    return [_round(value) for value in values.tolist()]


def _round(value: float) -> float:
    return round(value, DECIMALS) + 0.0  # no -0.0


def main() -> None:
    """Command line."""
    PATH.write_text(build_page(), encoding="utf-8", newline="\n")
    print(f"written: {PATH}")


if __name__ == "__main__":
    main()
