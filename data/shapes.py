"""The generated data set of the demo and of the tests: drawn shapes on textured ground, JPEG + YOLO + COCO.

Coordinates are xy in pixels, pixel i covers [i, i + 1); boxes are xyxy. Classes differ by shape only: colour,
size, rotation, stretch and shading are random. A picture is a function of (seed, split, number, sides) alone.
Run ``python -m data.shapes``, or train on ``data/shapes.yaml``, which makes the data set on first use.
"""

from utils.command import begin_command

if __name__ == "__main__":
    begin_command()  # before the imports that take seconds

import argparse
import colorsys
import json
import math
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator, Philox

from utils.errors import DATA, USAGE, UserError, run_main
from utils.files import open_regular

CLASSES = ("circle", "triangle", "star", "ring", "cross", "crescent")
SPLITS = ("train", "val")
SHIPPED_YAML = Path(__file__).resolve().parent / "shapes.yaml"
SHIPPED_ROOT = SHIPPED_YAML.parent.parent / "datasets" / "shapes"
RECORD, MADE_BY = "shapes.json", "ltrb data.shapes"  # the recipe in a finished folder; proof that it is ours
VERSION = 1  # raise it when the pictures change
Pair = tuple[int, int]

ASPECTS = ((1, 1), (4, 3), (3, 4), (16, 9), (3, 2))  # width : height
MIN_VISIBLE = 0.4  # share of the full shape that is neither covered nor outside the picture
EMPTY, CROWDED = 0.05, 0.15  # share of the pictures
SIZES = ((0.05, 12, 20), (0.87, 20, 150), (0.08, 150, 480))  # share of the shapes, diameter px, log-uniform


class Shape(NamedTuple):
    """One placed shape, cut to the picture."""

    label: int
    box: np.ndarray  # (4,) xyxy px: the tight box of what lies inside the picture, covered by others or not
    where: tuple[slice, slice]  # rows and columns of the masks in the picture
    mask: np.ndarray  # (h, w) coverage of each pixel in [0, 1]
    outline: np.ndarray  # (h, w) share of each pixel painted as outline, at most ``mask``


