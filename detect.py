"""Find objects in pictures: ``python detect.py --weights runs/train/exp/weights/best.pt --source DIR``."""

from utils.command import begin_command

if __name__ == "__main__":
    begin_command()  # before the imports that take seconds

import argparse
import itertools
import os
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from data.doctor.unread import OTHER_PICTURES
from data.formats.globbing import MOST_LOOKS, find_matching
from data.formats.listing import SUFFIXES, has_no_ending, read_list, walk_pictures
from data.images import VIDEOS, decode_image, is_deep
from data.letterbox import rounding_note
from data.pixels import is_featureless
from inference import LoadedDetector, load_detector
from models.memory import check_use_memory
from utils.arguments import detect_parser
from utils.class_folders import name_folders
from utils.errors import DATA, OK, UserError, run_main
from utils.files import fit_name, longest_name, write_whole
from utils.plots.draw import draw_boxes
from utils.settings import DETECT_SETTINGS, resolve_use
from utils.structures import Detections
from utils.training.device import free_memory
from utils.training.run_folder import make_run_folder, results_into
from utils.wording import printable, show_class


def main() -> int:
    """Command line."""
    args = detect_parser().parse_args()
    detector = load_detector(args.weights, args.device)
    detector.config = resolve_use(args, detector.config, DETECT_SETTINGS)
    check_classes(args.classes, detector.names)
    check_use_memory(detector.model, detector.config, detector.shape, pictures=1, free=free_memory)
    pictures = find_pictures(args.source)
    folder = make_run_folder(args.project, args.name, exist_ok=args.exist_ok)
    if note := rounding_note(detector.config.data.imgsz, detector.stride):
        print(note)
    if args.show_sigma and not detector.config.model.reg_max:
        print("--show-sigma shows nothing: these weights have plain sides, without a distribution")
    results, unreadable, full, lost = ResultFolder(folder, detector.names, args), 0, 0, []
    limit = detector.config.val.max_det
    for path in pictures:
        try:
            found, picture = look_at(path, detector, args)
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)
            unreadable += 1
            continue
        print(f"{printable(path)}: {summarise(found, detector.names)}{at_limit(found, limit)}")
        full += len(found.labels) >= limit
        if is_deep(path):  # of 8 bits nothing is mapped, so nothing is lost
            whole = decode_image(path, pixels=detector.pixels) if picture is None else picture
            lost += [path] * is_featureless(whole)
        with results_into(folder):
            results.write(path, picture, found)
    if full:
        print(f"{full} pictures have {limit} boxes, the limit, and perhaps more objects: raise --max-det")
    if lost:
        print(warn_of_range(lost, detector))
    print(f"{len(pictures) - unreadable} pictures done, {unreadable} skipped; results: {folder}")
    return DATA if unreadable else OK


def warn_of_range(lost: list[Path], detector: LoadedDetector) -> str:
    """Of pictures that are black or white in the range that the weights were trained with."""
    span = detector.pixels.range
    why = (
        f"these weights take the values {span[0]:.10g}..{span[1]:.10g}, as in their training"
        if span
        else "of values deeper than 8 bits the high byte is taken, as these weights saw none in training"
    )
    return (
        f"warning: {len(lost)} pictures are nearly black or white, such as {printable(lost[0])}: {why}. "
        "--set data.pixel_range=[low,high] says which values are black and white"
    )


def find_pictures(source: str) -> list[Path]:
    """The pictures of a ``--source``: a picture, a folder (searched to any depth), a glob, or a list file.

    Paths in a list are absolute, or relative to the file's folder.
    """
    path = Path(source).expanduser()
    if os.path.isdir(path) or (path.suffix.lower() == ".txt" and os.path.isfile(path)):
        found = _listed_pictures(path)
    elif os.path.isfile(path):
        found = [path]
    else:
        found = list(map(Path, find_matching(str(path))))
    if not found:
        raise UserError(
            f"--source {source}: no pictures there (working directory {Path.cwd()}). "
            f"Give a picture, a folder, a glob in quotes, or a .txt list; endings: {' '.join(SUFFIXES)}",
            DATA,
        )
    return found


def _listed_pictures(path: Path) -> list[Path]:
    """The pictures of a folder, sorted, or of a list file, in its order."""
    try:
        if os.path.isdir(path):
            endings = SUFFIXES + OTHER_PICTURES + VIDEOS
            found = list(walk_pictures(path, endings, most_idle=MOST_LOOKS, nameless=True))
            if left := describe_left_out(found):
                print(left)
            return sorted(Path(name) for name in found if name.lower().endswith(SUFFIXES))
        return list(map(Path, read_list(path, path.parent)))
    except UserError as error:
        raise UserError(f"--source {error}", error.code) from error


def describe_left_out(paths: list[str]) -> str:
    """Lines that count the pictures of formats that are not read, videos, and pictures without an ending."""
    kinds: dict[str, list[str]] = {"picture": [], "video": [], "bare": []}
    for path in paths:
        ending = os.path.splitext(path)[1]
        if has_no_ending(path):
            kinds["bare"].append("without an ending")
        elif ending.lower() not in SUFFIXES:
            kinds["video" if ending.lower() in VIDEOS else "picture"].append(printable(ending))
    advice = {
        "picture": "formats that are not read; convert them to PNG or JPEG",
        "video": "videos are not read yet; take pictures out of them",
        "bare": "name them .png, .jpg, ...",
    }
    lines = []
    for kind, endings in kinds.items():
        counts = sorted(Counter(endings).items())
        shown = ", ".join(f"{count} {ending}" for ending, count in counts)
        lines += [f"left out: {shown}: {advice[kind]}"] if counts else []
    return "\n".join(lines)


