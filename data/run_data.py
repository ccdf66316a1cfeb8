"""Everything a training reads: both splits, as loaders and as ground truth."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from data.check import check_before_training
from data.doctor.inspect_pictures import load_sound_split
from data.formats.sources import DataSpec, format_classes
from data.index import Index, fingerprint, path_of
from data.letterbox import input_shape
from data.loader import Loader, make_train_loader, make_val_loader
from data.picture_cache import cache_pictures
from data.pixels import pixels_of
from data.prepare import prepare_data
from data.spec import check_there, load_data_spec, remembered
from utils.config import Config
from utils.errors import DATA, UserError
from utils.metrics.coco import make_ground_truth
from utils.training import distributed


class Data(NamedTuple):
    """The pictures of a run."""

    spec: DataSpec
    index: Index  # of the training pictures
    train: Loader
    val: Loader
    truth: dict  # COCO ground truth of the validation pictures
    pixel_range: str | tuple[float, float]  # data.pixel_range, found where it was auto

    def with_loaders(self, cfg: Config, device: torch.device) -> "Data":
        """The same pictures, in batches of another size."""
        pin, pictures = device.type == "cuda", [loader.dataset.pictures for loader in (self.train, self.val)]
        train = make_train_loader(self.index, cfg, pin=pin, pictures=pictures[0])
        return self._replace(
            train=train, val=make_val_loader(self.val.dataset.index, cfg, pin=pin, pictures=pictures[1])
        )


def load_data(cfg: Config, device: torch.device, *, download: bool, source: str = "") -> Data:
    """Read both splits and make their loaders. A collective: rank 0 reads and checks the files, for all.

    ``source``: what remembers the data's path where it was not given now; see ``remembered``.
    """

    def read() -> tuple[DataSpec, list[Index], str | tuple[float, float]]:
        with remembered(source):
            prepare_data(cfg.data.path, root=cfg.data.root, download=download)
            spec = load_data_spec(cfg.data.path, root=cfg.data.root, **options)
            check_there(spec, splits if source else ())  # else the doctor says it, with what else is wrong
        print(format_classes(spec))
        found = check_before_training(spec, cfg).config.data
        indexes = [load_sound_split(spec, split, found)[0] for split in splits]
        return spec, indexes, found.pixel_range

    splits, options = ("train", "val"), {"single_cls": cfg.data.single_cls}
    spec, indexes, pixel_range = distributed.on_rank_zero(read)
    check_reachable(indexes)
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"pixel_range": pixel_range})})
    shape = input_shape(cfg.data.imgsz, 2 ** max(cfg.model.levels))
    named, pixels = dict(zip(splits, indexes, strict=True)), pixels_of(cfg.data)
    cached = cache_pictures(named, shape, cfg.data.cache, pixels=pixels)
    pin = device.type == "cuda"
    train_loader = make_train_loader(indexes[0], cfg, pin=pin, pictures=cached["train"])
    val_loader = make_val_loader(indexes[1], cfg, pin=pin, pictures=cached["val"])
    truth = ground_truth_of(indexes[1], spec)
    return Data(spec, indexes[0], train_loader, val_loader, truth, pixel_range)


def check_reachable(indexes: Iterable[Index]) -> None:
    """See on each machine whether what rank 0 found lies there too, by the first picture of each split."""

    def look() -> None:
        for path in (path_of(index, 0) for index in indexes if len(index.paths)):
            if not os.path.exists(path):
                raise UserError(
                    f"{path} is not on {platform.node()}: all machines of a run need the data set at the "
                    "same path; put it on a disk they share, or copy it to each",
                    DATA,
                )

    distributed.on_each_node(look)


def describe_data(data: Data) -> dict[str, str]:
    """What tells a data set from another: pictures, boxes and fingerprint of each split."""
    indexes, names = {"train": data.index, "val": data.val.dataset.index}, data.spec.names
    return {
        split: f"{len(index.sizes)} pictures, {len(index.labels)} boxes, {fingerprint(index, names)}"
        for split, index in indexes.items()
    }


def check_same_data(data: Data, then: Mapping[str, str], *, where: Path) -> None:
    """A run goes on with the pictures and boxes that it began with; ``then``: their ``describe_data``."""
    now = describe_data(data)
    changed = [f"  {key}: {then.get(key)} then, {now[key]} now" for key in now if then.get(key) != now[key]]
    if changed:
        raise UserError(
            f"{where} was trained on other data than {data.spec.yaml} holds now:\n"
            + "\n".join(changed)
            + "\n"
            f"Bring the data back as it was, or start a new run from these weights: --weights {where}",
            DATA,
        )


def ground_truth_of(index: Index, spec: DataSpec) -> dict:
    """COCO ground truth of a split."""
    return make_ground_truth(
        **{field: getattr(index, field) for field in ("picture_ids", "sizes", "offsets", "boxes", "labels")},
        **{"ignore": index.ignore, "areas": index.areas},
        sources=[
            {"source_id": json.loads(text), "file_name": path_of(index, i).name}
            for i, text in enumerate(index.source_ids.tolist())
        ],
        category_ids=spec.category_ids,
        names=spec.names,
    )
