"""best.safetensors: the same weights as in best.pt, for others' tools too; hostile headers are refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.checkpoints import content, refusal, some_bits, torch_bytes, try_flips
from tests.resume import compare_values
from utils.errors import UserError
from utils.training.atomic_file import previous_generation
from utils.training.checkpoint import load_checkpoint, save_checkpoint


def full() -> dict:
    """Tensors of several types and layouts, and plain values of all kinds."""
    torch.manual_seed(0)
    image = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    tensors = {"conv": image, "half": torch.rand(3).half(), "brain": torch.rand(5).bfloat16()}
    tensors |= {"count": torch.tensor(7), "none": torch.zeros(0, 3), "view": torch.rand(9)[2:5]}
    return content(
        ema=tensors, best={"AP": 0.5, "epoch": 3}, names=["Straße", "\ud800", '"'], strides=[8, 16]
    )


def test_what_is_written_is_read(tmp_path):
    save_checkpoint(tmp_path / "best.safetensors", full())
    save_checkpoint(tmp_path / "best.pt", full())
    safe, plain = (load_checkpoint(tmp_path / f"best.{end}") for end in ("safetensors", "pt"))
    for found in (safe, plain):
        found.pop("digest")
    assert not list(compare_values(safe, plain))
    safe["ema"]["conv"] += 1  # as of any other file
    again = tmp_path / "again.safetensors"
    save_checkpoint(again, full())
    assert again.read_bytes() == (tmp_path / "best.safetensors").read_bytes()
    save_checkpoint(tmp_path / "back.pt", load_checkpoint(again))
    assert load_checkpoint(tmp_path / "back.pt")["ema"]["count"] == 7


def test_the_library_of_the_format_reads_the_same(tmp_path):
    path, given = tmp_path / "best.safetensors", full()
    save_checkpoint(path, given)
    assert not list(compare_values(dict(sorted(load_file(path).items())), dict(sorted(given["ema"].items()))))
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["format"] == "pt" and json.loads(about["names"]) == given["names"]
    assert json.loads(about["config"]) == given["config"] and len(about["digest"]) == 64


def test_forms_are_told_apart_by_what_they_hold(tmp_path):
    save_checkpoint(tmp_path / "x.safetensors", content())
    (tmp_path / "x.safetensors").rename(tmp_path / "x.pt")
    assert load_checkpoint(tmp_path / "x.pt")["epoch"] == 3
    save_checkpoint(tmp_path / "y.pt", content())
    (tmp_path / "y.pt").rename(tmp_path / "y.safetensors")
    assert load_checkpoint(tmp_path / "y.safetensors")["epoch"] == 3


def test_the_generation_before_stands_in(tmp_path, capsys):
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, content())
    path.rename(previous_generation(path))
    path.write_bytes(b"")
    assert load_checkpoint(path)["epoch"] == 3
    assert "best.previous.safetensors" in capsys.readouterr().err


def test_it_cannot_be_resumed(tmp_path):
    save_checkpoint(tmp_path / "best.safetensors", content())
    assert "only last.pt can be resumed" in refusal(tmp_path / "best.safetensors", key="optimizer")


def test_every_changed_bit_is_noticed_or_of_no_effect(tmp_path):
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, full())
    data = path.read_bytes()
    bits = some_bits(data, 120) + list(range(72))
    assert try_flips(path, bits) > 0.99 * len(bits)


@pytest.mark.slow
def test_2000_changed_bits(tmp_path):
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, full())
    assert try_flips(path, some_bits(path.read_bytes(), 2000, seed=1)) > 1990  # "1e-05" may be "1E-05"


def forged(header, data: bytes = bytes(12), *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(3,), offsets=(0, 12)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SHAPE, GAP = "not of the shape and place", "overlaps another, or leaves a gap"
HOSTILE = {
    "header of 2^63 bytes": (forged({"w": entry()}, length=2**63), "header claims"),
    "header of 2^64 - 1 bytes": (forged({"w": entry()}, length=2**64 - 1), "header claims"),
    "header of 17 MB": (forged(b'{"w":"' + b" " * 2**24 + b'"}'), "header claims"),
    "metadata of 100 MB": (forged({"__metadata__": {"x": "y" * 10**8}}), "header claims"),
    "header cut off": (forged({"w": entry()})[:20], "header claims"),
    "no numbers": (forged({"w": entry()}, b""), "does not account"),
    "more numbers": (forged({"w": entry()}, bytes(13)), "does not account"),
    "an end before the start": (forged({"w": entry(offsets=[12, 0])}), SHAPE),
    "a negative start": (forged({"w": entry(offsets=[-12, 0])}), SHAPE),
    "an end beyond the file": (
        forged({"w": entry(shape=[10**9], offsets=[0, 4 * 10**9])}),
        "does not account",
    ),
    "an end beyond all": (forged({"w": entry(shape=[2**62], offsets=[0, 2**64])}), SHAPE),
    "a start beyond": (forged({"w": entry(offsets=[2**40, 2**40 + 12])}), GAP),
    "an overlap": (forged({"w": entry(), "v": entry()}), GAP),
    "a gap": (forged({"w": entry(), "v": entry(offsets=[16, 28])}, bytes(28)), GAP),
    "a shape that does not fit": (forged({"w": entry(shape=[4])}), SHAPE),
    "a shape of 2^64 numbers": (forged({"w": entry(shape=[2**32, 2**32], offsets=[0, 0])}, b""), SHAPE),
    "a negative shape": (forged({"w": entry(shape=[-1, -3])}), SHAPE),
    "a shape of true": (forged({"w": entry(shape=[True, 3])}), SHAPE),
    "a shape of floats": (forged({"w": entry(shape=[3.0])}), SHAPE),
    "a shape of 1,000 axes": (forged({"w": entry(shape=[1] * 999 + [3])}), SHAPE),
    "an unknown dtype": (forged({"w": entry(dtype="F8_E4M3")}), SHAPE),
    "a list as dtype": (forged({"w": entry(dtype=[])}), SHAPE),
    "one offset": (forged({"w": entry(offsets=[0])}), SHAPE),
    "a key more": (forged({"w": entry() | {"x": 1}}), SHAPE),
    "a number as tensor": (forged({"w": 1}), SHAPE),
    "a tensor twice": (forged(b'{"w":%s,"w":%s}' % ((json.dumps(entry()).encode(),) * 2)), "stands twice"),
    "metadata twice": (forged(b'{"__metadata__":{"a":"1","a":"2"}}', b""), "stands twice"),
    "a key of the configuration twice": (
        forged({"__metadata__": {"format": "pt", "config": '{"model":{},"model":{}}'}}, b""),
        "stands twice",
    ),
    "numbers as metadata": (forged({"__metadata__": {"a": 1}}, b""), "metadata are not texts"),
    "a list as header": (forged([]), "header is no table"),
    "deep JSON": (forged(b'{"w":' + b"[" * 10**6, b""), "damaged"),
    "deep metadata": (forged({"__metadata__": {"format": "pt", "config": "[" * 10**5}}, b""), "damaged"),
    "a number of 10^5 digits": (forged(b'{"w":' + b"1" * 10**5 + b"}", b""), "damaged"),
    "other letters": (forged(b'{"\xff":1}', b""), "damaged"),
    "another program's": (forged({"__metadata__": {"format": "np"}, "w": entry()}), "another program"),
    "no metadata": (forged({"w": entry()}), "another program"),
    "without our keys": (forged({"__metadata__": {"format": "pt"}, "w": entry()}), "no ltrb checkpoint"),
    "steering a terminal": (forged({"\x1b[2J": entry(shape=[4])}), SHAPE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    data, reason = HOSTILE[name]
    (tmp_path / "x.safetensors").write_bytes(data)
    assert reason in refusal(tmp_path / "x.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none(tmp_path, value, monkeypatch):
    """As an attacker would write them, with a digest that fits."""
    monkeypatch.setattr("utils.training.checkpoint._check_finite", lambda *_: None)
    for name in ("x.safetensors", "x.pt"):
        save_checkpoint(tmp_path / name, content(ema={"w": torch.tensor([1.0, value])}))
        assert "1 of 2 numbers of ema.w are inf or nan" in refusal(tmp_path / name)


def test_a_digest_is_needed_and_of_all_that_is_there(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, content())
    data = path.read_bytes()
    for old, new in ((b'"digest"', b'"digesT"'), (b'"schema": "3"', b'"schema": "2"'), (b"640", b"320")):
        path.write_bytes(data.replace(old, new, 1))
        assert "is damaged" in refusal(path)
    path.write_bytes(torch_bytes(content(schema=3)))
    with pytest.raises(UserError, match="not that of its digest"):
        load_checkpoint(path)
