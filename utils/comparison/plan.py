"""What is compared: losses x seeds, checked before the first training starts."""

import argparse
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from utils.arguments import train_parser
from utils.comparison.compare_file import flags_to_argv, read_compare_file
from utils.config import Config, config_to_plain
from utils.config_files import config_from_plain, display_path, load_config, read_yaml, resolve_named
from utils.errors import UserError
from utils.files import write_whole
from utils.settings import FREE_ON_RESUME, resolve_training
from utils.training.checkpoint import load_checkpoint
from utils.wording import show_value

NUM_SEEDS, MOST_SEEDS = 5, 1000
FIRST_FLAGS = ("--patience=0",)  # the end must not be chosen on the pictures that measure; given flags win
OWNED = {  # attribute of train.py's flags -> why a comparison does not take it
    "loss": "the losses to compare are named by --losses",
    "seed": "the seeds are named by --seeds",
    "name": "each run is named by its loss and seed; --name names the comparison",
    "project": "the runs lie in the comparison's folder; write --project out",
    "resume": "a comparison goes on where it was interrupted by the same command",
    "exist_ok": "a comparison always goes on in its own folder",
    "show_plan": "it trains nothing; use it with train.py",
}
HARMLESS = (  # settings in which runs may differ and still be compared
    "data.path",  # the fingerprint of the pictures decides
    "data.root",
    "data.workers",
    "data.cache",
    "train.save_period",
    "train.save_minutes",
    "train.deterministic",
    "train.anatomy_every",
    "val.batch_size",
)
SHOWN_KEYS = 8  # differing settings shown one by one
LONGEST_NAME = 200  # bytes of a run's name; file systems take 255


class Run(NamedTuple):
    """One training."""

    loss: str
    seed: int
    folder: Path  # train.py's
    measured: Path  # val.py's
    log: Path  # what both print

    @property
    def name(self) -> str:
        """``gfl-seed0``."""
        return self.log.stem

    @property
    def weights(self) -> Path:
        """The last averaged weights, and what is needed to go on."""
        return self.folder / "weights" / "last.pt"

    @property
    def is_trained(self) -> bool:
        """Whether train.py came to its end: metrics.json is what it writes last but pictures."""
        return os.path.isfile(self.folder / "metrics.json") and os.path.isfile(self.weights)


class Group(NamedTuple):
    """The runs of one loss."""

    path: Path  # file of the loss, or folder of a finished run
    config: Config  # of its runs, but for the seed
    runs: dict[int, Run]  # by seed


class Plan(NamedTuple):
    """A comparison."""

    folder: Path
    baseline: str
    groups: dict[str, Group]  # by the name of the loss
    flags: list[str]  # for every train.py, as typed
    device: str  # --device, as typed
    download: bool
    weights: str  # what the trainings start from, '' = from scratch; no setting of config.yaml

    @property
    def runs(self) -> list[Run]:
        """All runs, every loss of one seed before the next seed: an interrupted comparison is balanced."""
        seeds = sorted({seed for group in self.groups.values() for seed in group.runs})
        return [group.runs[seed] for seed in seeds for group in self.groups.values() if seed in group.runs]


def make_plan(args: argparse.Namespace, flags: Sequence[str]) -> Plan:
    """The comparison that ``parse_comparison`` read; whatever is wrong with it is a ``UserError``."""
    given = read_compare_file(args.yaml) if args.yaml else {}
    names = args.losses or given.get("losses")
    if not names:
        raise UserError(
            "no losses: name them by --losses gfl vfl ..., or give a YAML, such as configs/compare/bins.yaml"
        )
    losses = _losses_by_name(names)
    wanted = args.baseline or given.get("baseline") or next(iter(losses))
    baseline = wanted if wanted in losses else Path(wanted).stem  # a name may hold a dot: dfl_0.5
    if baseline not in losses:
        raise UserError(f"--baseline {baseline} is none of the losses: {', '.join(losses)}")
    seeds = read_seeds(args.seeds[0] if len(args.seeds or ()) == 1 else args.seeds or given.get("seeds"))
    name = args.name or (resolve_named(args.yaml, "compare").stem if args.yaml else "-".join(losses)[:80])
    flags = [*FIRST_FLAGS, *_flags_of_file(given, args.yaml), *flags]
    asked = parse_train_flags(flags)
    folder, groups = Path(args.project) / name, {}
    for loss, path in losses.items():
        runs = {seed: make_run(folder, loss, seed) for seed in seeds}
        groups[loss] = Group(path, resolve_loss(asked, path), runs)
    return Plan(folder, baseline, groups, flags, asked.device, asked.download, asked.weights)


