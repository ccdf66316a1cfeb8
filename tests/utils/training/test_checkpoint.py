"""Checkpoints: whole or not at all, tensors and plain values only, and a word on every file that is none."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.checkpoints import content, refusal, remedied, torch_bytes
from utils.config import Config, TrainConfig
from utils.errors import NON_FINITE, USAGE, UserError
from utils.training.atomic_file import previous_generation
from utils.training.checkpoint import SCHEMA, find_latest, load_checkpoint, save_checkpoint, tidy
from utils.training.digest import digest_of
from utils.training.state import TrainState, start_state

CPU = torch.device("cpu")


# writing


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "folder" / "best.pt"
    given = content(2.0, origins={"train.lr": "--set"}, best={"AP": 0.5, "epoch": 3})
    save_checkpoint(path, given)
    found = load_checkpoint(path)
    assert found.pop("schema") == SCHEMA and len(found.pop("digest")) == 64
    assert torch.equal(found.pop("ema")["w"], given.pop("ema")["w"])
    assert found == given
    assert [item.name for item in path.parent.iterdir()] == ["best.pt"]


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "last.pt"
    for value in (1.0, 2.0):
        save_checkpoint(path, content(value))
    assert load_checkpoint(path)["ema"]["w"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("error", [OSError(28, "disk full"), KeyboardInterrupt(), RuntimeError("ours")])
@pytest.mark.parametrize("first", [False, True])
def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error, first):
    path, write = tmp_path / "last.pt", os.write
    if not first:
        save_checkpoint(path, content())
        before = path.read_bytes()

    def write_half(number, data):
        write(number, data[: len(data) // 2])
        raise error

    monkeypatch.setattr(os, "write", write_half)
    with pytest.raises(type(error)) as raised:
        save_checkpoint(path, content(2.0))
    if isinstance(error, OSError):
        assert raised.value.errno == 28 and f"{path} could not be written: disk full" in str(raised.value)
    assert [item.name for item in tmp_path.iterdir()] == ([] if first else ["last.pt"])
    assert first or path.read_bytes() == before


def test_the_file_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Written, flushed to disk, the old one linked, renamed, the folder flushed: in this order."""
    save_checkpoint(tmp_path / "last.pt", content())
    calls, sync, replace, link = [], os.fsync, os.replace, os.link

    def record_sync(number):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        sync(number)

    def record_replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)  # one file system
        calls.append("replace")
        replace(source, target)

    def record_link(source, target):
        calls.append(f"link {target.name}")
        link(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    monkeypatch.setattr(os, "link", record_link)
    save_checkpoint(tmp_path / "last.pt", content())
    if os.path.isdir("/proc/self/fd"):
        assert calls == ["file", "link last.previous.pt", "replace", "folder"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_nothing_that_is_not_finite_is_written(tmp_path, dtype, value):
    path, bad = tmp_path / "last.pt", torch.ones(2, 3, dtype=dtype)
    save_checkpoint(path, content())
    before = path.read_bytes()
    bad[1, 1] = value
    good = torch.ones(3)
    optimizer = {"state": {0: {"exp_avg": good}, 7: {"exp_avg": bad}}, "param_groups": [{"lr": 0.1}]}
    for given, name in (
        ({"optimizer": optimizer}, "optimizer.state.7.exp_avg"),
        ({"ema": {"w": good, "conv.weight": bad}}, "ema.conv.weight"),
        ({"sums": [good, (good, bad)]}, "sums.1.1"),
    ):
        with pytest.raises(UserError) as error:
            save_checkpoint(path, content() | given)
        assert error.value.code == NON_FINITE == 3
        assert f"1 of 6 numbers of {name} are inf or nan" in str(error.value)
        assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError):
        save_checkpoint(tmp_path / "new" / "last.pt", content(ema={"w": bad}))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_numbers_are_finite(tmp_path, dtype):
    """Their sum is not, in their own type."""
    large = torch.full((10,), torch.finfo(dtype).max, dtype=dtype)
    tensors = {"large": large, "empty": large[:0], "whole": torch.tensor([2**40]), "flag": torch.ones(2) > 0}
    save_checkpoint(tmp_path / "x.pt", content(ema=tensors))
    found = load_checkpoint(tmp_path / "x.pt")["ema"]
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_views_leave_the_rest_of_their_tensor_behind(tmp_path):
    flat = torch.arange(1_000_000.0)
    image = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    given = {
        "view": flat[10:14],
        "matrix": flat[:6].view(2, 3),
        "steps": flat[0:100:25],
        "repeated": flat[5].expand(3),
        "image": image,
        "parameter": nn.Parameter(flat[:2]),
    }
    save_checkpoint(tmp_path / "x.pt", content(ema=given))
    assert (tmp_path / "x.pt").stat().st_size < 20_000
    found = load_checkpoint(tmp_path / "x.pt")["ema"]
    assert all(torch.equal(found[name], tensor) for name, tensor in given.items())
    assert found["image"].is_contiguous(memory_format=torch.channels_last)
    assert not found["parameter"].requires_grad
    assert torch.equal(flat, torch.arange(1_000_000.0))


def test_buffers_in_one_flat_tensor_are_saved_once(tmp_path):
    """A model whose buffers are all views of one tensor: no larger a file than that of one with its own."""
    sizes = []
    for shared in (False, True):
        model = nn.Sequential(*(nn.BatchNorm2d(64) for _ in range(50)))
        flat = torch.zeros(2 * 50 * 64)
        for number, norm in enumerate(model if shared else ()):
            start = 2 * 64 * number
            norm.running_mean, norm.running_var = flat[start : start + 128].view(2, 64)
        save_checkpoint(tmp_path / "x.pt", content(ema=model.state_dict()))
        sizes.append((tmp_path / "x.pt").stat().st_size)
    assert sizes[1] == sizes[0]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def no_link(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path / "last.pt", content(value))
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["ema"]["w"].tolist() == [2, 2, 2]


def test_state_goes_through_a_checkpoint(tmp_path):
    def trained(seed: int) -> TrainState:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(1))
        model(torch.rand(2, 3, 4, 4))
        state = start_state(model, TrainConfig(amp="off"), 100, CPU)
        for _ in range(3 * seed):
            model(torch.rand(2, 3, 4, 4)).sum().backward()
            state.update(lr=0.01 * (seed + 1), clip_norm=1.0)
            state.step += 1
        state.epoch, state.best = seed + 1, {"AP": 0.1 * seed, "epoch": seed}
        return state

    first, second = trained(1), trained(2)
    about = {"origins": {}, "data": {}, "versions": {}, "epoch_parts": []}
    save_checkpoint(tmp_path / "last.pt", content() | about | first.to_plain())
    second.restore(load_checkpoint(tmp_path / "last.pt", key="optimizer"))
    for state in (first, second):  # goes on alike
        torch.manual_seed(5)
        state.model(torch.rand(2, 3, 4, 4)).sum().backward()
        state.update(lr=0.02, clip_norm=1.0)
    plain, expected = second.to_plain(), first.to_plain()
    for key in ("model", "ema"):
        assert all(torch.equal(plain[key][name], tensor) for name, tensor in expected[key].items())
    for key in ("ema_updates", "epoch", "step", "best", "scaler"):
        assert plain[key] == expected[key]
    states = plain["optimizer"]["state"], expected["optimizer"]["state"]
    assert all(torch.equal(states[0][n]["exp_avg"], states[1][n]["exp_avg"]) for n in states[1])
    assert plain["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]


# reading


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": []},
        {"config": None},
        {"ema": None},
        {"ema": {"w": 3}},
        {"names": 5},
        {"names": [1, 2]},
    ],
)
def test_values_of_the_wrong_kind_are_refused(tmp_path, wrong):
    path = tmp_path / "weights.pt"
    torch.save(content(schema=2) | wrong, path)
    refusal(path)


