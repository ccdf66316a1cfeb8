"""The command lines: YOLOv5's flags. argparse completes prefixes (``--batch 16``)."""

import argparse
import sys
from collections.abc import Callable, Sequence

from utils.config import SECTIONS
from utils.training.logger import TRACKERS
from utils.yolov5_flags import REPLACED_IN_DETECT, REPLACED_IN_TRAIN, REPLACED_IN_VAL

Flags = argparse.ArgumentParser | argparse._ArgumentGroup  # what takes flags
RESUME = (
    "go on with the run saved last in --project, or with this last.pt or run folder; auto: with project/name "
    "if it holds a last.pt, else start there. Settings are the run's own; others are refused, but --epochs N "
    "extends or shortens it: from there on the learning rate is that of a run of N epochs"
)


def train_parser() -> argparse.ArgumentParser:
    """Flags of train.py."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [--data YAML] [--cfg YAML] [flags]",
        description="Train a detector. Without arguments: the demo, on generated pictures.",
        epilog="Flags may be cut short where that is clear: --batch 16 --img 640.",
    )
    _add_pictures(parser.add_argument_group("pictures"))
    _add_model(parser.add_argument_group("model and loss"))
    _add_training(parser.add_argument_group("training"))
    _add_run(parser.add_argument_group("the run"))
    add_set(parser)
    _add_replaced(parser, REPLACED_IN_TRAIN)
    return parser


def _add_pictures(group: Flags) -> None:
    add = group.add_argument
    add("--data", metavar="YAML", help="data set (default data/shapes.yaml, generated on first use)")
    add_data_flags(group)
    add_imgsz(group)
    add("--multi-scale", type=float, nargs="?", const=0.5, metavar="X", help=_about("augment.multi_scale"))
    add("--single-cls", action="store_true", default=None, help=_about("data.single_cls"))
    add("--rect", action="store_true", default=None, help="validate on shapes padded to a multiple of 32")
    add("--cache", nargs="?", const="ram", choices=("none", "ram", "disk"), help=_about("data.cache"))
    add("--workers", type=int, metavar="N", help=_about("data.workers"))
    about = "only write N augmented pictures, with what was done to them"
    add("--show-plan", type=count_up_to(10_000), nargs="?", const=16, metavar="N", help=about)


def _add_model(group: Flags) -> None:
    add = group.add_argument
    add("--cfg", metavar="YAML", help="model: demo n s m l x or a file (default n; demo for the demo)")
    add("--loss", metavar="YAML", help="loss and assigner: a name in configs/losses or a file")
    add("--hyp", metavar="YAML", help="recipe: a name in configs/recipes or a file (default: default)")
    add("--weights", default="", metavar="PT", help="start from a checkpoint; '' = from scratch")
    add("--freeze", type=_int_or_name, nargs="+", metavar="N", help="N parts, backbone or neck do not train")


def _add_training(group: Flags) -> None:
    add = group.add_argument
    add("--epochs", type=int, metavar="N", help=_about("train.epochs"))
    add("--batch-size", type=_int_or_auto, metavar="N|auto", help=_about("train.batch_size"))
    add("--micro-batch", type=int, metavar="N", help=_about("train.micro_batch"))
    about = _about("train.optimizer") + "; --hyp sgd sets its rates"
    add("--optimizer", choices=("AdamW", "SGD"), help=about)
    cosine, linear = "cosine schedule (the default)", "linear schedule"
    add("--cos-lr", dest="schedule", action="store_const", const="cosine", help=cosine)
    add("--linear-lr", dest="schedule", action="store_const", const="linear", help=linear)
    add("--patience", type=int, metavar="N", help=_about("train.patience"))
    add("--seed", type=int, metavar="N", help=_about("train.seed"))
    add("--deterministic", action="store_true", default=None, help=_about("train.deterministic"))
    add("--sync-bn", action="store_true", default=None, help=_about("train.sync_bn"))
    add("--val-every", type=int, metavar="K", help="validate every K-th epoch and the last")
    add("--noval", action="store_true", help="validate the last epoch only")


def _add_run(group: Flags) -> None:
    add = group.add_argument
    add("--device", default="", help="cpu, 0, or 0,1 under torchrun (default: a GPU if there is one)")
    add_folder(group, "runs/train")
    add("--resume", nargs="?", const="latest", metavar="PT|auto", help=RESUME)
    add("--save-minutes", type=float, metavar="X", help=_about("train.save_minutes"))
    add("--save-period", type=int, metavar="N", help=_about("train.save_period"))
    add("--nosave", action="store_true", help="write last.pt only at the end")
    add("--noplots", action="store_true", help="draw no plots and pictures")
    about = f"send the figures of results.csv there, too: {', '.join(TRACKERS)}; each must be installed"
    add("--loggers", nargs="+", choices=tuple(TRACKERS), default=[], metavar="NAME", help=about)


def val_parser() -> argparse.ArgumentParser:
    """Flags of val.py."""
    parser = argparse.ArgumentParser(description="Measure a detector by COCO's metrics.")
    add = parser.add_argument
    add("--weights", required=True, metavar="PT", help="best.safetensors, best.pt or last.pt of a run")
    add("--data", metavar="YAML", help="data set (default: that of the training)")
    add_data_flags(parser)
    add_imgsz(parser)
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
    add_folder(parser, "runs/val")
    add("--noplots", action="store_true", help="draw no pictures and curves")
    add_set(parser)
    _add_replaced(parser, REPLACED_IN_VAL)
    return parser


def detect_parser() -> argparse.ArgumentParser:
    """Flags of detect.py."""
    parser = argparse.ArgumentParser(description="Find objects in pictures.")
    add = parser.add_argument
    add("--weights", required=True, metavar="PT", help="best.safetensors, best.pt or last.pt of a run")
    add("--source", required=True, help="picture, folder, glob, or list file (.txt)")
    add_imgsz(parser)
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
    add(
        "--line-thickness",
        type=count_up_to(1000),
        metavar="PX",
        help="of the boxes (default: from the picture's size)",
    )
    add_folder(parser, "runs/detect")
    add_set(parser)
    _add_replaced(parser, REPLACED_IN_DETECT)
    return parser


def add_set(parser: Flags) -> None:
    """``--set section.key=value``, repeatable."""
    about = "any setting of configs/, such as --set train.lr=1e-3; may be given several times"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help=about)


def _add_replaced(parser: argparse.ArgumentParser, flags: dict[str, str]) -> None:
    for flag, why in flags.items():
        parser.add_argument(flag, nargs="*", action=_Replaced, why=why, help=argparse.SUPPRESS)


def add_folder(parser: Flags, project: str) -> None:
    """``--project``, ``--name`` and ``--exist-ok``: where results go."""
    add = parser.add_argument
    add("--project", default=project, metavar="DIR", help="default %(default)s")
    add("--name", default="exp", help="results go to project/name (default %(default)s)")
    add("--exist-ok", action="store_true", help="write into an existing folder")


def add_data_flags(parser: Flags) -> None:
    """``--download``, ``--data-root`` and ``--label-errors``."""
    add = parser.add_argument
    about = "first fetch what the data set's YAML names under download, into a new folder below --data-root"
    add("--download", action="store_true", help=about)
    add("--data-root", metavar="DIR", help=_about("data.root"))
    add("--label-errors", choices=("stop", "skip", "clip"), help=_about("data.label_errors"))


def add_imgsz(parser: Flags) -> None:
    """``--imgsz 640`` or ``--imgsz 480 640`` (height, width)."""
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
    default = "" if field.default is None or field.default is False else f" (default {field.default})"
    return f"{field.description}{default}".replace("null =", "default:").replace("%", "%%")


def _int_or_auto(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pictures nor auto") from None


def _int_or_name(text: str) -> int | str:
    return int(text) if text.lstrip("-").isdigit() else text


def count_up_to(most: int) -> Callable[[str], int]:
    """A type of flag: 1 to ``most``. What a flag counts is done or held one by one."""

    def read(text: str) -> int:
        digits = text.isascii() and text.isdigit() and len(text) <= 20
        if not digits or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is no count from 1 to {most:,}")
        return int(text)

    return read


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
