"""Loaders: which pictures make which batch, and the processes that render them."""

import os
from collections.abc import Iterator

import cv2
import numpy as np
from torch.utils.data import DataLoader, Sampler

from data.dataset import Batch, TrainSet, ValSet, collate
from data.index import Index
from data.letterbox import input_shape, rect_shape
from data.plan import Planner
from utils.config import Config
from utils.errors import UserError
from utils.training.distributed import rank, world_size


class TrainSampler(Sampler):
    """The batches of one epoch, as items of ``TrainSet``.

    Global batch k holds the positions k B .. k B + B - 1 whatever the number of ranks, each of which takes an
    equal slice of it; the last batch is filled up from the permutation's start. ``set_epoch`` chooses the
    epoch.
    """

    def __init__(self, num_pictures: int, batch_size: int):
        if batch_size % world_size():
            raise UserError(
                f"--batch-size {batch_size} is the total over all ranks: no multiple of {world_size()}"
            )
        self.num_pictures, self.batch_size = num_pictures, batch_size
        self.epoch, self.mosaic = 0, True

    def set_epoch(self, epoch: int, *, mosaic: bool) -> None:
        """Choose the epoch, and whether its pictures may be mosaics."""
        self.epoch, self.mosaic = epoch, mosaic

    def __len__(self) -> int:
        return -(-self.num_pictures // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int, bool]]]:
        share = self.batch_size // world_size()
        for batch in range(len(self)):
            start = batch * self.batch_size + rank() * share
            yield [(self.epoch, position, self.mosaic) for position in range(start, start + share)]


class ValSampler(Sampler):
    """Every picture once, as items of ``ValSet``: square inputs, or with ``rect`` sorted by shape.

    Sorting puts like shapes into one batch, so each is padded little.
    """

    def __init__(
        self, sizes: np.ndarray, batch_size: int, shape: tuple[int, int], *, stride: int, rect: bool
    ):
        numbers = np.argsort(sizes[:, 0] / sizes[:, 1], kind="stable") if rect else np.arange(len(sizes))
        self.batches = []
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size].tolist()
            shapes = [rect_shape(tuple(sizes[n].tolist()), shape, stride) for n in batch] if rect else [shape]
            common = max(height for height, _ in shapes), max(width for _, width in shapes)
            self.batches.append([(number, common) for number in batch])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, int]]]]:
        return iter(self.batches)


def make_train_loader(index: Index, cfg: Config, *, pin: bool) -> DataLoader:
    """Augmented batches of ``train.batch_size``, the same for any number of workers; see ``TrainSampler``."""
    shape = input_shape(cfg.data.imgsz, 2 ** max(cfg.model.levels))
    planner = Planner(index.sizes, shape, cfg.augment, group=cfg.data.group, seed=cfg.train.seed)
    sampler = TrainSampler(len(index.sizes), cfg.train.batch_size)
    return _make_loader(TrainSet(index, planner, cfg.augment), sampler, cfg.data.workers, pin=pin, keep=True)


def make_val_loader(index: Index, cfg: Config, *, pin: bool) -> DataLoader:
    """Every picture once, letterboxed to ``data.imgsz``; see ``ValSampler``."""
    stride = 2 ** max(cfg.model.levels)
    shape, size = input_shape(cfg.data.imgsz, stride), cfg.val.batch_size or cfg.train.batch_size
    sampler = ValSampler(index.sizes, size, shape, stride=stride, rect=cfg.data.rect)
    return _make_loader(ValSet(index), sampler, cfg.data.workers, pin=pin, keep=False)


def batches(loader: DataLoader) -> Iterator[Batch]:
    """The loader's batches; a picture that cannot be read ends them with its own ``UserError``.

    Raised inside a worker it would arrive wrapped in that process's traceback, so it travels as a value.
    """
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


def choose_workers(asked: int | None, batches: int) -> int:
    """Worker processes: as asked, else one for each core left beside the training process, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
    return asked if asked is not None else max(0, min(8, cores - 1, batches))


def _make_loader(
    dataset: TrainSet | ValSet, sampler: Sampler, asked: int | None, *, pin: bool, keep: bool
) -> DataLoader:
    """``keep``: the workers, and the pictures they have decoded, live on from epoch to epoch."""
    workers = choose_workers(asked, len(sampler))
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
        persistent_workers=keep and workers > 0,
    )


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)