def test_another_schema(tmp_path):
    path = tmp_path / "weights.pt"
    for schema in (0, 1, 4, "2", 2.0, None):
        torch.save(content() | {"schema": schema}, path)
        shown = schema if isinstance(schema, (int, str)) else type(schema).__name__
        assert f"schema {shown}, this version reads schemas 2 and {SCHEMA}: " in refusal(path)


def test_best_cannot_be_resumed(tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, content())
    text = refusal(path, key="optimizer")
    assert "only last.pt can be resumed" in text


def test_a_file_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"not found (working directory {tmp_path})" in refusal(tmp_path / "missing.pt")
    assert "not a regular file (a directory, a pipe or a device)" in refusal(tmp_path)


def test_a_best_pt_that_is_not_there_names_last_pt(tmp_path):
    """A run with nothing to measure has none."""
    assert "there is" not in refusal(tmp_path / "best.pt")
    (tmp_path / "last.pt").touch()
    assert refusal(tmp_path / "best.pt").endswith(f"; there is {tmp_path}/last.pt")


@pytest.mark.parametrize("value", [Config(), np.float64(1), b"x", {1, 2}, torch.float32, Path("x")])
def test_a_checkpoint_may_hold_no_objects(tmp_path, value):
    """What cannot be read back must not be written: the first resume is too late to learn it."""
    with pytest.raises(TypeError, match=f"extra.1 is a {type(value).__name__}: .* plain values only"):
        save_checkpoint(tmp_path / "last.pt", content(extra=[1, value]))
    assert list(tmp_path.iterdir()) == []


# bits that changed, and the generation before


def test_a_changed_bit_in_a_tensor_is_named(tmp_path):
    """The one kind of damage that PyTorch itself reads without a word."""
    path = tmp_path / "x.pt"
    save_checkpoint(path, content())
    data = path.read_bytes()
    place = data.index(torch.full((3,), 1.0).numpy().tobytes())
    path.write_bytes(data[: place + 2] + b"\x81" + data[place + 3 :])
    text = refusal(path)
    assert "is damaged: its record" in text and "data/0 differs from its checksum" in text and remedied(text)


