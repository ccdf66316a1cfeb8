"""Augmentation as data: a ``Plan`` says which tiles to draw where, in which colours, for one output picture.

A plan depends on (seed, epoch, position) alone, by a counter-based generator, so the same batch comes out of
any number of workers or ranks, and a run resumes by skipping positions. Coordinates are edges: pixel i covers
[i, i + 1), x before y. Sizes are (height, width).
"""

from typing import NamedTuple

import numpy as np

from data.augment.arrange import Piece, Rect, View, arrange_four, arrange_nine, arrange_single
from data.augment.colour import colour_matrix
from data.augment.homography import is_straight, project, visible_polygons, warp_matrix
from utils.config import AugmentConfig

MIXUP_BETA = 32.0  # both parameters: the weight is 0.5 +- 0.06; see ``Planner.plan``
MIXUP_STREAM, SHAPE_STREAM = 4, 5  # of random numbers; layer n of a plan draws from 2 n and 2 n + 1


class Tile(NamedTuple):
    """One source picture in the output: the pixels of ``crop``; they fill matrix(crop)."""

    source: int  # number of the picture in the index
    crop: Rect  # px of the source picture
    matrix: np.ndarray  # (3, 3) from source to output pixels, exactly as rendered: boxes go through it

    @property
    def place(self) -> Rect:
        """Px of the output that a tile fills which is not turned, sheared or tilted."""
        ends = (np.reshape(self.crop, (2, 2)) * np.diag(self.matrix)[:2] + self.matrix[:2, 2]).round()
        return tuple(int(value) for value in (*ends.min(0), *ends.max(0)))


class Plan(NamedTuple):
    """One output picture; with mixup, ``weight`` of it and 1 - weight of ``mixed``."""

    tiles: tuple[Tile, ...]
    size: tuple[int, int]
    colour: np.ndarray  # (3, 3) float32, applied to RGB
    mixed: "Plan | None" = None
    weight: float = 1.0


