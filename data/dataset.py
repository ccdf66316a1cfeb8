"""Pictures and boxes of one split as batches. B images, M padded truths; boxes xyxy in input pixels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.augment.plan import Planner
from data.augment.render import render, render_boxes
from data.index import Index
from data.letterbox import Letterbox, apply_letterbox, centre, plan_letterbox
from data.pictures import Pictures, scale_index
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

    def split(self, size: int) -> list["Batch"]:
        """Parts of at most ``size`` pictures, in order; truths stay padded as they are."""
        parts = []
        for start in range(0, len(self.pictures), size):
            part = slice(start, start + size)
            truth = Targets(*(tensor[part] for tensor in self.truth))
            parts.append(Batch(self.images[part], truth, self.pictures[part], self.letterboxes[part]))
        return parts

    def pin_memory(self) -> "Batch":
        """In page-locked memory, from where copies to a GPU run by themselves; called by PyTorch's loader."""
        truth = Targets(*(tensor.pin_memory() for tensor in self.truth))
        return self._replace(images=self.images.pin_memory(), truth=truth)


class PictureSet(Dataset, ABC):
    """What both sets share: ``set[items]`` is the batch of these items, each the arguments of ``sample``.

    In place of a batch with a picture that cannot be read stands the ``UserError`` that says so: raised
    inside a worker it would arrive wrapped in that process's traceback. ``data.loader.Loader`` raises it.
    """

    index: Index
    pictures: Pictures

    def __getitem__(self, items: Sequence[tuple]) -> Batch | UserError:
        try:
            return collate([self.sample(*item) for item in items])
        except UserError as error:
            return error

    @abstractmethod
    def sample(self, *item) -> Sample:
        """A picture and its truth."""


class TrainSet(PictureSet):
    """Augmented pictures; an item is (epoch, position in its permutation, shape of the input, mosaic or not).

    ``planner`` is made for the sizes in which ``pictures`` are held; ``index`` becomes one in held pixels.
    """

    def __init__(self, index: Index, planner: Planner, cfg: AugmentConfig, pictures: Pictures):
        self.index, self.planner, self.cfg = scale_index(index, pictures.sizes), planner, cfg
        self.pictures = pictures

    def sample(self, epoch: int, position: int, shape: tuple[int, int], mosaic: bool) -> Sample:
        """The picture planned for a position of an epoch."""
        plan = self.planner.plan(epoch, position, mosaic=mosaic, shape=shape)
        image = render(plan, self.pictures)
        boxes, labels, ignore = render_boxes(
            plan, self.index, min_visible=self.cfg.min_visible, min_side=self.cfg.min_side
        )
        order = self.planner.order(epoch)
        return Sample(image, boxes, labels, ignore, int(order[position % len(order)]), None)

    def sources(self, epoch: int, position: int, shape: tuple[int, int], mosaic: bool) -> list[int]:
        """Numbers, in the index, of all pictures that an item shows."""
        plan = self.planner.plan(epoch, position, mosaic=mosaic, shape=shape)
        tiles = plan.tiles + (plan.mixed.tiles if plan.mixed else ())
        return [tile.source for tile in tiles]


class ValSet(PictureSet):
    """Pictures fitted into ``limit``, each once; an item is (picture, shape of the input to stand in).

    Where a picture lies follows from its size in ``index`` alone, however it is held in ``pictures``.
    """

    def __init__(self, index: Index, pictures: Pictures, limit: tuple[int, int]):
        self.index, self.pictures, self.limit = index, pictures, limit

    def sample(self, picture: int, shape: tuple[int, int]) -> Sample:
        """One picture, centred in ``shape``, which is at most ``limit`` and holds the fitted picture."""
        letterbox = centre(plan_letterbox(tuple(self.index.sizes[picture].tolist()), self.limit), shape)
        rows = slice(self.index.offsets[picture], self.index.offsets[picture + 1])
        boxes = letterbox.forward(self.index.boxes[rows]).astype(np.float32)
        image = apply_letterbox(self.pictures(picture), letterbox)
        return Sample(image, boxes, self.index.labels[rows], self.index.ignore[rows], picture, letterbox)


def collate(samples: list[Sample]) -> Batch:
    """Samples of one size -> a batch, truths padded to the largest count, at least 1, with unit boxes."""
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