def arc(radius: float, start: float, stop: float, *, shift: float = 0.0, points: int = 73) -> np.ndarray:
    """Points (N, 2) on an arc about (shift, 0), angles in radians."""
    angles = np.linspace(start, stop, points)
    return np.stack([shift + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def unit_contours(name: str, waist: float) -> list[np.ndarray]:
    """Contours (N, 2) in the unit circle, filled even-odd; ``waist`` in [0, 1]: how slender they are."""
    circle = arc(1, 0, math.tau)
    if name == "circle":
        return [circle]
    if name == "ring":
        return [circle, circle * (0.50 + 0.18 * waist)]
    if name == "triangle":
        return [np.array([[0, -1], [0.87, 0.5], [-0.87, 0.5]])]
    if name == "star":
        radii = np.where(np.arange(10) % 2, 0.38 + 0.10 * waist, 1.0)
        return [radii[:, None] * arc(1, 0, math.tau, points=11)[:10]]
    if name == "cross":
        arm, end = 0.22 + 0.12 * waist, 0.95
        x, y = np.array([[arm, arm, -arm], [arm, end, end]])  # one arm; then the same, turned by 90 degrees
        return [np.concatenate([np.stack(quarter, 1) for quarter in ((x, y), (-y, x), (-x, -y), (y, -x))])]
    bite, shift = 0.80 + 0.08 * waist, 0.5  # crescent: the unit circle less a circle about (shift, 0)
    x = (1 - bite**2 + shift**2) / (2 * shift)  # where both circles meet
    outer, inner = math.acos(x), math.acos((x - shift) / bite)
    back = arc(bite, math.tau - inner, inner, shift=shift)
    return [np.concatenate([arc(1, outer, math.tau - outer), back])]


def draw_contours(rng: Generator, label: int, size: float, picture: Pair) -> list[np.ndarray]:
    """Contours in px of a turned and stretched shape, whose centre keeps about 0.35 sizes from the border."""
    stretch, angle = math.exp(rng.uniform(-0.2, 0.2)), rng.uniform(0, math.tau)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = size / 2 * np.diag([stretch, 1 / stretch]) @ np.array([[cos, sin], [-sin, cos]])
    middle = np.array(picture[::-1]) / 2
    centre = middle + rng.uniform(-1, 1, 2) * np.maximum(middle - 0.35 * size, 0.1 * size)
    return [points @ matrix + centre for points in unit_contours(CLASSES[label], rng.uniform())]


def rasterise(contours: list[np.ndarray], label: int, line: float, occupied: np.ndarray) -> Shape | None:
    """Masks and box of a shape, or None where too little of it is inside the picture and uncovered.

    The shape is drawn ``fine`` times larger and averaged down, so a box side is exact to 1 / ``fine`` px.
    """
    low = np.floor(np.min([c.min(0) for c in contours], axis=0)).astype(int)
    high = np.ceil(np.max([c.max(0) for c in contours], axis=0)).astype(int)
    fine = 8 if max(high - low) < 64 else 4 if max(high - low) < 192 else 2
    width, height = (high - low) * fine
    subpixels = [np.rint(((c - low) * fine - 0.5) * 16).astype(np.int32) for c in contours]
    full = cv2.fillPoly(np.zeros((height, width), np.uint8), subpixels, 255, shift=4)
    edge = np.zeros_like(full)
    if line > 0:
        cv2.polylines(edge, subpixels, True, 255, thickness=max(1, round(2 * line * fine)), shift=4)
    (x1, y1), (x2, y2) = np.maximum(low, 0), np.minimum(high, occupied.shape[::-1])
    inside = np.s_[(y1 - low[1]) * fine : (y2 - low[1]) * fine, (x1 - low[0]) * fine : (x2 - low[0]) * fine]
    cut, where = full[inside], np.s_[y1:y2, x1:x2]
    pair = cv2.merge([cut, edge[inside] & cut])
    pair = cv2.resize(pair, (int(x2 - x1), int(y2 - y1)), interpolation=cv2.INTER_AREA)
    mask, outline = cv2.split(pair.astype(np.float32) / 255)
    visible = mask[~occupied[where]].sum() * fine**2 * 255
    if visible < MIN_VISIBLE * full.sum(dtype=np.float64):
        return None
    left, top, wide, tall = cv2.boundingRect(cut)
    box = np.array([left, top, left + wide, top + tall]) / fine + [x1, y1, x1, y1]
    return Shape(label, box, where, mask, outline)


def place_shapes(rng: Generator, height: int, width: int) -> list[Shape]:
    """The shapes of one picture, front to back: a shape that those before it would hide is never drawn."""
    kind = rng.uniform()
    crowded = kind > 1 - CROWDED
    count = 0 if kind < EMPTY else int(rng.integers(12, 21)) if crowded else int(rng.integers(1, 9))
    limit = 0.25 * max(height, width) if crowded else 1.05 * min(height, width)
    occupied, shapes = np.zeros((height, width), bool), []
    for _ in range(count):
        _, low, high = SIZES[rng.choice(len(SIZES), p=[share for share, _, _ in SIZES])]
        size = math.exp(rng.uniform(*np.log([min(low, limit), min(high, limit)])))
        label = int(rng.integers(len(CLASSES)))
        line = rng.uniform(0.03, 0.07) * size * (rng.uniform() < 0.5)  # half of the shapes have an outline
        for _ in range(6):
            shape = rasterise(draw_contours(rng, label, size, (height, width)), label, line, occupied)
            if shape is not None:
                occupied[shape.where] |= shape.mask > 0.5
                shapes.append(shape)
                break
    return shapes


def draw_colour(rng: Generator, saturation: tuple, value: tuple) -> np.ndarray:
    """A colour (3,) in [0, 255] of any hue; ``saturation`` and ``value`` are ranges in [0, 1]."""
    hsv = rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)
    return 255 * np.array(colorsys.hsv_to_rgb(*hsv), np.float32)


def ramp(rng: Generator, height: int, width: int) -> np.ndarray:
    """(h, w) px along a random direction, 0 at the centre."""
    angle = rng.uniform(0, math.tau)
    y, x = np.ogrid[:height, :width]
    return np.float32(math.cos(angle) * (x - width / 2)) + np.float32(math.sin(angle) * (y - height / 2))


def draw_background(rng: Generator, height: int, width: int) -> np.ndarray:
    """(h, w, 3) uint8: gradient, clouds at several scales, perhaps stripes, and lines that are no objects."""
    start, stop = (draw_colour(rng, (0.05, 0.5), (0.25, 0.9)) for _ in range(2))
    along = ramp(rng, height, width) / math.hypot(height, width) + 0.5
    light = np.zeros((height, width), np.float32)
    for cell, strength in ((80, 14), (24, 9), (8, 6)):
        grid = rng.standard_normal((height // cell + 3, width // cell + 3), np.float32)
        light += rng.uniform(0, strength) * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.uniform() < 0.35:
        waves = np.sin(ramp(rng, height, width) * (math.tau / rng.uniform(8, 60)))
        light += rng.uniform(6, 18) * np.clip(waves * rng.uniform(1, 4), -1, 1)
    canvas = cv2.merge([light + (a + (b - a) * along) for a, b in zip(start, stop, strict=True)])
    canvas = np.clip(canvas, 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(0, 9))):  # straight or curved (Bezier) lines
        a, b, c = rng.uniform(-0.1, 1.1, (3, 2)) * (width, height)
        t = np.linspace(0, 1, 2 if rng.uniform() < 0.5 else 16)[:, None]
        curve = np.rint(16 * ((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c)).astype(np.int32)
        colour = draw_colour(rng, (0.0, 0.9), (0.1, 1.0)).tolist()
        cv2.polylines(canvas, [curve], False, colour, int(rng.integers(1, 4)), cv2.LINE_AA, shift=4)
    return canvas


def paint(rng: Generator, canvas: np.ndarray, shape: Shape) -> None:
    """Draw one shape in place, shaded from one side, in a colour that stands out from what it covers."""
    patch = canvas[shape.where]
    behind = np.array(cv2.mean(patch, (shape.mask > 0).astype(np.uint8))[:3])
    colours = [draw_colour(rng, (0.3, 1.0), (0.2, 1.0)) for _ in range(3)]
    colour = max(colours, key=lambda colour: np.linalg.norm(colour - behind))
    rim = colour * 0.45 if colour.mean() > 90 else colour * 0.5 + 127
    shade = ramp(rng, *shape.mask.shape) * (rng.uniform(0, 60) / max(shape.mask.shape))
    outline, mask = shape.outline[..., None], shape.mask[..., None]
    fill = (mask - outline) * (colour + shade[..., None]).clip(0, 255) + outline * rim
    patch[:] = np.rint(patch * (1 - mask) + fill)


def draw_picture(seed: int, split: str, number: int, sides: Pair) -> tuple[np.ndarray, list[Shape]]:
    """Picture (h, w, 3) uint8 and its shapes, front to back; depends on the arguments only."""
    rng = Generator(Philox(key=np.array([seed, (SPLITS.index(split) << 48) + number], np.uint64)))
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    long_side = int(rng.integers(sides[0], sides[1] + 1))
    width, height = (long_side * side // max(aspect) for side in aspect)
    shapes, canvas = place_shapes(rng, height, width), draw_background(rng, height, width)
    for shape in reversed(shapes):
        paint(rng, canvas, shape)
    grain = rng.integers(-128, 128, (height, width), np.int8) * np.float32(rng.uniform(0, 14) / 128)
    return np.clip(canvas + grain[..., None], 0, 255).astype(np.uint8), shapes


def write_split(folder: Path, split: str, count: int, seed: int, sides: Pair) -> None:
    """Write ``count`` pictures of one split with YOLO labels and COCO annotations (``area``: of the box)."""
    pictures, labels, images, notes = folder / "images" / split, folder / "labels" / split, [], []
    for path in (pictures, labels, folder / "annotations"):
        path.mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        picture, shapes = draw_picture(seed, split, number, sides)
        height, width = picture.shape[:2]
        name, (_, encoded) = f"{number:06d}", cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        (pictures / f"{name}.jpg").write_bytes(encoded.tobytes())
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        rows = ""
        for shape in shapes:
            x, y, w, h = (shape.box - (0, 0, *shape.box[:2])).tolist()
            note = {"id": len(notes) + 1, "image_id": number, "category_id": shape.label + 1}
            notes.append(note | {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
            shares = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
            rows += f"{shape.label} " + " ".join(f"{share:.8f}" for share in shares) + "\n"
        (labels / f"{name}.txt").write_text(rows, encoding="utf-8")
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    coco = json.dumps({"images": images, "annotations": notes, "categories": categories})
    (folder / "annotations" / f"instances_{split}.json").write_text(coco, encoding="utf-8")


def read_recipe(folder: Path) -> dict | None:
    """The recipe a finished shapes folder was made by; None where the folder is missing or not ours."""
    try:
        with open_regular(folder / RECORD, most=2**16) as file:
            recipe = json.loads(file.read())
        return recipe if recipe["made_by"] == MADE_BY else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def publish(new: Path, root: Path, aside: Path) -> None:
    """Move the finished folder ``new`` to ``root``; one of ours by another recipe goes to ``aside``.

    Of two processes at one recipe the first one's folder stays. A foreign folder is never moved or replaced.
    """
    recipe = read_recipe(new)
    for attempt in range(100):  # other processes may move folders in between
        if (found := read_recipe(root)) == recipe:
            return
        with suppress(OSError):
            if found:
                os.replace(root, aside.with_name(f"old{attempt}"))
            return os.replace(new, root)
    os.replace(new, root)


def make_shapes(
    root: Path, *, num_train: int = 480, num_val: int = 120, seed: int = 0, sides: Pair = (240, 480)
) -> None:
    """Make the data set in ``root``; ``sides`` bounds the long side of the pictures, px.

    The folder appears whole or not at all. One made by the same recipe is left alone, one made by another is
    replaced, and a folder that we did not make is refused.
    """
    if min(num_train, num_val) < 1 or not 0 <= seed < 2**64 or not 32 <= sides[0] <= sides[1]:
        given = f"num_train={num_train}, num_val={num_val}, seed={seed}, sides={tuple(sides)}"
        raise UserError(f"shapes: {given}: counts start at 1, seeds at 0, sides at 32 (shorter first)", USAGE)
    root = Path(root).resolve()
    counts = {"num_train": num_train, "num_val": num_val}
    recipe = {"made_by": MADE_BY, "version": VERSION, **counts, "seed": seed, "sides": list(sides)}
    if (found := read_recipe(root)) == recipe:
        return
    if found is None and os.path.exists(root) and (not os.path.isdir(root) or any(root.iterdir())):
        raise UserError(f"{root}: not made by data.shapes: move it away or choose another --root", DATA)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as work:
            new = Path(work) / "new"
            for split, count in zip(SPLITS, counts.values(), strict=True):
                write_split(new, split, count, seed, sides)
            names = "".join(f"  {label}: {name}\n" for label, name in enumerate(CLASSES))
            (new / "data.yaml").write_text(
                f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8"
            )
            (new / RECORD).write_text(json.dumps(recipe) + "\n", encoding="utf-8")
            publish(new, root, Path(work) / "old")
    except OSError as error:
        raise UserError(f"{root}: cannot write the data set: {error}; try another --root", DATA) from error


def ensure_shapes(data_yaml: Path) -> None:
    """Make the demo's data set if ``data_yaml`` is the shipped one and this version has not made it yet."""
    made = (read_recipe(SHIPPED_ROOT) or {}).get("version") == VERSION
    if Path(data_yaml).resolve() == SHIPPED_YAML and not made:
        print(f"data/shapes.yaml: drawing 600 pictures into {SHIPPED_ROOT} (once, some seconds)", flush=True)
        make_shapes(SHIPPED_ROOT)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m data.shapes", description="Draw the shapes data set.")
    parser.add_argument("--root", type=Path, default=SHIPPED_ROOT, help="folder, default %(default)s")
    for flag, default in (("--num-train", 480), ("--num-val", 120), ("--seed", 0)):
        parser.add_argument(flag, type=int, default=default, help="default %(default)s")
    args = parser.parse_args(argv)
    make_shapes(**vars(args))
    data_yaml = "data/shapes.yaml" if args.root == SHIPPED_ROOT else args.root / "data.yaml"
    print(f"{args.num_train} training, {args.num_val} validation pictures, YOLO and COCO labels: {args.root}")
    print(f"next: python train.py --cfg demo --hyp demo --data {data_yaml}")


if __name__ == "__main__":
    run_main(main)
