"""TIFF files of any number of bands, of any type: the values as stored. B bands.

OpenCV reads grey pictures of every type, but not five bands, nor two of 16 bits, and planes that lie behind
one another it mixes up without a word. So each plane is handed to it as a grey picture of its own, and a
picture with interleaved bands as a grey one that is B times as wide: the compressed bytes are the same.

Sizes are (height, width).
"""

import io
import math
import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_PAGES = 10_000  # a chain of pages may be a circle
KINDS = {1: "u", 2: "i", 3: "f"}  # of SampleFormat
WHITE_IS_ZERO = 0
GREY, COLOUR = (WHITE_IS_ZERO, 1), 2  # PhotometricInterpretation whose values mean brightness as they stand
REDUCED, MASK = 1, 4  # bits of NewSubfileType: a thumbnail, a level of a pyramid; a transparency mask
OLD_REDUCED = 2  # the same of SubfileType
# tags
SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORDER = (
    254,
    255,
    256,
    257,
    258,
    259,
    262,
    266,
)
OFFSETS, ORIENTATION, SAMPLES, ROWS, COUNTS, PLANAR, PREDICTOR = 273, 274, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, FORMAT = 322, 323, 324, 325, 339
LAYOUT = (SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, ORDER, ORIENTATION, SAMPLES, PLANAR, FORMAT)
STORAGE = (COMPRESSION, PREDICTOR, OFFSETS, ROWS, COUNTS, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS)


class Page(NamedTuple):
    """One picture of a file, by its tags."""

    size: tuple[int, int]  # as stored, before the orientation
    bands: int
    bits: int  # of a value
    kind: str  # u, i or f: unsigned, signed, floating point
    orientation: int
    tags: dict[int, tuple]
    byte_order: str  # < or >
    number: int  # in the file, from 0

    @property
    def deep(self) -> bool:
        """Whether values need a range to become 0..255."""
        return self.bits > 8 or self.kind != "u"

    @property
    def is_mask(self) -> bool:
        """Whether it only says which pixels of another page count."""
        return bool(self.first(SUBFILE, 0) & MASK)

    @property
    def aside(self) -> bool:
        """Whether it is marked as a smaller copy of another page, or as its mask."""
        return (
            bool(self.first(SUBFILE, 0) & REDUCED)
            or self.is_mask
            or self.first(OLD_SUBFILE, 0) == OLD_REDUCED
        )

    @property
    def is_half(self) -> bool:
        """Floats of 16 bits, which only pass as integers."""
        return (self.kind, self.bits) == ("f", 16)

    @property
    def inverted(self) -> bool:
        """Grey of 8 bits in which 0 is white; of deeper values the order is not heeded."""
        return not self.deep and self.bands == 1 and self.first(PHOTOMETRIC, 1) == WHITE_IS_ZERO

    @property
    def plain(self) -> bool:
        """Whether values stand for brightness: no palette, no inks, no bits packed into a byte."""
        return self.bits >= 8 and self.first(PHOTOMETRIC, 1) in (*GREY, COLOUR)

    @property
    def beyond_pillow(self) -> bool:
        """Whether Pillow knows no such picture, or keeps 8 bits of it."""
        colour = self.first(PHOTOMETRIC, 1) == COLOUR and self.first(PLANAR, 1) == 1
        return self.plain and (self.deep or self.bands not in ((1, 3, 4) if colour else (1, 3)))

    def first(self, tag: int, default: int) -> int:
        """A tag's only, or first, value."""
        return int(self.tags.get(tag, (default,))[0])


def is_tiff(file: BinaryIO) -> bool:
    """By the first four bytes; the file is then at its start again."""
    file.seek(0)
    magic = file.read(4)
    file.seek(0)
    return magic in MAGIC


