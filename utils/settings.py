"""From parsed flags to a configuration: which flag is which setting, and what a program starts from."""

import argparse
from collections.abc import Mapping, Sequence

from utils.config import Config, Resolved, config_to_plain
from utils.config_files import config_from_plain, load_config
from utils.errors import UserError
from utils.training.checkpoint import load_checkpoint

DEMO_IMGSZ = 320
TRAIN_SETTINGS = {  # attribute of the parsed flags -> dotted key
    "data": "data.path",
    "imgsz": "data.imgsz",
    "rect": "data.rect",
    "single_cls": "data.single_cls",
    "label_errors": "data.label_errors",
    "workers": "data.workers",
    "cache": "data.cache",
    "multi_scale": "augment.multi_scale",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "optimizer": "train.optimizer",
    "patience": "train.patience",
    "schedule": "train.schedule",
    "save_period": "train.save_period",
    "val_every": "train.val_every",
    "sync_bn": "train.sync_bn",
}
VAL_SETTINGS = {
    "data": "data.path",
    "imgsz": "data.imgsz",
    "rect": "data.rect",
    "label_errors": "data.label_errors",
    "workers": "data.workers",
    "batch_size": "val.batch_size",
    "conf_thres": "val.conf",
    "iou_thres": "val.iou",
    "max_det": "val.max_det",
    "evaluator": "val.evaluator",
}
DETECT_SETTINGS = {
    "imgsz": "data.imgsz",
    "rect": "data.rect",
    "conf_thres": "val.detect_conf",
    "iou_thres": "val.detect_iou",
    "max_det": "val.max_det",
}


def given_settings(args: argparse.Namespace, settings: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    """The settings among the flags that were given: dotted key -> (flag, value), for ``load_config``."""
    found = {}
    for name, key in settings.items():
        value = getattr(args, name)
        if value is not None:
            flag = {"cosine": "cos-lr", "linear": "linear-lr"}[value] if name == "schedule" else name
            found[key] = (f"--{flag.replace('_', '-')}", value)
    return found


def resolve_training(args: argparse.Namespace) -> Resolved:
    """The configuration of a training: files, weights' architecture, flags, --set.

    Without --data, or data.path in --set, it is the demo: its model, recipe and input size. Weights without
    --cfg bring their architecture.
    """
    flags = {}
    demo = args.data is None and not any(text.split("=")[0].strip() == "data.path" for text in args.sets)
    if args.weights and not args.cfg:
        trained = config_from_plain(load_checkpoint(args.weights)["config"], where=args.weights)
        model = config_to_plain(trained)["model"]
        flags |= {f"model.{key}": (args.weights, value) for key, value in model.items()}
    if demo:
        flags["data.imgsz"] = ("demo", DEMO_IMGSZ)
    flags |= given_settings(args, TRAIN_SETTINGS)
    if args.freeze:
        flags["train.freeze"] = ("--freeze", _read_freeze(args.freeze))
    if args.noval:
        flags["train.val_every"] = ("--noval", flags.get("train.epochs", ("", 10**6))[1])
    cfg = args.cfg or (None if args.weights else "demo" if demo else "n")
    return load_config(
        cfg=cfg, hyp=args.hyp or ("demo" if demo else "default"), loss=args.loss, flags=flags, sets=args.sets
    )


def resolve_use(args: argparse.Namespace, trained: Config, settings: Mapping[str, str]) -> Config:
    """The configuration of val.py or detect.py: that of the training, then flags, then --set."""
    return override(trained, given_settings(args, settings), sets=args.sets)


def override(config: Config, given: Mapping[str, tuple[str, object]], sets: Sequence[str] = ()) -> Config:
    """``config`` with other values, checked; ``given``: dotted key -> (name in errors, value or None)."""
    given = {key: item for key, item in given.items() if item[1] is not None}
    if not given and not sets:
        return config
    old = {
        f"{section}.{name}": ("weights", value)
        for section, values in config_to_plain(config).items()
        for name, value in values.items()
    }
    changed = load_config(flags=old | given, sets=sets).config
    if changed.model != config.model:
        raise UserError(
            f"--set {' '.join(sets)}: the weights decide the model section; train for another model"
        )
    return changed


def _read_freeze(values: list[int | str]) -> int | str:
    """``--freeze 10``, ``--freeze backbone``, or YOLOv5's list ``--freeze 0 1 2`` of the first parts."""
    if len(values) == 1:
        return values[0]
    if values != list(range(len(values))):
        raise UserError(
            f"--freeze {' '.join(map(str, values))}: give the number of parts to freeze, backbone or neck"
        )
    return len(values)
