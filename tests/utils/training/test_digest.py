"""The digest of a content: every value and type of it counts, the order of keys and the storage do not."""

import hashlib
import math

import pytest
import torch

from utils.training.digest import digest_of

BASE = {"a": 1, "t": torch.arange(6.0).view(2, 3), "list": [1.0, "x", None, True], 3: {"deep": ("y",)}}


def test_by_hand():
    """The bytes that are hashed, written out."""
    tensor = hashlib.sha256(b"\0\0\x80\x3f\0\0\0\x40").digest()  # 1.0 and 2.0
    text = b"dict 1 1str 1 ttensor 18 torch.float32 (2,)" + tensor
    assert digest_of({"t": torch.tensor([1.0, 2.0])}) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        *({"a": value} for value in (2, 1.0, True, "1", None, [1], (1,), {}, torch.tensor(1))),
        *({"list": value} for value in ([1.0, "x", None], [1, "x", None, True], (1.0, "x", None, True))),
        *({"list": [value, "x", None, True]} for value in (math.nan, math.nextafter(1.0, 2), -1.0)),
        *({"t": torch.arange(6.0).view(shape)} for shape in ((6,), (3, 2), (1, 2, 3))),
        *(
            {"t": torch.arange(6).to(kind).view(2, 3)}
            for kind in (torch.float64, torch.int32, torch.bfloat16)
        ),
        {"t": torch.arange(6.0).view(2, 3).index_fill(1, torch.tensor(2), -0.0)},
        {"more": None},
        {3: {"deep": ("y", "")}},
        {3: {"deepy": ("",)}},
    ],
    ids=str,
)
def test_every_change_counts(change):
    assert digest_of(BASE | change) != digest_of(BASE)


def test_what_does_not_count():
    backwards = dict(reversed(BASE.items()))
    strided = torch.zeros(2, 6)[:, ::2].copy_(BASE["t"])
    assert digest_of(backwards | {"t": strided, "digest": "its own"}) == digest_of(BASE)


def test_keys_of_two_types_and_signs_of_zero():
    assert digest_of({"1": 0.0}) != digest_of({1: 0.0}) != digest_of({1: -0.0})


def test_layouts_of_images():
    images = torch.rand(2, 3, 4, 5)
    last = images.contiguous(memory_format=torch.channels_last)
    assert (
        digest_of({"x": last}) == digest_of({"x": last.clone()}) != digest_of({"x": last.permute(0, 2, 3, 1)})
    )


def test_what_has_none():
    with pytest.raises(TypeError, match="a set has no digest"):
        digest_of({"a": {1}})
