"""A comparison of runs that are finished already: which belong together, and whether they may be compared."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from utils.comparison.plan import Group, Plan, Run, differing_settings, make_run, settings_of, show_differing
from utils.config import KEYS, Config
from utils.config_files import SCOPES, config_from_plain
from utils.errors import UserError
from utils.settings import override
from utils.training.checkpoint import load_checkpoint

DEFAULT = "gfl"  # the name of the schema's own loss


class Finished(NamedTuple):
    """A finished run."""

    folder: Path
    config: Config
    origins: dict[str, str]  # of each setting


def plan_of_finished(
    folders: Sequence[str],
    *,
    folder: Path,
    baseline: str | None,
    device: str = "",
    data: str | None = None,
    data_root: str | None = None,
) -> Plan:
    """The comparison of the finished runs in ``folders``, or below them, grouped by their loss.

    ``data``, ``data_root``: where the data set lies now, None if where it was.

    Refused, saying why: no finished run, two of a loss with one seed, a single loss, other differences than
    those of the losses. The pictures are compared later, by their fingerprints.
    """
    found = [read_finished(path) for path in _find_runs(folders)]
    check_recipes(found)
    given = {"data.path": ("--data", data), "data.root": ("--data-root", data_root)}
    groups: dict[str, Group] = {}
    for name, members in group_by_loss(found).items():
        runs: dict[int, Run] = {}
        for item in members:
            seed = item.config.train.seed
            if seed in runs:
                raise UserError(
                    f"{runs[seed].folder} and {item.folder} are both {name} with seed {seed}; leave one out"
                )
            runs[seed] = make_run(folder, name, seed)._replace(folder=item.folder)
        config = override(members[0].config, given)
        groups[name] = Group(_origin_of(members[0]), config, runs)
    if len(groups) < 2:
        raise UserError(f"--from: all runs are {next(iter(groups))}; there is nothing to compare it with")
    chosen = baseline or (DEFAULT if DEFAULT in groups else next(iter(groups)))
    if chosen not in groups:
        raise UserError(f"--baseline {baseline} is none of the losses found: {', '.join(groups)}")
    return Plan(folder, chosen, groups, flags=[], device=device, download=False, weights="")


def _find_runs(folders: Sequence[str]) -> list[Path]:
    """Folders of finished runs, each once; below a folder that is none itself, unfinished ones are named."""
    found: list[Path] = []
    for given in map(Path, folders):
        inside = (
            [given]
            if os.path.isdir(given / "weights")
            else [path.parent.parent for path in sorted(given.rglob("weights/last.pt"))]
        )
        whole = [path for path in inside if Run("", 0, path, path, path).is_trained]
        if not whole:
            raise UserError(
                f"--from {given}: no finished run there (weights/last.pt and metrics.json). "
                "python train.py --resume <last.pt> goes on with an unfinished one"
            )
        for path in inside:
            if path not in whole:
                print(f"left out, as it is not finished: {path}")
        found += whole
    return list(dict.fromkeys(found))


def read_finished(folder: Path) -> Finished:
    """The settings of a run, from its last.pt."""
    path = folder / "weights" / "last.pt"
    content = load_checkpoint(path, key="origins")
    origins = {key: content["origins"].get(key, "default") for key in KEYS}  # which may be a stranger's
    return Finished(folder, config_from_plain(content["config"], where=str(path)), origins)


def check_recipes(found: Sequence[Finished]) -> None:
    """Runs may differ in their losses and seeds; any other difference would be measured with them."""
    first = found[0]
    for item in found[1:]:
        differing = differing_settings(first.config, item.config)
        differing = {key: pair for key, pair in differing.items() if not _is_of_loss(key)}
        differing.pop("train.seed", None)
        if differing:
            raise UserError(
                f"{first.folder} and {item.folder} differ in more than their losses, so a difference in AP "
                f"would not be the losses' alone:\n{show_differing(differing, 'first', 'second')}"
            )


def group_by_loss(found: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Runs of the same loss settings under one name, in the order in which they were given.

    The name is the stem of the --loss file (``DEFAULT`` where there was none), with the settings changed in
    other ways; where other settings have that name already, with all in which it differs from them.
    """
    groups: dict[str, list[Finished]] = {}
    for item in found:
        name = name_of_loss(item)
        while name in groups and (differing := _differing_loss(groups[name][0], item)):
            name += "".join(f"_{key.split('.')[1]}={pair[1]}" for key, pair in differing.items())
        groups.setdefault(name, []).append(item)
    return groups


def name_of_loss(item: Finished) -> str:
    """``gfl``, ``gfl_dfl=0.5``."""
    origin, settings, defaults = _origin_of(item), settings_of(item.config), settings_of(Config())
    changed = [
        f"_{key.split('.')[1]}={value}"
        for key, value in settings.items()
        if _is_of_loss(key) and item.origins[key] != str(origin) and value != defaults[key]
    ]
    return (DEFAULT if origin == item.folder else origin.stem) + "".join(changed)


def _origin_of(item: Finished) -> Path:
    """The --loss file of a run, or the run's folder where no setting came from one."""
    files = [
        origin
        for key, origin in item.origins.items()
        if _is_of_loss(key) and origin.endswith((".yaml", ".yml")) and origin != item.origins["model.width"]
    ]
    return Path(files[0]) if files else item.folder


def _differing_loss(one: Finished, other: Finished) -> dict[str, list]:
    differing = differing_settings(one.config, other.config)
    return {key: pair for key, pair in differing.items() if _is_of_loss(key)}


def _is_of_loss(key: str) -> bool:
    return key in SCOPES["--loss"] or key.split(".")[0] in SCOPES["--loss"]
