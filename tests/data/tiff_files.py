"""TIFF files of any type and number of bands, written by hand: a decoder is not asked what it reads back."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np


def tiff_file(
    *pages: np.ndarray, order: str = "<", planar: bool = False, deflated: bool = False, tile: int = 0,
    predictor: bool = False, orientation: int = 1, bits: int = 0, subfile: Sequence[int] = (),
) -> bytes:  # fmt: skip
    """A file of pages (H, W) or (H, W, B); ``bits`` of a value where they are packed (12), grey only.

    ``planar``: plane after plane; ``predictor``: differences to the left; ``tile``: squares of that side.
    """
    out = bytearray((b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 0))
    link = 4
    for number, page in enumerate(pages):
        values = page.reshape(*page.shape[:2], -1)
        height, width, bands = values.shape
        planes = [values[..., [band]] for band in range(bands)] if planar else [values]
        side = (tile, tile) if tile else (height, width)
        blocks = [
            np.pad(cut, ((0, side[0] - cut.shape[0]), (0, side[1] - cut.shape[1]), (0, 0)))
            for plane in planes
            for top in range(0, height, side[0])
            for left in range(0, width, side[1])
            for cut in [plane[top : top + side[0], left : left + side[1]]]
        ]
        if predictor:
            blocks = [np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1])) for block in blocks]
        pieces = [
            _pack_bits(b) if bits == 12 else b.astype(b.dtype.newbyteorder(order)).tobytes() for b in blocks
        ]
        pieces = [zlib.compress(piece) for piece in pieces] if deflated else pieces
        starts = []
        for piece in pieces:
            starts.append(len(out))
            out += piece + bytes(len(piece) % 2)
        kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
        colour = 2 if bands >= 3 else 1
        tags = {
            254: (4, [subfile[number] if subfile else 0]), 256: (4, [width]), 257: (4, [height]),
            258: (3, [bits or 8 * values.dtype.itemsize] * bands), 259: (3, [8 if deflated else 1]),
            262: (3, [colour]), 274: (3, [orientation]), 277: (3, [bands]), 284: (3, [2 if planar else 1]),
            317: (3, [2 if predictor else 1]), 339: (3, [kind] * bands),
        }  # fmt: skip
        sizes = list(map(len, pieces))
        where = {324: (4, starts), 325: (4, sizes), 322: (4, [tile]), 323: (4, [tile])}
        tags |= where if tile else {273: (4, starts), 279: (4, sizes), 278: (4, [height])}
        if extra := bands - (3 if bands >= 3 else 1):
            tags[338] = (3, [0] * extra)
        entries = b"".join(
            struct.pack(order + "HHI", tag, kind, len(numbers)) + _place(out, order, kind, numbers)
            for tag, (kind, numbers) in sorted(tags.items())
        )
        out[link : link + 4] = struct.pack(order + "I", len(out))
        out += struct.pack(order + "H", len(tags)) + entries + bytes(4)
        link = len(out) - 4
    return bytes(out)


def _place(out: bytearray, order: str, kind: int, numbers: list[int]) -> bytes:
    """The four bytes of an entry: the values, or where they were put."""
    data = struct.pack(f"{order}{len(numbers)}{'HI'[kind - 3]}", *numbers)
    if len(data) <= 4:
        return data.ljust(4, b"\0")
    out += data + bytes(len(data) % 2)
    return struct.pack(order + "I", len(out) - len(data) - len(data) % 2)


def _pack_bits(block: np.ndarray) -> bytes:
    """Rows of 12-bit values, the highest bit first."""
    rows = (block.reshape(block.shape[0], -1, 1) >> np.arange(11, -1, -1)) & 1
    return np.packbits(rows.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()
