"""A corpus of odd picture files, written by code. Sizes are (height, width); pixels (H, W, 3) uint8 RGB.

Every expectation is made from the array that was written, by hand and not by a decoder.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, PngImagePlugin

HEIGHT, WIDTH = 48, 80  # sides that 2, 4 and 8 divide, 5 of the blocks of a JPEG high, 3 wide
ORIENTATION = 0x0112
LOSSY = 6  # largest error of a channel that JPEG or WEBP of quality 95 leaves on the smooth picture (5 seen)


class Odd(NamedTuple):
    """A readable file and what it must decode to."""

    name: str
    data: bytes
    pixels: np.ndarray
    tolerance: int  # largest difference of a channel


def smooth() -> np.ndarray:
    """A picture whose corners differ: red grows to the right, green downwards, blue is 40."""
    red = np.linspace(10, 240, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
    green = np.linspace(20, 220, HEIGHT).astype(np.uint8)[:, None].repeat(WIDTH, 1)
    return np.dstack([red, green, np.full_like(red, 40)])


def odd_pictures() -> list[Odd]:
    """All readable files of the corpus, names distinct."""
    return [*turned(), *deep(), *shallow(), *clear(), *moving(), *jpegs(), *renamed(), *others()]


def encoded(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    """A file's content by Pillow."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded_by_opencv(pixels: np.ndarray, suffix: str) -> bytes:
    """A file's content by OpenCV, which writes 16 bits; channels as they come."""
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # stored -> shown, EXIF 2.3, tag 274
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),  # a quarter turn clockwise
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


def turned() -> Iterator[Odd]:
    """The eight EXIF orientations in four formats, and values that mean nothing."""
    pixels = smooth()
    formats = {
        "JPEG": ({"quality": 95}, LOSSY),
        "PNG": ({}, 0),
        "WEBP": ({"lossless": True}, 0),
        "TIFF": ({}, 0),
    }
    for kind, (options, tolerance) in formats.items():
        for orientation in (*TURNS, 0, 9, 65535):
            if kind == "TIFF" and orientation not in TURNS:
                continue  # Pillow keeps the tag it knows better
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            data = encoded(pixels, kind, exif=exif, **options)
            shown = TURNS.get(orientation, TURNS[1])(pixels)
            yield Odd(f"turned{orientation}.{kind.lower()}", data, shown, tolerance)


def deep() -> Iterator[Odd]:
    """16 bits a channel, of which no range is known: the high byte counts."""
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    grey = np.dstack([ramp >> 8] * 3).astype(np.uint8)
    for suffix in (".png", ".tif", ".pgm"):
        yield Odd(f"grey16{suffix}", encoded_by_opencv(ramp, suffix), grey, 0)
    big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), ramp.astype(">u2").tobytes())
    yield Odd("grey16_big_endian.tif", encoded(big_endian, "TIFF"), grey, 0)
    colour = smooth().astype(np.uint16) * 256 + 199
    for suffix in (".png", ".tif"):
        yield Odd(f"rgb16{suffix}", encoded_by_opencv(colour[..., ::-1], suffix), smooth(), 0)
    alpha = np.dstack([colour[..., ::-1], np.zeros((HEIGHT, WIDTH), np.uint16)])
    yield Odd("rgb16_clear.png", encoded_by_opencv(alpha, ".png"), smooth(), 0)


def shallow() -> Iterator[Odd]:
    """One channel: grey, 1-bit, palettes of 2 to 8 bits."""
    grey = smooth()[..., 0]
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        tolerance = LOSSY if kind == "JPEG" else 0
        yield Odd(f"grey.{kind.lower()}", encoded(grey, kind, **options), np.dstack([grey] * 3), tolerance)
    bits = np.indices((HEIGHT, WIDTH)).sum(0) % 3 == 0
    for kind in ("PNG", "TIFF"):
        yield Odd(f"bits.{kind.lower()}", encoded(bits, kind), np.dstack([bits * np.uint8(255)] * 3), 0)
    for colours in (4, 16, 200):
        palette = Image.fromarray(smooth()).quantize(colours)
        shown = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(palette)]
        yield Odd(f"palette{colours}.png", encoded(palette, "PNG"), shown, 0)
        yield Odd(f"palette{colours}_clear.png", encoded(palette, "PNG", transparency=3), shown, 0)
        yield Odd(f"palette{colours}.gif", encoded(palette, "GIF"), shown, 0)


def clear() -> Iterator[Odd]:
    """Alpha is dropped; the colours below it stay."""
    pixels = smooth()
    alpha = np.dstack([pixels, np.zeros((HEIGHT, WIDTH), np.uint8)])
    yield Odd("clear.png", encoded(alpha, "PNG"), pixels, 0)
    yield Odd("clear.tif", encoded(alpha, "TIFF"), pixels, 0)
    yield Odd("clear.webp", encoded(alpha, "WEBP", lossless=True, exact=True), pixels, 0)
    channels = [Image.fromarray(pixels[..., 0]), Image.new("L", (WIDTH, HEIGHT), 0)]
    grey = np.dstack([pixels[..., 0]] * 3)
    yield Odd("grey_clear.png", encoded(Image.merge("LA", channels), "PNG"), grey, 0)


def moving() -> Iterator[Odd]:
    """Several pictures in a file: the first one counts, which of an animated PNG is its own picture."""
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue", "lime")]
    first = np.asarray(frames[0])
    for kind, options in {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}.items():
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        yield Odd(f"moving.{kind.lower()}", data, first, 0)
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True)
    yield Odd("moving_and_own.png", data, first, 0)
    pixels = smooth()
    follower = Image.fromarray(pixels[::-1, ::-1])
    options = {"save_all": True, "append_images": [follower], "quality": 95}
    yield Odd("several.mpo", encoded(pixels, "MPO", **options), pixels, LOSSY)


