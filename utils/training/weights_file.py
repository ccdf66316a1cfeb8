"""Reading a .pt file that nobody vouches for: every check that comes before, and after, ``torch.load``.

PyTorch's weights-only reader runs no code from a file, but it does not compare checksums, unpacks whatever a
few kilobytes claim to hold, and hashes nested tuples for ever. So a file is read only if it is what
``save_checkpoint`` writes: a zip that unpacks to no more than its size, sound by its CRC-32s, every record of
which is the same to Python's reader and to PyTorch's, whose pickle makes tensors and plain values and nothing
else. Memory and time stay within a small multiple of the file's size. Sizes in bytes.
"""

import os
import pickletools
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from utils.errors import UserError
from utils.wording import printable

PLAIN = (str, bool, int, float, type(None))
REMEDY = (
    "ltrb starts from its own checkpoints only (runs/train/*/weights/best.pt); "
    "use --weights '' to train from scratch"
)
_STORAGES = "Double Float Half BFloat16 Long Int Short Char Byte Bool"
_KNOWN = frozenset(
    ["collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"]
    + [f"torch {kind}Storage" for kind in _STORAGES.split()]
)
_MAX_PROGRAM = (
    2**24
)  # of the pickle; the largest model's has under 1 MiB, an object takes up to 64 x its opcode
_FOLDER = (
    0xFF  # of a record's attributes: MS-DOS's; PyTorch's reader looks at the bit of folders, ours at none
)
_FLAGS = 0x808  # a record may have: sizes that follow its data, a name in UTF-8; not encrypted, not patched
_MAX_TUPLE = 1000  # values in a tuple and in the tuples inside it, repeated ones counted each time
_MAX_ID = 6  # the same, of what names a storage: "storage", type, name, device, how many numbers
_CHANGES = frozenset(["SETITEM", "SETITEMS", "BUILD"])  # instructions of a pickle that give what they take
_HASHES = _CHANGES | {"REDUCE", "BINPERSID"}  # those that hash
_MAX_NODES, _MAX_DEPTH = 1_000_000, 20  # of the content, repeated parts counted each time


class UnreadableError(UserError):
    """The file is missing, damaged or unsafe to read: another copy of it may serve."""


