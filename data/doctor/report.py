"""A ``Diagnosis`` for people, as tables, and for programs, as plain values for JSON."""

import itertools
import shlex
from collections.abc import Sequence

from data.doctor.balance import SIDES
from data.doctor.bins import find_remedies, share
from data.doctor.brightness import show_brightness
from data.doctor.diagnosis import Diagnosis
from data.doctor.findings import SEVERITIES, show_finding
from data.formats.sources import show_names
from utils.config import config_to_plain
from utils.errors import DATA, OK
from utils.wording import printable, show_class

SCHEMA = 1  # of the JSON; goes up when a field changes its meaning or goes
MOST_CLASSES = 100  # rows in the table; --json has them all


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Tables, findings, verdict and next step."""
    parts = [_head(diagnosis), _split_table(diagnosis), _class_table(diagnosis), _bin_table(diagnosis)]
    parts.append("\n".join(map(show_finding, diagnosis.findings)) or "nothing to complain about")
    return "\n\n".join([*filter(None, parts), verdict(diagnosis)])


def verdict(diagnosis: Diagnosis) -> str:
    """How it stands, and what to do next."""
    counts = [
        f"{number} {severity}{'s' if number != 1 else ''}"
        for severity in SEVERITIES
        if (number := sum(finding.severity == severity for finding in diagnosis.findings))
    ]
    summary = ", ".join(counts) or "no faults"
    yaml = printable(shlex.quote(str(diagnosis.spec.yaml)))
    if diagnosis.trainable:
        policy = diagnosis.config.data.label_errors  # a later training has to judge as this check did
        flag = "" if policy == "stop" else f" --label-errors {policy}"
        return f"{summary}: ready to train\nnext: python train.py --data {yaml} --cfg n{flag}"
    return f"{summary}: NOT ready to train\nnext: mend the errors, then run the same command again"


def to_plain(diagnosis: Diagnosis) -> dict:
    """The same facts as plain values. Keys are only ever added within a ``SCHEMA``.

    ``splits``: counts of pictures and boxes (LabelReport), and of shorter sides at the input. ``classes``: id
    in the source, index, name, boxes by split. ``bins``: of the training boxes, null without any.
    ``findings``: errors first; severity error, warning or note; a ``code`` that does not change; all places,
    line 0 for a whole file.
    """
    spec, config = diagnosis.spec, diagnosis.config
    return {
        "schema": SCHEMA,
        "data": str(spec.yaml),
        "format": spec.format,
        "shape": list(diagnosis.shape),
        "reg_max": config.model.reg_max,
        "levels": list(config.model.levels),
        "pixel_range": config_to_plain(config)["data"]["pixel_range"],
        "label_errors": config.data.label_errors,
        "trainable": diagnosis.trainable,
        "exit_code": OK if diagnosis.trainable else DATA,
        "splits": {
            split: {
                **{name.removeprefix("num_"): value for name, value in report._asdict().items()},
                "decoded": diagnosis.decoded[split],
                "brightness": diagnosis.brightness[split]._asdict(),
                "shorter_sides": dict(zip(_side_names(), diagnosis.sides[split].tolist(), strict=True)),
            }
            for split, report in diagnosis.reports.items()
        },
        "classes": [
            {
                "id": spec.category_ids[index],
                "index": index,
                "name": name,
                "boxes": {split: int(counts[index]) for split, counts in diagnosis.classes.items()},
            }
            for index, name in enumerate(spec.names)
        ],
        "bins": _plain_bins(diagnosis),
        "findings": [
            finding._asdict()
            | {"places": [{"path": p.path, "line": p.line, "text": p.text} for p in finding.places]}
            for finding in diagnosis.findings
        ],
    }


def _plain_bins(diagnosis: Diagnosis) -> dict | None:
    audit = diagnosis.bins
    if audit is None:
        return None
    levels = zip(audit.levels, audit.finest, audit.able, strict=True)
    return {
        "boxes": audit.num_boxes,
        "inexpressible": audit.none,
        "levels": [{"level": level, "finest_for": finest, "able": able} for level, finest, able in levels],
        "least_reg_max": audit.least,
        "least_reg_max_999": audit.least_nearly,
        "remedies": [remedy._asdict() for remedy in find_remedies(audit)],
    }


def _head(diagnosis: Diagnosis) -> str:
    spec, model = diagnosis.spec, diagnosis.config.model
    strides = " ".join(str(2**level) for level in model.levels)
    height, width = diagnosis.shape
    looks = [show_brightness(split, found) for split, found in diagnosis.brightness.items()]
    left_out = f" (left out, as no box has it: {show_names(spec.left_out)})" if spec.left_out else ""
    return (
        f"data set: {printable(spec.yaml)}\n"
        f"format:   {spec.format}, {len(spec.names)} classes{left_out}\n"
        f"input:    {height}x{width} px, strides {strides}, reg_max {model.reg_max}\n"
        + "\n".join([diagnosis.pixels, *looks])
    )


def _split_table(diagnosis: Diagnosis) -> str:
    if not diagnosis.reports:
        return ""
    rows = [["split", "pictures", "background", "boxes", "ignored", *_side_names()]]
    for split, report in diagnosis.reports.items():
        counts = diagnosis.sides[split]
        shares = [share(count, counts.sum()) if count else "-" for count in counts.tolist()]
        numbers = report.num_pictures, report.num_background, report.num_boxes, report.num_ignored
        rows.append([split, *map(str, numbers), *shares])
    title = f"{'':46}boxes by their shorter side at the input"
    return "\n".join([title, *_align(rows)])


def _class_table(diagnosis: Diagnosis) -> str:
    spec = diagnosis.spec
    if not diagnosis.classes:
        return ""
    rows = [["name", "id", "index", *diagnosis.classes]]
    for index, name in enumerate(spec.names[:MOST_CLASSES]):
        counts = [str(counts[index]) if counts[index] else "-" for counts in diagnosis.classes.values()]
        rows.append([show_class(name), printable(spec.category_ids[index]), str(index), *counts])
    more = len(spec.names) - MOST_CLASSES
    return "\n".join(
        ["boxes by class", *_align(rows), *([f"... and {more} more (--json)"] if more > 0 else [])]
    )


def _bin_table(diagnosis: Diagnosis) -> str:
    audit = diagnosis.bins
    if audit is None or not audit.num_boxes:
        return ""
    rows = [["level", "stride", "reach px", "can express", "finest that can"]]
    for level, able, finest in zip(audit.levels, audit.able, audit.finest, strict=True):
        shares = share(able, audit.num_boxes), share(finest, audit.num_boxes)
        rows.append([str(level), str(2**level), str(audit.reg_max * 2**level), *shares])
    rows.append(["none", "", "", "", share(audit.none, audit.num_boxes)])
    title = "training boxes by the levels whose bins can express them (reach: longest way to a side)"
    return "\n".join([title, *_align(rows)])


def _side_names() -> list[str]:
    low = [f"<{SIDES[0]} px"]
    return low + [f"{a}-{b}" for a, b in itertools.pairwise(SIDES)] + [f">={SIDES[-1]}"]


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(max(width, 8)) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines
