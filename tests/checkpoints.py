"""Small checkpoints, and what their refusal must look like."""

import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.resume import compare_values
from utils.config import Config, config_to_plain
from utils.errors import USAGE, UserError
from utils.training.checkpoint import load_checkpoint


def content(value: float = 1.0, **more) -> dict:
    """What best.pt holds, in small."""
    plain = config_to_plain(Config())
    return {"ema": {"w": torch.full((3,), value)}, "config": plain, "names": ["a", "b"], "epoch": 3} | more


def old_content(**more) -> dict:
    """As a file of schema 2 holds it, whose readers looked at no digest."""
    return content(schema=2, **more)


def torch_bytes(value, *, new: bool = True) -> bytes:
    """The file that torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def refusal(path: Path, **options) -> str:
    """The message of the refusal: one line that names the file; the exit code is that of usage."""
    with pytest.raises(UserError) as error:
        load_checkpoint(path, **options)
    assert error.value.code == USAGE == 2
    text = str(error.value)
    assert str(path) in text and text.isprintable() and len(text) < 600
    return text


def remedied(text: str) -> bool:
    """Whether a refusal says what to do."""
    return "--weights ''" in text and "runs/train/*/weights/best.pt" in text


def flips(data: bytes, places: Iterator[int] | list[int]) -> Iterator[bytes]:
    """``data`` with one bit changed, for each of the ``places`` (in bits)."""
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        yield bytes(changed)


def try_flips(path: Path, places: list[int]) -> int:
    """Flip each bit of the file alone, and load it: it is refused, or the same. How many are refused."""
    data, sound, texts = path.read_bytes(), load_checkpoint(path), []
    for changed in flips(data, places):
        path.write_bytes(changed)
        junk = torch.full((4096,), 7.25)  # so that memory left as it was shows up
        del junk
        try:
            found = load_checkpoint(path)
        except UserError as error:
            texts.append(str(error))
        else:
            assert not list(compare_values(found, sound))
    path.write_bytes(data)
    assert all(str(path) in text and text.isprintable() for text in texts)
    return len(texts)


def some_bits(data: bytes, count: int, seed: int = 0) -> list[int]:
    """Places of random bits."""
    return random.Random(seed).sample(range(8 * len(data)), count)