def check_classes(classes: list[int] | None, names: tuple[str, ...]) -> None:
    """Every number of ``--classes`` must be a class of the weights."""
    wrong = [number for number in classes or [] if not 0 <= number < len(names)]
    if wrong:
        known = ", ".join(f"{number} {show_class(name)}" for number, name in enumerate(names[:100]))
        more = f" and {len(names) - 100:,} more" if len(names) > 100 else ""
        shown = " ".join(map(str, wrong))[:80]
        raise UserError(f"--classes {shown}: the weights know only {known}{more}")


def summarise(found: Detections, names: tuple[str, ...]) -> str:
    """Size of the picture and how many of each class: ``480x640 3 cat, 1 dog``."""
    counts = np.bincount(found.labels.numpy(), minlength=len(names))
    parts = [f"{count} {show_class(names[label])}" for label, count in enumerate(counts) if count]
    return f"{found.size[0]}x{found.size[1]} {', '.join(parts) or 'nothing found'}"


def at_limit(found: Detections, limit: int) -> str:
    """Said of a picture with as many boxes as ``--max-det`` allows: what it holds beyond them is cut."""
    return f" ({limit} boxes, the limit: --max-det)" if len(found.labels) >= limit else ""


def look_at(
    path: Path, detector: LoadedDetector, args: argparse.Namespace
) -> tuple[Detections, np.ndarray | None]:
    """What is found in a picture, and its whole pixels if results are cut or drawn from them.

    One decode, unless the detector takes a reduced one.
    """
    picture = None
    if not args.nosave or args.save_crop:
        picture = decode_image(path, pixels=detector.pixels)
    whole = picture is not None and detector.plan(picture.shape[:2]).reduction == 1
    found = detector(picture if whole else path, classes=args.classes, agnostic=args.agnostic_nms)
    return found, picture


class ResultFolder:
    """Writes the results of one run; a file name used twice (two folders, one picture name) gets a number."""

    def __init__(self, folder: Path, names: tuple[str, ...], args: argparse.Namespace):
        self.folder, self.names, self.args = folder, names, args
        self._crops = name_folders(names)
        self._written: set[Path] = set()
        self._longest = longest_name(folder)

    def write(self, path: Path, picture: np.ndarray | None, found: Detections) -> None:
        """The picture with its boxes, its label file and its crops, as asked for."""
        args = self.args
        if not args.nosave:
            drawn = draw_boxes(
                picture,
                found.boxes,
                found.labels,
                names=self.names,
                scores=found.scores,
                sigma=found.sigma if args.show_sigma else None,
                line_thickness=args.line_thickness,
                hide_labels=args.hide_labels,
                hide_conf=args.hide_conf,
            )
            known = cv2.haveImageWriter(f"x{printable(path.suffix)}")
            write_picture(self._unused(path.name if known else f"{path.stem}.jpg"), drawn)
        if args.save_txt:
            write_labels(self._unused(f"labels/{path.stem}.txt"), found, scores=args.save_conf)
        if args.save_crop:
            for (x1, y1, x2, y2), label in zip(pixel_boxes(found), found.labels.tolist(), strict=True):
                name = self._unused(f"crops/{self._crops[self.names[label]]}/{path.stem}.jpg")
                write_picture(name, picture[y1:y2, x1:x2])

    def _unused(self, name: str) -> Path:
        path = self.folder / name
        candidate = path.with_name(fit_name(path.name, self._longest))
        for number in itertools.count(2):
            if candidate not in self._written:
                break
            candidate = path.with_name(fit_name(f"{path.stem}_{number}{path.suffix}", self._longest))
        self._written.add(candidate)
        return candidate


def pixel_boxes(found: Detections) -> np.ndarray:
    """(N, 4) the whole pixels that the boxes touch, at least one, inside the picture."""
    height, width = found.size
    boxes = found.boxes.numpy()
    low = np.floor(boxes[:, :2]).clip(0, (width - 1, height - 1))
    return np.concatenate((low, np.maximum(np.ceil(boxes[:, 2:]), low + 1)), 1).astype(int)


def write_labels(path: Path, found: Detections, *, scores: bool) -> None:
    """YOLO rows ``class cx cy w h [score]``, fractions of the picture; an empty file if nothing was found."""
    height, width = found.size
    x1, y1, x2, y2 = found.boxes.double().numpy().T
    columns = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    columns += [found.scores.double().numpy()] if scores else []
    rows = zip(found.labels.tolist(), *columns, strict=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{label} {' '.join(f'{value:.6f}' for value in row)}\n" for label, *row in rows)
    write_whole(path, text)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) RGB in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2BGR))
    if not done:
        raise UserError(f"{path}: this picture of shape {picture.shape} cannot be encoded as {path.suffix}")
    write_whole(path, data.tobytes())


if __name__ == "__main__":
    run_main(main)
