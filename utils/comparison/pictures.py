"""The pictures on which two losses differ most, side by side. Pictures RGB uint8 (H, W, 3), boxes px."""

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw

from utils.comparison.report import ComparedPicture
from utils.plots.draw import draw_boxes

LONGEST_SIDE = 640  # px; boxes are drawn at this size, so that lines and names stay legible
QUALITY = 85  # of the JPEG


def draw_differences(
    content: dict, rows: Mapping[str, np.ndarray], truth: dict, *, conf: float, open_picture: Callable
) -> list[ComparedPicture]:
    """The content's "pictures", each with the detections of the baseline and of its loss above ``conf``.

    ``rows``: (D, 7) detections by loss, of the first seed (``pack_detections``); ``open_picture`` takes a
    picture's id. Truths are thin black lines with a white rim, below the detections.
    """
    found, base, seed = [], content["baseline"], content["seeds"][0]
    for entry in content["pictures"]:
        number, pixels = entry["picture_id"], open_picture(entry["picture_id"])
        sides = []
        for name in (base, entry["loss"]):
            own = rows[name][(rows[name][:, 0] == number) & (rows[name][:, 5] >= conf)]
            caption = f"{name}, seed {seed}: scores from {conf:g}; truths black and white"
            sides.append((caption, _to_jpeg(draw_side(pixels, own, truth, number))))
        title = f"{entry['name']}, {entry['loss']} against {base}"
        found.append(ComparedPicture(title, entry["difference"], *sides))
    return found


def draw_side(picture: np.ndarray, rows: np.ndarray, truth: dict, number: int) -> np.ndarray:
    """A copy of picture ``number`` of the truth, made smaller if need be, with truths and detections."""
    gain = min(1.0, LONGEST_SIDE / max(picture.shape[:2]))
    height, width = (max(1, round(side * gain)) for side in picture.shape[:2])
    image = Image.fromarray(picture).resize((width, height))
    pen = ImageDraw.Draw(image)
    for box in (box["bbox"] for box in truth["annotations"] if box["image_id"] == number):
        x1, y1, x2, y2 = (round(float(v)) for v in _corners(np.array([box]))[0] * gain)
        pen.rectangle((x1 - 1, y1 - 1, max(x1, x2), max(y1, y2)), outline="white", width=3)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline="black", width=1)
    labels = {category["id"]: place for place, category in enumerate(truth["categories"])}
    return draw_boxes(
        np.asarray(image),
        _corners(rows[:, 1:5]) * gain,
        np.array([labels[int(number)] for number in rows[:, 6]], np.int64),
        names=[category["name"] for category in truth["categories"]],
        scores=rows[:, 5],
    )


def _corners(boxes: np.ndarray) -> np.ndarray:
    """(n, 4) x, y, width, height -> xyxy."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _to_jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
