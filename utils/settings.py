"""From parsed flags to a configuration: which flag is which setting, and what a program starts from."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.config import KEYS, Config, DataConfig, Resolved, config_to_plain
from utils.config_files import SCOPES, config_from_plain, load_config
from utils.errors import UserError
from utils.training.atomic_file import previous_generation
from utils.training.checkpoint import find_latest, load_checkpoint
from utils.wording import printable, show_value

DEMO_IMGSZ = 320
NEVER = 10**6  # epochs between validations: the last epoch is always validated
FREE_ON_RESUME = (  # settings that a run may go on with others of
    "data.path",  # the fingerprint of the pictures decides
    "data.root",
    "data.workers",
    "train.epochs",  # extends the run, or ends it earlier
    "train.micro_batch",  # which running out of memory changes too
    "train.patience",
    "train.save_minutes",
    "train.save_period",
    "val.batch_size",  # where memory runs out in validation
)
TRAIN_SETTINGS = {  # attribute of the parsed flags -> dotted key
    "data": "data.path",
    "data_root": "data.root",
    "imgsz": "data.imgsz",
    "rect": "data.rect",
    "single_cls": "data.single_cls",
    "label_errors": "data.label_errors",
    "workers": "data.workers",
    "cache": "data.cache",
    "multi_scale": "augment.multi_scale",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "micro_batch": "train.micro_batch",
    "seed": "train.seed",
    "optimizer": "train.optimizer",
    "patience": "train.patience",
    "schedule": "train.schedule",
    "save_period": "train.save_period",
    "save_minutes": "train.save_minutes",
    "deterministic": "train.deterministic",
    "val_every": "train.val_every",
    "sync_bn": "train.sync_bn",
}
VAL_SETTINGS = {
    "data": "data.path",
    "data_root": "data.root",
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
    if "data_root" in settings and args.download and args.data_root is None:
        # A checkpoint has a data root, too, and may come from a stranger: it is read from, never written to.
        found["data.root"] = ("--download", DataConfig().root)
    return found


def check_download(args: argparse.Namespace) -> None:
    """Refuse ``--download`` for a data set that only a checkpoint names, as that may be a stranger's."""
    if args.download and not names_data(args):
        raise UserError("--download: name the data set with --data; what a checkpoint names is not fetched")


def names_data(args: argparse.Namespace) -> bool:
    """Whether the command names its data set, by --data or --set."""
    return args.data is not None or any(text.split("=")[0].strip() == "data.path" for text in args.sets)


def training_settings(args: argparse.Namespace) -> dict[str, tuple[str, object]]:
    """The same of train.py's flags, with those that are not a setting as they stand: --freeze and --noval."""
    flags = given_settings(args, TRAIN_SETTINGS)
    if args.freeze:
        flags["train.freeze"] = ("--freeze", _read_freeze(args.freeze))
    if args.noval:
        flags["train.val_every"] = ("--noval", NEVER)
    return flags


def resolve_training(args: argparse.Namespace) -> Resolved:
    """The configuration of a training: files, weights' architecture, flags, --set.

    Without --data, or data.path in --set, it is the demo: its model, recipe and input size. Weights without
    --cfg bring their architecture.
    """
    flags = {}
    demo = not names_data(args)
    if args.weights and not args.cfg:
        trained = config_from_plain(load_checkpoint(args.weights)["config"], where=args.weights)
        model = config_to_plain(trained)["model"]
        flags |= {f"model.{key}": (args.weights, value) for key, value in model.items()}
    if demo:
        flags["data.imgsz"] = ("demo", DEMO_IMGSZ)
    flags |= training_settings(args)
    cfg = args.cfg or (None if args.weights else "demo" if demo else "n")
    return load_config(
        cfg=cfg, hyp=args.hyp or ("demo" if demo else "default"), loss=args.loss, flags=flags, sets=args.sets
    )


