"""A batch as one tiled picture: train_batch0.jpg, val_batch0_labels.jpg, val_batch0_pred.jpg.

B pictures of H x W pixels; boxes xyxy, pixels of the picture they belong to.
"""

import cv2
import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from utils.files import write_whole
from utils.plots.draw import as_array, display_text, draw_boxes, font_size, paint_tag

LONG_SIDE = 1920
GAP = 4  # px between tiles
GAP_COLOUR = 255
TITLE_COLOUR = (32, 32, 32)
JPEG_QUALITY = 90


def save_grid(path, images, boxes, labels, *, names, scores=None, titles=None, max_images: int = 16) -> None:
    """Write the first ``max_images`` pictures with their boxes as one JPEG, its long side at most 1920 px.

    ``images`` is a tensor (B, 3, H, W) or an array (B, H, W, 3), RGB uint8; ``boxes``, ``labels``, ``scores``
    and ``titles`` are lists with one entry a picture. Tiles are shrunk before the boxes are drawn, so that
    lines and text stay legible.
    """
    pictures = _as_pictures(images, max_images)
    if not len(pictures):
        raise ValueError("save_grid needs at least one picture, got a batch of 0")
    tile, columns = _arrange(len(pictures), pictures.shape[1:3])
    tiles = []
    for i, picture in enumerate(pictures):
        factor = np.divide(tile, picture.shape[:2])[[1, 0, 1, 0]]
        small = cv2.resize(picture, (tile[1], tile[0]), interpolation=cv2.INTER_AREA)
        drawn = draw_boxes(
            small,
            as_array(boxes[i]).reshape(-1, 4) * factor,
            labels[i],
            names=names,
            scores=None if scores is None else scores[i],
        )
        tiles.append(_with_title(drawn, titles[i]) if titles is not None else drawn)
    canvas = _tile(tiles, columns)
    done, code = cv2.imencode(".jpg", canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done
    write_whole(path, code.tobytes())  # cv2.imwrite hides errors and, on Windows, knows no Unicode paths


def _as_pictures(images, max_images: int) -> np.ndarray:
    """(B, H, W, 3) uint8 of a tensor with channels first or an array with channels last."""
    if isinstance(images, Tensor):
        images = images[:max_images].permute(0, 2, 3, 1)
    return np.ascontiguousarray(as_array(images[:max_images]))


def _arrange(count: int, size: tuple) -> tuple[tuple[int, int], int]:
    """Height and width of a tile, at most ``size``, and the number of columns: where tiles are largest."""

    def long_side(columns: int) -> int:
        return max(size[1] * columns, size[0] * -(-count // columns))

    columns = min(range(1, count + 1), key=long_side)
    rows = -(-count // columns)
    room = [LONG_SIDE - GAP * (n - 1) for n in (rows, columns)]
    factor = min(1.0, room[0] / (rows * size[0]), room[1] / (columns * size[1]))
    return (max(1, int(size[0] * factor)), max(1, int(size[1] * factor))), columns


def _tile(tiles: list[np.ndarray], columns: int) -> np.ndarray:
    """Equal tiles row by row on a canvas, thin gaps between them; missing ones stay blank."""
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    canvas = np.full(shape, GAP_COLOUR, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        canvas[y : y + height, x : x + width] = tile
    return canvas


def _with_title(picture: np.ndarray, title: str) -> np.ndarray:
    """The picture with a dark tag in its top left corner."""
    image = Image.fromarray(picture)
    size = font_size(max(picture.shape[:2])) - 1
    paint_tag(ImageDraw.Draw(image), display_text(title), (0, 0), TITLE_COLOUR, size=max(9, size))
    return np.array(image)
