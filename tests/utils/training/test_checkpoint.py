"""Checkpoints: whole or not at all, tensors and plain values only, and a word on every file that is none."""

import io
import os
import pickle
import random
import signal
import sys
import tarfile
import time
import types
import zipfile
from itertools import count

import pytest
import torch
from torch import nn

from utils.config import Config, TrainConfig, config_to_plain
from utils.errors import USAGE, UserError, run_main
from utils.training.checkpoint import SCHEMA, find_latest, load_checkpoint, save_checkpoint
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


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), RuntimeError("ours")])
def test_a_crash_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, error):
    path = tmp_path / "last.pt"
    save_checkpoint(path, content())
    before = path.read_bytes()

    def write_half(_, file):
        file.write(before[: len(before) // 2])
        raise error

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(type(error)):
        save_checkpoint(path, content(2.0))
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


def test_a_first_save_that_crashes_leaves_nothing(tmp_path, monkeypatch):
    def write_half(_, file):
        file.write(b"PK")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path / "last.pt", content())
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_on_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """Written, flushed to disk, renamed, and the folder flushed: in this order."""
    calls, sync, replace = [], os.fsync, os.replace

    def record_sync(number):
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{number}") else "file")
        sync(number)

    def record_replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)  # one file system
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    save_checkpoint(tmp_path / "last.pt", content())
    if os.path.isdir("/proc/self/fd"):
        assert calls == ["file", "replace", "folder"]


def save_for_ever(path):
    """What a child process does until it is killed; it never returns into the tests."""
    try:
        for number in count(1.0):
            save_checkpoint(path, content(ema={"w": torch.full((100_000,), number)}, number=number))
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_the_file_is_whole(tmp_path):
    path, rng = tmp_path / "last.pt", random.Random(0)
    save_checkpoint(path, content(0.0, number=0.0))
    for _ in range(20):
        child = os.fork()
        if not child:
            save_for_ever(path)
        time.sleep(rng.uniform(0.002, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = load_checkpoint(path)
        assert (found["ema"]["w"] == found["number"]).all()


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
    save_checkpoint(tmp_path / "last.pt", content() | first.to_plain())
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


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", ["system", "open", "exec"])
def test_hostile_pickles_are_refused_and_leave_no_trace(tmp_path, form, how):
    target, path = tmp_path / "trace", tmp_path / "hostile.pt"
    for hidden in (Hostile(target, how), content(hidden=Hostile(target, how)) | {"schema": SCHEMA}):
        path.write_bytes(FORMS[form](hidden))
        assert remedied(refusal(path))
        assert sorted(item.name for item in tmp_path.iterdir()) == ["hostile.pt"]


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
    "cut off": (torch_bytes(content() | {"schema": 1})[:-300], "damaged"),
    "zeros": (bytes(4096), "is not a PyTorch checkpoint"),
    "one byte": (b"P", "is not a PyTorch checkpoint"),
    "a tensor": (torch_bytes(torch.zeros(3)), "it holds: Tensor"),
    "a list": (torch_bytes([1, 2]), "it holds: list"),
    "bare weights": (torch_bytes({"conv.weight": torch.zeros(1), "conv.bias": 0}), "conv.weight, conv.bias"),
    "an empty dict": (torch_bytes({}), "is no ltrb checkpoint"),
    "numbers as keys": (torch_bytes({1: 2, (3, 4): 5}), "it holds: 1, (3, 4)"),
    "a key short": (torch_bytes({"schema": 1, "ema": {}, "names": []}), "is no ltrb checkpoint"),
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
    for schema in (0, 2, "1"):
        torch.save(content() | {"schema": schema}, path)
        assert f"schema {schema}, this version reads schema {SCHEMA}" in refusal(path)


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


def test_a_checkpoint_may_hold_no_objects(tmp_path):
    """What cannot be read back must not be written: the first resume is too late to learn it."""
    save_checkpoint(tmp_path / "last.pt", content(extra=Config()))
    assert remedied(refusal(tmp_path / "last.pt"))


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
