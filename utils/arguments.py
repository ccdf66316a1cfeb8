"""The command lines: YOLOv5's flags and their settings. argparse completes prefixes (``--batch 16``)."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from utils.config import SECTIONS, Config, Resolved, config_to_plain
from utils.config_files import config_from_plain, load_config
from utils.errors import UserError
from utils.training.checkpoint import load_checkpoint
from utils.yolov5_flags import REPLACED_IN_DETECT, REPLACED_IN_TRAIN, REPLACED_IN_VAL

DEMO_IMGSZ = 320
TRAIN_SETTINGS = {  # attribute of the parsed flags -> dotted key
    "data": "data.path",
    "imgsz": "data.imgsz",
    "rect": "data.rect",
    "single_cls": "data.single_cls",
    "workers": "data.workers",
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


def train_parser() -> argparse.ArgumentParser:
    """Flags of train.py."""
    parser = argparse.ArgumentParser(
        description="Train a detector. Without arguments: the demo, on generated pictures.",
        epilog="Every setting of configs/ can be given as --set section.key=value.",
    )
    add = parser.add_argument
    add("--data", metavar="YAML", help="data set (default data/shapes.yaml, generated on first use)")
    add("--cfg", metavar="YAML", help="model: demo n s m l x or a file (default n; demo for the demo)")
    add("--loss", metavar="YAML", help="loss and assigner: a name in configs/losses or a file")
    add("--hyp", metavar="YAML", help="recipe: a name in configs/recipes or a file (default: default)")
    add("--weights", default="", metavar="PT", help="start from a checkpoint; '' = from scratch")
    add("--epochs", type=int, metavar="N", help=_about("train.epochs"))
    add("--batch-size", type=int, metavar="N", help=_about("train.batch_size"))
    _add_imgsz(parser)
    add("--device", default="", help="cpu, 0, or 0,1 under torchrun (default: a GPU if there is one)")
    add("--workers", type=int, metavar="N", help=_about("data.workers"))
    add("--project", default="runs/train", metavar="DIR", help="default %(default)s")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="write into an existing folder")
    add(
        "--resume", nargs="?", const="latest", metavar="PT", help="go on with the latest or the given last.pt"
    )
    add("--seed", type=int, metavar="N", help=_about("train.seed"))
    add(
        "--optimizer", choices=("AdamW", "SGD"), help=_about("train.optimizer") + "; --hyp sgd sets its rates"
    )
    add("--patience", type=int, metavar="N", help=_about("train.patience"))
    add("--freeze", type=_int_or_name, nargs="+", metavar="N", help="N parts, backbone or neck do not train")
    add(
        "--cos-lr",
        dest="schedule",
        action="store_const",
        const="cosine",
        help="cosine schedule (the default)",
    )
    add("--linear-lr", dest="schedule", action="store_const", const="linear", help="linear schedule")
    add("--save-period", type=int, metavar="N", help=_about("train.save_period"))
    add("--val-every", type=int, metavar="K", help="validate every K-th epoch and the last")
    add("--noval", action="store_true", help="validate the last epoch only")
    add("--nosave", action="store_true", help="write last.pt only at the end")
    add("--noplots", action="store_true", help="draw no plots and pictures")
    add("--rect", action="store_true", default=None, help="validate on shapes padded to a multiple of 32")
    add("--single-cls", action="store_true", default=None, help="treat all classes as one")
    add("--sync-bn", action="store_true", default=None, help=_about("train.sync_bn"))
    add_set(parser)
    _add_replaced(parser, REPLACED_IN_TRAIN)
    return parser


def val_parser() -> argparse.ArgumentParser:
    """Flags of val.py."""
    parser = argparse.ArgumentParser(description="Measure a detector by COCO's metrics.")
    add = parser.add_argument
    add("--weights", required=True, metavar="PT", help="best.pt or last.pt of a run")
    add("--data", metavar="YAML", help="data set (default: that of the training)")
    _add_imgsz(parser)
    add("--batch-size", type=int, metavar="N", help=_about("val.batch_size"))
    add("--conf-thres", type=float, metavar="X", help=_about("val.conf"))
    add("--iou-thres", type=float, metavar="X", help=_about("val.iou"))
    add("--max-det", type=int, metavar="N", help=_about("val.max_det"))
    add(
        "--task",
        default="val",
        choices=("train", "val", "test"),
        help="split to measure on (default %(default)s)",
    )
    add("--device", default="", help="cpu or 0 (default: a GPU if there is one)")
    add("--workers", type=int, metavar="N", help=_about("data.workers"))
    add("--rect", action="store_true", default=None, help="pad to a multiple of 32 instead of a square")
    add("--save-json", action="store_true", help="write predictions.json in COCO's result form")
    add("--evaluator", choices=("hotcoco", "pycocotools"), help=_about("val.evaluator"))
    add("--project", default="runs/val", metavar="DIR", help="default %(default)s")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="write into an existing folder")
    add("--noplots", action="store_true", help="draw no pictures and curves")
    add_set(parser)
    _add_replaced(parser, REPLACED_IN_VAL)
    return parser


def detect_parser() -> argparse.ArgumentParser:
    """Flags of detect.py."""
    parser = argparse.ArgumentParser(description="Find objects in pictures.")
    add = parser.add_argument
    add("--weights", required=True, metavar="PT", help="best.pt or last.pt of a run")
    add("--source", required=True, help="picture, folder, glob, or list file (.txt)")
    _add_imgsz(parser)
    add("--conf-thres", type=float, metavar="X", help=_about("val.detect_conf"))
    add("--iou-thres", type=float, metavar="X", help=_about("val.detect_iou"))
    add("--max-det", type=int, metavar="N", help=_about("val.max_det"))
    add("--classes", type=int, nargs="+", metavar="N", help="only these classes, by number")
    add("--agnostic-nms", action="store_true", help="one box for each object, whatever its class")
    add("--device", default="", help="cpu or 0 (default: a GPU if there is one)")
    add("--rect", action="store_true", default=None, help="pad to a multiple of 32 instead of a square")
    add("--save-txt", action="store_true", help="write labels/*.txt in YOLO's form")
    add("--save-conf", action="store_true", help="with the score as sixth column")
    add("--save-crop", action="store_true", help="write each object to crops/<class>/")
    add("--nosave", action="store_true", help="write no pictures")
    add("--hide-labels", action="store_true", help="boxes without names")
    add("--hide-conf", action="store_true", help="names without scores")
    add("--show-sigma", action="store_true", help="draw one standard deviation of every box side")
    add("--line-thickness", type=int, metavar="PX", help="of the boxes (default: from the picture's size)")
    add("--project", default="runs/detect", metavar="DIR", help="default %(default)s")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="write into an existing folder")
    add_set(parser)
    _add_replaced(parser, REPLACED_IN_DETECT)
    return parser


def given_settings(args: argparse.Namespace, settings: Mapping[str, str]) -> dict[str, tuple[str, object]]:
    """The settings among the flags that were given: dotted key -> (flag, value), for ``load_config``."""
    found = {}
    for name, key in settings.items():
        value = getattr(args, name)
        if value is not None:
            flag = {"cosine": "cos-lr", "linear": "linear-lr"}[value] if name == "schedule" else name
            found[key] = (f"--{flag.replace('_', '-')}", value)
    return found


def add_set(parser: argparse.ArgumentParser) -> None:
    """``--set section.key=value``, repeatable."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")


