"""Checkpoints: whole or not at all, tensors and plain values only, and a word on every file that is none."""

import contextlib
import io
import math
import os
import pickle
import random
import sys
import tarfile
import time
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from utils.config import Config, TrainConfig, config_to_plain
from utils.errors import NON_FINITE, USAGE, UserError, run_main
from utils.training.atomic_file import previous_generation
from utils.training.checkpoint import SCHEMA, find_latest, load_checkpoint, save_checkpoint, tidy
from utils.training.state import TrainState, start_state

CPU = torch.device("cpu")


def content(value: float = 1.0, **more) -> dict:
    """What best.pt holds, in small."""
    plain = config_to_plain(Config())
    return {"ema": {"w": torch.full((3,), value)}, "config": plain, "names": ["a", "b"], "epoch": 3} | more


def refusal(path, **options) -> str:
    """The message of the refusal: it names the file, says what to do, and the exit code is that of usage."""
    with pytest.raises(UserError) as error:
        load_checkpoint(path, **options)
    assert error.value.code == USAGE == 2
    assert str(path) in str(error.value)
    return str(error.value)


def remedied(text: str) -> bool:
    return "--weights ''" in text and "runs/train/*/weights/best.pt" in text


# writing


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "folder" / "best.pt"
    given = content(2.0, origins={"train.lr": "--set"}, best={"AP": 0.5, "epoch": 3})
    save_checkpoint(path, given)
    found = load_checkpoint(path)
    assert found.pop("schema") == SCHEMA
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
    save_checkpoint(tmp_path / "x.pt", content(ema=tensors, best={"AP": math.nan}))  # only tensors count
    found = load_checkpoint(tmp_path / "x.pt")["ema"]
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_one_synchronisation_however_many_tensors(tmp_path, monkeypatch):
    """``tolist`` of one small tensor is the only reading before the tensors themselves are written."""
    read, large = [], torch.full((5,), 60_000.0, dtype=torch.float16)  # whose sum is not finite in float16
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__"):
        plain = getattr(torch.Tensor, name)

        def record(tensor, *args, plain=plain, name=name):
            read.append((name, tensor.numel()))
            return plain(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, record)
    save_checkpoint(tmp_path / "x.pt", content(ema={str(n): large for n in range(100)}))
    assert read == [("tolist", 100)]


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


# hostile and foreign files


class Hostile:
    """Pickled, it makes a file when it is read."""

    def __init__(self, target, how):
        self.target, self.how = str(target), how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f"touch {self.target}",)
        if self.how == "open":
            return open, (self.target, "w")
        return exec, (f"open({self.target!r}, 'w').close()",)


def in_zip(data: bytes) -> bytes:
    """As torch.save lays out its files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def torch_bytes(value, *, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def tar_of(data: bytes) -> bytes:
    """As the torch of 2016 laid out its files."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


FORMS = {
    "torch": torch_bytes,
    "legacy torch": lambda value: torch_bytes(value, new=False),
    "bare pickle": pickle.dumps,
    "old pickle": lambda value: pickle.dumps(value, 0),
    "pickle in a zip": lambda value: in_zip(pickle.dumps(value)),
    "tar": lambda value: tar_of(pickle.dumps(value, 2)),
}


class Storage:
    """Pickled, the storage ``data/0`` of so many float32."""

    def __init__(self, num):
        self.id = ("storage", torch.FloatStorage, "0", "cpu", num)


