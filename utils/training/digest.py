"""One SHA-256 over a whole checkpoint: every tensor's bytes and every plain value, with its type and place.

A zip's checksums say that its records are as they were written; they do not say that a reader took them for
what they are. The digest is made of the values themselves, so it holds whatever lay between.
"""

import hashlib
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_THREADS = 4  # hashlib lets other threads run; more of them wait for memory


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 in hex of nested dicts, lists and tuples of tensors and plain values, ``digest`` itself aside.

    Types are told apart (1, 1.0, True and "1" differ, and so do a list and a tuple), floats by their bits,
    tensors by dtype, shape, layout (channels-last or in order) and values; the order of a dict's keys does
    not count. A ``TypeError`` for values of any other type.
    """
    parts: list[bytes | Tensor] = []
    _encode({key: value for key, value in content.items() if key != "digest"}, parts)
    total = hashlib.sha256()
    with ThreadPoolExecutor(_THREADS) as pool:
        hashed = pool.map(_hash_tensor, [part for part in parts if isinstance(part, Tensor)])
        for part in parts:
            total.update(next(hashed) if isinstance(part, Tensor) else part)
    return total.hexdigest()


def _encode(value: Any, parts: list[bytes | Tensor]) -> None:
    """Append ``value`` to ``parts``: each begins with its type and length, so no two contents read alike."""
    if isinstance(value, Tensor):
        value = value.detach()
        kind, shape = "tensor", tuple(value.shape)
        if not value.is_contiguous() and value.ndim == 4:  # most weights are channels-last: copying those
            kind, value = "channels-last", value.permute(0, 2, 3, 1)  # into order took longer than hashing
        parts += [_text(kind, f"{value.dtype} {shape}"), value]
    elif isinstance(value, Mapping):
        parts.append(_text("dict", str(len(value))))
        for key in sorted(value, key=lambda key: (type(key).__name__, str(key))):
            _encode(key, parts)
            _encode(value[key], parts)
    elif isinstance(value, (list, tuple)):
        parts.append(_text("list" if isinstance(value, list) else "tuple", str(len(value))))
        for item in value:
            _encode(item, parts)
    elif type(value) is float:
        parts.append(b"float" + struct.pack("<d", value))
    elif type(value) in (str, int, bool, type(None)):
        parts.append(_text(type(value).__name__, str(value)))
    else:
        raise TypeError(f"a {type(value).__name__} has no digest")


def _text(kind: str, text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")  # names from JSON may hold halves of surrogate pairs
    return f"{kind} {len(data)} ".encode() + data


def _hash_tensor(tensor: Tensor) -> bytes:
    # as bytes, since numpy knows no bfloat16; no copy is made of a tensor that lies in order
    data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(memoryview(data.numpy())).digest()