def read_pages(file: BinaryIO, *, most: int = MOST_PAGES) -> list[Page]:
    """The pages of a file that are like its first: of its size, type and number of bands.

    The first is the first that is not marked as a thumbnail or a mask, where there is one: some cameras put
    the thumbnail before the picture. Of a file whose pages are all marked it is the largest. Pages of other
    sizes, thumbnails, pyramids and masks are passed over.
    """
    pages, aside = [], []
    for page in _walk(file):
        if page.aside:
            aside = [max([*aside, page], key=lambda one: (not one.is_mask, math.prod(one.size)))]
        elif not pages or page[:4] == pages[0][:4]:
            pages.append(page)
            if len(pages) >= most:
                break
    if not pages and not aside:
        raise ValueError("a TIFF without pictures")
    return pages or aside


def count_pages(file: BinaryIO) -> int:
    """Pages of any size that are not marked as thumbnails, levels of a pyramid or masks; at least 1."""
    return max(1, sum(not page.aside for page in _walk(file)))


def _walk(file: BinaryIO) -> Iterator[Page]:
    """All pages, in their order."""
    file.seek(0)
    head = file.read(8)
    head += file.read(8) if head[2:3] == b"+" or head[3:4] == b"+" else b""
    directory = TiffImagePlugin.ImageFileDirectory_v2(head)
    seen = set()
    while directory.next and directory.next not in seen and len(seen) < MOST_PAGES:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        yield _page_of(directory, "<" if head[:1] == b"I" else ">", len(seen) - 1)


def _page_of(directory: TiffImagePlugin.ImageFileDirectory_v2, byte_order: str, number: int) -> Page:
    tags = {}
    for tag in (*LAYOUT, *STORAGE):
        if (value := directory.get(tag)) is not None:
            tags[tag] = value if isinstance(value, tuple) else (value,)
    if WIDTH not in tags or HEIGHT not in tags:
        raise ValueError("a TIFF whose header is damaged or cut short: it has no width and height")
    bits, formats = set(tags.get(BITS, (1,))), set(tags.get(FORMAT, (1,)))
    if len(bits) > 1 or len(formats) > 1 or not formats <= KINDS.keys():
        raise ValueError("a TIFF with bands of different types, or complex ones")
    samples, orientation = int(tags.get(SAMPLES, (1,))[0]), int(tags.get(ORIENTATION, (1,))[0])
    size = int(tags[HEIGHT][0]), int(tags[WIDTH][0])
    turn = orientation if 1 <= orientation <= 8 else 1
    return Page(size, samples, int(bits.pop()), KINDS[formats.pop()], turn, tags, byte_order, number)


def read_bands(data: bytes, pages: list[Page], wanted: Sequence[int]) -> np.ndarray:
    """(H, W, len(wanted)) values as stored, not turned: bands counted from 1, on from page to page.

    A file cut short, and a compression that is not known here, is a ``ValueError``.
    """
    places = [divmod(band - 1, pages[0].bands) for band in wanted]
    read = {number: _read_page(data, pages[number]) for number in {number for number, _ in places}}
    return np.dstack([read[number][..., band] for number, band in places])


def _read_page(data: bytes, page: Page) -> np.ndarray:
    if page.first(PLANAR, 1) == 2 and page.bands > 1:
        planes = [_read_grey(data, page, plane, 1) for plane in range(page.bands)]
        return np.dstack(planes)
    values = _read_grey(data, page, 0, page.bands)
    if page.inverted:
        values = 255 - values
    return values.reshape(*page.size, page.bands)


def _read_grey(data: bytes, page: Page, plane: int, wide: int) -> np.ndarray:
    """(H, W * wide) one plane, or ``wide`` interleaved bands, read as a grey picture."""
    predictor = page.first(PREDICTOR, 1) if wide > 1 else 1
    if predictor not in (1, 2):
        raise ValueError(f"a TIFF of {wide} bands with predictor {predictor}; save it without one")
    file = _as_grey(data, page, plane, wide)
    values = _decode_grey(file, page)
    if values is None or values.shape != (page.size[0], page.size[1] * wide):
        form = f"{page.bands} bands of {page.bits} bits, compression {page.first(COMPRESSION, 1)}"
        raise ValueError(f"this TIFF ({form}) cannot be decoded; is it whole?")
    return _undo_differences(values, page, wide) if predictor == 2 else values


