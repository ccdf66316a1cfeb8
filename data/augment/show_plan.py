"""Augmented pictures with everything that was done to them drawn in: what ``train.py --show-plan`` writes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.augment.homography import jacobians
from data.augment.plan import Plan, Planner, Tile
from data.augment.render import render, render_boxes, tile_outline
from data.index import Index, path_of
from utils.files import replacing, write_whole
from utils.plots.draw import class_colour, draw_boxes, font_size, paint_tag

FIRST_COLOUR = 40  # of the palette, for the tiles: the first ones are those of the classes
WHITE = (255, 255, 255)
LINE_HEIGHT = 1.4  # of the text's


def show_plan(
    folder: Path,
    planner: Planner,
    index: Index,
    pictures: Callable[[int], np.ndarray],
    *,
    epoch: int,
    count: int,
    names,
) -> None:
    """Write the first ``count`` augmented pictures of an epoch into ``folder``, and plan.json beside them.

    On each picture: the outline of every tile and the boxes that are kept; below it a line for each tile, in
    the colour of its outline. ``pictures(i)``: (H, W, 3) uint8 RGB of ``planner.sizes[i]``; ``names``: of the
    classes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limits, plans = {key: getattr(planner.cfg, key) for key in ("min_visible", "min_side")}, []
    for position in range(count):
        plan, name = planner.plan(epoch, position, mosaic=True), f"position{position:03d}.jpg"
        boxes, labels, _ = render_boxes(plan, index, **limits)
        image = draw_boxes(render(plan, pictures), boxes, labels, names=names)
        title = f"epoch {epoch}, position {position}: {len(boxes)} boxes"
        with replacing(folder / name) as file:
            drawn = Image.fromarray(_annotate(image, plan, index, title))
            drawn.save(file, "JPEG", quality=95, subsampling=0)
        plans.append({"picture": name, "epoch": epoch, "position": position} | _plan_to_plain(plan, index))
    write_whole(folder / "plan.json", json.dumps(plans, indent=1) + "\n")


def describe_layer(plan: Plan) -> str:
    """Number of tiles and change of colours, in words."""
    # Grey keeps its hue and saturation, so its gain is the brightness's; the determinant has the other two.
    gain = float(plan.colour.sum(1).mean())
    saturation = (max(float(np.linalg.det(plan.colour)), 0) / gain**3) ** 0.5 if gain > 0 else 0
    return f"tiles: {len(plan.tiles)}, brightness {gain:.2f}, saturation {saturation:.2f}"


def describe_tile(tile: Tile, outline: np.ndarray) -> str:
    """How a tile is drawn, in words; one that is tilted, at the middle of its ``outline`` (V, 2)."""
    back = np.linalg.inv(tile.matrix) @ (*outline.mean(0), 1)
    (across, down) = jacobians(tile.matrix, back[None] / back[2])[0].T
    area = across[0] * down[1] - across[1] * down[0]
    words = [f"gain {abs(area) ** 0.5:.2f}"]
    if area < 0:
        words.append("mirrored left-right")
        across = -across
    turn = np.degrees(np.arctan2(across[1], across[0]))
    shear = np.degrees(
        np.arcsin(np.clip(across @ down / np.linalg.norm(across) / np.linalg.norm(down), -1, 1))
    )
    words += [f"turned {turn:+.1f}°"] if abs(turn) > 0.05 else []
    words += [f"sheared {shear:+.1f}°"] if abs(shear) > 0.05 else []
    words += ["tilted"] if tile.matrix[2, :2].any() else []
    return ", ".join(words)


def _annotate(image: np.ndarray, plan: Plan, index: Index, title: str) -> np.ndarray:
    """The picture with the tiles' outlines, above a legend with ``title``."""
    marks, (height, width) = _list_marks(plan, index, title), plan.size
    size = font_size(max(plan.size))
    line = round(size * LINE_HEIGHT)
    canvas = np.zeros((height + line * len(marks), width, 3), np.uint8)
    canvas[:height] = image
    sheet = Image.fromarray(canvas)
    pen = ImageDraw.Draw(sheet)
    for number, (colour, text, outline) in enumerate(marks):
        corners = [tuple(point) for point in outline.clip(0, (width - 1, height - 1)).tolist()]
        if corners:
            pen.line([*corners, corners[0]], fill=colour, width=max(2, size // 6))
        paint_tag(pen, text, (0, height + (number + 1) * line), colour, size=size)
    return np.array(sheet)


def _list_marks(plan: Plan, index: Index, title: str) -> list[tuple[tuple, str, np.ndarray]]:
    """The lines of the legend: colour, text, and the outline (V, 2) that belongs to it, if any."""
    none, marks, number = np.zeros((0, 2)), [], FIRST_COLOUR
    layers = [(title, plan)]
    if plan.mixed:
        layers.append((f"mixed in, {1 - plan.weight:.0%}", plan.mixed))
    for name, layer in layers:
        marks.append((WHITE, f"{name}, {describe_layer(layer)}", none))
        for tile in layer.tiles:
            outline = tile_outline(tile, plan.size)
            text = f"{path_of(index, tile.source).name}: {describe_tile(tile, outline)}"
            marks.append((class_colour(number), text, outline))
            number += 1
    return marks


def _plan_to_plain(plan: Plan, index: Index) -> dict:
    """The plan as JSON can hold it."""
    tiles = [
        {
            "source": tile.source,
            "path": str(path_of(index, tile.source)),
            "crop": tile.crop,
            "matrix": tile.matrix.tolist(),
        }
        for tile in plan.tiles
    ]
    plain = {"size": plan.size, "tiles": tiles, "colour": plan.colour.tolist(), "weight": plan.weight}
    return plain | {"mixed": _plan_to_plain(plan.mixed, index) if plan.mixed else None}