def _flags_of_file(given: Mapping, yaml: str) -> list[str]:
    """Flags of a comparison's YAML, which may come from a stranger: it neither fetches nor says where to."""
    flags = flags_to_argv(given.get("flags", {}))
    asked = parse_train_flags(flags)  # as parsed, so that no spelling gets by
    chosen = ["data.root" for text in asked.sets if text.partition("=")[0].strip() == "data.root"]
    chosen += [f"--{name.replace('_', '-')}" for name in ("download", "data_root") if getattr(asked, name)]
    if chosen:
        raise UserError(f"{yaml}: flags: {chosen[0]} is for the command line alone: give it there")
    return flags


def make_run(folder: Path, loss: str, seed: int) -> Run:
    """Where a run of the comparison in ``folder`` lies; a name that no folder or screen takes is refused."""
    name = f"{loss}-seed{seed}"
    if not name.isprintable() or len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(
            f"a run cannot be named {name!a}: rename the loss's file to at most "
            f"{LONGEST_NAME - 20} printable characters"
        )
    return Run(loss, seed, folder / "runs" / name, folder / "val" / name, folder / "runs" / f"{name}.log")


def read_seeds(given: int | Sequence[int] | None) -> list[int]:
    """A count (5: seeds 0 to 4), or the seeds themselves."""
    if isinstance(given, int) and given > MOST_SEEDS:
        raise UserError(f"--seeds {given}: that many trainings; give a count of at most {MOST_SEEDS:,}")
    seeds = list(range(given)) if isinstance(given, int) else list(given or range(NUM_SEEDS))
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        shown = given if isinstance(given, int) else " ".join(map(str, seeds))
        raise UserError(f"--seeds {shown}: give a count of at least 1, or different seeds of 0 to 2^32 - 1")
    return seeds


def parse_train_flags(flags: Sequence[str]) -> argparse.Namespace:
    """train.py's reading of its flags; one that a comparison owns is refused. argparse ends with code 2."""
    parser = train_parser()
    args, defaults = parser.parse_args(flags), parser.parse_args([])
    for name, why in OWNED.items():
        if getattr(args, name) != getattr(defaults, name):
            raise UserError(f"--{name.replace('_', '-')} is not for compare.py: {why}")
    return args


def resolve_loss(asked: argparse.Namespace, path: Path) -> Config:
    """The settings of a loss's runs; a flag that would override what its file says is refused."""
    resolved = resolve_training(argparse.Namespace(**{**vars(asked), "loss": str(path)}))
    if resolved.origins["train.seed"] == "--set":
        raise UserError(f"--set train.seed is not for compare.py: {OWNED['seed']}")
    if resolved.config.train.batch_size == "auto":
        raise UserError(
            "--batch-size auto is not for compare.py: it may choose another size for each loss, and more "
            "than the losses would differ. Give a number; train.py --batch-size auto prints one that fits"
        )
    for key, origin in load_config(loss=path).origins.items():
        if origin != "default" and resolved.origins[key] != origin:
            raise UserError(
                f"{key} of {origin} would be overridden by {resolved.origins[key]}, and the losses would no "
                "longer be what their files say. Leave it out, or write a file for it"
            )
    return resolved.config