def _decode_grey(file: bytes, page: Page) -> np.ndarray | None:
    if page.bits == 8:  # OpenCV refuses small tiles of 8 bits
        return np.array(Image.open(io.BytesIO(file), formats=("TIFF",))).view(page.kind + "1")
    values = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is not None and page.bits < 16:  # packed: OpenCV shifts them to the top of 16 bits
        return values >> (16 - page.bits)
    return values.view(np.float16) if values is not None and page.is_half else values


def _undo_differences(values: np.ndarray, page: Page, wide: int) -> np.ndarray:
    """Predictor 2 holds differences to the left neighbour of the same band, anew in each row of a tile."""
    height, width = page.size
    values = values.reshape(height, width, wide)
    step = page.first(TILE_WIDTH, width)
    for left in range(0, width, step):  # sums wrap around, as the differences did
        part = values[:, left : left + step]
        np.cumsum(part, axis=1, dtype=part.dtype, out=part)
    return values.reshape(height, width * wide)


def _as_grey(data: bytes, page: Page, plane: int, wide: int) -> bytes:
    """A TIFF with one page and one band, made of the compressed bytes of ``plane``."""
    tiled = TILE_OFFSETS in page.tags
    offsets, counts = (
        page.tags[tag] for tag in ((TILE_OFFSETS, TILE_COUNTS) if tiled else (OFFSETS, COUNTS))
    )
    height, width = page.size
    rows = min(page.first(ROWS, height), height)
    across = page.first(TILE_WIDTH, 1), page.first(TILE_HEIGHT, 1)
    num = math.ceil(width / across[0]) * math.ceil(height / across[1]) if tiled else math.ceil(height / rows)
    chosen = slice(plane * num, (plane + 1) * num)
    offsets, counts = offsets[chosen], counts[chosen]
    if len(offsets) != num or len(counts) != num or any(map(_beyond(data), offsets, counts)):
        raise ValueError("the file is truncated")
    head = struct.pack(page.byte_order + "2sHI", b"II" if page.byte_order == "<" else b"MM", 42, 8)
    tags = {
        WIDTH: (width * wide,),
        HEIGHT: (height,),
        BITS: (page.bits,),
        COMPRESSION: (page.first(COMPRESSION, 1),),
        PHOTOMETRIC: (1,),
        ORDER: (page.first(ORDER, 1),),
        SAMPLES: (1,),
        PLANAR: (1,),
        FORMAT: (1 if page.is_half or page.bits == 8 else "uif".index(page.kind) + 1,),
        (TILE_OFFSETS if tiled else OFFSETS): offsets,
        (TILE_COUNTS if tiled else COUNTS): counts,
    }
    if tiled:
        tags |= {TILE_WIDTH: (across[0] * wide,), TILE_HEIGHT: (across[1],)}
    else:
        tags[ROWS] = (rows,)
    if wide == 1 and page.first(PREDICTOR, 1) > 1:
        tags[PREDICTOR] = (page.first(PREDICTOR, 1),)  # libtiff warns of one that says nothing
    pieces = [data[start : start + count] for start, count in zip(offsets, counts, strict=True)]
    return _pack(head, tags, pieces, OFFSETS if not tiled else TILE_OFFSETS, page.byte_order)


def _beyond(data: bytes):
    return lambda start, count: start + count > len(data)


def _pack(head: bytes, tags: dict[int, tuple], pieces: list[bytes], place: int, order: str) -> bytes:
    """Header, directory, the long values of tags, then the strips or tiles. All values are 32-bit."""
    begin = len(head) + 2 + 12 * len(tags) + 4
    longer = [tag for tag in sorted(tags) if len(tags[tag]) > 1]
    where, position = {}, begin
    for tag in longer:
        where[tag], position = position, position + 4 * len(tags[tag])
    starts = []
    for piece in pieces:
        starts.append(position)
        position += len(piece)
    tags = tags | {place: tuple(starts)}
    entries = b"".join(
        struct.pack(order + "HHII", tag, 4, len(values), where.get(tag, values[0]))
        for tag, values in sorted(tags.items())
    )
    body = b"".join(struct.pack(f"{order}{len(tags[tag])}I", *tags[tag]) for tag in longer)
    return b"".join((head, struct.pack(order + "H", len(tags)), entries, bytes(4), body, *pieces))
