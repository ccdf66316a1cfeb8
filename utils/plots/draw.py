"""Boxes and their labels painted on a picture: RGB uint8 (H, W, 3); boxes xyxy, pixels.

The palette is the seven chromatic colours of Okabe and Ito, continued by taking again and again the colour
farthest from all before it. Distance is OKLab's: half the normal one plus the lesser of those seen without
red and without green cones.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_CODES = (
    "E69F00 56B4E9 009E73 F0E442 0072B2 D55E00 CC79A7 870F2D 78FFFF D200FF "
    "0000E1 780087 2DD296 B43C69 FFB4C3 2D6900 FF78FF 0F78FF B43CB4 00FFA5 "
    "1E7869 00C300 A53C00 005A78 FF6969 96D2FF 4B8700 0096C3 0F3CA5 C369E1 "
    "691EFF 4BE14B FFB478 7800C3 FFE1A5 4BB4A5 5A96FF E14B69 F096D2 872D69 "
    "0FFF00 A5964B FF1EC3 005A3C 0FE1D2 966996 005AD2 694B96 96694B D29696 "
    "2DA500 FFB4FF 875AE1 E12D96 E1C300 A5B469 D2003C B40087 FF3CFF C3FFD2 "
    "FF6900 008796 874B4B E178D2 B4E178 78C3D2 FF4B96 5A4B00 C3FF87 A5E1B4 "
    "00B478 9600E1 FFD2FF C35AB4 6978D2 FF3C3C 3C783C F09669 B4A5FF 785A87"
)
PALETTE = [tuple(bytes.fromhex(code)) for code in _CODES.split()]
BAND_OPACITY = 0.3
NUMBERED = re.compile(r"#\d|\d+: ")  # names that look like what stands for another class
NAME_LENGTH = 32  # characters; a longer class name would push its score off the picture
# Pillow's own font is Latin only; matplotlib's DejaVu Sans has Greek, Cyrillic, Hebrew, Arabic, but no CJK.
FONT_FILE = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def class_colour(label: int) -> tuple[int, int, int]:
    """RGB of a class; the palette repeats after 80."""
    return PALETTE[int(label) % len(PALETTE)]


def as_array(values) -> np.ndarray:
    """Tensor (any device) or array -> NumPy array; half types become float32."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def display_text(text: str) -> str:
    """The text, spaces collapsed; what the font lacks is spelled out, as ``\\u7ea2``, never left out."""
    known, text = _glyphs(), " ".join(str(text).split())
    return "".join(
        c if ord(c) in known and unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode()
        for c in text
    )


def display_name(label: int, names) -> str:
    """A class's name, cut to 32 characters; ``class 7`` where it has none.

    Its number stands before it where another class would be drawn alike.
    """
    shown = _shown_names(tuple(names))
    return shown[int(label)] if 0 <= int(label) < len(shown) else f"class {int(label)}"


@lru_cache(maxsize=4)
def _shown_names(names: tuple[str, ...]) -> tuple[str, ...]:
    cut = [_cut(display_text(name[: 8 * NAME_LENGTH]), NAME_LENGTH) for name in names]
    short = [name or f"class {label}" for label, name in enumerate(cut)]
    plain = [unicodedata.normalize("NFKC", name) for name in short]  # a letter and its accent may be one
    counts = Counter(plain)
    return tuple(
        name if counts[plain[label]] == 1 and not NUMBERED.match(name) else f"{label}: {name}"
        for label, name in enumerate(short)
    )


def _label_text(label: int, names, score: str, fits: Callable[[str], bool]) -> str:
    """``name score``, as much of it as ``fits``: the name gives way to ``#7``, its number, then the score.

    Not shortened: ``screw (long)`` would look like ``screw (short)``.
    """
    name, number = display_name(label, names), f"#{int(label)}"
    choices = (f"{name} {score}", name, f"{number} {score}", number)
    return next(filter(fits, map(str.strip, choices)), "")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def draw_boxes(
    picture: np.ndarray,
    boxes,
    labels,
    *,
    names,
    scores=None,
    sigma=None,
    line_thickness: int | None = None,
    hide_labels: bool = False,
    hide_conf: bool = False,
) -> np.ndarray:
    """A copy of the picture with its boxes (N, 4), best score on top; without scores smaller ones lie on top.

    ``sigma`` (N, 4) px, of left, top, right, bottom, paints +-1 standard deviation of each side as a
    translucent band. Lines lie inside their box. Boxes wholly outside the picture are left out.
    """
    boxes, labels = as_array(boxes).reshape(-1, 4).astype(float), as_array(labels).reshape(-1)
    order = _drawing_order(boxes, scores, picture.shape[:2])
    canvas = np.array(picture)
    if sigma is not None:
        spread = as_array(sigma).reshape(-1, 4)
        for i in order:
            _paint_band(canvas, boxes[i], spread[i], class_colour(labels[i]))
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    longest = max(canvas.shape[:2])
    width = line_thickness or max(1, round(longest / 400))
    corners = [_pixel_corners(boxes[i], canvas.shape[:2]) for i in order]
    for i, box in zip(order, corners, strict=True):
        pen.rectangle(box, outline=class_colour(labels[i]), width=width)
    size = font_size(longest)
    room = image.width - 2 * _padding(size)
    for i, box in zip(order, corners, strict=True):  # after all boxes: no line may cross a text
        score = "" if scores is None or hide_conf else f"{float(scores[i]):.2f}"
        if hide_labels:
            text = score
        else:
            text = _label_text(labels[i], names, score, lambda text: _font(size).getlength(text) <= room)
        paint_tag(pen, text, box, class_colour(labels[i]), size=size)
    return np.array(image)