def _add_replaced(parser: argparse.ArgumentParser, flags: dict[str, str]) -> None:
    for flag, why in flags.items():
        parser.add_argument(flag, nargs="*", action=_Replaced, why=why, help=argparse.SUPPRESS)


def _add_imgsz(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--imgsz",
        "--img",
        "--img-size",
        type=int,
        nargs="+",
        action=_Size,
        metavar="PX",
        help="input size: one side, or height and width",
    )


def _about(key: str) -> str:
    """Help of a flag that stands for a setting: the setting's own description and default."""
    section, name = key.split(".")
    field = SECTIONS[section].model_fields[name]
    return f"{field.description} (default {field.default})".replace("%", "%%")


def _int_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


class _Size(argparse.Action):
    """One side, or height and width."""

    def __call__(self, parser, namespace, values: Sequence[int], option_string=None):
        if len(values) > 2:
            parser.error(f"{option_string} takes one side, or height and width")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


class _Replaced(argparse.Action):
    """A flag of YOLOv5 that something else replaces: one line says what and why, and the run goes on."""

    def __init__(self, *args, why: str, **kwargs):
        super().__init__(*args, **kwargs)
        self.why = why

    def __call__(self, parser, namespace, values, option_string=None):
        print(f"{option_string} is not needed: {self.why}", file=sys.stderr)


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