def check_started(plan: Plan) -> None:
    """Refuse runs that were begun with other settings than are asked for now, naming folder and keys.

    A run that has still to go on must have the settings that train.py asks for, too: ``FREE_ON_RESUME``.
    """
    for run in plan.runs:
        file = run.folder / "config.yaml"
        if not (os.path.isfile(run.weights) and os.path.isfile(file)):
            continue  # starts anew
        found = config_from_plain(read_yaml(file), where=display_path(file))
        wanted = plan.groups[run.loss].config
        wanted = wanted.model_copy(update={"train": wanted.train.model_copy(update={"seed": run.seed})})
        if wanted.data.pixel_range == "auto":  # what train.py found for it
            data = wanted.data.model_copy(update={"pixel_range": found.data.pixel_range})
            wanted = wanted.model_copy(update={"data": data})
        harmless = HARMLESS if run.is_trained else set(HARMLESS).intersection(FREE_ON_RESUME)
        if differing := differing_settings(found, wanted, harmless):
            raise UserError(
                f"{run.folder} was begun with other settings than are asked for now:\n"
                f"{show_differing(differing, 'there', 'asked')}\n"
                "Ask for the same settings, give this comparison another --name, or remove that folder"
            )


def check_start(plan: Plan, training_data: str) -> None:
    """Remember what the trainings start and learn from; refuse to go on from something else.

    ``training_data``: the fingerprint of the training pictures. Neither is among the settings of a run.
    """
    weights = f"{plan.weights} {_digest(plan.weights)}" if plan.weights else "from scratch"
    now = f"weights: {weights}\ntraining data: {training_data}\n"
    file = plan.folder / "runs" / "start.txt"
    before = file.read_text(encoding="utf-8") if os.path.isfile(file) else ""
    if not before:  # none, or cut off while it was written: nothing has been trained then
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, now)
    elif before != now:
        differing = [
            pair for pair in zip(before.splitlines(), now.splitlines(), strict=False) if len({*pair}) > 1
        ]
        shown = "\n".join(f"  there {one}\n  now   {other}" for one, other in differing)
        raise UserError(
            f"{plan.folder}: its trainings started from something else than is there now:\n{shown}\n"
            "Give this comparison another --name, or bring back what was there"
        )


def _digest(path: str) -> str:
    load_checkpoint(path)  # refuses what is none
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def differing_settings(one: Config, other: Config, harmless: Collection[str] = HARMLESS) -> dict[str, list]:
    """Dotted key -> the two values, of all settings but the ``harmless``."""
    first, second = settings_of(one, harmless), settings_of(other, harmless)
    return {key: [value, second[key]] for key, value in first.items() if value != second[key]}


def settings_of(config: Config, harmless: Collection[str] = HARMLESS) -> dict[str, object]:
    """Every setting but the ``harmless``, by its dotted key, plain."""
    tree = config_to_plain(config)
    flat = {f"{section}.{name}": value for section, values in tree.items() for name, value in values.items()}
    return {key: value for key, value in flat.items() if key not in harmless}


def show_differing(differing: Mapping[str, list], one: str, other: str) -> str:
    """``  train.epochs: there 20, asked 40``, one line a key."""
    lines = [
        f"  {key}: {one} {show_value(first)}, {other} {show_value(second)}"
        for key, (first, second) in differing.items()
    ]
    more = [f"  and {len(lines) - SHOWN_KEYS} more"] if len(lines) > SHOWN_KEYS else []
    return "\n".join(lines[:SHOWN_KEYS] + more)


def _losses_by_name(names: Sequence[str]) -> dict[str, Path]:
    losses: dict[str, Path] = {}
    for path in (resolve_named(name, "losses") for name in names):
        if path.stem in losses:
            first, second = display_path(losses[path.stem]), display_path(path)
            raise UserError(f"--losses: {first} and {second} would both be named {path.stem}; rename a file")
        losses[path.stem] = path
    if len(losses) < 2:
        raise UserError(f"--losses {names[0]}: there is nothing to compare it with; name at least two")
    return losses
