"""metrics.json and results.csv of a run, which may be a stranger's, or damaged: read, and checked."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from utils.errors import DATA, UserError
from utils.files import open_regular
from utils.metrics.coco import KEYS
from utils.wording import printable

OLD_NOTHING = -1  # in the metrics.json and results.csv of older runs, in place of null and an empty cell


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Data(_Part):
    fingerprint: str
    path: str
    num_pictures: int
    num_boxes: int


class _Environment(_Part):
    versions: dict[str, str] = {}
    commit: str | None = None
    hardware: str | None = None


class _Metrics(_Part):
    """What is used of it; older runs have less."""

    data: _Data | None = None
    training: str = ""
    environment: _Environment = _Environment()
    per_class: dict[str, dict[str, Any]] = {}


def read_metrics(folder: Path) -> dict:
    """metrics.json, with None where there was nothing to measure; a ``UserError`` where it is not ours."""
    path = folder / "metrics.json"
    try:
        with open_regular(path) as file:
            content = json.loads(file.read())
        _Metrics.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = printable(".".join(map(str, first["loc"])))[:80]
        raise _refusal(path, f"{key} {first['msg'].lower()}".strip()) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, str(getattr(error, "strerror", None) or error)[:80]) from error
    for part in (content, *content.get("per_class", {}).values()):
        part.update({key: None for key in KEYS if part.get(key) == OLD_NOTHING})
    return content


def read_curves(folder: Path) -> dict[str, list[float | None]]:
    """The columns of results.csv, of rows with an epoch; None where a cell is empty, no finite number, or an
    older run's -1.
    """
    path = folder / "results.csv"
    try:
        with open_regular(path) as file:
            header, *rows = [*csv.reader(file.read().decode().splitlines())] or [["epoch"]]
    except (OSError, ValueError, csv.Error) as error:
        raise _refusal(path, str(getattr(error, "strerror", None) or error)[:80]) from error
    if "epoch" not in header:
        raise _refusal(path, "it has no column epoch")
    numbers = [[_number(cell) for cell in row[: len(header)]] for row in rows]
    numbers = [row + [None] * (len(header) - len(row)) for row in numbers]
    numbers = [row for row in numbers if row[header.index("epoch")] is not None]
    curves = {name: [row[i] for row in numbers] for i, name in enumerate(header)}
    for name in (name for name in curves if name.startswith("metrics/")):
        curves[name] = [None if value == OLD_NOTHING else value for value in curves[name]]
    return curves


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _refusal(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is damaged, or was changed: {why}. Leave this run out, or bring back that file",
        DATA,
    )