def find_resumed(args: argparse.Namespace) -> Path | None:
    """The last.pt that ``--resume`` means, which may not be there; None: a new run is to start.

    A folder is a run's. ``auto`` finds project/name, where there is nothing yet when a job starts the first
    time; it then starts in that very folder (as with --exist-ok), to be found there by the next try.
    """
    if args.resume in (None, "latest"):
        return find_latest(args.project) if args.resume else None
    auto = args.resume == "auto"
    path = Path(args.project) / args.name if auto else Path(args.resume)
    last = path if path.suffix and not os.path.isdir(path) else path / "weights" / "last.pt"
    if path.name == "weights" and os.path.isdir(path):
        last = path / "last.pt"
    saved = any(map(os.path.isfile, (last, previous_generation(last))))  # the one that a killed save left
    if auto:
        return last if saved else None
    if not saved:
        raise UserError(
            f"--resume {args.resume}: no {last} (working directory {Path.cwd()}); give a run's folder. "
            "One that was stopped before its first save starts again by its reproduce.sh"
        )
    if last.absolute().parent.name != "weights":
        raise UserError(
            f"--resume {args.resume}: a run goes on in its own folder, so its last.pt lies in RUN/weights. "
            f"Move this one to such a place, or start a new run from it: --weights {last} without --resume"
        )
    return last


def resume_training(args: argparse.Namespace, content: Mapping[str, Any], *, where: Path | str) -> Resolved:
    """The configuration of a run that goes on: that of its checkpoint ``content``, read from ``where``.

    What is given counts, not the defaults of what is not: flags, --set, and the files of --cfg, --hyp and
    --loss, each with its keys and with the defaults that it leaves in place of another file's values. Any
    value that differs from the checkpoint's is refused, except those of ``FREE_ON_RESUME``, which are taken
    over. What ``auto`` once chose, a batch size or the range of the pixels, is the run's: auto given again
    changes nothing.

    With other epochs the run is from there on one of that many: batches done count as done, and learning
    rate, average and the end of mosaics follow the schedule of the new length, so the rate jumps to it. Fewer
    than are done, or begun, are refused.
    """
    saved = config_to_plain(config_from_plain(content["config"], where=str(where)))
    origins = _read_origins(content.get("origins"))
    given = _given_on_resume(args, origins)
    changed, refused = {}, []
    for key, (value, origin) in given.items():
        section, name = key.split(".")
        old = saved[section][name]
        if value == old or (key in ("train.batch_size", "data.pixel_range") and value == "auto"):
            continue
        if key in FREE_ON_RESUME:
            changed[key] = origin
            saved[section][name] = value
        else:
            refused.append(f"  {key}: {show_value(old)} in {where}, {show_value(value)} by {origin}")
    if refused:
        raise UserError(
            "a run goes on with its own settings, but others were given:\n" + "\n".join(refused) + "\nLeave "
            f"them out, or start a new run from these weights: --weights {where} without --resume"
        )
    begun = content["epoch"] + (content.get("batch", 0) > 0)
    if "train.epochs" in changed and saved["train"]["epochs"] < begun:
        raise UserError(
            f"train.epochs is {saved['train']['epochs']} ({changed['train.epochs']}), but {where} is in or "
            f"after epoch {begun}; give at least {begun}, or start a new run without --resume"
        )
    return Resolved(config_from_plain(saved, where=str(where)), origins | changed)


def _given_on_resume(args: argparse.Namespace, origins: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    """Dotted key -> the plain value that is given for it, and by what; ``origins``: those of the run."""
    files = {"--cfg": args.cfg, "--hyp": args.hyp, "--loss": args.loss}
    given = load_config(
        cfg=args.cfg, hyp=args.hyp, loss=args.loss, flags=training_settings(args), sets=args.sets
    )
    found = {}
    for key, origin in given.origins.items():
        if origin != "default":
            found[key] = origin
        for option in (option for option, file in files.items() if file and origin == "default"):
            if _file_decided(key, option, origins):
                found[key] = f"{option} {files[option]}, which leaves the default"
    plain = config_to_plain(given.config)
    return {key: (plain[key.split(".")[0]][key.split(".")[1]], origin) for key, origin in found.items()}


def _file_decided(key: str, option: str, origins: Mapping[str, str]) -> bool:
    """Whether a run's value came from the file of ``option``, which may be another now.

    A --loss file may set two keys of the model: the file that set any other of them was that of --cfg, or the
    weights.
    """
    section, origin = key.split(".")[0], origins[key]
    if (
        origin in ("default", "demo")
        or origin.startswith("--")
        or not {key, section}.intersection(SCOPES[option])
    ):
        return False
    others = {origins[k] for k in KEYS if k.startswith("model.") and k not in SCOPES["--loss"]}
    return option != "--loss" or section != "model" or origin not in others


def _read_origins(saved: object) -> dict[str, str]:
    """The origin of every key, fit for a screen; "default" where a checkpoint says nothing usable."""
    found = saved if isinstance(saved, Mapping) else {}
    return {key: printable(found[key]) if isinstance(found.get(key), str) else "default" for key in KEYS}


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