def read_weights(path: Path) -> Any:
    """The content of a .pt file; an ``UnreadableError`` that says what is wrong and what to do."""
    with explained(path):
        with open(path, "rb") as file:
            _check_head(file)
            num_stored = _check_archive(file)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        storages = {}
        for number, (where, value) in enumerate(walk(content)):
            _check_value(where, value, number)
            if isinstance(value, torch.Tensor):
                storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        if sum(storages.values()) != num_stored:
            raise ForeignError("is damaged: its tensors are not those of its records")
        return content


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Inside, whatever goes wrong with the file ``path`` is an ``UnreadableError``."""
    try:
        yield
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error.strerror or error}") from error
    except ForeignError as error:
        raise UnreadableError(f"{path} {error}. {REMEDY}") from error
    except Exception as error:  # zipfile, torch, json raise many types for what they cannot read
        reason = f"{type(error).__name__}: {printable(str(error))[:80]}"
        raise UnreadableError(f"{path} is damaged ({reason}). {REMEDY}") from error


def walk(value: Any, where: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value in nested dicts, lists and tuples with its dotted key, containers before what they hold."""
    yield where, value
    if depth > _MAX_DEPTH:
        raise ForeignError(f"is nested deeper than any checkpoint ({where[:80]}...)")
    if isinstance(value, Mapping):
        items = ((show_key(key), item) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        items = ((str(number), item) for number, item in enumerate(value))
    else:
        return
    for key, item in items:
        yield from walk(item, f"{where}.{key}" if where else key, depth + 1)


def show_key(key: Any) -> str:
    """A key from a file, fit for a terminal; what is no text or number by its type, as it may be endless."""
    if isinstance(key, str):
        return printable(key)
    return str(key) if type(key) is int else type(key).__name__


class ForeignError(ValueError):
    """Why a file is not read; completes the sentence that begins with its path."""


def _check_head(file: BinaryIO) -> None:
    """Refuse what is no zip by its first letters: the older formats of PyTorch among it."""
    head = file.read(4)
    if not head:
        raise ForeignError("is empty: the file was cut off when it was copied or written")
    if head[:2] == b"\x80\x02":
        raise ForeignError(f"cannot be read safely: {_pickled('in an old format')}")
    if head != b"PK\3\4":
        raise ForeignError("is not a PyTorch checkpoint")


def _check_archive(file: BinaryIO) -> int:
    """Refuse a zip that is damaged, that unpacks to more than its size, or whose pickle makes other things;
    returns the size of the numbers that it holds.

    All sizes are those of the one directory that both ``zipfile`` and PyTorch's reader take: it ends the
    file, nothing stands before the first record, and there is one pickle in upper or lower case, which are
    the same to PyTorch's reader.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(-min(size, 98), os.SEEK_END)
    tail = file.read()
    if tail[-22:-18] != b"PK\5\6":
        raise ForeignError("is damaged: its end is missing, or something was added to it")
    if tail[-42:-38] == b"PK\6\7" and int.from_bytes(tail[-34:-26], "little") != size - 98:
        raise ForeignError("is damaged: its directory is not where the file says")
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if sum(record.file_size for record in records) > size:
            raise ForeignError("cannot be read safely: its records claim more than the file holds")
        programs = [record for record in records if record.orig_filename.lower().endswith("/data.pkl")]
        if len(programs) != 1 or min(record.header_offset for record in records) != 0:
            raise ForeignError("is damaged: its records are not those of a PyTorch checkpoint")
        for record in records:
            _check_record(file, record)
        if len({record.filename.lower() for record in records}) < len(records):
            raise ForeignError("is damaged: two of its records have one name")
        if programs[0].file_size > _MAX_PROGRAM:
            raise ForeignError("cannot be read safely: it holds far more objects than any checkpoint")
        if (wrong := archive.testzip()) is not None:
            raise ForeignError(f"is damaged: its record {show_key(wrong)[:80]} differs from its checksum")
        _check_program(archive.read(programs[0]))
    return sum(record.file_size for record in records if "/data/" in record.filename)


def _check_record(file: BinaryIO, record: zipfile.ZipInfo) -> None:
    """Refuse a record that is not plain bytes, the same by the directory and by the header before its data.

    PyTorch's reader takes one marked as a folder for empty, and leaves the tensor's memory as it was.
    """
    name = show_key(record.orig_filename)[:80]
    if record.external_attr & _FOLDER or record.orig_filename.endswith("/"):
        raise ForeignError(f"is damaged: its record {name} is marked as a folder or special file")
    if record.flag_bits & ~_FLAGS or record.compress_type or record.compress_size != record.file_size:
        raise ForeignError(f"is damaged: its record {name} is marked as encrypted or compressed")
    file.seek(record.header_offset)
    flags, method, crc, *sizes, length = struct.unpack("<6xHH4x3IH2x", file.read(30))
    own = record.orig_filename.encode("utf-8" if flags & 0x800 else "cp437")
    late = flags & 8 and not any((crc, *sizes))  # PyTorch writes them after the data
    same = late or (crc == record.CRC and set(sizes) <= {record.file_size, 2**32 - 1})
    if (flags, method, length) != (record.flag_bits, 0, len(own)) or file.read(length) != own or not same:
        raise ForeignError(f"is damaged: its directory and the header of its record {name} differ")


class _Item(NamedTuple):
    """What is known of a value on a pickle's stack."""

    visits: int  # how many values a hash of it visits
    kind: str  # the instruction that made it; of a class, its name


def _check_program(program: bytes) -> None:
    """Refuse a pickle that names anything but tensors and dicts, or whose hashing takes for ever.

    Follows the pickle's stack with what is known of each value.
    """
    stack: list[_Item] = []
    marks: list[int] = []
    memo: dict[int, _Item] = {}
    for code, value, _ in pickletools.genops(program):
        name = code.name
        if name == "GLOBAL" and value not in _KNOWN:
            raise ForeignError(f"cannot be read safely: {_pickled(show_key(value)[:80])}")
        if name.startswith("LONG") and type(value) is int and not -(2**63) <= value < 2**63:
            raise ForeignError("is damaged: one of its numbers has more than 64 bits")
        if name == "MARK":
            marks.append(len(stack))
        elif name.endswith("BINPUT"):
            memo[value] = stack[-1]
        elif name.endswith("BINGET"):
            stack.append(memo[value])
        elif not code.stack_before:
            stack += [_item(value if name == "GLOBAL" else name)] * len(code.stack_after)
        else:
            marked = pickletools.markobject in code.stack_before
            start = (
                marks.pop() - len(code.stack_before) + 2 if marked else len(stack) - len(code.stack_before)
            )
            taken = stack[start:]
            if name in _HASHES:
                _check_keys(name, taken)
            if name in _CHANGES:
                item = taken[0]
            elif name.startswith("TUPLE"):
                item = _Item(1 + sum(part.visits for part in taken), "TUPLE")
            else:
                item = _item(name)
            if item.visits > _MAX_TUPLE:
                raise ForeignError("cannot be read safely: it holds tuples far larger than any checkpoint's")
            stack[start:] = [item] * len(code.stack_after)


@cache  # there may be millions
def _item(kind: str) -> _Item:
    return _Item(1, kind)


def _check_keys(name: str, taken: list[_Item]) -> None:
    """Refuse tuples as keys, and whatever else an instruction would make keys from.

    Tuples, and long numbers, can be chosen to hash alike: n of them in a dict take n^2 comparisons. Text
    cannot, as Python hashes it differently in each process.
    """
    kinds = [item.kind for item in taken]
    if (
        (name.startswith("SETITEM") and "TUPLE" in kinds[1::2])
        or (name == "REDUCE" and kinds == ["collections OrderedDict", "TUPLE"])
        or (name == "BUILD" and kinds[1:] != ["EMPTY_DICT"])
        or (name == "BINPERSID" and taken[0].visits > _MAX_ID)
    ):
        raise ForeignError("cannot be read safely: its dicts have keys that no checkpoint has")


def _check_value(where: str, value: Any, number: int) -> None:
    """Refuse the ``number``-th value of a content if no checkpoint holds its like."""
    if number > _MAX_NODES:
        raise ForeignError("cannot be read safely: it holds far more values than any checkpoint")
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu" or value.layout != torch.strided or value.requires_grad:
            raise ForeignError(f"is damaged: its tensor {where} is not a dense one")
        if value.nbytes > value.untyped_storage().nbytes():
            raise ForeignError(f"cannot be read safely: its tensor {where} claims more than the file holds")
    elif type(value) is int and not -(2**63) <= value < 2**63:  # Python takes for ever to print a long one
        raise ForeignError(f"is damaged: its number {where} has more than 64 bits")
    elif not isinstance(value, (dict, list, tuple)) and type(value) not in PLAIN:
        raise ForeignError(f"holds a {type(value).__name__} in {where}, not tensors and plain values only")


def _pickled(what: str) -> str:
    return (
        f"it holds pickled objects ({what}) as the checkpoints of YOLOv5 and Ultralytics do, "
        "and loading those would run code from the file"
    )