def font_size(longest: int) -> int:
    """Text height in px for a picture whose longer side is ``longest`` px."""
    return max(10, round(8 + longest / 130))


def paint_tag(pen: ImageDraw.ImageDraw, text: str, box, colour, *, size: int) -> None:
    """Text on a filled tag standing on the box's top edge; below that edge where the picture ends above it.

    The tag is moved and, if need be, its text shortened to stay inside the picture; left out where it cannot.
    """
    (right, bottom), pad, font = pen.im.size, _padding(size), _font(size)
    text = shorten(text, font, right - 2 * pad)
    ascent, descent = font.getmetrics()
    width, height = round(font.getlength(text)) + 2 * pad, ascent + descent
    if not text or height > bottom:
        return
    x = min(max(box[0], 0), right - width)
    y = box[1] - height if box[1] >= height else min(max(box[1], 0), bottom - height)
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    pen.text((x + pad, y), text, fill=ink_on(colour), font=font)


def _padding(size: int) -> int:
    """Space in px on each side of a text."""
    return max(2, size // 5)


def shorten(text: str, font, room: int) -> str:
    """The text, cut and ended by an ellipsis if wider than ``room`` px; empty where not even that fits."""
    if font.getlength(text) <= room:
        return text
    for end in range(len(text) - 1, 0, -1):
        if font.getlength(text[:end].rstrip() + "…") <= room:
            return text[:end].rstrip() + "…"
    return ""


def ink_on(colour) -> tuple[int, int, int]:
    """Black or white, whichever contrasts more with the colour (WCAG 2 relative luminance)."""
    red, green, blue = (
        c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in (int(v) for v in colour)
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


def _drawing_order(boxes: np.ndarray, scores, size: tuple) -> np.ndarray:
    """Indices of the boxes that meet the picture, the one to lie on top last."""
    height, width = size
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    rank = -sides.prod(1) if scores is None else as_array(scores).reshape(-1)
    order = np.argsort(rank, kind="stable")
    met = (boxes[:, :2] < (width, height)).all(1) & (boxes[:, 2:] > 0).all(1)
    return order[met[order]]


def _pixel_corners(box: np.ndarray, size: tuple) -> tuple[int, int, int, int]:
    """First and last pixel column and row of a box, at least one pixel, cut to the picture."""
    height, width = size
    x1, y1, x2, y2 = (int(v) for v in np.rint(np.clip(box, 0, (width, height, width, height))))
    x1, y1 = min(x1, width - 1), min(y1, height - 1)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def _paint_band(canvas: np.ndarray, box: np.ndarray, sigma: np.ndarray, colour) -> None:
    """Blend the colour, in place, between the box grown by sigma and the box shrunk by sigma."""
    outward = sigma * (-1, -1, 1, 1)
    grown, shrunk = box + outward, box - outward
    x1, y1, x2, y2 = _pixel_corners(grown, canvas.shape[:2])
    region = canvas[y1 : y2 + 1, x1 : x2 + 1]
    blended = np.rint(region * (1 - BAND_OPACITY) + np.multiply(colour, BAND_OPACITY)).astype(np.uint8)
    if (shrunk[:2] < shrunk[2:]).all():
        left, top, right, bottom = np.rint(np.clip(shrunk - (x1, y1, x1, y1), 0, None)).astype(int)
        blended[top:bottom, left:right] = region[top:bottom, left:right]
    region[:] = blended


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_FILE), size)


@lru_cache
def _glyphs() -> frozenset[int]:
    """Code points the font can draw."""
    return frozenset(FT2Font(str(FONT_FILE)).get_charmap())
