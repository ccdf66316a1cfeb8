"""JPEG files without their end marker, as some cameras write them: whether every pixel is there.

libjpeg fills what is missing with grey and only warns. So it is found by trying: bits that follow the last
one must not matter. Appended to a file that is cut they are read as pixels, and other bits give others.
"""

import io
import re

import numpy as np
from PIL import Image

END = b"\xff\xd9"
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # that ends a scan: no stuffed byte, restart or padding
HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
COEFFICIENTS = 64
# Not ones: no code is all ones, and libjpeg takes what is no code for the end of a block. Of two that differ
# in their first bit, at most one is that. Nothing at all is what will be decoded.
FILLERS = (b"", b"\xaa" * 64, b"\x55" * 64, bytes(64))
TRUNCATED = "the file is truncated: the JPEG end marker is missing, and so are pixels"


def has_end(data: bytes) -> bool:
    """Whether an end marker follows the first scan; one before it is of a thumbnail in the EXIF block."""
    return data.rfind(END, _walk(data, scans=False)[0]) >= 0


def with_end(data: bytes) -> bytes:
    """A JPEG that lacks its end, with one, where all pixels are there; ``ValueError`` where they are not."""
    body = data.rstrip(b"\x00\xff")  # a file that was given its room beforehand ends in zeros, or ones
    if data[len(body) : len(body) + 2] == b"\xff\x00":  # one byte of pixels
        body += b"\xff\x00"
    if not is_whole(body):
        body = data.rstrip(b"\xff")  # zeros may be pixels: then not one of them can be spared
        if not (body.endswith(b"\0") and is_whole(body) and not is_whole(body[:-1])):
            raise ValueError(TRUNCATED)
    return body + END


def is_whole(body: bytes) -> bool:
    """Whether a JPEG without its end marker holds every pixel."""
    _, last, complete = _walk(body)
    if not complete or len(body) <= last:
        return False
    # a cut between two restart markers shows only behind the next one
    restart = bytes([0xFF, 0xD0 + len(RESTART.findall(body, last)) % 8])
    shown = (_decode(body + (bits + restart + bits if bits else b"") + END) for bits in FILLERS)
    first = next(shown)
    return all(np.array_equal(first, other) for other in shown)


def _decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data), formats=("JPEG",)))


def _walk(data: bytes, *, scans: bool = True) -> tuple[int, int, bool]:
    """Where the first and the last scan begin, and whether the scans hold every coefficient to its last bit.

    A progressive file that lacks its last scans shows the whole picture, but coarsely. With ``scans`` False
    nothing beyond the header of the first is looked at, which takes no time.
    """
    first, last, frame, position = 0, 0, None, 2
    left: dict[tuple[int, int], int] = {}  # (component, coefficient) -> low bits still to come
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD8:  # padding; markers without a length
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment, position = data[position + 4 : position + 2 + length], position + 2 + length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = marker
            left = {(item, k): 1 for item in segment[6::3] for k in range(COEFFICIENTS)}
        if marker != 0xDA:
            continue
        first, last = first or position, position
        count = segment[0] if segment else 0
        if len(segment) >= 2 * count + 4:
            low, high, bits = segment[-3], segment[-2], segment[-1] & 15
            left |= {(item, k): bits for item in segment[1 : 2 * count : 2] for k in range(low, high + 1)}
        if not scans:
            break
        following = MARKER.search(data, position)
        position = following.start() if following else len(data)
    whole = frame in HUFFMAN_FRAMES and bool(left) and not any(left.values())
    return first or min(position, len(data)), last, whole