class Planner:
    """Draws the plans of a data set: ``sizes`` (N, 2) of its pictures, ``shape`` of the output."""

    def __init__(
        self, sizes: np.ndarray, shape: tuple[int, int], cfg: AugmentConfig, *, group: int, seed: int
    ):
        self.sizes, self.shape, self.cfg, self.group, self.seed = sizes, shape, cfg, group, seed
        self._order = (-1, np.empty(0, np.int64))

    def order(self, epoch: int) -> np.ndarray:
        """(N,) the epoch's permutation of the pictures."""
        if self._order[0] != epoch:
            self._order = (epoch, _generator(self.seed, epoch, 0).permutation(len(self.sizes)))
        return self._order[1]

    def plan(self, epoch: int, position: int, *, mosaic: bool, shape: tuple[int, int] | None = None) -> Plan:
        """The plan of one position of the epoch; one beyond the last picture starts over with new draws.

        Partners, of a mosaic and in mixup, come from the position's own group of ``group`` positions, so that
        a group's pictures are decoded once. ``mosaic`` False switches off mosaics and mixup; ``shape``
        replaces the output's. Mixup blends pixels by a weight from Beta(32, 32), as YOLOv5 does, and keeps
        all boxes; arXiv:1902.04103, which brought mixup to detectors, has Beta(1.5, 1.5) and weighs losses.
        """
        key, order = (self.seed, epoch, position + 1), self.order(epoch)
        place = position % len(order)
        start = place - place % self.group
        partners, shape = order[start : start + self.group], shape or self.shape
        own = self._draw_layer(key, 0, (order[place], partners), mosaic=mosaic, shape=shape)
        if not mosaic or not self.cfg.mixup:
            return own
        rng = _generator(*key, MIXUP_STREAM)
        if rng.random() >= self.cfg.mixup:
            return own
        pictures = (rng.choice(partners), partners)
        other = self._draw_layer(key, 1, pictures, mosaic=mosaic, shape=shape)
        return own._replace(mixed=other, weight=float(rng.beta(MIXUP_BETA, MIXUP_BETA)))

    def _draw_layer(self, key: tuple, layer: int, pictures: tuple, *, mosaic: bool, shape) -> Plan:
        """One picture or mosaic; ``pictures``: its own number, and those that its partners may have."""
        cfg, rng, (own, partners) = self.cfg, _generator(*key, 2 * layer), pictures
        scale = 1 + rng.uniform(-cfg.scale, cfg.scale)
        shift = rng.uniform(-cfg.translate, cfg.translate, 2)
        flip = tuple(bool(rng.random() < share) for share in (cfg.flip_lr, cfg.flip_ud))
        colour = colour_matrix(*(rng.uniform(-1, 1, 3) * (cfg.hue, cfg.saturation, cfg.value)))
        warps = bool(cfg.degrees or cfg.shear or cfg.perspective)
        more = _generator(*key, 2 * layer + 1) if warps or cfg.mosaic9 else None
        warp = self._draw_warp(more, shape) if warps else None
        view = View(shape, _window(warp, shape), scale, shift)
        if mosaic and rng.random() < cfg.mosaic:
            sources, joint = [own, *rng.choice(partners, 3)], rng.uniform(0.5, 1.5, 2)
            if cfg.mosaic9 and more.random() < cfg.mosaic9:
                pieces = arrange_nine([*sources, *more.choice(partners, 5)], self.sizes, joint, view)
            else:
                pieces = arrange_four(sources, self.sizes, joint, view)
        else:
            pieces = arrange_single(own, self.sizes, view)
        tiles = [_make_tile(piece, flip, warp, shape=shape) for piece in pieces]
        return Plan(tuple(tiles if warp is None else _seen(tiles, shape)), shape, colour)

    def _draw_warp(self, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray | None:
        """(3, 3) what everything in the output goes through before it is mirrored, if it turns anything."""
        turn, *shear_and_tilt = rng.uniform(-1, 1, 5)
        shear = np.multiply(shear_and_tilt[:2], self.cfg.shear)
        tilt = np.multiply(shear_and_tilt[2:], self.cfg.perspective)
        warp = warp_matrix(shape, degrees=turn * self.cfg.degrees, shear=shear, tilt=tilt)
        return None if is_straight(warp) else warp


def batch_shape(
    seed: int, epoch: int, batch: int, *, shape: tuple[int, int], stride: int, multi_scale: float
) -> tuple[int, int]:
    """(height, width) of the input of one batch, the same for every worker and rank.

    ``multi_scale`` 0: ``shape``, which is in multiples of ``stride``. Else the longer side is drawn from the
    multiples within 1 - multi_scale .. 1 + multi_scale of it, each as likely; the other keeps the aspect as
    well as multiples allow.
    """
    if not multi_scale:
        return shape
    longest = max(shape)
    low = max(1, int(np.ceil(round((1 - multi_scale) * longest / stride, 6))))
    high = int(round((1 + multi_scale) * longest / stride, 6))
    steps = _generator(seed, epoch, batch, SHAPE_STREAM).integers(low, high + 1)
    return tuple(stride * max(1, round(side * steps / longest)) for side in shape)


def _window(warp: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    """(4,) xyxy of the plane: what the output can show of it."""
    height, width = shape
    if warp is None:
        return np.array((0, 0, width, height), float)
    corners = np.array(((0, 0, 1), (width, 0, 1), (width, height, 1), (0, height, 1)))
    seen = project(corners, np.linalg.inv(warp))
    return np.concatenate((np.floor(seen.min(0)), np.ceil(seen.max(0))))


def _make_tile(piece: Piece, flip: tuple[bool, bool], warp: np.ndarray | None, *, shape) -> Tile:
    """The piece, warped and mirrored in the output, in this order."""
    if warp is None:
        return Tile(piece.source, piece.crop, _resize_matrix(piece.crop, piece.place, flip, shape))
    mirror = np.eye(3)
    for axis, extent in ((0, shape[1]), (1, shape[0])):
        if flip[axis]:
            mirror[axis, axis], mirror[axis, 2] = -1, extent
    straight = _resize_matrix(piece.crop, piece.place, (False, False), shape)
    return Tile(piece.source, piece.crop, mirror @ warp @ straight)


def _seen(tiles: list[Tile], shape: tuple[int, int]) -> list[Tile]:
    """Those of which something is in view: of a turned output's window, the output shows only a part."""
    crops = np.array([tile.crop for tile in tiles], float).reshape(-1, 4)
    matrices = np.array([tile.matrix for tile in tiles]).reshape(-1, 3, 3)
    hidden = np.isnan(visible_polygons(crops, matrices, shape)).any((1, 2))
    return [tile for tile, gone in zip(tiles, hidden, strict=True) if not gone]


def _resize_matrix(crop: Rect, place: Rect, flip: tuple[bool, bool], shape: tuple[int, int]) -> np.ndarray:
    """(3, 3) from the crop onto the place, or onto the place mirrored in the output."""
    matrix = np.eye(3)
    for axis, extent in ((0, shape[1]), (1, shape[0])):
        low, high = crop[axis], crop[axis + 2]
        start, end = place[axis], place[axis + 2]
        if flip[axis]:
            start, end = extent - start, extent - end
        matrix[axis, axis] = (end - start) / (high - low)
        matrix[axis, 2] = start - low * matrix[axis, axis]
    return matrix


def _generator(seed: int, epoch: int, place: int, stream: int = 0) -> np.random.Generator:
    """A generator keyed by its arguments, the same on every machine.

    Place 0 of stream 0 is the epoch's permutation, place n + 1 of a stream belongs to position n. ``seed`` is
    less than 2^32 (``train.seed``).
    """
    key = np.array((seed + (stream << 32), (epoch << 32) + place), np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