class Call:
    """Pickled, a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


def forged(value, *, in_ema: bool = True, compression=zipfile.ZIP_STORED, record: bytes = b"1234") -> bytes:
    """A checkpoint that is in order but for ``value``, and one record of tensor data."""
    program, file = io.BytesIO(), io.BytesIO()
    given = {"ema": {"w": value}} if in_ema else {"ema": {}, "more": value}
    Pickler(program, 2).dump(content(schema=SCHEMA) | given)
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program.getvalue())
        archive.writestr("archive/data/0", record)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def tensor(num_stored: int, size: tuple, stride: tuple) -> Call:
    arguments = (Storage(num_stored), 0, size, stride, False, OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


def claims(num: int) -> bytes:
    """A record whose sizes in the directory of the zip, and in its own header, are forged."""
    data, one = forged(tensor(num, (num,), (1,))), (4).to_bytes(4, "little")
    place = data.index(b"archive/data/0")
    assert data[place - 12 : place - 4] == one + one
    huge = (4 * num).to_bytes(4, "little") * 2
    data = data[: place - 12] + huge + data[place - 4 :]
    place = data.rindex(b"archive/data/0")
    return data[: place - 26] + huge + data[place - 18 :]


def doubled(depth: int, *, kind=tuple) -> tuple | list:
    """2^depth values in depth pairs."""
    value = 1
    for _ in range(depth):
        value = kind([value, value])
    return value


def hash_bomb() -> bytes:
    """A dict whose key is ``doubled(60)``, which nobody can pickle: it is hashed first."""
    pair = b"q\x00h\x00\x86"  # what lies on the stack, kept as number 0, and it again: a tuple of two
    return in_zip(b"\x80\x02}K\x01" + pair * 60 + b"K\x01s.")


def deep_key(depth: int) -> bytes:
    """A dict whose key is a tuple in a tuple in a tuple ...: hashing it overflows the C stack."""
    program = b"\x80\x02}K\x01" + b"\x85" * depth + b"K\x01s."
    return in_zip(program)


def two_programs() -> bytes:
    """Names that differ in case only: which one PyTorch's reader takes is its own affair."""
    file = io.BytesIO(torch_bytes(content(schema=SCHEMA)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/DATA.PKL", pickle.dumps(Hostile("/tmp/ltrb_trace", "open"), 2))
    return file.getvalue()


MADE_TO_HARM = {  # what they would do -> the file, and why it is refused
    "unpack to 300 MB": (
        lambda: forged(1, compression=zipfile.ZIP_DEFLATED, record=bytes(3 * 10**8)),
        "claim more",
    ),
    "unpack a pickle of 64 MB": (lambda: in_zip(b"\x80\x02" + b"N" * 2**26 + b"."), "far more objects"),
    "claim a record of 4 GB": (lambda: claims(10**9), "claim more"),
    "claim 10^12 numbers of a record": (lambda: forged(tensor(10**12, (10**12,), (1,))), "does not match"),
    "claim 10^12 numbers of a storage": (lambda: forged(tensor(1, (10**12,), (1,))), "resize"),
    "repeat a number 10^12 times": (lambda: forged(tensor(1, (10**12,), (0,))), "claims more"),
    "take 4 GB as bytes": (lambda: forged(Call(bytearray, 4 * 10**9), in_ema=False), "bytearray"),
    "take 4 GB as a tensor": (lambda: forged(Call(torch.Tensor, 10**9)), "torch Tensor"),
    "take 4 GB as a storage": (lambda: forged(Call(torch.UntypedStorage, 4 * 10**9)), "UntypedStorage"),
    "hash 2^60 values": (hash_bomb, "tuples far larger"),
    "walk over 2^60 values": (
        lambda: forged(doubled(60, kind=list), in_ema=False),
        "deeper",
    ),
    "walk over 2^19 tuples": (lambda: forged(doubled(19), in_ema=False), "tuples far larger"),
    "walk over 10^8 lists": (lambda: forged(wide(8), in_ema=False), "far more values"),
    "walk for ever": (lambda: forged(endless(), in_ema=False), "deeper"),
    "overflow the stack": (lambda: deep_key(1_000_000), "tuples far larger"),
    "be two programs": (two_programs, "records are not those"),
    "be two files": (lambda: in_zip(b"") + torch_bytes(content(schema=SCHEMA)), "directory is not where"),
    "be two small files": (lambda: in_zip(b"") + forged(1), "records are not those"),
    "hold a comment": (lambda: with_comment(b"more than the file"), "end is missing"),
    "hold a second end": (lambda: with_comment(b"PK\5\6" + bytes(18)), "records are not those"),
    "hold a tensor without numbers": (
        lambda: torch_bytes(content(more=torch.ones(3, device="meta"))),
        "pickled",
    ),
    "write to the terminal": (lambda: torch_bytes({"\x1b]0;owned\x07\x1b[2J": 1}), "no ltrb checkpoint"),
    "a tensor as schema": (lambda: torch_bytes(content(schema=torch.ones(3))), "schema Tensor"),
}


def wide(depth: int) -> list:
    """Ten lists, each the same ten lists, and so on."""
    value: list = []
    for _ in range(depth):
        value = [value] * 10
    return value


def endless() -> dict:
    value: dict = {}
    value["itself"] = value
    return value


def with_comment(comment: bytes) -> bytes:
    file = io.BytesIO(torch_bytes(content(schema=SCHEMA)))
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = comment
    return file.getvalue()


def peak_memory() -> int:
    """The most this process held since the call before, in bytes; 0 where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("name", MADE_TO_HARM)
def test_files_made_to_harm_are_refused_at_once(tmp_path, name):
    make, reason = MADE_TO_HARM[name]
    path = tmp_path / "hostile.pt"
    path.write_bytes(make())
    peak_memory()
    before, begun = peak_memory(), time.perf_counter()
    text = refusal(path)
    assert time.perf_counter() - begun < 5 and peak_memory() - before < 2**27
    assert reason in text and text.isprintable() and len(text) < 600
    assert [item.name for item in tmp_path.iterdir()] == ["hostile.pt"]
    assert not Path("/tmp/ltrb_trace").exists()


def test_the_number_of_hostile_files():
    assert len(FORMS) * len(HOWS) + len(MADE_TO_HARM) == 18 + 23 >= 20


HOWS = ("system", "open", "exec")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", HOWS)
def test_hostile_pickles_are_refused_and_leave_no_trace(tmp_path, form, how):
    target, path = tmp_path / "trace", tmp_path / "hostile.pt"
    for hidden in (Hostile(target, how), content(hidden=Hostile(target, how)) | {"schema": SCHEMA}):
        path.write_bytes(FORMS[form](hidden))
        assert remedied(refusal(path))
        assert sorted(item.name for item in tmp_path.iterdir()) == ["hostile.pt"]


def test_only_the_reader_that_runs_nothing_is_used(tmp_path, monkeypatch):
    """Every call of ``torch.load``, also for a file that it refuses, is one with ``weights_only=True``."""
    calls, load = [], torch.load

    def record(*args, **options):
        calls.append(options["weights_only"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", record)
    save_checkpoint(tmp_path / "x.pt", content())
    load_checkpoint(tmp_path / "x.pt")
    (tmp_path / "y.pt").write_bytes(forged(tensor(1, (10**12,), (1,))))
    refusal(tmp_path / "y.pt")
    assert calls == [True, True]


@pytest.mark.parametrize("form", ["torch", "legacy torch"])
def test_the_hostile_pickles_would_have_worked(tmp_path, form):
    """The same bytes, read without care, make the file: the tests above test something."""
    file = io.BytesIO(FORMS[form](Hostile(tmp_path / "trace", "open")))
    torch.load(file, weights_only=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("form", ["torch", "legacy torch"])
def test_a_pickled_module_as_yolov5_saves_it(tmp_path, monkeypatch, form):
    module, path = types.ModuleType("models.yolo"), tmp_path / "yolov5n.pt"
    exec("from torch import nn\nclass DetectionModel(nn.Module):\n    pass", module.__dict__)
    module.DetectionModel.__module__ = "models.yolo"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "models.yolo", module)
        saved = {"epoch": -1, "model": module.DetectionModel(), "ema": None, "optimizer": None}
        path.write_bytes(FORMS[form](saved))
    for known in (False, True):
        if known:
            monkeypatch.setitem(sys.modules, "models.yolo", module)
        text = refusal(path)
        assert remedied(text) and "YOLOv5" in text and "run code" in text


def other_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "pictures")
    return file.getvalue()


FOREIGN = {
    "empty": (b"", "is empty"),
    "text": (b"these are no weights\n", "is not a PyTorch checkpoint"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "is not a PyTorch checkpoint"),
    "pointer of git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a PyTorch"),
    "another zip": (other_zip(), "damaged"),
    "cut off": (torch_bytes(content() | {"schema": SCHEMA})[:-300], "damaged"),
    "zeros": (bytes(4096), "is not a PyTorch checkpoint"),
    "one byte": (b"P", "is not a PyTorch checkpoint"),
    "a tensor": (torch_bytes(torch.zeros(3)), "it holds: Tensor"),
    "a list": (torch_bytes([1, 2]), "it holds: list"),
    "bare weights": (torch_bytes({"conv.weight": torch.zeros(1), "conv.bias": 0}), "conv.weight, conv.bias"),
    "an empty dict": (torch_bytes({}), "is no ltrb checkpoint"),
    "numbers as keys": (torch_bytes({1: 2, (3, 4): 5}), "it holds: 1, tuple"),
    "a key short": (torch_bytes({"schema": SCHEMA, "ema": {}, "names": []}), "is no ltrb checkpoint"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused_with_a_remedy(tmp_path, name):
    data, reason = FOREIGN[name]
    path = tmp_path / "weights.pt"
    path.write_bytes(data)
    text = refusal(path)
    assert reason in text and remedied(text)
    assert "Traceback" not in text and len(text) < 500


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
    torch.save({"schema": SCHEMA} | content() | wrong, path)
    refusal(path)


def test_another_schema(tmp_path):
    path = tmp_path / "weights.pt"
    for schema in (0, 1, 3, "2", 2.0, None):
        torch.save(content() | {"schema": schema}, path)
        shown = schema if isinstance(schema, (int, str)) else type(schema).__name__
        assert f"schema {shown}, this version reads schema {SCHEMA}" in refusal(path)


def test_best_cannot_be_resumed(tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, content())
    text = refusal(path, key="optimizer")
    assert "only last.pt can be resumed" in text


@pytest.mark.parametrize("name", ["missing.pt", ""])
def test_a_file_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name  # the second is a folder
    assert f"not found (working directory {tmp_path})" in refusal(path)


def test_a_refusal_ends_the_program_with_2_and_no_traceback(tmp_path, capsys):
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(SystemExit) as end:
        run_main(lambda: load_checkpoint(tmp_path / "x.pt"))
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "Traceback" not in printed


@pytest.mark.parametrize("value", [Config(), np.float64(1), b"x", {1, 2}, torch.float32, Path("x")])
def test_a_checkpoint_may_hold_no_objects(tmp_path, value):
    """What cannot be read back must not be written: the first resume is too late to learn it."""
    with pytest.raises(TypeError, match=f"extra.1 is a {type(value).__name__}: .* plain values only"):
        save_checkpoint(tmp_path / "last.pt", content(extra=[1, value]))
    assert list(tmp_path.iterdir()) == []


# bits that changed, and the generation before


def equal(first, second) -> bool:
    """Whether two contents are the same to the bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        same = isinstance(second, dict) and first.keys() == second.keys()
        return same and all(equal(first[key], second[key]) for key in first)
    return first == second


def test_every_changed_bit_is_noticed_or_of_no_effect(tmp_path):
    """Of no effect are those of padding, and of fields of the zip that no reader looks at."""
    path, rng, noticed = tmp_path / "x.pt", random.Random(0), 0
    torch.manual_seed(0)
    save_checkpoint(path, content(ema={str(n): torch.rand(50) for n in range(10)}))
    sound, data = load_checkpoint(path), path.read_bytes()
    for place in rng.sample(range(len(data) * 8), 200):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        with contextlib.suppress(UserError):
            assert equal(load_checkpoint(path), sound)
            continue
        noticed += 1
        assert remedied(refusal(path))
    assert noticed >= 100


def test_a_changed_bit_in_a_tensor_is_named(tmp_path):
    """The one kind of damage that PyTorch itself reads without a word."""
    path = tmp_path / "x.pt"
    save_checkpoint(path, content())
    data = path.read_bytes()
    place = data.index(torch.full((3,), 1.0).numpy().tobytes())
    path.write_bytes(data[: place + 2] + b"\x81" + data[place + 3 :])
    assert torch.load(path, weights_only=True)["ema"]["w"][0] != 1
    text = refusal(path)
    assert "is damaged: its record" in text and "data/0 differs from its checksum" in text and remedied(text)


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
