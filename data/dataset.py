"""Pictures and boxes of one split as batches. B images, M padded truths; boxes xyxy in input pixels."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.images import decode_image
from data.index import Index, path_of
from data.letterbox import Letterbox, apply_letterbox, plan_letterbox
from data.plan import Planner
from data.render import render, render_boxes
from utils.config import AugmentConfig
from utils.errors import UserError
from utils.structures import Targets


class Sample(NamedTuple):
    """One input picture and its truth."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (n, 4) float32
    labels: np.ndarray  # (n,) int64
    ignore: np.ndarray  # (n,) bool
    picture: int  # number of the (first) picture in the index
    letterbox: Letterbox | None  # None for augmented pictures: there is no way back


class Batch(NamedTuple):
    """What a loader yields."""

    images: Tensor  # (B, 3, H, W) uint8 RGB, channels-last in memory
    truth: Targets
    pictures: list[int]
    letterboxes: list[Letterbox | None]


class PictureSet(Dataset, ABC):
    """What both sets share: in place of a picture that cannot be read stands the ``UserError`` that says so.

    Raised inside a worker it would arrive wrapped in that process's traceback; ``data.loader.batches`` raises
    it.
    """

    index: Index

    def __getitem__(self, item: tuple) -> Sample | UserError:
        try:
            return self.sample(*item)
        except UserError as error:
            return error

    @abstractmethod
    def sample(self, *item) -> Sample:
        """The picture and its truth."""


class TrainSet(PictureSet):
    """Augmented pictures; an item is (epoch, position in the epoch's permutation, mosaic or not)."""

    def __init__(self, index: Index, planner: Planner, cfg: AugmentConfig):
        self.index, self.planner, self.cfg = index, planner, cfg
        self._decoded = _DecodedPictures(index, capacity=planner.group)

    def sample(self, epoch: int, position: int, mosaic: bool) -> Sample:
        """The picture planned for a position of an epoch."""
        plan = self.planner.plan(epoch, position, mosaic=mosaic)
        image = render(plan, self._decoded)
        boxes, labels, ignore = render_boxes(
            plan, self.index, min_visible=self.cfg.min_visible, min_side=self.cfg.min_side
        )
        order = self.planner.order(epoch)
        return Sample(image, boxes, labels, ignore, int(order[position % len(order)]), None)


class ValSet(PictureSet):
    """Letterboxed pictures, each once; an item is (picture, shape of the input)."""

    def __init__(self, index: Index):
        self.index = index

    def sample(self, picture: int, shape: tuple[int, int]) -> Sample:
        """One picture, fitted into ``shape``."""
        pixels = decode_image(path_of(self.index, picture))
        letterbox = plan_letterbox(pixels.shape[:2], shape)
        rows = slice(self.index.offsets[picture], self.index.offsets[picture + 1])
        boxes = letterbox.forward(self.index.boxes[rows].astype(np.float64)).astype(np.float32)
        image = apply_letterbox(pixels, letterbox)
        return Sample(image, boxes, self.index.labels[rows], self.index.ignore[rows], picture, letterbox)


def collate(samples: list[Sample | UserError]) -> Batch | UserError:
    """Samples of one size -> a batch, truths padded to the largest count, at least 1, with unit boxes.

    The first error among them, if there is one, instead.
    """
    for sample in samples:
        if isinstance(sample, UserError):
            return sample
    images = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2)
    most = max(1, *(len(sample.labels) for sample in samples))
    boxes = np.tile(np.array((0, 0, 1, 1), np.float32), (len(samples), most, 1))
    labels = np.zeros((len(samples), most), np.int64)
    valid, ignore = np.zeros((2, len(samples), most), bool)
    for row, sample in enumerate(samples):
        count = len(sample.labels)
        boxes[row, :count], labels[row, :count] = sample.boxes, sample.labels
        valid[row, :count], ignore[row, :count] = True, sample.ignore
    truth = Targets(*(torch.from_numpy(array) for array in (boxes, labels, valid, ignore)))
    return Batch(images, truth, [s.picture for s in samples], [s.letterbox for s in samples])


def unpad(truth: Targets) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes (n, 4) and labels (n,) of each picture, without the padding."""
    pairs = [(boxes[valid], labels[valid]) for boxes, labels, valid, _ in zip(*truth, strict=True)]
    return [boxes for boxes, _ in pairs], [labels for _, labels in pairs]


class _DecodedPictures:
    """The last ``capacity`` decoded pictures, so that a group's mosaics need one decode of each picture."""

    def __init__(self, index: Index, *, capacity: int):
        self.index, self.capacity = index, capacity
        self._pictures: OrderedDict[int, np.ndarray] = OrderedDict()

    def __call__(self, number: int) -> np.ndarray:
        if number in self._pictures:
            self._pictures.move_to_end(number)
        else:
            self._pictures[number] = decode_image(path_of(self.index, number))
            if len(self._pictures) > self.capacity:
                self._pictures.popitem(last=False)
        return self._pictures[number]
