"""Checkpoints: tensors and plain values, finite, written whole or not at all, read without running code.

Two forms of file: ``.pt`` for all of them, and ``.safetensors`` for the weights to give on. Both have a
digest of all that they hold, which is compared before anything of it is used.
"""

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import Tensor

from utils.errors import NON_FINITE, UserError
from utils.training.atomic_file import discard, parts_of_killed_saves, previous_generation, replace_file
from utils.training.digest import digest_of
from utils.training.safetensors_file import (
    SUFFIX,
    looks_like_safetensors,
    normalise_plain,
    pack_safetensors,
    read_safetensors,
)
from utils.training.weights_file import (
    PLAIN,
    REMEDY,
    UnreadableError,
    explained,
    read_weights,
    show_key,
    walk,
)
from utils.wording import printable

SCHEMA = 3  # of the checkpoint's keys; raised when their meaning changes
WITHOUT_DIGEST = 2  # the one before, which is read too


def _check_number(value: object) -> object:
    if type(value) not in (int, float):
        raise ValueError("is no number")
    return value


def _check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    if "model" not in settings:  # its defaults would describe another network than that of the tensors
        raise ValueError("has no section model")
    if any(isinstance(value, Tensor) for _, value in walk(settings)):
        raise ValueError("holds a tensor")
    return settings


Count = Annotated[int, Field(ge=0, le=2**53)]
Number = Annotated[float, BeforeValidator(_check_number)]  # pydantic takes a tensor of one number, too
Settings = Annotated[dict[str, dict[str, Any]], AfterValidator(_check_settings)]


class Best(BaseModel):
    """The best epoch: -1 and -1 before there is one, AP -1 where there was nothing to measure."""

    model_config = ConfigDict(strict=True, extra="forbid")

    AP: Annotated[Number, Field(ge=0, le=1)] | Literal[-1]
    epoch: Annotated[int, Field(ge=1, le=2**53)] | Literal[-1]


class _Weights(BaseModel):
    """What all checkpoints hold."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    ema: dict[str, Tensor]
    config: Settings
    names: list[str]
    epoch: Count = 0
    best: Best | None = None
    origins: dict[str, str] = {}
    strides: list[int] = []


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, strings, lists, dicts); on any error the old file stays as it was.

    The name of ``path`` decides the form; one that ends in ``.safetensors`` has the tensors of ``ema`` alone.

    An ``OSError`` names the file and the reason. A ``UserError`` (``NON_FINITE``) names the first tensor that
    is not finite; a ``TypeError`` the first value that could not be read back. A view is saved without the
    rest of the tensor it looks at.
    """
    packed = _pack({**content, "schema": SCHEMA}, "")
    packed.pop("digest", None)  # of a content that was read: of another schema or form
    _check_finite(packed, path)
    data = _to_file(_on_cpu(packed), safe=path.suffix == SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, is_whole=_is_whole)
    except OSError as error:
        reason = f"{path} could not be written: {error.strerror or error}"
        raise (OSError(error.errno, reason) if error.errno else OSError(reason)) from error


def load_checkpoint(path: str | Path, *, key: str = "ema") -> dict[str, Any]:
    """Read a checkpoint of this project that holds ``key``; else a ``UserError`` that says what to do.

    If the file is missing or damaged and the previous generation beside it is sound, that one is read, with a
    line on stderr.
    """
    path = Path(path)
    try:
        return _read(path, key)
    except UnreadableError as error:
        previous = previous_generation(path)
        if not os.path.isfile(previous):
            raise
        reason = str(error).removesuffix(f" {REMEDY}")
        try:
            content = _read(previous, key)
        except UserError as second:
            raise UserError(f"{reason}; and the generation before it is no help: {second}") from error
        print(
            f"warning: {reason.rstrip('.')}; using {previous.name} beside it, the save before that one"
            f" (epoch {show_key(content.get('epoch'))}): what was trained between the two is not in it",
            file=sys.stderr,
        )
        return content