def jpegs() -> Iterator[Odd]:
    """Kinds of JPEG."""
    pixels = smooth()
    kinds = {
        "progressive": {"progressive": True},
        "444": {"subsampling": 0},
        "422": {"subsampling": 1},
        "restarts": {"restart_marker_blocks": 1},
        "thumbnail": {"exif": b"Exif\0\0" + encoded(pixels[:8, :8], "JPEG")},  # an end marker before the scan
    }
    for name, options in kinds.items():
        yield Odd(f"{name}.jpg", encoded(pixels, "JPEG", quality=95, **options), pixels, LOSSY)
    grey = np.dstack([pixels[..., 0]] * 3)
    data = encoded(pixels[..., 0], "JPEG", quality=95, progressive=True)
    yield Odd("grey_progressive.jpg", data, grey, LOSSY)
    inks = Image.fromarray(pixels).convert("CMYK")
    yield Odd("cmyk.jpg", encoded(inks, "JPEG", quality=95), pixels, LOSSY)
    data = encoded(pixels, "JPEG", quality=95) + bytes(100) + b"trailing"
    yield Odd("trailing.jpg", data, pixels, LOSSY)


def renamed() -> Iterator[Odd]:
    """Endings that lie: the content decides."""
    pixels = smooth()
    yield Odd("really_png.jpg", encoded(pixels, "PNG"), pixels, 0)
    yield Odd("really_webp.jpg", encoded(pixels, "WEBP", lossless=True), pixels, 0)
    yield Odd("really_bmp.png", encoded(pixels, "BMP"), pixels, 0)
    yield Odd("really_jpeg.png", encoded(pixels, "JPEG", quality=95), pixels, LOSSY)
    yield Odd("really_tiff", encoded(pixels, "TIFF"), pixels, 0)


def others() -> Iterator[Odd]:
    """Plain files of the other formats, an interlaced PNG, a PNG with gamma and a misleading text."""
    pixels = smooth()
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        yield Odd(f"plain.{kind.lower()}", encoded(pixels, kind), pixels, 0)
    yield Odd("lossy.webp", encoded(pixels, "WEBP", quality=95), pixels, LOSSY)
    yield Odd("interlaced.png", interlaced_png(pixels), pixels, 0)
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "IEND")
    info.add(b"gAMA", struct.pack(">I", 100_000))
    yield Odd("gamma.png", encoded(pixels, "PNG", pnginfo=info), pixels, 0)


# PNG by hand


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Length, kind, content, checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_file(size: tuple[int, int], compressed: bytes, *, interlaced: bool = False) -> bytes:
    """An 8-bit RGB PNG of already compressed rows."""
    header = struct.pack(">2I5B", size[1], size[0], 8, 2, 0, 0, interlaced)
    chunks = ((b"IHDR", header), (b"IDAT", compressed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def interlaced_png(pixels: np.ndarray) -> bytes:
    """Adam7: seven passes of (first row, first column, row step, column step), rows unfiltered."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    rows = b"".join(
        b"\0" + row.tobytes() for y, x, down, right in passes for row in pixels[y::down, x::right].copy()
    )
    return png_file(pixels.shape[:2], zlib.compress(rows), interlaced=True)


def black_png(size: tuple[int, int]) -> bytes:
    """A whole and valid black PNG; one compressed megabyte of zeros is repeated, so any size is cheap."""
    count = size[0] * (1 + 3 * size[1])  # a filter byte and RGB
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    tail = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = tail.compress(bytes(count % (1 << 20))) + tail.flush()
    checksum = struct.pack(">2H", count % 65521, 1)  # Adler-32 of zeros
    return png_file(size, head + again * ((count >> 20) - 1) + rest + checksum)


# files that must be refused


def bombs() -> dict[str, bytes]:
    """Small files of 400 megapixels: one whole, the others by their headers."""
    side = 20_000
    jpeg = bytearray(encoded(smooth(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">2H", side, side)
    bmp = bytearray(encoded(smooth(), "BMP"))
    bmp[18:26] = struct.pack("<2i", side, side)
    gif = bytearray(encoded(smooth(), "GIF"))
    gif[6:10] = struct.pack("<2H", side, side)
    tiff = encoded(smooth(), "TIFF")
    for tag, old in ((256, WIDTH), (257, HEIGHT)):  # entries: tag, type 3 or 4, count 1, value
        entries = [struct.pack("<HHIHH", tag, 3, 1, old, 0), struct.pack("<HHII", tag, 4, 1, old)]
        assert any(entry in tiff for entry in entries)
        for entry in entries:
            tiff = tiff.replace(entry, struct.pack("<HHII", tag, 4, 1, side))
    webp = bytearray(next(odd.data for odd in moving() if odd.name == "moving.webp"))
    webp[24:30] = 2 * (side - 1).to_bytes(3, "little")  # the canvas of the VP8X chunk
    return {
        "bomb.png": black_png((side, side)),
        "bomb.jpg": bytes(jpeg),
        "bomb.bmp": bytes(bmp),
        "bomb.gif": bytes(gif),
        "bomb.tif": tiff,
        "bomb.webp": bytes(webp),
        "bomb.ppm": f"P6 {side} {side} 255\n".encode(),
    }


def cuts(data: bytes) -> list[int]:
    """Ten lengths that a file may be cut to: from nothing but a header to all but the last byte."""
    inside = [int(len(data) * share) for share in (0.02, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)]
    return [*inside, len(data) - 13, len(data) - 1]  # 13: within the end chunk of a PNG, or before it
