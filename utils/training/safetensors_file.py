"""Checkpoints as ``best.safetensors``, the form to give on: numbers and JSON, no pickle, read by many tools.

Written and read here and not by the format's library, as that writes the metadata in another order each time,
takes the last of two equal names, and headers of up to 100 MB. Sizes in bytes.
"""

import io
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.files import open_regular
from utils.training.weights_file import ForeignError, explained, show_key

SUFFIX = ".safetensors"
_MAX_HEADER = 2**24  # the largest model's has under 1 MiB
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PLAIN = ("format", "digest")  # entries of the metadata that are text; the others are JSON


class _Span(NamedTuple):
    """Where a tensor's numbers lie, counted from the end of the header."""

    start: int
    end: int
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def looks_like_safetensors(head: bytes) -> bool:
    """Whether the first nine bytes of a file are those of this format: the header's length, then its JSON."""
    return head[8:9] == b"{" and head[:2] != b"PK"


def normalise_plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """What comes back from a file of ``content``: tensors in order, tuples as lists, keys as text."""
    tensors = {key: tensor.contiguous() for key, tensor in content["ema"].items()}
    return json.loads(json.dumps({k: v for k, v in content.items() if k != "ema"})) | {"ema": tensors}


def pack_safetensors(content: Mapping[str, Any]) -> memoryview:
    """The file of ``content``, the same each time: ``ema`` are its tensors, all other keys metadata."""
    plain = {key: value for key, value in content.items() if key != "ema"}
    texts = {key: value if key in _PLAIN else json.dumps(value) for key, value in plain.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} | texts}  # "pt": whose tensors these are
    tensors = sorted(content["ema"].items(), key=lambda item: (-item[1].element_size(), item[0]))
    place = 0  # the widest numbers first, so that all are aligned
    for key, tensor in tensors:
        offsets = [place, place := place + tensor.nbytes]
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file = io.BytesIO()
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in tensors:
        file.write(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
    return file.getbuffer()


def read_safetensors(path: Path) -> dict[str, Any]:
    """The content that was packed; an ``UnreadableError`` where the file is none, or made to harm."""
    with explained(path):
        with open_regular(path) as file:
            # Before the rest, of which there may be 10 GB, is read into memory.
            if not looks_like_safetensors(file.read(9)):
                raise ForeignError("is damaged: its header is no table")
            file.seek(0)
            data = bytearray(file.read())  # which can be written to, as tensors must be
        texts, spans, begin = _read_header(data)
        content = {key: text if key in _PLAIN else _parse(text) for key, text in texts.items()}
        if content.pop("format", None) != "pt" or "ema" in content:
            raise ForeignError("is no ltrb checkpoint: its metadata are those of another program")
        return content | {"ema": {span.key: _tensor(data, span, begin) for span in spans}}


def _tensor(data: bytearray, span: _Span, begin: int) -> Tensor:
    count = prod(span.shape)
    if not count:  # frombuffer refuses none
        return torch.empty(span.shape, dtype=span.dtype)
    flat = torch.frombuffer(data, dtype=span.dtype, count=count, offset=begin + span.start)
    return flat.reshape(span.shape)


def _read_header(data: bytearray) -> tuple[dict[str, str], list[_Span], int]:
    """The metadata, where each tensor lies, and where the first begins.

    Refuses a header that is too large, ambiguous, or does not account for every byte.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise ForeignError(f"is damaged: its header claims {length:,} bytes")
    header = _parse(data[8 : 8 + length].decode())
    if not isinstance(header, dict):
        raise ForeignError("is damaged: its header is no table")
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ForeignError("is damaged: its metadata are not texts")
    spans = sorted((_span(key, entry) for key, entry in header.items()), key=lambda span: span[:2])
    place = 0
    for span in spans:
        if span.start != place:
            name = show_key(span.key)[:80]
            raise ForeignError(f"is damaged: its tensor {name} overlaps another, or leaves a gap")
        place = span.end
    if place != len(data) - 8 - length:
        raise ForeignError("is damaged: its header does not account for all of its numbers")
    return texts, spans, 8 + length


def _span(key: str, entry: Any) -> _Span:
    """A tensor of the header, if its shape fits its place."""
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        dtype, shape, offsets = _DTYPES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
        sound = dtype and _is_counts(shape, 8) and _is_counts(offsets, 2) and len(offsets) == 2
        if sound and offsets[1] - offsets[0] == dtype.itemsize * prod(shape):
            return _Span(*offsets, key, dtype, tuple(shape))
    raise ForeignError(f"is damaged: its tensor {show_key(key)[:80]} is not of the shape and place it claims")


def _is_counts(value: Any, most: int) -> bool:
    """Whether ``value`` is a list of at most so many whole numbers that a place in a file can have."""
    plain = isinstance(value, list) and len(value) <= most
    return plain and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _parse(text: str) -> Any:
    """JSON in which no key stands twice: readers differ in which of the two they take."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ForeignError("is damaged: a key stands twice in its header")
        return found

    return json.loads(text, object_pairs_hook=unique)
