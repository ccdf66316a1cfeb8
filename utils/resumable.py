"""What last.pt must hold for a run to go on: types, bounds and shapes, checked whole before anything is used.

A checkpoint may come from a stranger, and PyTorch believes it: a fused optimiser reads and writes as many
numbers as a parameter has, whatever the size of the state that it was given.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from utils.assigners.statistics import AssignmentStatistics
from utils.config import Config, ModelConfig
from utils.config_files import config_from_plain
from utils.environment import find_versions
from utils.errors import UserError
from utils.losses.anatomy import anatomy_columns
from utils.training.checkpoint import Best, Count, Number, Settings, check_types, show_found
from utils.training.optimizer import build_optimizer, freeze, trained_groups
from utils.training.weights_file import show_key

MAX_RANKS = 2**16
Seconds = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Texts = dict[str, str]
Tensors = dict[str, Tensor]
Problem = tuple[str, object, str]  # dotted key, what stands there, what must


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class _Anatomy(_Record):
    steps: list[Count]
    values: list[list[Number]]  # some may rightly be nan


class _Part(_Record):
    """What a rank has counted of the epoch that runs."""

    sums: Tensor
    assigned: Tensor
    anatomy: _Anatomy
    seconds: Seconds
    waited: Seconds


class _Scaler(_Record):
    """fp16's; the three that never change are PyTorch's defaults."""

    scale: Number = Field(gt=0, allow_inf_nan=False)
    growth_factor: Number = Field(ge=2, le=2)
    backoff_factor: Number = Field(ge=0.5, le=0.5)
    growth_interval: int = Field(ge=2000, le=2000)
    growth_tracker: int = Field(ge=0, le=2000, alias="_growth_tracker")


class _Nothing(_Record):
    """Of a run without fp16."""


class _Optimizer(_Record):
    state: dict[int, Tensors]
    param_groups: list[dict[str, Any]]


class _Data(_Record):
    train: str
    val: str


class _Last(_Record):
    schema_: Literal[2, 3] = Field(alias="schema")
    digest: str | None = None
    config: Settings
    origins: Texts
    names: list[str] = Field(min_length=1)
    strides: list[Count]
    data: _Data
    versions: Texts
    model: Tensors
    ema: Tensors
    ema_updates: Tensor
    optimizer: _Optimizer
    scaler: _Scaler | _Nothing
    micro_batch: int = Field(ge=1)
    epoch: Count
    batch: Count
    step: Count
    best: Best
    epoch_parts: list[_Part] = Field(min_length=1, max_length=MAX_RANKS)


def check_resumable(
    content: Mapping[str, Any], *, where: Path, build: Callable[[ModelConfig, int], nn.Module]
) -> None:
    """Refuse a last.pt with which a run cannot go on, by a ``UserError`` that names the key and the value.

    ``build`` makes the model that a configuration describes; it is laid out without memory, so that no more
    is taken than the file holds. What depends on the data is left to ``check_place``.
    """
    check_types(_Last, content, where)
    config = config_from_plain(content["config"], where=str(where))
    with torch.device("meta"):
        model = build(config.model, len(content["names"]))
    freeze(model, config.train.freeze)
    for find in (_wrong_numbers, _wrong_model, _wrong_optimizer, _wrong_parts):
        for key, value, wanted in find(content, config, model):
            raise _refusal(key, value, wanted, where)


def check_place(content: Mapping[str, Any], num_batches: int, *, where: Path) -> None:
    """Refuse a last.pt that stands where no run on epochs of ``num_batches`` can stand."""
    epoch, batch, step = (content[key] for key in ("epoch", "batch", "step"))
    if batch > num_batches:
        raise _refusal("batch", batch, f"at most {num_batches}, the batches of an epoch", where)
    if step != (expected := epoch * num_batches + batch):
        wanted = f"{expected}, after {epoch} epochs of {num_batches} batches and {batch} of the next"
        raise _refusal("step", step, wanted, where)


def _refusal(key: str, value: object, wanted: str, where: Path) -> UserError:
    return UserError(
        f"{where}: {key} is {show_found(value)}; it must be {wanted}. The file is damaged, or was changed: "
        f"start a new run from its weights, --weights {where} without --resume"
    )


def _wrong_numbers(content: Mapping[str, Any], config: Config, model: nn.Module) -> Iterator[Problem]:
    """Numbers that do not go together."""
    cfg, epoch, batch, step = config.train, content["epoch"], content["batch"], content["step"]
    if cfg.batch_size == "auto":
        yield "config.train.batch_size", "auto", "a number, as a run has chosen one"
    elif content["micro_batch"] > cfg.batch_size:
        yield "micro_batch", content["micro_batch"], f"at most {cfg.batch_size}, config.train.batch_size"
    if epoch > cfg.epochs:
        yield "epoch", epoch, f"at most {cfg.epochs}, config.train.epochs"
    if content["best"]["epoch"] > epoch:
        yield "best.epoch", content["best"]["epoch"], f"at most {epoch}, the epochs done"
    if content["best"]["epoch"] < 0 <= content["best"]["AP"]:
        yield "best.epoch", content["best"]["epoch"], "an epoch, as there is an AP"
    if (step - batch) % epoch if epoch else step != batch:
        yield "step", step, f"a whole number of batches in {epoch} epochs, and {batch}"
    strides = [2**level for level in config.model.levels]
    if content["strides"] != strides:
        yield "strides", content["strides"], f"{strides}, those of config.model.levels"
    yield from _compare("ema_updates", content["ema_updates"], torch.empty((), dtype=torch.int64))
    if not 0 <= content["ema_updates"] <= step:
        yield "ema_updates", content["ema_updates"], f"0 to {step}, the batches done"


def _wrong_model(content: Mapping[str, Any], config: Config, model: nn.Module) -> Iterator[Problem]:
    """Tensors that are not those of the model, or of which several share their numbers."""
    own = model.state_dict()
    for part in ("model", "ema"):
        yield from _compare_all(part, content[part], own)
        for key, tensor in content[part].items():
            if key.endswith(("running_var", "num_batches_tracked")) and (tensor < 0).any():
                yield f"{part}.{key}", tensor.min(), "0 or more"
    state = [tensor for entry in content["optimizer"]["state"].values() for tensor in entry.values()]
    tensors = [*content["model"].values(), *content["ema"].values(), *state]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    if (held := sum(storages.values())) < (claimed := sum(tensor.nbytes for tensor in tensors)):
        yield "model, ema, optimizer", f"{held:,} bytes", f"{claimed:,} bytes, each tensor of its own"


def _wrong_optimizer(content: Mapping[str, Any], config: Config, model: nn.Module) -> Iterator[Problem]:
    """The optimiser's settings, though not the file's are used but its own; the state of each parameter."""
    groups, trained = content["optimizer"]["param_groups"], trained_groups(model)
    own = build_optimizer(nn.Linear(1, 1), config.train).state_dict()["param_groups"]
    if len(groups) != len(own):
        yield "optimizer.param_groups", groups, f"{len(own)} groups"
    start, same_torch = 0, content["versions"].get("torch") == find_versions()["torch"]
    for i, (group, settings, tensors) in enumerate(zip(groups, own, trained, strict=False)):
        settings["params"] = list(range(start, start := start + len(tensors)))
        yield from _compare_settings(
            f"optimizer.param_groups.{i}", group, settings, exact=same_torch, most=config.train.lr
        )
    parameters = dict(enumerate(tensor for tensors in trained for tensor in tensors))
    state = {number: entry for number, entry in content["optimizer"]["state"].items() if entry}
    wanted = _state_names(config)
    begun = bool(wanted) and (bool(content["ema_updates"]) or bool(state))  # none before the first step
    for number in sorted(state.keys() ^ (parameters.keys() if begun else set())):
        yield (
            f"optimizer.state.{number}",
            state.get(number),
            f"there for each of {len(parameters)} parameters",
        )
    for number, entry in state.items():
        key = f"optimizer.state.{number}"
        like = {
            name: torch.empty((), device="meta") if name == "step" else parameters[number] for name in wanted
        }
        yield from _compare_all(key, entry, like)
        for name in (name for name in ("step", "exp_avg_sq") if name in wanted and (entry[name] < 0).any()):
            yield f"{key}.{name}", entry[name].min(), "0 or more"
        if "step" in wanted and entry["step"] > content["step"]:
            yield f"{key}.step", entry["step"], f"at most {content['step']}, the batches done"


def _state_names(config: Config) -> tuple[str, ...]:
    """What the optimiser keeps of each parameter."""
    if config.train.optimizer == "AdamW":
        return ("step", "exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if config.train.momentum else ()


def _compare_settings(
    key: str, group: Mapping[str, Any], own: Mapping[str, Any], *, exact: bool, most: float
) -> Iterator[Problem]:
    """A group of parameters against our own; another version of PyTorch may have other keys."""
    names = own.keys() | group.keys() if exact else own.keys() & group.keys()
    for name in sorted(names, key=str):
        value, wanted = group.get(name), own.get(name)
        if name == "lr":  # of the step before, by the schedule
            if type(value) is not float or not 0 <= value <= most:
                yield f"{key}.lr", value, f"a number from 0 to {most}, config.train.lr"
        elif name not in own or name not in group or repr(value) != repr(wanted):
            yield f"{key}.{show_key(name)}", value, show_found(wanted) if name in own else "left out"


def _wrong_parts(content: Mapping[str, Any], config: Config, model: nn.Module) -> Iterator[Problem]:
    """What the ranks have counted."""
    width = len(anatomy_columns(content["strides"])) - 2  # without epoch and step
    sums, counts = torch.empty(6, dtype=torch.float64), AssignmentStatistics().counts
    for i, part in enumerate(content["epoch_parts"]):
        key = f"epoch_parts.{i}"
        yield from _compare(f"{key}.sums", part["sums"], sums)
        yield from _compare(f"{key}.assigned", part["assigned"], counts)
        if (part["sums"] < 0).any() or (part["assigned"] < 0).any():
            yield f"{key}.sums and .assigned", "below 0", "0 or more"
        steps, rows = part["anatomy"]["steps"], part["anatomy"]["values"]
        if len(steps) != len(rows):
            yield f"{key}.anatomy.steps", steps, f"{len(rows)} numbers, one for each row of values"
        if steps != sorted(set(steps)) or (steps and steps[-1] >= content["step"]):
            yield f"{key}.anatomy.steps", steps, f"rising numbers below {content['step']}, the batches done"
        for j, row in enumerate(rows):
            if len(row) != width:
                yield f"{key}.anatomy.values.{j}", row, f"{width} numbers"


def _compare_all(key: str, given: Tensors, like: Mapping[str, Tensor]) -> Iterator[Problem]:
    for name in sorted(given.keys() ^ like.keys()):
        there = name in like
        yield f"{key}.{show_key(name)}", given.get(name), show_found(like[name]) if there else "left out"
    for name in sorted(given.keys() & like.keys()):
        yield from _compare(f"{key}.{name}", given[name], like[name])


def _compare(key: str, given: Tensor, like: Tensor) -> Iterator[Problem]:
    if given.shape != like.shape or given.dtype != like.dtype:
        yield key, given, show_found(like)
