"""last.pt as a stranger may send it, signed like our own: refused by key and value before it is used."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from models.detector import build_detector
from tests.checkpoints import torch_bytes
from tests.planted import SMALL
from tests.resume import StopAt, compare_values, go_on, read_weights, train_here
from utils.config import TrainConfig
from utils.config_files import config_from_plain
from utils.errors import OK, USAGE, UserError
from utils.resumable import check_place, check_resumable
from utils.training.checkpoint import load_checkpoint
from utils.training.digest import digest_of
from utils.training.state import start_state

BATCHES = 4  # of an epoch
WAYS = {"AdamW": (), "SGD": ("--optimizer", "SGD"), "frozen": ("--freeze", "backbone")}
HUGE = 2**62
GONE = object()


class Stopped(NamedTuple):
    """A run that stopped in the midst of its second epoch."""

    folder: Path
    content: dict


@pytest.fixture(scope="module")
def stopped(shapes, tmp_path_factory):
    """``stopped(way)``: after an epoch and two batches."""
    known = {}

    def run(way: str) -> Stopped:
        if way not in known:
            flags = [*(flag for flag in SMALL if flag != "--noval"), "--data", shapes, "--batch-size", 4]
            flags += ["--epochs", 3, "--set", "train.anatomy_every=1", *WAYS[way]]
            flags += ["--project", tmp_path_factory.mktemp("stopped")]
            folder = train_here(*flags, stop=StopAt((1, 2))).folder
            known[way] = Stopped(folder, load_checkpoint(folder / "weights" / "last.pt"))
        return known[way]

    return run


def path_of(key: str) -> tuple:
    """The keys and numbers of a dotted key; names of weights have dots themselves."""
    if key.startswith(("model.", "ema.")):
        return tuple(key.split(".", 1))
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def changed(content, path: tuple, value):
    """``content`` with another value at a place, or none (``GONE``); the rest is shared with it."""
    if not path:
        return value
    first, *rest = path
    holder = list(content) if isinstance(content, list) else dict(content)
    if value is GONE and not rest:
        holder.pop(first)
    else:
        old = holder[first] if rest else None
        inner = changed(old, tuple(rest), value)
        if isinstance(holder, list) and first == len(holder):
            holder.append(inner)
        else:
            holder[first] = inner
    return holder


def refusal(content: dict, model=None) -> str:
    """Why a run does not go on with ``content``; empty where it does. ``model``: laid out before."""
    try:
        check_resumable(content, where=Path("last.pt"), build=lambda *of: model or build_detector(*of))
        check_place(content, BATCHES, where=Path("last.pt"))
    except UserError as error:
        sound = error.code == USAGE and str(error).isprintable() and len(str(error)) < 600
        return str(error) if sound else "not a line of code 2"
    return ""


def signed(content: dict) -> bytes:
    """The file that an attacker writes."""
    content = {key: value for key, value in content.items() if key != "digest"}
    return torch_bytes(content | {"digest": "" if "more" in content else digest_of(content)})


# by hand, through the command


CONV = "backbone.stem.conv.weight"
NONE = torch.zeros(0)
BY_HAND = [  # key, value, what is said
    ("epoch", -5, "epoch is -5"),
    ("epoch", 4, "epoch is 4; it must be at most 3, config.train.epochs"),
    ("epoch", True, "epoch is True"),
    ("epoch", 0, "best.epoch is 1; it must be at most 0, the epochs done"),
    ("batch", 5, "batch is 5; it must be at most 4, the batches of an epoch"),
    ("batch", 1, "step is 6; it must be 5, after 1 epochs of 4 batches and 1 of the next"),
    ("step", 10**17, "step is 100000000000000000"),
    ("micro_batch", 0, "micro_batch is 0"),
    ("micro_batch", 10**9, "micro_batch is 1000000000; it must be at most 4, config.train.batch_size"),
    ("best", {}, "best.AP is missing"),
    ("best.AP", 1.5, "best.AP"),
    ("best.epoch", 2, "best.epoch is 2; it must be at most 1, the epochs done"),
    ("ema_updates", torch.tensor(-1), "ema_updates is -1"),
    ("ema_updates", torch.tensor(7), "ema_updates is 7"),
    ("strides", [8, 16, 64], "strides is [8, 16, 64]; it must be [8, 16, 32]"),
    ("names", [], "names is []"),
    ("names", ["a"], "tensors|cls|head"),
    ("optimizer.state", 5, "optimizer.state is 5"),
    ("optimizer.state.0", {}, "optimizer.state.0 is None"),
    ("optimizer.state.999", {"exp_avg": NONE}, "optimizer.state.999"),
    (
        "optimizer.state.0.exp_avg",
        torch.zeros(1),
        "optimizer.state.0.exp_avg is 0.0 of shape (1,) and type float32",
    ),
    ("optimizer.state.0.exp_avg", NONE, "optimizer.state.0.exp_avg is a tensor of shape (0,)"),
    ("optimizer.state.0.exp_avg_sq", torch.ones(2), "optimizer.state.0.exp_avg_sq"),
    ("optimizer.state.0.step", torch.tensor(-1.0), "optimizer.state.0.step is -1.0"),
    ("optimizer.state.0.step", torch.tensor(1e9), "optimizer.state.0.step is 1000000000.0"),
    ("optimizer.state.0.step", torch.tensor(1), "optimizer.state.0.step is 1 of shape () and type int64"),
    ("optimizer.state.0.max_exp_avg_sq", torch.ones(1), "optimizer.state.0.max_exp_avg_sq"),
    ("optimizer.param_groups", [], "optimizer.param_groups is []; it must be 2 groups"),
    ("optimizer.param_groups.0.params", [0, 0], "optimizer.param_groups.0.params is [0, 0]"),
    (
        "optimizer.param_groups.0.weight_decay",
        "x",
        "optimizer.param_groups.0.weight_decay is x; it must be 0.05",
    ),
    ("optimizer.param_groups.0.eps", None, "optimizer.param_groups.0.eps is None; it must be 1e-08"),
    ("optimizer.param_groups.0.betas", torch.ones(2), "optimizer.param_groups.0.betas"),
    ("optimizer.param_groups.1.fused", False, "optimizer.param_groups.1.fused is False; it must be True"),
    ("optimizer.param_groups.1.lr", -1.0, "optimizer.param_groups.1.lr is -1.0"),
    ("optimizer.param_groups.1.amsgrad", True, "optimizer.param_groups.1.amsgrad"),
    ("optimizer.param_groups.1.other", 1, "optimizer.param_groups.1.other is 1; it must be left out"),
    ("scaler", {"scale": -1.0}, "scaler"),
    ("epoch_parts", [], "epoch_parts is []"),
    ("epoch_parts.0.sums", torch.zeros(5, dtype=torch.float64), "epoch_parts.0.sums"),
    ("epoch_parts.0.sums", torch.zeros(6), "epoch_parts.0.sums"),
    ("epoch_parts.0.assigned", torch.zeros(10**6, dtype=torch.int64), "epoch_parts.0.assigned"),
    ("epoch_parts.0.anatomy.steps", [5, 4], "epoch_parts.0.anatomy.steps"),
    ("epoch_parts.0.anatomy.values", [[1.0], [1.0]], "epoch_parts.0.anatomy.values.0"),
    ("epoch_parts.0.seconds", float("nan"), "epoch_parts.0.seconds is nan"),
    ("data", {}, "data.train is missing"),
    ("versions.torch", 2, "versions.torch is 2"),
    ("config.train.batch_size", "auto", "config.train.batch_size is auto"),
    ("config.train.optimizer", "SGD", "optimizer.param_groups.0"),
    ("config.train.freeze", "backbone", "optimizer.param_groups.0"),
    ("config.train.epochs", 0, "train.epochs is 0"),
    ("config.data.imgsz", 10**6, "data.imgsz is 1000000"),
    ("config.data", 5, "config.data is 5"),
    ("config.train.lr", torch.tensor(0.1), "holds a tensor"),
    ("best.epoch", -1, "best.epoch is -1"),
    ("epoch_parts.0.waited", torch.tensor(0.5), "epoch_parts.0.waited is 0.5 of shape ()"),
    ("config.model.width", 8.0, "model."),
    ("config.model.levels", [3, 4, 5, 6], "strides is"),
    ("config.loss.unknown", 1, "loss.unknown"),
    ("model.x", torch.ones(1), "model.x is 1.0 of shape (1,) and type float32; it must be left out"),
    (f"model.{CONV}", torch.zeros(10**6), "is a tensor of shape (1000000,)"),
    (f"model.{CONV}", 5, f"model.{CONV} is 5"),
    ("more", 1, "more is 1"),
]


@pytest.mark.parametrize(
    ("key", "value", "said"), BY_HAND, ids=[f"{key}={value}"[:60] for key, value, _ in BY_HAND]
)
def test_what_is_not_believed(stopped, key, value, said):
    text = refusal(changed(stopped("AdamW").content, path_of(key), value))
    assert any(part in text for part in said.split("|")), text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (f"ema.{CONV}", torch.tensor([float("nan")]), f"1 of 1 numbers of ema.{CONV} are inf or nan"),
        ("more", 2**63, "more than 64 bits"),
        ("epoch", "x" * 10**6, "epoch is xxx"),
    ],
)
def test_what_is_not_even_read(stopped, tmp_path, key, value, said):
    (tmp_path / "last.pt").write_bytes(signed(changed(stopped("AdamW").content, path_of(key), value)))
    with pytest.raises(UserError, match=said):
        load_checkpoint(tmp_path / "last.pt", key="optimizer")


@pytest.mark.parametrize("number", [0, 29])
def test_the_command_ends_with_2_and_leaves_the_run_as_it_was(stopped, tmp_path, command, number):
    key, value, said = BY_HAND[number]
    path = tmp_path / "run" / "weights" / "last.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(signed(changed(stopped("AdamW").content, path_of(key), value)))
    result = command("train", "--resume", path.parent.parent, "--workers", 0, "--device", "cpu", "--noplots")
    assert result.code == USAGE and said in result.err and result.err.startswith("error: ")
    assert [item.name for item in path.parent.iterdir()] == ["last.pt"]


# every leaf, in every way


def places(value, path: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """Every place of a content, and what stands there; of many alike the first two."""
    if path:
        yield path, value
    if isinstance(value, (dict, list)):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        many = path in (("model",), ("ema",), ("optimizer", "state"), ("versions",), ("origins",))
        many |= path[-1:] == ("params",)
        for key, item in items[:2] if many else items:
            yield from places(item, (*path, key))


def mutations(value) -> Iterator[object]:
    """Other values for one that is there."""
    yield from (GONE, None, "x", "", True, -1, -1.5, HUGE, float("nan"), float("inf"), [], {}, (), [None])
    yield from (
        torch.tensor(0.5),
        torch.zeros(0),
        torch.zeros(2, 0, 3),
        torch.ones(7, 7),
        torch.zeros(1).half(),
    )
    if isinstance(value, Tensor):
        yield from (
            value.double(),
            value[None],
            value.flatten()[:-1],
            value.to(torch.int32),
            -value.abs() - 1,
        )
        yield value.expand(2, *value.shape)
    elif isinstance(value, dict):
        yield from (value | {"more": 1}, value | {7: torch.ones(1)}, dict(list(value.items())[1:]))
    elif isinstance(value, list):
        yield from (value + value[:1], value[:-1], [value], tuple(value))
    elif isinstance(value, (int, float)) and type(value) is not bool:
        yield from (value + 1, -value - 1, 10**9, str(value), [value], torch.tensor(value))


def is_harmless(path: tuple, old, value) -> bool:
    """Whether nothing tells ``value`` from what a run may hold at this place."""
    top, last = path[0], path[-1]
    if repr(old) == repr(value) or top == "schema":
        return True
    if isinstance(old, Tensor) and isinstance(value, Tensor):
        return old.shape == value.shape and old.dtype == value.dtype
    if top in ("versions", "origins"):
        texts = value.values() if isinstance(value, dict) else [value]
        return value is GONE or all(isinstance(text, str) for text in texts)
    number = type(value) in (int, float)
    if top in ("data", "names") and not isinstance(old, dict):  # compared with the data's, and the model's
        texts = value if isinstance(value, list) else [value]
        return value is GONE or all(isinstance(text, str) for text in texts)
    if path == ("epoch_parts",):  # those of two ranks
        return isinstance(value, list) and len(value) == 2 and value[0] is value[1]
    if path[:4] == ("epoch_parts", 0, "anatomy", "values"):
        return number
    return number and (value == -1 or 0 <= value <= 1 if last == "AP" else value >= 0 and last in FREE)


FREE = ("seconds", "waited", "epoch")  # of these only bounds are known


@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_every_value_in_every_way(stopped, way, every):
    """Refused with its key, or harmless; of some 2,000 changes the ``every``-th."""
    whole, believed, unnamed, tried = stopped(way).content, [], [], 0
    with torch.device("meta"):
        model = build_detector(config_from_plain(whole["config"]).model, len(whole["names"]))
    for path, old in places({key: whole[key] for key in whole if key not in ("config", "digest")}):
        for value in mutations(old):
            tried += 1
            if tried % every:
                continue
            text = refusal(changed(whole, path, value), model)
            if not text and not is_harmless(path, old, value):
                believed.append((path, value))
            elif text and not any(key in text for key in (str(path[0]), *TOLD_BY)):
                unnamed.append((path, value, text))
    assert believed == [] and unnamed == [] and tried > 1000


TOLD_BY = ("step is", "strides is", "optimizer.", "model.")  # of a number: what no longer goes with it


# what is sound


@pytest.mark.parametrize(
    "way", ["AdamW", *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS if way != "AdamW")]
)
def test_our_own_are_believed_also_of_schema_2(stopped, tmp_path, way):
    """As 0f34ab8 wrote them: the same content without a digest; both go on to the same end."""
    run, ends = stopped(way), []
    old = {key: value for key, value in run.content.items() if key != "digest"} | {"schema": 2}
    for name, data in (("new", signed(run.content)), ("old", torch_bytes(old))):
        folder = tmp_path / name
        shutil.copytree(run.folder, folder)
        (folder / "weights" / "last.pt").write_bytes(data)
        ended = go_on(folder)
        assert ended.code == OK
        ends.append(read_weights(folder))
    assert not list(compare_values(*ends))


def test_settings_of_the_optimiser_are_our_own(stopped):
    """Also where a checkpoint's are believed by nobody: restore takes the tensors and the last rate alone."""
    run = stopped("AdamW")
    model = build_detector(config_from_plain(run.content["config"]).model, len(run.content["names"]))
    state = start_state(model, TrainConfig(amp="off"), 100, torch.device("cpu"), micro_batch=4)
    before = [group | {"lr": 1e-3} for group in state.optimizer.state_dict()["param_groups"]]
    groups = [
        group | {"lr": 1e-3} | {"eps": 1e3, "capturable": True}
        for group in run.content["optimizer"]["param_groups"]
    ]
    state.restore(changed(run.content, ("optimizer", "param_groups"), groups))
    assert state.optimizer.state_dict()["param_groups"] == before