def epoch_of(path: Path) -> int:
    """The epoch after which a checkpoint was written; 0 where there is none that can be read."""
    try:
        return load_checkpoint(path, key="epoch")["epoch"]
    except UserError:
        return 0


def tidy(weights: Path) -> None:
    """Remove what killed saves left in the folder ``weights``; a previous generation that is needed stays."""
    for suffix in (".pt", SUFFIX):
        for part in parts_of_killed_saves(weights, suffix):
            discard(part)
        for previous in weights.glob(f"*.previous{suffix}"):
            if _is_whole(previous.with_name(previous.name.removesuffix(f".previous{suffix}") + suffix)):
                discard(previous)


def find_latest(project: str | Path) -> Path:
    """The last.pt written last below ``project``, also where only its previous generation is there."""
    found = [
        (file.stat().st_mtime, file.with_name("last.pt"))
        for name in ("last.pt", "last.previous.pt")
        for file in Path(project).glob(f"*/weights/{name}")
    ]
    if not found:
        raise UserError(f"--resume: no */weights/last.pt below {project}; give the path of one")
    return max(found)[1]


# writing


def _pack(value: Any, where: str) -> Any:
    """``value`` as plain dicts, lists and tuples; tensors without surplus storage, still on their device."""
    if isinstance(value, Tensor):
        tensor = value.detach()
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    if isinstance(value, Mapping):
        return {key: _pack(item, f"{where}.{key}".strip(".")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{where}.{number}") for number, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if type(value) not in PLAIN:
        kind = type(value).__name__
        raise TypeError(f"{where} is a {kind}: a checkpoint holds tensors and plain values only")
    return value


def _check_finite(packed: dict[str, Any], path: Path) -> None:
    """Refuse floating tensors with inf or nan, at one synchronisation a device.

    A sum is finite only if all its summands are; where it is not, it may have overflowed, and they are looked
    at one by one.
    """
    devices: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for where, value in walk(packed):
        if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
            devices.setdefault(value.device, []).append((where, value))
    for tensors in devices.values():
        sums = [value.sum(dtype=torch.promote_types(value.dtype, torch.float32)) for _, value in tensors]
        finite = torch.stack([total.isfinite() for total in sums]).tolist()
        for (where, value), sure in zip(tensors, finite, strict=True):
            if not sure and (num_bad := int((~value.isfinite()).sum())):
                raise UserError(
                    f"{path} is not written: {num_bad} of {value.numel()} numbers of {where} are inf or nan; "
                    "go on from an earlier checkpoint with a smaller train.lr or train.clip_norm",
                    NON_FINITE,
                )


def _on_cpu(value: Any) -> Any:
    """``value`` with its tensors in main memory: copied once, for the digest and for the file."""
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, (list, tuple)) else value


def _to_file(packed: dict[str, Any], *, safe: bool) -> memoryview:
    """The bytes of a file, digest included."""
    if safe:
        packed = normalise_plain(packed)
        return pack_safetensors(packed | {"digest": digest_of(packed)})
    file = io.BytesIO()  # and not the file itself: torch turns its OSErrors into others
    torch.save(packed | {"digest": digest_of(packed)}, file)
    return file.getbuffer()


# reading


def _read_content(path: Path) -> Any:
    """What one file holds, by its first bytes; ending and form may differ."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UnreadableError(f"weights {path}: not a regular file (a directory, a pipe or a device)")
    if not os.path.isfile(path):
        beside = path.with_name("last.pt")
        hint = f"; there is {beside}" if path.stem == "best" and os.path.isfile(beside) else ""
        raise UnreadableError(f"weights {path} not found (working directory {Path.cwd()}){hint}")
    with explained(path), open(path, "rb") as file:
        head = file.read(9)
    safe = looks_like_safetensors(head) or (path.suffix == SUFFIX and head[:2] != b"PK")
    return read_safetensors(path) if safe else read_weights(path)


def _check_digest(content: dict[str, Any], path: Path) -> None:
    """Refuse what is not to the bit what was written. Files of schema 2 have no digest."""
    digest = content.get("digest")
    if content["schema"] == WITHOUT_DIGEST:
        sound = "digest" not in content  # else a digest would go unread because of one changed bit
    else:
        sound = isinstance(digest, str) and _has_digest(content, digest)
    if not sound:
        raise UnreadableError(
            f"{path} is damaged, or was changed: its content is not that of its digest. {REMEDY}"
        )


def _has_digest(content: dict[str, Any], digest: str) -> bool:
    try:
        return digest_of(content) == digest
    except (TypeError, ValueError):  # of keys that are no text and no number of a length to print
        return False


def _check_numbers(content: dict[str, Any], path: Path) -> None:
    """Refuse inf and nan in tensors: none were written, and one would spread over every result."""
    for where, value in walk(content):
        if isinstance(value, Tensor) and (num_bad := int((~value.isfinite()).sum())):
            bad = f"{num_bad} of {value.numel()} numbers of {where} are inf or nan"
            raise UnreadableError(f"{path} is damaged: {bad}. {REMEDY}")


def _read(path: Path, key: str) -> dict[str, Any]:
    """One file, without a second chance."""
    content = _read_content(path)
    schema = content.get("schema", SCHEMA) if isinstance(content, dict) else SCHEMA
    if type(schema) is not int or schema not in (WITHOUT_DIGEST, SCHEMA):
        raise UserError(
            f"{path} has schema {show_key(schema)[:20]}, this version reads schemas {WITHOUT_DIGEST} and "
            f"{SCHEMA}: use the version of ltrb that wrote it, or train anew"
        )
    if not isinstance(content, dict) or not {"schema", "ema", "config", "names"} <= content.keys():
        keys = ", ".join(show_key(key)[:40] for key in content) if isinstance(content, dict) else ""
        raise UserError(
            f"{path} is no ltrb checkpoint (it holds: {keys[:120] or type(content).__name__}). {REMEDY}"
        )
    _check_digest(content, path)
    _check_numbers(content, path)
    check_types(_Weights, content, path)
    if key not in content:
        raise UserError(f"{path} holds no {key}: only last.pt can be resumed; best.pt is for --weights")
    return content


def _is_whole(path: Path) -> bool:
    """Whether ``path`` can be read."""
    try:
        _read(path, "ema")
    except UserError:
        return False
    return True


def check_types(schema: type[BaseModel], content: dict[str, Any], path: Path) -> None:
    """Refuse a content that has other types or bounds than ``schema``, and name the first value that does."""
    try:
        schema.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False, include_context=False)
        key = ".".join(show_key(part)[:80] for part in _keys_of(first, content))
        what = "is missing" if first["type"] == "missing" else f"is {show_found(first['input'])}"
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(
            f"{path} is damaged, or was changed: {key} {what}: {first['msg'].lower()}{more}. {REMEDY}"
        ) from error


def _keys_of(error: Mapping[str, Any], content: object) -> list[str | int]:
    """The keys that lead to the place of pydantic's ``error`` in ``content``.

    Of a union pydantic also names the branch that it tried ("_Scaler", "literal[-1]"), which is no key.
    """
    keys: list[str | int] = []
    for part in error["loc"]:
        is_item = isinstance(content, (list, tuple)) and type(part) is int
        if is_item or (isinstance(content, Mapping) and part in content):
            content = content[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue
        keys.append(part)
    return keys


def show_found(value: object) -> str:
    """A value from a file in a few words."""
    if isinstance(value, Tensor):
        shown = f"{value.item()}" if value.numel() == 1 and value.device.type == "cpu" else "a tensor"
        return f"{shown} of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (Mapping, list)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)} items"
    return printable(value)[:80]
