""".pt files of strangers: none runs code, eats memory or hangs; each is refused with a word on what to do."""

import io
import os
import pickle
import struct
import sys
import tarfile
import time
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import content, old_content, refusal, remedied, some_bits, torch_bytes, try_flips
from utils.training.checkpoint import load_checkpoint, save_checkpoint


class Hostile:
    """Pickled, it makes a file when it is read."""

    def __init__(self, target, how="open"):
        self.target, self.how = str(target), how

    def __reduce__(self):
        if self.how == "system":
            return os.system, (f"touch {self.target}",)
        if self.how == "open":
            return open, (self.target, "w")
        return exec, (f"open({self.target!r}, 'w').close()",)


def zipped(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """As torch.save lays out its files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in ({"data.pkl": b""} | records | {"version": b"3\n", "byteorder": b"little"}).items():
            archive.writestr(f"archive/{name}", data)
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


HOWS = ("system", "open", "exec")
FORMS = {
    "torch": torch_bytes,
    "legacy torch": lambda value: torch_bytes(value, new=False),
    "bare pickle": pickle.dumps,
    "old pickle": lambda value: pickle.dumps(value, 0),
    "pickle in a zip": lambda value: zipped({"data.pkl": pickle.dumps(value)}),
    "tar": lambda value: tar_of(pickle.dumps(value, 2)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", HOWS)
def test_hostile_pickles_are_refused_and_leave_no_trace(tmp_path, form, how):
    target, path = tmp_path / "trace", tmp_path / "hostile.pt"
    for hidden in (Hostile(target, how), old_content(hidden=Hostile(target, how))):
        path.write_bytes(FORMS[form](hidden))
        assert remedied(refusal(path))
        assert sorted(item.name for item in tmp_path.iterdir()) == ["hostile.pt"]


@pytest.mark.parametrize("form", ["torch", "legacy torch"])
def test_the_hostile_pickles_would_have_worked(tmp_path, form):
    """The same bytes, read without care, make the file: the test above tests something."""
    torch.load(io.BytesIO(FORMS[form](Hostile(tmp_path / "trace"))), weights_only=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("form", ["torch", "legacy torch"])
def test_a_pickled_module_as_yolov5_saves_it(tmp_path, monkeypatch, form):
    module, path = types.ModuleType("models.yolo"), tmp_path / "yolov5n.pt"
    exec("from torch import nn\nclass DetectionModel(nn.Module):\n    pass", module.__dict__)
    module.DetectionModel.__module__ = "models.yolo"
    monkeypatch.setitem(sys.modules, "models.yolo", module)
    path.write_bytes(FORMS[form]({"epoch": -1, "model": module.DetectionModel(), "ema": None}))
    for _ in range(2):  # whether the class is known here or not
        text = refusal(path)
        assert remedied(text) and "YOLOv5" in text and "run code" in text
        monkeypatch.delitem(sys.modules, "models.yolo", raising=False)


# forged files


class Storage:
    """Pickled, the storage ``data/0`` of so many float32."""

    def __init__(self, num, name="0"):
        self.id = ("storage", torch.FloatStorage, name, "cpu", num)


class Call:
    """Pickled, a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


def forged(value=None, *, more=None, compression: int = zipfile.ZIP_STORED, record: bytes = b"1234") -> bytes:
    """A checkpoint that is in order but for a tensor or for ``more``; and one record of tensor data."""
    program = io.BytesIO()
    Pickler(program, 2).dump(
        old_content(ema={"w": tensor(1, (1,), (1,)) if value is None else value}, more=more)
    )
    return zipped({"data.pkl": program.getvalue(), "data/0": record}, compression)


def tensor(num_stored: int, size: tuple, stride: tuple, *, name="0") -> Call:
    arguments = (Storage(num_stored, name), 0, size, stride, False, OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, *arguments)


def edited(
    name: str, central: Callable, local: Callable = lambda header: header, *, data: bytes | None = None
) -> bytes:
    """A file whose headers of the record ``name`` are changed: lists of the fields of the zip's format."""
    data = bytearray(forged() if data is None else data)
    archive = zipfile.ZipFile(io.BytesIO(data))
    place, at = archive.getinfo(f"archive/{name}").header_offset, archive.start_dir
    while data[at + 46 : at + 46 + len(name) + 8] != f"archive/{name}".encode():
        at += 46 + sum(struct.unpack("<HHH", data[at + 28 : at + 34]))
    for form, start, change in (("<I6H3I5H2I", at, central), ("<I5H3I2H", place, local)):
        size = struct.calcsize(form)
        data[start : start + size] = struct.pack(
            form, *change(list(struct.unpack(form, data[start : start + size])))
        )
    return bytes(data)


def setting(**values: int) -> Callable:
    """Sets fields of a header by their number: ``_3=0`` is the fourth."""

    def change(header: list[int]) -> list[int]:
        for key, value in values.items():
            header[int(key[1:])] = value
        return header

    return change


def doubled(depth: int, *, kind=tuple) -> tuple | list:
    """2^depth values in depth pairs."""
    value = 1
    for _ in range(depth):
        value = kind([value, value])
    return value


def hash_bomb() -> bytes:
    """A dict whose key is ``doubled(60)``, which nobody can pickle: it is hashed first."""
    pair = b"q\x00h\x00\x86"  # what lies on the stack, kept as number 0, and it again: a tuple of two
    return zipped({"data.pkl": b"\x80\x02}K\x01" + pair * 60 + b"K\x01s."})


def keyed(*keys: bytes) -> bytes:
    """A dict with these keys, as the instructions that make them."""
    return zipped({"data.pkl": b"\x80\x02}(" + b"".join(key + b"N" for key in keys) + b"u."})


def long(number: int) -> bytes:
    """The instruction that makes it."""
    data = pickle.encode_long(number)
    return b"\x8a" + bytes([len(data)]) + data


class Attributed:
    """Pickled, an ``OrderedDict`` whose attributes are a list of pairs."""

    def __reduce__(self):
        return OrderedDict, (), [[(1, 2), 3]]


def appended(name: str, data: bytes = b"1234", *, comment: bytes = b"") -> bytes:
    """A sound file with one record more, or with a comment."""
    file = io.BytesIO(forged())
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = comment
        if name:
            archive.writestr(name, data)
    return file.getvalue()


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


def requires_grad() -> bytes:
    return torch_bytes(old_content(ema={"w": torch.ones(3, requires_grad=True)}))


HUGE, EMPTY = 4 * 10**9, zipped({"data.pkl": b""})
MADE_TO_HARM = {  # what they would do -> the file, and why it is refused
    "unpack to 30 MB": (
        lambda: forged(compression=zipfile.ZIP_DEFLATED, record=bytes(3 * 10**7)),
        "claim more",
    ),
    "unpack a pickle of 17 MB": (
        lambda: zipped({"data.pkl": b"\x80\x02" + b"N" * 2**24 + b"."}),
        "far more obj",
    ),
    "claim a record of 4 GB": (
        lambda: edited("data/0", setting(_8=HUGE, _9=HUGE), setting(_7=HUGE, _8=HUGE)),
        "claim more",
    ),
    "claim 10^12 numbers of a record": (lambda: forged(tensor(10**12, (10**12,), (1,))), "does not match"),
    "claim fewer numbers than a record": (lambda: forged(record=b"12345678"), "does not match"),
    "claim 10^12 numbers of a storage": (lambda: forged(tensor(1, (10**12,), (1,))), "resize"),
    "repeat a number 10^12 times": (lambda: forged(tensor(1, (10**12,), (0,))), "claims more"),
    "be a folder": (lambda: edited("data/0", setting(_15=0x10)), "marked as a folder"),
    "be a volume": (lambda: edited("data/0", setting(_15=0x08)), "marked as a folder"),
    "be a folder by name": (lambda: appended("archive/data/1/"), "marked as a folder"),
    "be encrypted": (lambda: edited("data/0", setting(_3=1), setting(_2=1)), "encrypted"),
    "be compressed": (lambda: edited("data/0", setting(_4=8), setting(_3=8)), "encrypted or compressed"),
    "be of two sizes": (lambda: edited("data/0", setting(_8=3)), "encrypted or compressed"),
    "be encrypted in one header": (lambda: edited("data/0", setting(), setting(_2=1)), "differ"),
    "be compressed in one header": (lambda: edited("data/0", setting(), setting(_3=8)), "differ"),
    "be longer in one header": (lambda: edited("data/0", setting(), setting(_7=5, _8=5)), "differ"),
    "have two names": (lambda: forged().replace(b"archive/data/0", b"archive/data/1", 1), "differ"),
    "be there twice": (lambda: appended("archive/DATA/0"), "two of its records have one name"),
    "be of no tensor": (lambda: appended("archive/data/1"), "not those of its records"),
    "want a gradient": (requires_grad, "not a dense one"),
    "take 4 GB as bytes": (lambda: forged(more=Call(bytearray, HUGE)), "bytearray"),
    "take 4 GB as a tensor": (lambda: forged(Call(torch.Tensor, 10**9)), "torch Tensor"),
    "take 4 GB as a storage": (lambda: forged(Call(torch.UntypedStorage, HUGE)), "UntypedStorage"),
    "hash 2^60 values": (hash_bomb, "tuples far larger"),
    "compare 60,000 numbers that hash alike": (  # all of them with each other
        lambda: keyed(*(long(number * (2**61 - 1)) for number in range(1, 60_000))),
        "more than 64 bits",
    ),
    "hash tuples that are alike": (lambda: keyed(b"K\x01\x85", b"K\x02\x85"), "keys that no"),
    "hash such keys of a list": (
        lambda: forged(more=Call(OrderedDict, [[(1, 2), 3]])),
        "keys that no",
    ),
    "hash such keys of attributes": (lambda: forged(more=Attributed()), "keys that no"),
    "hash such names of storages": (lambda: forged(tensor(1, (1,), (1,), name=(1, 2))), "keys that no"),
    "walk over 2^60 values": (lambda: forged(more=doubled(60, kind=list)), "deeper"),
    "walk over 2^19 tuples": (lambda: forged(more=doubled(19)), "tuples far larger"),
    "walk over 10^8 lists": (lambda: forged(more=wide(8)), "far more values"),
    "walk for ever": (lambda: forged(more=endless()), "deeper"),
    "overflow the stack": (  # by a key that is a tuple in a tuple in a tuple ...
        lambda: zipped({"data.pkl": b"\x80\x02}K\x01" + b"\x85" * 1_000_000 + b"K\x01s."}),
        "tuples far larger",
    ),
    "be two programs": (  # names in upper and lower case are the same to PyTorch's reader
        lambda: appended("archive/DATA.PKL", pickle.dumps(Hostile("/tmp/ltrb_trace"), 2)),
        "records are not those",
    ),
    "be two files": (lambda: EMPTY + torch_bytes(old_content()), "directory is not where"),
    "be two small files": (lambda: EMPTY + forged(), "records are not those"),
    "hold a comment": (lambda: appended("", comment=b"more than the file"), "end is missing"),
    "hold a second end": (lambda: appended("", comment=b"PK\5\6" + bytes(18)), "records are not those"),
    "be without numbers": (lambda: torch_bytes(content(more=torch.ones(3, device="meta"))), "pickled"),
    "write to the terminal": (lambda: torch_bytes({"\x1b]0;owned\x07\x1b[2J": 1}), "no ltrb checkpoint"),
    "a tensor as schema": (lambda: torch_bytes(content(schema=torch.ones(3))), "schema Tensor"),
}


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
    before, begun = peak_memory(), time.process_time()
    assert reason in refusal(path)
    assert time.process_time() - begun < 5 and peak_memory() - before < 2**27
    assert [item.name for item in tmp_path.iterdir()] == ["hostile.pt"]
    assert not Path("/tmp/ltrb_trace").exists()


def test_the_forged_file_is_sound_but_for_what_is_changed(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(edited("data/0", setting(), setting()))
    assert load_checkpoint(path)["ema"]["w"].numpy().tobytes() == b"1234"


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


# foreign files


FOREIGN = {
    "empty": (b"", "is empty"),
    "text": (b"these are no weights\n", "is not a PyTorch checkpoint"),
    "web page": (b"<!DOCTYPE html><html>404</html>", "is not a PyTorch checkpoint"),
    "pointer of git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a PyTorch"),
    "another zip": (zipped({"readme.txt": b"pictures"})[:-1] + b"\0", "damaged"),
    "cut off": (torch_bytes(old_content())[:-300], "damaged"),
    "zeros": (bytes(4096), "is not a PyTorch checkpoint"),
    "one byte": (b"P", "is not a PyTorch checkpoint"),
    "a tensor": (torch_bytes(torch.zeros(3)), "it holds: Tensor"),
    "a list": (torch_bytes([1, 2]), "it holds: list"),
    "bare weights": (torch_bytes({"conv.weight": torch.zeros(1), "conv.bias": 0}), "conv.weight, conv.bias"),
    "an empty dict": (torch_bytes({}), "is no ltrb checkpoint"),
    "numbers as keys": (torch_bytes({1: 2, 3: 4}), "it holds: 1, 3"),
    "a key short": (torch_bytes({"schema": 2, "ema": {}, "names": []}), "is no ltrb checkpoint"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_refused_with_a_remedy(tmp_path, name):
    data, reason = FOREIGN[name]
    (tmp_path / "weights.pt").write_bytes(data)
    text = refusal(tmp_path / "weights.pt")
    assert reason in text and remedied(text)


# bits that changed


def small_file(path: Path, *, old: bool = False) -> bytes:
    """Some 20 KB: tensors of several sizes and types, and one that lies channels-last."""
    torch.manual_seed(0)
    tensors = {str(n): torch.rand(50 * n) for n in range(1, 6)} | {"count": torch.tensor(7)}
    tensors["conv"] = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    if old:
        path.write_bytes(torch_bytes(old_content(ema=tensors)))
    else:
        save_checkpoint(path, content(ema=tensors))
    return path.read_bytes()


def header_bits(data: bytes) -> list[int]:
    """All bits of the zip's own headers: before each record, of the directory, and of its end."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    spans = [(r.header_offset, r.header_offset + 30 + len(r.orig_filename)) for r in archive.infolist()]
    spans.append((archive.start_dir, len(data)))
    return [bit for start, end in spans for bit in range(8 * start, 8 * end)]


@pytest.mark.parametrize("old", [False, True])
def test_every_changed_bit_is_noticed_or_of_no_effect(tmp_path, old):
    """Of no effect are those of padding, and of fields of the zip that no reader looks at."""
    data = small_file(tmp_path / "x.pt", old=old)
    bits = header_bits(data)
    assert try_flips(tmp_path / "x.pt", some_bits(data, 100) + bits[::41]) > 50


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_2000_changed_bits_and_all_of_the_headers(tmp_path, old):
    data = small_file(tmp_path / "x.pt", old=old)
    try_flips(tmp_path / "x.pt", some_bits(data, 2000, seed=1) + header_bits(data))
