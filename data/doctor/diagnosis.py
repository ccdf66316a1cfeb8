"""All checks of a data set put together: readers, pictures, labels, classes, sizes, bins, copies."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.doctor.balance import check_classes, check_measurable, check_sides, count_classes, count_sides
from data.doctor.bins import BinAudit, audit_bins, find_remedies, share
from data.doctor.brightness import Brightness, check_ends, check_looks, check_range, measure_brightness
from data.doctor.crowding import check_crowding
from data.doctor.findings import Finding, gather_problems, sort_findings
from data.doctor.hints import find_hints
from data.doctor.inspect_pictures import MANY_PICTURES, Inspection, broken_of, inspect_pictures, key_of
from data.doctor.near_duplicates import find_duplicates, find_repeats, find_shared
from data.doctor.unread import find_unread
from data.formats.labels import LabelReport
from data.formats.problems import MISSING_PICTURE, Policy, Problem
from data.formats.sources import SPLITS, DataSpec
from data.index import Found, path_of, paths_of, read_split, report_of
from data.letterbox import input_shape
from data.pixels import pixels_of
from utils.config import Config
from utils.errors import NotFoundError, UserError

NEEDED = ("train", "val")  # by train.py
RENUMBERED = "pictures numbered anew, from 1 by path, as several files of the split use the same ids"
UNPLACED = "boxes of pictures that are listed wrongly (left out)"
MISSING = "pictures without a label file (they count as background, without objects)"
UNREADABLE = "cannot read this picture: "
FEW_BINLESS = 0.001  # share of inexpressible boxes that is only noted


class Diagnosis(NamedTuple):
    """What is known of a data set, and what is wrong with it."""

    spec: DataSpec
    config: Config  # with the range of the pixels in place of auto
    pixels: str  # how values become 0..255, in words
    brightness: dict[str, Brightness]  # by split
    shape: tuple[int, int]  # height, width of the input
    reports: dict[str, LabelReport]  # by split
    decoded: dict[str, int]  # pictures that were decoded, now or earlier
    classes: dict[str, np.ndarray]  # (C,) boxes of each class
    sides: dict[str, np.ndarray]  # boxes by shorter side, data.doctor.balance.SIDES
    bins: BinAudit | None  # of the training boxes; None for plain sides
    findings: list[Finding]  # errors first

    @property
    def trainable(self) -> bool:
        """Whether nothing stands against training."""
        return all(finding.severity != "error" for finding in self.findings)


def diagnose(
    spec: DataSpec,
    config: Config,
    *,
    splits: Sequence[str],
    optional: Sequence[str] = (),
    full: bool = False,
) -> Diagnosis:
    """Check ``splits``; pictures are decoded unless there are more than 10,000 and ``full`` is False.

    Of ``optional`` splits it is only noted where their pictures, or all of their labels, are not there.
    """
    founds, findings = _read_splits(spec, config, splits, optional)
    measured = config.data.pixel_range == "auto"
    config, pixels, more = check_range(spec, config, founds)
    findings += more
    findings += [Finding("note", "categories", "", 0, note) for note in spec.notes]
    shape = input_shape(config.data.imgsz, 2 ** max(config.model.levels))
    decode = full or sum(len(found.index.sizes) for found in founds.values()) <= MANY_PICTURES
    looks = {
        split: inspect_pictures(
            paths_of(found.index), key_of(spec, split), decode=decode, pixels=pixels_of(config.data)
        )
        for split, found in founds.items()
    }
    reports = {
        split: report_of(found, config.data.label_errors, broken_of(paths_of(found.index), looks[split]))
        for split, found in founds.items()
    }
    brightness = {split: measure_brightness(look) for split, look in looks.items()}
    findings += find_hints(spec, founds)  # causes before what follows from them
    findings += find_unread(spec, founds)
    for split, found in founds.items():
        findings += _check_problems(found, looks[split], split, config.data.label_errors)
        findings += _check_report(found.report, split)
        findings += check_crowding(found.index, split, config, shape)
        findings += check_measurable(reports[split], split)
        findings += check_looks(looks[split], paths_of(found.index), split, config.data.bands)
        findings += check_ends(brightness[split], config, split, findings, measured=measured)
    classes = count_classes(founds, len(spec.names))
    findings += check_classes(classes, spec.names)
    sides = {split: count_sides(found, shape) for split, found in founds.items()}
    for split, counts in sides.items():
        findings += check_sides(counts, split, shape)
    bins = _audit(founds, config)
    findings += [*_check_bins(bins), *_check_copies(founds, looks), *_check_decoded(looks)]
    return Diagnosis(
        spec,
        config,
        pixels,
        brightness,
        shape,
        reports=reports,
        decoded={split: int(look.known.sum()) for split, look in looks.items()},
        classes=classes,
        sides=sides,
        bins=bins,
        findings=sort_findings(findings),
    )


def _check_decoded(looks: Mapping[str, Inspection]) -> list[Finding]:
    if all(look.known.all() for look in looks.values()):
        return []
    text = f"more than {MANY_PICTURES:,} pictures: only their headers were read, copies were not looked for"
    return [Finding("note", "headers-only", "", 0, text, "--full decodes them all")]


def _read_splits(
    spec: DataSpec, config: Config, splits: Sequence[str], optional: Sequence[str]
) -> tuple[dict[str, Found], list[Finding]]:
    founds, findings = {}, []
    for split in splits:
        try:
            founds[split] = read_split(
                spec, split, single_cls=config.data.single_cls, label_errors=config.data.label_errors
            )
        except NotFoundError as error:
            findings.append(_tell_absent(split, error, needed=split not in optional))
            continue
        except UserError as error:
            findings.append(Finding("error", "split", split, 0, str(error)))
            continue
        missing = sum(problem.kind == MISSING_PICTURE for problem in founds[split].problems)
        if missing == len(founds[split].index.sizes) and split in optional:
            error = NotFoundError(f"none of its {missing} pictures is there")
            findings.append(_tell_absent(split, error, needed=False))
            del founds[split]
    return founds, findings


def _tell_absent(split: str, error: NotFoundError, *, needed: bool) -> Finding:
    """Of a split whose pictures or labels are not there: training needs ``train`` and ``val`` alone."""
    if needed:
        return Finding("error", "split", split, 0, str(error))
    text = f"nothing to measure in this split; training does not need it. {error}"
    remedy = f"before val.py --task {split}: put there what is missing; detect.py needs no labels"
    return Finding("note", "split-absent", split, 0, text, remedy)


def missing_splits(spec: DataSpec) -> list[str]:
    """Splits that training needs and the YAML does not name."""
    return [split for split in NEEDED if split not in spec.splits]


def _check_problems(found: Found, look: Inspection, split: str, policy: Policy) -> list[Finding]:
    """Problems of the reader, and pictures whose header is fine, but not what follows."""
    readable = (found.index.sizes > 0).all(1)
    numbers = [number for number, fault in enumerate(look.faults) if fault and readable[number]]
    broken = [
        Problem(str(path_of(found.index, i)), 0, UNREADABLE + look.faults[i], "picture") for i in numbers
    ]
    return gather_problems([*broken, *found.problems], split, policy)


def _check_report(report: LabelReport, split: str) -> list[Finding]:
    """What the reader mended, dropped or missed."""
    many = report.num_missing > report.num_pictures / 2
    four = report.num_four_points == report.num_polygons
    what = "4 points, polygons or rotated boxes" if four else "polygons"
    rows = [
        ("warning" if many else "note", "no-label-file", report.num_missing, MISSING),
        ("warning", "empty", report.num_empty, "boxes of no width or no height (dropped)"),
        ("warning", "duplicate-box", report.num_duplicate, "boxes that stand there twice (copies dropped)"),
        ("note", "ids-shared", report.num_renumbered, RENUMBERED),
        ("warning", "unplaced", report.num_unplaced, UNPLACED),
        ("note", "clipped", report.num_clipped, "boxes that reach beyond their picture (cut at its edge)"),
        ("note", "polygons", report.num_polygons, f"label rows of {what}, read as their upright bounds"),
        ("note", "keypoints", report.num_keypoint_rows, "label rows whose keypoints are left out"),
    ]
    rows = [row for row in rows if row[2]]
    return [Finding(severity, code, split, count, f"{text}: {count}") for severity, code, count, text in rows]


def _audit(founds: Mapping[str, Found], config: Config) -> BinAudit | None:
    if "train" not in founds or not config.model.reg_max:  # plain sides have no bins
        return None
    index = founds["train"].index
    return audit_bins(index, config.data.imgsz, levels=config.model.levels, reg_max=config.model.reg_max)


def _check_bins(audit: BinAudit | None) -> list[Finding]:
    if audit is None or not audit.none:
        return []
    severity = "warning" if audit.none > FEW_BINLESS * audit.num_boxes else "note"
    part = f"{audit.none} ({share(audit.none, audit.num_boxes)})"
    text = f"boxes that the bins of no level can express (they would come out cropped): {part}"
    remedies = [f"--set {remedy.setting} {remedy.effect}" for remedy in find_remedies(audit)]
    remedy = "; or ".join(remedies) or "train at a smaller --imgsz"
    return [Finding(severity, "bins", "train", audit.none, text, remedy)]


def _check_copies(founds: Mapping[str, Found], looks: Mapping[str, Inspection]) -> list[Finding]:
    """Pictures that stand in two splits, or twice in one."""
    splits = [split for split in SPLITS if split in founds]
    if not splits:
        return []
    usable = {split: looks[split].known & (np.array(looks[split].faults) == "") for split in splits}
    found = find_duplicates(
        np.concatenate([looks[split].thumbnails[usable[split]] for split in splits]),
        np.concatenate([looks[split].digests[usable[split]] for split in splits]),
    )
    paths = [
        path for split in splits for path in itertools.compress(paths_of(founds[split].index), usable[split])
    ]
    ends = np.cumsum([0, *(usable[split].sum() for split in splits)])
    members = {split: np.arange(*ends[place : place + 2]) for place, split in enumerate(splits)}
    findings = []
    for later, split in enumerate(splits):
        for earlier in splits[:later]:
            rows = find_shared(found, members[split], members[earlier])
            findings += _name_copies(rows, paths, split, earlier)
        findings += _name_copies(find_repeats(found, members[split]), paths, split, split)
    if found.num_flat:
        text = f"nearly uniform pictures (only equal files of these count as copies): {found.num_flat}"
        findings.append(Finding("note", "flat", "", found.num_flat, text))
    if not found.complete:
        text = "so many pictures look alike that not all of them were compared"
        findings.append(Finding("note", "copies-incomplete", "", 0, text))
    return findings


def _name_copies(rows: np.ndarray, paths: list[str], split: str, other: str) -> list[Finding]:
    """At most one finding, equal files first. ``rows``: our picture, theirs, 1 if the bytes are equal."""
    if not len(rows):
        return []
    rows = rows[np.argsort(-rows[:, 2], kind="stable")].tolist()
    how = ("looks like", "same bytes as")
    places = [
        Problem(
            paths[ours],
            0,
            "the same file" if paths[ours] == paths[theirs] else f"{how[equal]} {paths[theirs]}",
            "copy",
        )
        for ours, theirs, equal in rows
    ]
    if split == other:
        severity, code, text = "note", "copy", "pictures that repeat another one of the split"
        remedy = "keep one of each"
    else:
        severity, code, text = "warning", "leak", f"pictures that are in {other} as well"
        remedy = "keep each in one split: what was trained on flatters the result"
    return [Finding(severity, code, split, len(rows), f"{text}: {len(rows)}", remedy, tuple(places))]
