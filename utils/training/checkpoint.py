"""Checkpoints: tensors and plain values, written whole or not at all, read without running code."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

SCHEMA = 1  # of the checkpoint's keys; raised when their meaning changes


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` (tensors, numbers, strings, lists, dicts) atomically: a crash keeps the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save({"schema": SCHEMA, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | Path, *, key: str = "ema") -> dict[str, Any]:
    """Read a checkpoint of this project that holds ``key``; else a ``UserError`` that says what to do."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"weights {path} not found (working directory {Path.cwd()})")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a file it cannot or must not read
        raise UserError(_explain(path)) from error
    if isinstance(content, dict) and content.get("schema", SCHEMA) != SCHEMA:
        raise UserError(f"{path} has schema {content['schema']}, this version reads schema {SCHEMA}")
    if not isinstance(content, dict) or not {"schema", "ema", "config", "names"} <= content.keys():
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path} is no ltrb checkpoint (it holds: {keys}). {_REMEDY}")
    if not _is_sound(content):
        raise UserError(
            f"{path} is damaged: its configuration, names or tensors are not of their types. {_REMEDY}"
        )
    if key not in content:
        raise UserError(f"{path} holds no {key}: only last.pt can be resumed; best.pt is for --weights")
    return content


def find_latest(project: str | Path) -> Path:
    """The last.pt written last below ``project``."""
    found = sorted(Path(project).glob("*/weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"--resume: no */weights/last.pt below {project}; give the path of one")
    return found[-1]


def _is_sound(content: dict[str, Any]) -> bool:
    """Whether the parts that every checkpoint holds are of their types."""
    config, names, tensors = content["config"], content["names"], content["ema"]
    return (
        isinstance(config, dict)
        and "model" in config
        and all(isinstance(section, dict) for section in config.values())
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and isinstance(tensors, dict)
        and all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    )


_REMEDY = (
    "ltrb starts from its own checkpoints only (runs/train/*/weights/best.pt); "
    "use --weights '' to train from scratch"
)


def _explain(path: Path) -> str:
    try:
        head = path.read_bytes()[:4]
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if not head:
        return f"{path} is empty: the file was cut off when it was copied or written. {_REMEDY}"
    if head[:2] in (b"PK", b"\x80\x02"):
        return (
            f"{path} cannot be read safely: it is damaged, or holds pickled objects as the checkpoints of "
            f"YOLOv5 and Ultralytics do, and loading those would run code from the file. {_REMEDY}"
        )
    return f"{path} is not a PyTorch checkpoint. {_REMEDY}"
