"""Augmentation as data: a ``Plan`` says which tiles to draw where, in which colours, for one output picture.

A plan depends on (seed, epoch, position) alone, by a counter-based generator, so the same batch comes out of
any number of workers or ranks, and a run resumes by skipping positions. Coordinates are edges: pixel i covers
[i, i + 1), x before y. Sizes are (height, width).
"""

from typing import NamedTuple

import numpy as np

from utils.config import AugmentConfig

Rect = tuple[int, int, int, int]  # x1, y1, x2, y2, whole pixels


class Tile(NamedTuple):
    """One source picture in the output: the pixels of ``crop`` resized to ``place``, mirrored by ``flip``."""

    source: int  # number of the picture in the index
    crop: Rect  # px of the source picture
    place: Rect  # px of the output
    flip: tuple[bool, bool]  # left-right, up-down

    @property
    def matrix(self) -> np.ndarray:
        """(3, 3) from source to output pixels, exactly as rendered: boxes go through it."""
        matrix = np.eye(3)
        for axis in (0, 1):
            low, high = self.crop[axis], self.crop[axis + 2]
            start, end = self.place[axis], self.place[axis + 2]
            if self.flip[axis]:
                start, end = end, start
            matrix[axis, axis] = (end - start) / (high - low)
            matrix[axis, 2] = start - low * matrix[axis, axis]
        return matrix


class Plan(NamedTuple):
    """One output picture."""

    tiles: tuple[Tile, ...]
    size: tuple[int, int]
    colour: np.ndarray  # (3, 3) float32, applied to RGB


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

    def plan(self, epoch: int, position: int, *, mosaic: bool) -> Plan:
        """The plan of one position of the epoch; one beyond the last picture starts over with new draws.

        Mosaic partners come from the position's own group of ``group`` positions, so that a group's pictures
        are decoded once.
        """
        rng = _generator(self.seed, epoch, position + 1)
        order = self.order(epoch)
        place = position % len(order)
        scale = 1 + rng.uniform(-self.cfg.scale, self.cfg.scale)
        shift = rng.uniform(-self.cfg.translate, self.cfg.translate, 2)
        flip = tuple(bool(rng.random() < share) for share in (self.cfg.flip_lr, self.cfg.flip_ud))
        colour = colour_matrix(*(rng.uniform(-1, 1, 3) * (self.cfg.hue, self.cfg.saturation, self.cfg.value)))
        if mosaic and rng.random() < self.cfg.mosaic:
            start = place - place % self.group
            partners = order[start : start + self.group]
            sources = [order[place], *rng.choice(partners, 3)]
            tiles = self._mosaic(sources, rng.uniform(0.5, 1.5, 2), scale, shift)
        else:
            tiles = self._single(order[place], scale, shift)
        flipped = tuple(_mirror(tile, flip, self.shape) for tile in tiles)
        return Plan(flipped, self.shape, colour)

    def _single(self, source: int, scale: float, shift: np.ndarray) -> list[Tile]:
        """The picture fitted into the output, scaled about its centre, shifted by a share of the output."""
        extent = np.array(self.shape[::-1], float)
        shown = self._fitted(source) * scale
        corner = extent / 2 + shift * extent - shown / 2
        tile = self._tile(source, np.concatenate((corner, corner + shown)), (0, 0, *extent))
        return [tile] if tile else []

    def _mosaic(self, sources: list[int], joint: np.ndarray, scale: float, shift: np.ndarray) -> list[Tile]:
        """Four pictures that meet at ``joint`` (in outputs, of a 2 x 2 canvas), seen through the output."""
        extent = np.array(self.shape[::-1], float)
        centre = ((joint - 1) * scale + 0.5 + shift) * extent
        tiles = []
        for source, (right, lower) in zip(sources, ((0, 0), (1, 0), (0, 1), (1, 1)), strict=True):
            side = np.array((right, lower))
            corner = centre - (1 - side) * self._fitted(source) * scale
            box = np.concatenate((corner, corner + self._fitted(source) * scale))
            edge = np.rint(centre).clip(0, extent)
            room = np.concatenate((edge * side, np.where(side, extent, edge)))
            tile = self._tile(source, box, tuple(room))
            if tile:
                tiles.append(tile)
        return tiles

    def _fitted(self, source: int) -> np.ndarray:
        """(width, height) of a picture fitted into the output, not rounded."""
        height, width = self.sizes[source]
        return np.array((width, height)) * min(self.shape[0] / height, self.shape[1] / width)

    def _tile(self, source: int, box: np.ndarray, room: tuple) -> Tile | None:
        """The part of a picture shown at ``box`` that lies in ``room``, in whole pixels on both sides."""
        size = np.array(self.sizes[source][::-1], float)
        place = np.concatenate((np.maximum(box[:2], room[:2]), np.minimum(box[2:], room[2:])))
        place = np.rint(place)
        if (place[2:] - place[:2] < 1).any():
            return None
        ratio = size / (box[2:] - box[:2])
        low = np.rint((place[:2] - box[:2]) * ratio).clip(0, size - 1)
        high = np.maximum(np.rint((place[2:] - box[:2]) * ratio).clip(0, size), low + 1)
        crop = tuple(int(value) for value in (*low, *high))
        return Tile(int(source), crop, tuple(int(value) for value in place), (False, False))


def colour_matrix(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3, 3) float32 on RGB: hue turned by ``hue`` turns, saturation and value gained by 1 + the others.

    All three are linear in YIQ: a rotation and a gain of the (I, Q) plane, and a gain of everything.
    """
    to_yiq = np.array(((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))
    angle, gain = 2 * np.pi * hue, 1 + saturation
    turn = np.array(
        (
            (1, 0, 0),
            (0, gain * np.cos(angle), -gain * np.sin(angle)),
            (0, gain * np.sin(angle), gain * np.cos(angle)),
        )
    )
    return (np.linalg.inv(to_yiq) @ turn @ to_yiq * (1 + value)).astype(np.float32)


def _mirror(tile: Tile, flip: tuple[bool, bool], shape: tuple[int, int]) -> Tile:
    """The tile in the mirrored output."""
    place = list(tile.place)
    for axis, extent in ((0, shape[1]), (1, shape[0])):
        if flip[axis]:
            place[axis], place[axis + 2] = extent - tile.place[axis + 2], extent - tile.place[axis]
    return tile._replace(place=tuple(place), flip=flip)


def _generator(seed: int, epoch: int, place: int) -> np.random.Generator:
    """A generator keyed by its arguments, the same on every machine. Place 0 is the epoch's permutation."""
    return np.random.Generator(np.random.Philox(key=np.array((seed, (epoch << 32) + place), np.uint64)))
