"""Sources of pixels: each picture of a split in the one size in which it is held. N pictures, T boxes.

Sizes are (height, width). Whoever plans and renders works in held pixels (``scale_index``) and need not know
whether a picture was decoded at a half, or comes from the cache at training size.
"""

from collections import OrderedDict
from typing import Protocol

import numpy as np

from data.images import choose_reduction, decode_image
from data.index import Index, path_of
from data.pixels import AS_STORED, Pixels


class Pictures(Protocol):
    """Pixels of the pictures of a split."""

    sizes: np.ndarray  # (N, 2) int32, as held

    def __call__(self, i: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB of picture ``i``, not to be written to."""


class DecodedPictures:
    """Pictures decoded when they are asked for, as much reduced as ``needed`` (N, 2) px allow.

    Of the pictures asked for last, ``keep`` are remembered: a group's mosaics need one decode of each of its
    pictures. One that cannot be read, or has another size than in the index, is a ``UserError``.
    ``pixels``: how values become 0..255.
    """

    def __init__(self, index: Index, needed: np.ndarray, *, keep: int, pixels: Pixels = AS_STORED):
        self.index, self.keep, self.pixels = index, keep, pixels
        self.reductions = choose_reductions(index.sizes, needed)
        self.sizes = index.sizes // self.reductions[:, None]
        self._last: OrderedDict[int, np.ndarray] = OrderedDict()

    def __call__(self, i: int) -> np.ndarray:
        if i in self._last:
            self._last.move_to_end(i)
            return self._last[i]
        size = tuple(self.index.sizes[i].tolist())
        reduction = int(self.reductions[i])
        pixels = decode_image(path_of(self.index, i), reduction=reduction, size=size, pixels=self.pixels)
        if self.keep:
            self._last[i] = pixels
            if len(self._last) > self.keep:
                self._last.popitem(last=False)
        return pixels


def choose_reductions(sizes: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """(N,) the reduction in which each picture is decoded, so that at least ``needed`` (N, 2) px are left."""
    pairs, rows = np.unique(np.concatenate((sizes, needed), 1), axis=0, return_inverse=True)
    chosen = [choose_reduction((h, w), (least_h, least_w)) for h, w, least_h, least_w in pairs.tolist()]
    return np.array(chosen, sizes.dtype)[rows.reshape(-1)]


def fitted_sizes(sizes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, 2) int32, the sizes of pictures fitted into ``shape``: ``resized`` of their ``plan_letterbox``."""
    ratio = (np.array(shape) / sizes).min(1, keepdims=True)
    return np.rint(sizes * ratio).clip(1, shape).astype(np.int32)


def needed_sizes(sizes: np.ndarray, shape: tuple[int, int], *, enlarged: float) -> np.ndarray:
    """(N, 2) int32 px that pictures need which are shown up to ``enlarged`` times as large as fitted."""
    return np.ceil(fitted_sizes(sizes, shape) * enlarged).astype(np.int32)


def scale_index(index: Index, sizes: np.ndarray) -> Index:
    """The index in pixels of the held ``sizes`` (N, 2): sizes, boxes, areas, each axis by its own ratio."""
    if np.array_equal(sizes, index.sizes):
        return index
    ratio = np.repeat((sizes / index.sizes)[:, ::-1], np.diff(index.offsets), axis=0)  # (T, 2) x, y
    boxes = index.boxes * np.tile(ratio, 2)
    return index._replace(
        sizes=sizes, boxes=boxes, areas=(index.areas * ratio.prod(1)).astype(index.areas.dtype)
    )
