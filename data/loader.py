"""Loaders: which pictures make which batch, and the processes that render them.

A process is handed a *unit*: as many batches in a row as share a group of the epoch's permutation. So each
picture of a group is decoded once, by one process. Sizes are (height, width), amounts bytes.
"""

import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from data.augment.plan import Planner, batch_shape
from data.dataset import Batch, PictureSet, TrainSet, ValSet
from data.index import Index, path_of
from data.letterbox import input_shape, rect_shape
from data.pictures import DecodedPictures, Pictures, fitted_sizes, needed_sizes
from data.pixels import pixels_of
from data.workers import (
    check_workers,
    choose_workers,
    end_workers,
    next_unit,
    prefetch_of,
    start_units,
    start_worker,
)
from utils.config import Config
from utils.errors import UserError
from utils.training.distributed import rank, world_size

Shape = tuple[int, int]


class TrainSampler:
    """The batches of one epoch from ``start`` on, as items of ``TrainSet``; ``len`` counts the whole epoch's.

    Global batch k holds the positions k B .. k B + B - 1 whatever the number of ranks, each of which takes an
    equal slice of it; the last batch is filled up from the permutation's start. ``shape_of(epoch, k)`` is its
    shape.
    """

    def __init__(self, num_pictures: int, batch_size: int, shape_of: Callable[[int, int], Shape]):
        if batch_size % world_size():
            raise UserError(
                f"--batch-size {batch_size} is the total over all ranks: no multiple of {world_size()}"
            )
        self.num_pictures, self.batch_size, self.shape_of = num_pictures, batch_size, shape_of
        self.epoch, self.mosaic, self.start = 0, True, 0

    def __len__(self) -> int:
        return -(-self.num_pictures // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int, Shape, bool]]]:
        share = self.batch_size // world_size()
        for batch in range(self.start, len(self)):
            yield self.items(batch, range(rank() * share, (rank() + 1) * share))

    def items(self, batch: int, places: Iterable[int]) -> list[tuple[int, int, Shape, bool]]:
        """The items at ``places`` (from 0) of a global batch."""
        first, shape = batch * self.batch_size, self.shape_of(self.epoch, batch)
        return [(self.epoch, first + place, shape, self.mosaic) for place in places]


class ValSampler:
    """Every picture once, as items of ``ValSet``: square inputs, or with ``rect`` sorted by shape.

    Sorting puts like shapes into one batch, so each is padded little. Of W ranks, rank r takes the batches r,
    r + W, ..., perhaps none: whole batches, so that their shapes and sizes are those of one process.
    """

    start = 0

    def __init__(self, sizes: np.ndarray, batch_size: int, shape: Shape, *, stride: int, rect: bool):
        self.sizes, self.batch_size, self.shape = sizes, batch_size, shape
        self.stride, self.rect = stride, rect

    def __len__(self) -> int:
        return len(self._own_batches())

    def _own_batches(self) -> range:
        count = -(-len(self.sizes) // self.batch_size)
        return range(rank() % world_size(), count, world_size())

    def __iter__(self) -> Iterator[list[tuple[int, Shape]]]:
        aspects = self.sizes[:, 0] / self.sizes[:, 1]
        order = np.argsort(aspects, kind="stable") if self.rect else np.arange(len(aspects))
        for batch in self._own_batches():
            numbers = order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            shape = self._common_shape(numbers)
            yield [(number, shape) for number in numbers]

    def _common_shape(self, numbers: list[int]) -> Shape:
        if not self.rect:
            return self.shape
        shapes = [rect_shape(tuple(size), self.shape, self.stride) for size in self.sizes[numbers].tolist()]
        return max(height for height, _ in shapes), max(width for _, width in shapes)


class Units:
    """The sampler's batches in lists of ``size``, cut at the same places wherever the epoch starts."""

    def __init__(self, sampler: TrainSampler | ValSampler, size: int):
        self.sampler, self.size = sampler, size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.size)

    def __iter__(self) -> Iterator[list[list[tuple]]]:
        unit = []
        for number, batch in enumerate(self.sampler, self.sampler.start):
            unit.append(batch)
            if (number + 1) % self.size == 0:
                yield unit
                unit = []
        if unit:
            yield unit


class Loader:
    """The batches of an epoch; ``len`` counts a whole epoch's of this rank. ``workers`` 0: rendered here.

    A picture that cannot be read, and a process that was killed, end an epoch with a ``UserError``. ``keep``:
    the processes, and the pictures they have decoded, live on from epoch to epoch.
    """

    def __init__(self, dataset: PictureSet, units: Units, *, workers: int, pin: bool, keep: bool):
        self.dataset, self.sampler, self.workers = dataset, units.sampler, workers
        self._units = DataLoader(
            dataset,
            batch_sampler=units,
            num_workers=workers,
            collate_fn=list,
            generator=torch.Generator(),  # of its workers' seeds, which nobody uses; not the global one
            pin_memory=pin,
            worker_init_fn=start_worker,
            prefetch_factor=prefetch_of(units.size) if workers else None,
            persistent_workers=keep and workers > 0,
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int, *, mosaic: bool, start: int = 0) -> None:
        """Choose the epoch, whether its pictures may be mosaics, and the batch to start with."""
        self.sampler.epoch, self.sampler.mosaic, self.sampler.start = epoch, mosaic, start

    def __iter__(self) -> Iterator[Batch]:
        units = start_units(self._units)
        while unit := next_unit(units):
            while unit:
                check_workers(units)
                batch = unit.pop(0)  # taken out, so that its shared memory is free once it is used
                if isinstance(batch, UserError):
                    end_workers(units)
                    raise batch
                yield batch

    def first_batch(self) -> Batch:
        """The first batch of the epoch, rendered in this process: a look that leaves the workers alone."""
        batch = self.dataset[next(iter(self.sampler))]
        if isinstance(batch, UserError):
            raise batch
        return batch

    def sources(self, batch: int) -> list[str]:
        """Paths of all pictures that a batch of the training epoch shows, of all ranks, each once, sorted."""
        items = self.sampler.items(batch, range(self.sampler.batch_size))
        shown = {number for item in items for number in self.dataset.sources(*item)}
        return sorted(str(path_of(self.dataset.index, number)) for number in shown)

    def close(self) -> None:
        """End the processes; for a run that ends in the midst of an epoch."""
        if self._units._iterator is not None:
            end_workers(self._units._iterator)

    def worker_pids(self) -> list[int]:
        """Process numbers of the workers that live on between epochs."""
        return [worker.pid for worker in getattr(self._units._iterator, "_workers", ())]


def make_train_loader(index: Index, cfg: Config, *, pin: bool, pictures: Pictures | None = None) -> Loader:
    """Augmented batches of ``train.batch_size``, the same for any number of workers: see ``TrainSampler``.

    Pixels are those of the cache ``pictures``, or else decoded in the size that the largest scale needs.
    """
    stride, seed, change = 2 ** max(cfg.model.levels), cfg.train.seed, cfg.augment.multi_scale
    shape, group, batch_size = input_shape(cfg.data.imgsz, stride), cfg.data.group, cfg.train.batch_size
    if pictures is None:
        tilt = (1 + 2 * cfg.augment.perspective) ** 2  # the largest local gain, in a corner
        needed = needed_sizes(index.sizes, shape, enlarged=(1 + cfg.augment.scale) * (1 + change) * tilt)
        pictures = DecodedPictures(index, needed, keep=group, pixels=pixels_of(cfg.data))

    def shape_of(epoch: int, batch: int) -> Shape:
        return batch_shape(seed, epoch, batch, shape=shape, stride=stride, multi_scale=change)

    planner = Planner(pictures.sizes, shape, cfg.augment, group=group, seed=seed)
    dataset = TrainSet(index, planner, cfg.augment, pictures)
    units = Units(TrainSampler(len(index.sizes), batch_size, shape_of), max(1, round(group / batch_size)))
    pixels = batch_size // world_size() * shape[0] * shape[1] * (1 + change) ** 2
    return _make_loader(dataset, units, cfg.data.workers, pixels=pixels, pin=pin, keep=True)


def make_val_loader(index: Index, cfg: Config, *, pin: bool, pictures: Pictures | None = None) -> Loader:
    """Every picture once, letterboxed to ``data.imgsz``; see ``ValSampler``. The same pixels with a cache."""
    stride = 2 ** max(cfg.model.levels)
    shape, size = input_shape(cfg.data.imgsz, stride), cfg.val_batch
    if pictures is None:
        needed = fitted_sizes(index.sizes, shape)
        pictures = DecodedPictures(index, needed, keep=0, pixels=pixels_of(cfg.data))
    units = Units(ValSampler(index.sizes, size, shape, stride=stride, rect=cfg.data.rect), 1)
    dataset, pixels = ValSet(index, pictures, shape), size * shape[0] * shape[1]
    return _make_loader(dataset, units, cfg.data.workers, pixels=pixels, pin=pin, keep=False)


def _make_loader(dataset, units: Units, asked: int | None, *, pixels: float, pin: bool, keep: bool) -> Loader:
    """``pixels`` of a batch."""
    most, per_unit = len(units), int(3 * pixels * units.size)
    workers = choose_workers(asked, most, unit_bytes=per_unit, prefetch=prefetch_of(units.size))
    return Loader(dataset, units, workers=workers, pin=pin, keep=keep)
