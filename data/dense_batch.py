"""The batch that needs most memory: the largest input, in each picture as many boxes as come together.

Sizes are (height, width).
"""

import math

import numpy as np

from data.dataset import Batch, Sample, collate
from data.index import Index
from data.letterbox import input_shape
from utils.config import AugmentConfig, Config


def dense_batch(index: Index, cfg: Config, count: int) -> Batch:
    """``count`` pictures of random pixels, all with the densest labels: no picture file is read.

    The labels are those of the pictures with most boxes, as many as a mosaic joins (nine, four or one), twice
    as many with mixup, each in a cell of the input; all are in view, and however small, they count. A mosaic
    may draw the same picture more than once, and so come to more boxes; that is too rare to leave memory idle
    for. The same for the same index and settings.
    """
    rng = np.random.default_rng(0)
    shape = largest_shape(cfg)
    boxes, rows = _densest_boxes(index, shape, joined_pictures(cfg.augment))
    images = rng.integers(0, 256, (count, *shape, 3), np.uint8)
    truth = boxes.astype(np.float32), index.labels[rows], index.ignore[rows]
    return collate([Sample(image, *truth, 0, None) for image in images])


def joined_pictures(cfg: AugmentConfig) -> int:
    """How many pictures one augmented picture can come from."""
    mosaic = 1 if not cfg.mosaic else 9 if cfg.mosaic9 else 4
    return mosaic * (2 if cfg.mixup else 1)


def largest_shape(cfg: Config) -> tuple[int, int]:
    """The input of ``data.imgsz``, or the largest that ``augment.multi_scale`` draws."""
    stride = 2 ** max(cfg.model.levels)
    shape = input_shape(cfg.data.imgsz, stride)
    if not cfg.augment.multi_scale:
        return shape
    longest = max(shape)
    steps = int(round((1 + cfg.augment.multi_scale) * longest / stride, 6))
    return tuple(stride * max(1, round(side * steps / longest)) for side in shape)


def _densest_boxes(index: Index, shape: tuple[int, int], number: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) px of the input and (n,) rows of the index: the densest pictures in the cells of a grid."""
    counts = np.diff(index.offsets)
    pictures = np.argsort(-counts, kind="stable")[:number]
    side = math.ceil(math.sqrt(len(pictures)))
    cell = np.array(shape) / side
    boxes, rows = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    for place, picture in enumerate(pictures.tolist()):
        numbers = np.arange(index.offsets[picture], index.offsets[picture + 1])
        gain = (cell / index.sizes[picture]).min()
        corner = np.array(((place % side) * cell[1], (place // side) * cell[0]))
        boxes.append(index.boxes[numbers] * gain + np.tile(corner, 2))
        rows.append(numbers)
    return np.concatenate(boxes), np.concatenate(rows)
