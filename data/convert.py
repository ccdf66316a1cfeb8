"""A data set written anew as YOLO, COCO or VOC: ``python -m data.convert --data X --to coco --out DIR``.

Boxes come back to 1e-6 px from every format; what a format cannot hold is counted and said. The new folder
appears whole or not at all, and nothing is ever written into the old one.
"""

from utils.command import begin_command

if __name__ == "__main__":
    begin_command()  # before the imports that take seconds

import argparse
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from data.conversion.parts import PICTURES, Part, check_files, check_place, plan_part
from data.conversion.writers import spell_out, write_coco, write_voc, write_yolo
from data.download import DATA_ROOT
from data.formats.labels import LabelReport, format_report
from data.formats.problems import Policy
from data.formats.readers import picture_ids_of
from data.formats.sources import SPLITS, DataSpec
from data.index import load_split
from data.prepare import prepare_data
from data.spec import load_data_spec
from utils.arguments import add_data_flags
from utils.errors import DATA, USAGE, NotFoundError, UserError, run_main

NEVER_KEPT = {  # of the source's format
    "yolo": "polygons (they are boxes now), keypoints",
    "coco": "segmentations, keypoints, licences, info",
    "voc": "pose, truncated, parts, segmented",
}


class Target(NamedTuple):
    """What is to be written, and how."""

    format: str
    out: Path  # resolved
    names: tuple[str, ...]  # as the format can hold them
    pictures: str  # "link", "copy" or "none"
    voc_offset: int


class Converted(NamedTuple):
    """What came of it."""

    out: Path
    reports: dict[str, LabelReport]  # split -> what reading it came to
    num_written: dict[str, int]  # split -> boxes
    notes: list[str]  # what was lost, one line each; then where the pictures are


def convert(
    spec: DataSpec,
    format: str,
    out: str | Path,
    *,
    splits: Sequence[str] = (),
    pictures: str = "link",
    voc_offset: int = 0,
    label_errors: Policy = "stop",
) -> Converted:
    """Write the ``splits`` of a data set (all that it has by default) to the new or empty folder ``out``.

    ``voc_offset`` is what readers of the new XML files subtract from xmin and ymin. Raises ``UserError`` for
    faulty labels, for an ``out`` in use or among the source's files, and for pictures whose label file would
    be the same.
    """
    target = Target(format, _check_out(out), _writable_names(spec.names, format), pictures, voc_offset)
    _check_options(target)
    parts, reports = [], {}
    for split in dict.fromkeys(splits or spec.splits):
        try:
            index, reports[split] = load_split(spec, split, label_errors=label_errors)
        except NotFoundError as error:
            others = " ".join(other for other in spec.splits if other != split)
            if splits or not others:
                raise
            raise UserError(f"{error}\nTo convert the others: --splits {others}", DATA) from error
        parts.append(plan_part(spec, split, index))
        check_place(spec, parts[-1], target.out)
        check_files(parts[-1], format, target.out)
    used = _publish(parts, spec.category_ids, target)
    num_written = {part.split: int(_written_boxes(part, format).sum()) for part in parts}
    notes = [*_list_losses(spec, parts, target), _say_pictures(used, parts)]
    return Converted(target.out, reports, num_written, notes)


def _check_options(target: Target) -> None:
    if target.voc_offset and target.format != "voc":
        raise UserError(
            f"--voc-offset {target.voc_offset} goes with --to voc, not --to {target.format}", USAGE
        )
    if target.pictures == "none" and target.format != "coco":
        text = f"--pictures none: {target.format} labels are found by the paths of their pictures"
        raise UserError(f"{text}, so both lie in one folder; choose link or copy, or --to coco", USAGE)


def _check_out(out: str | Path) -> Path:
    """The folder resolved, if it is new or empty."""
    path = Path(out).expanduser().resolve()
    if os.path.ismount(path):  # cannot be replaced
        raise UserError(f"--out {path}: another file system begins here; name a new folder inside it", USAGE)
    if os.path.lexists(path) and not (os.path.isdir(path) and not any(path.iterdir())):
        what = "a folder that is not empty" if os.path.isdir(path) else "not a folder"
        raise UserError(f"--out {path}: this is {what}; nothing is overwritten, so name a new folder", USAGE)
    return path


