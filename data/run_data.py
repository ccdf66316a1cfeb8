"""Everything a training reads: both splits, as loaders and as ground truth."""

from typing import NamedTuple

import torch

from data.check import check_before_training
from data.formats.sources import DataSpec, format_classes
from data.index import Index, load_split
from data.letterbox import input_shape
from data.loader import Loader, make_train_loader, make_val_loader
from data.picture_cache import cache_pictures
from data.prepare import prepare_data
from data.spec import load_data_spec
from utils.config import Config
from utils.metrics.coco import make_ground_truth
from utils.training import distributed


class Data(NamedTuple):
    """The pictures of a run."""

    spec: DataSpec
    index: Index  # of the training pictures
    train: Loader
    val: Loader
    truth: dict  # COCO ground truth of the validation pictures


def load_data(cfg: Config, device: torch.device, *, download: bool) -> Data:
    """Read both splits and make their loaders. Rank 0 is first: the others find its labels in the cache."""
    splits, first_rank = ("train", "val"), distributed.rank() == 0
    options = {"single_cls": cfg.data.single_cls}
    if first_rank:
        prepare_data(cfg.data.path, download=download)
    distributed.barrier()
    spec = load_data_spec(cfg.data.path, **options)
    if first_rank:
        print(format_classes(spec))
        check_before_training(spec, cfg)
    distributed.barrier()
    errors = cfg.data.label_errors
    indexes = [load_split(spec, split, **options, label_errors=errors)[0] for split in splits]
    shape = input_shape(cfg.data.imgsz, 2 ** max(cfg.model.levels))
    cached = cache_pictures(dict(zip(splits, indexes, strict=True)), shape, cfg.data.cache)
    pin = device.type == "cuda"
    train_loader = make_train_loader(indexes[0], cfg, pin=pin, pictures=cached["train"])
    val_loader = make_val_loader(indexes[1], cfg, pin=pin, pictures=cached["val"])
    return Data(spec, indexes[0], train_loader, val_loader, ground_truth_of(indexes[1], spec))


def ground_truth_of(index: Index, spec: DataSpec) -> dict:
    """COCO ground truth of a split."""
    return make_ground_truth(
        **{field: getattr(index, field) for field in ("picture_ids", "sizes", "offsets", "boxes", "labels")},
        **{"ignore": index.ignore, "areas": index.areas},
        category_ids=spec.category_ids,
        names=spec.names,
    )