def forged_digest(digest, schema: int = 3, **changes) -> bytes:
    """A file whose digest is of its own content, or what is given."""
    given = content(schema=schema, **changes)
    return torch_bytes(given | ({"digest": digest or digest_of(given)} if digest is not None else {}))


@pytest.mark.parametrize(
    ("data", "sound"),
    [
        (forged_digest(""), True),
        (forged_digest("", epoch=4), True),
        (forged_digest(digest_of(content(schema=3)), epoch=4), False),
        (forged_digest(digest_of(content(schema=3)), epoch=3.0), False),
        (forged_digest(digest_of(content(schema=3)), ema={"w": torch.ones(3, 1)}), False),
        (forged_digest(None), False),
        (forged_digest(5), False),
        (forged_digest(None, schema=2), True),  # as it was written before there was one
        (forged_digest("", schema=2), False),  # one changed bit must not make a digest go unread
    ],
)
def test_a_file_holds_what_its_digest_says(tmp_path, data, sound):
    (tmp_path / "x.pt").write_bytes(data)
    if sound:
        assert load_checkpoint(tmp_path / "x.pt")["ema"]["w"].tolist() == [1, 1, 1]
    else:
        text = refusal(tmp_path / "x.pt")
        assert "its content is not that of its digest" in text and remedied(text)


def cut(path):
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("harm", [Path.unlink, cut])
def test_the_generation_before_stands_in(tmp_path, capsys, harm):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content(1.0))
    path.rename(previous_generation(path))
    save_checkpoint(tmp_path / "other.pt", content(2.0))
    (tmp_path / "other.pt").rename(path)
    assert load_checkpoint(path)["ema"]["w"][0] == 2
    assert capsys.readouterr().err == ""
    harm(path)
    assert load_checkpoint(path)["ema"]["w"][0] == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and str(path) in line and "last.previous.pt" in line and "epoch 3" in line
    assert ("not found" if harm is Path.unlink else "is damaged") in line
    cut(previous_generation(path))
    text = refusal(path)
    assert "last.previous.pt is damaged" in text and remedied(text)
    assert capsys.readouterr().err == ""


def test_another_schema_is_no_damage(tmp_path):
    save_checkpoint(tmp_path / "last.pt", content())
    (tmp_path / "last.pt").rename(tmp_path / "last.previous.pt")
    torch.save(content() | {"schema": 1}, tmp_path / "last.pt")
    assert "schema 1" in refusal(tmp_path / "last.pt")


def test_a_damaged_file_does_not_replace_the_generation_before(tmp_path, monkeypatch):
    """After a fall-back, the next save must not give up the only sound file for the damaged one."""
    path, sync = tmp_path / "last.pt", os.fsync
    save_checkpoint(path, content(1.0))
    path.rename(previous_generation(path))
    path.write_bytes(b"PK")
    seen = []

    def look(number):
        sync(number)
        seen.append(load_checkpoint(previous_generation(path))["ema"]["w"][0].item())

    monkeypatch.setattr(os, "fsync", look)
    save_checkpoint(path, content(2.0))
    assert seen == [1, 1]
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(path)["ema"]["w"][0] == 2


def test_tidy(tmp_path):
    for name in ("last", "best", "epoch5"):
        save_checkpoint(tmp_path / f"{name}.pt", content())
        (tmp_path / f"{name}.previous.pt").write_bytes((tmp_path / f"{name}.pt").read_bytes())
        (tmp_path / f".{name}.pt.part").write_bytes(b"PK")
    (tmp_path / "best.pt").write_bytes(b"PK")
    (tmp_path / "epoch5.pt").unlink()
    (tmp_path / ".note.part").write_text("the user's")
    (tmp_path / "previous.pt").write_text("the user's")
    tidy(tmp_path)
    kept = {".note.part", "previous.pt", "last.pt", "best.pt", "best.previous.pt", "epoch5.previous.pt"}
    assert {item.name for item in tmp_path.iterdir()} == kept
    tidy(tmp_path / "not there")


# the latest


def test_the_latest_run_is_found(tmp_path):
    for number, name in enumerate(("exp", "exp2", "exp3")):
        path = tmp_path / name / "weights" / "last.pt"
        save_checkpoint(path, content())
        os.utime(path, (1000 + number, 1000 + number))
    os.utime(tmp_path / "exp2" / "weights" / "last.pt", (5000, 5000))
    (tmp_path / "exp4" / "weights").mkdir(parents=True)
    assert find_latest(tmp_path) == tmp_path / "exp2" / "weights" / "last.pt"


def test_no_run_to_resume(tmp_path):
    with pytest.raises(UserError, match=r"--resume: no \*/weights/last.pt below .*give the path") as error:
        find_latest(tmp_path)
    assert error.value.code == USAGE


def test_a_run_of_which_only_the_generation_before_is_there(tmp_path):
    for number, name in enumerate(("exp", "exp2")):
        path = tmp_path / name / "weights" / "last.pt"
        save_checkpoint(path, content(number))
        os.utime(path, (1000 + number, 1000 + number))
    path.rename(previous_generation(path))
    assert find_latest(tmp_path) == path
    assert load_checkpoint(path)["ema"]["w"][0] == 1