def _writable_names(names: Sequence[str], format: str) -> tuple[str, ...]:
    """Class names as a format can hold them: XML has no control characters, YAML no half surrogate pairs."""
    written = tuple(spell_out(name) if format == "voc" else _pair_surrogates(name) for name in names)
    twice = next((name for name in written if written.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"two classes would both be called {twice!r} in {format}: rename one of them first", DATA
        )
    return written


def _pair_surrogates(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _publish(parts: list[Part], category_ids: Sequence[int], target: Target) -> str:
    """Write beside ``out``, then move there; says what became of the pictures: "link", "copy" or "none"."""
    out, used = target.out, target.pictures
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
            new = Path(work) / "new"
            new.mkdir()
            for part in parts:
                if target.format == "yolo":
                    write_yolo(new, part)
                elif target.format == "voc":
                    write_voc(new, part, target.names, target.voc_offset)
                else:
                    write_coco(new, part, target.names, category_ids)
                used = _place_pictures(new, part, target, used)
            (new / "data.yaml").write_text(_format_yaml(parts, target), encoding="utf-8")
            if os.path.isdir(out):
                out.rmdir()  # empty, else it stays and this fails
            os.rename(new, out)
    except OSError as error:
        raise UserError(f"{out}: cannot write the data set: {error}; nothing is left of it", DATA) from error
    return used


def _place_pictures(new: Path, part: Part, target: Target, how: str) -> str:
    """Links, relative to the final place, or copies; says which.

    Copies once a link fails: the file system has none, or on Windows, the user may not or the drive differs.
    """
    folder = Path(PICTURES[target.format], part.split)
    for file in part.files if how != "none" else ():
        source, place = os.path.realpath(os.path.join(part.base, file)), new / folder / file
        place.parent.mkdir(parents=True, exist_ok=True)
        if how == "link":
            try:
                os.symlink(os.path.relpath(source, (target.out / folder / file).parent), place)
            except (OSError, ValueError):
                how = "copy"
        if how == "copy":
            shutil.copyfile(source, place)
    return how


def _format_yaml(parts: list[Part], target: Target) -> str:
    """data.yaml of the new data set; text is quoted, so that ``no`` and ``1e3`` stay names."""
    folder, lines = PICTURES[target.format], ["path: .", f"format: {target.format}"]
    if target.format == "coco":
        lines += [f"{part.split}: annotations/instances_{part.split}.json" for part in parts]
        places = [part.base if target.pictures == "none" else f"{folder}/{part.split}" for part in parts]
        lines += [
            "images:",
            *(f"  {part.split}: {_quote(place)}" for part, place in zip(parts, places, strict=True)),
        ]
    else:
        lines += [f"{part.split}: {folder}/{part.split}" for part in parts]
    lines += [f"voc_offset: {target.voc_offset}"] * (target.format == "voc")
    return "\n".join(
        [*lines, "names:", *(f"  {i}: {_quote(name)}" for i, name in enumerate(target.names)), ""]
    )


def _quote(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def _list_losses(spec: DataSpec, parts: list[Part], target: Target) -> list[str]:
    """What the new data set does not hold of the old one, a line each."""
    lines = [f"never converted, where the source has them: {NEVER_KEPT[spec.format]}"]
    if target.format != "coco":
        crowds = sum(int(part.index.ignore.sum()) for part in parts) if target.format == "yolo" else 0
        areas = sum(_count_mask_areas(part, target.format) for part in parts)
        gaps = sum(index != key for index, key in enumerate(spec.category_ids))
        ids = sum(_count_lost_ids(part) for part in parts)
        counts = [
            (crowds, "crowd or difficult boxes left out: YOLO labels have no mark for them"),
            (
                areas,
                f"areas of masks lost, which decide small, medium, large: {target.format} has the box's only",
            ),
            (gaps, f"category ids lost: {target.format} has class indices or names only"),
            (ids, f"picture ids lost: {target.format} has file names only"),
        ]
        lines += [f"{count} {text}" for count, text in counts if count]
    renamed = [(old, new) for old, new in zip(spec.names, target.names, strict=True) if old != new]
    return lines + [
        f"class {old!r} is called {new!r}: {target.format} cannot hold its name" for old, new in renamed
    ]


def _written_boxes(part: Part, format: str) -> np.ndarray:
    """(T,) bool."""
    return ~part.index.ignore | (format != "yolo")


def _count_lost_ids(part: Part) -> int:
    """Pictures whose id in the source is not the one that their new file name gives them."""
    lost = picture_ids_of(part.files) != part.index.picture_ids
    return int(lost.sum() if not len(part.index.source_ids) else (part.index.source_ids != b"null").sum())


def _count_mask_areas(part: Part, format: str) -> int:
    """Boxes that are written and whose area is not their own."""
    own = (part.index.boxes[:, 2:] - part.index.boxes[:, :2]).prod(axis=1)
    return int((~np.isclose(part.index.areas, own, rtol=1e-5) & _written_boxes(part, format)).sum())


def _say_pictures(used: str, parts: list[Part]) -> str:
    folder = os.path.commonpath([part.base for part in parts])
    return {
        "link": f"pictures: relative links into {folder}; --pictures copy makes a folder that stands alone",
        "copy": f"pictures: copied from {folder}",
        "none": f"pictures: data.yaml points to {folder}",
    }[used]


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data.convert", description="Write a data set in another format."
    )
    parser.add_argument("--data", required=True, help="data-set YAML, or its folder")
    parser.add_argument("--to", required=True, choices=tuple(PICTURES), help="format to write")
    parser.add_argument("--out", required=True, help="new or empty folder")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=(), help="default: all of the data set"
    )
    choices = "relative links, copies, or only their folder in data.yaml (coco); default %(default)s"
    parser.add_argument("--pictures", choices=("link", "copy", "none"), default="link", help=choices)
    parser.add_argument(
        "--voc-offset", type=int, choices=(0, 1), default=0, help="1: XML that counts pixels from 1"
    )
    add_data_flags(parser)
    args = vars(parser.parse_args(argv))
    data, root = args.pop("data"), args.pop("data_root") or DATA_ROOT
    prepare_data(data, root=root, download=args.pop("download"))
    spec = load_data_spec(data, root=root)
    args["label_errors"] = args["label_errors"] or "stop"
    done = convert(spec, args.pop("to"), args.pop("out"), **args)
    for split, report in done.reports.items():
        print(f"{split}: {format_report(report)}; {done.num_written[split]} boxes written")
    print("\n".join(done.notes))
    data_yaml = shlex.quote(str(done.out / "data.yaml"))
    trainable = {"train", "val"} <= done.reports.keys()
    command = (
        f"python train.py --data {data_yaml} --cfg n"
        if trainable
        else f"python -m data.check --data {data_yaml}"
    )
    print(f"written: {done.out}\nnext: {command}")


if __name__ == "__main__":
    run_main(main)
