"""The one place where picture files become pixels: (H, W, 3) uint8 RGB, turned as the EXIF orientation says.

Ordinary JPEGs and PNGs go through OpenCV, deep TIFFs through ``data.tiff``, everything else through Pillow.
What is decided here:

* transparency: alpha is dropped, the colours below it stay as stored (OpenCV does the same);
* more than 8 bits a channel, signed values, floats: mapped to 0..255 by the data set's one rule, never by the
  picture's own range (``data.pixels``); 8 bits stay as stored;
* several frames, pages or pictures in a file: the first one; of more than three bands the first three, unless
  ``data.bands`` chooses among the bands, or pages, of a TIFF;
* a file cut short is an error. Half-grey pictures (some OpenCV releases return them) would train silently. A
  JPEG that lacks only its end marker is whole (``data.jpeg``);
* a picture larger than its use is decoded at 1/2, 1/4 or 1/8 (``choose_reduction``), where that divides both
  sides: pixel i of the reduced picture covers the pixels [ri, ri + r) of the whole one, whatever the
  orientation, so boxes scale by exactly 1/r. JPEGs then skip most of their inverse transform; all else is
  decoded whole and averaged.

Sizes are (height, width).
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, features

from data import jpeg, tiff
from data.pixels import AS_STORED, Pixels, check_bands, choose_bands, to_eight_bits
from utils.errors import DATA, UserError
from utils.files import open_regular

MAX_PIXELS = 200_000_000
ENDINGS = {  # of each format that is read; none of them starts other programs
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
}
if not features.check("avif"):  # Pillow before 11.3, or built without it
    del ENDINGS["AVIF"]
FORMATS = tuple(ENDINGS)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_PFM = (b"PF\n", b"PF\r", b"PF ")
SUFFIXES = tuple(ending for endings in ENDINGS.values() for ending in endings)  # lower case
VIDEOS = (
    ".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".wmv", ".flv",
    ".mpg", ".mpeg", ".3gp", ".mts", ".m2ts", ".ogv", ".asf", ".mxf",
)  # fmt: skip
ORIENTATION = 0x0112  # EXIF tag
# Orientation is applied by us on every path, so that header and pixels cannot disagree.
CV2_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# The flags called GRAYSCALE hold the reduction alone; those called COLOR ask for BGR as well.
REDUCTIONS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}

# Pillow's own limit (89 megapixels) would warn and then refuse below ours.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def choose_reduction(size: tuple[int, int], needed: tuple[float, float]) -> int:
    """The largest of 1, 2, 4, 8 that divides both sides of ``size`` and leaves at least ``needed`` on both.

    The rule of training, validation and detection alike. 1 for pictures smaller than ``needed``.
    """
    fits = (
        reduction
        for reduction in REDUCTIONS
        if all(
            side % reduction == 0 and side >= reduction * least
            for side, least in zip(size, needed, strict=True)
        )
    )
    return max(fits, default=1)


class Header(NamedTuple):
    """What the first bytes of a file tell about its pixels."""

    size: tuple[int, int]  # as ``decode_image`` returns it
    deep: bool  # whether values need a range to become 0..255
    pages: int  # pictures in the file: pages alike of a TIFF, frames of an animation
    bands: int  # of a pixel, alpha among them


class _Opened(NamedTuple):
    """A file whose header was read."""

    size: tuple[int, int]
    orientation: int  # EXIF's, still to be applied
    image: Image.Image | None  # None where Pillow does not know this kind of TIFF
    stored: Callable[[], np.ndarray] | None  # (H, W, B) values of deep or many-band pictures, not turned
    pages: list[tiff.Page]  # of a TIFF

    @property
    def deep(self) -> bool:
        """Whether values need a range to become 0..255."""
        return self.stored is not None and not (self.pages and not self.pages[0].deep)


def decode_image(
    path: str | Path, *, reduction: int = 1, size: tuple[int, int] | None = None, pixels: Pixels = AS_STORED
) -> np.ndarray:
    """Pixels of a picture file, (H / reduction, W / reduction, 3) uint8 RGB, EXIF orientation applied.

    ``size`` is the whole picture's as the caller knows it, from ``read_size`` or the index: a file that has
    another one by now is an error, like every file that cannot be read whole. ``reduction`` must divide both
    sides (``choose_reduction``). ``pixels``: how values deeper than 8 bits become 0..255, and which bands.
    """
    try:
        with open_regular(path) as file:
            opened = _open(file, pixels.bands)
            _check_size(opened.size, size, reduction)
            values = _read_values(file, opened, reduction, pixels.bands)
            values = to_eight_bits(values, pixels.range)
            if values.shape[0] * values.shape[1] == opened.size[0] * opened.size[1]:  # JPEGs come reduced
                values = _average(values, reduction)
    # On malformed files Pillow's and OpenCV's parsers raise nearly anything (SyntaxError, struct.error, ...).
    except Exception as error:
        raise _picture_error(path, error) from error
    return np.ascontiguousarray(_orient(values, opened.orientation))


def read_stored(path: str | Path, bands: tuple[int, int, int] | None = None) -> np.ndarray:
    """(H, W, 3) the values that ``decode_image`` maps to 0..255, of any type, not turned."""
    try:
        with open_regular(path) as file:
            return _read_values(file, _open(file, bands), 1, bands)
    except Exception as error:  # as above
        raise _picture_error(path, error) from error


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a picture as ``decode_image`` returns it, from the header only."""
    try:
        with open_regular(path) as file:
            return _open(file).size
    except Exception as error:  # as above
        raise _picture_error(path, error) from error


def is_picture(path: str | Path) -> bool:
    """Whether a file has the header of a picture that is read, whatever its name."""
    try:
        return min(read_size(path)) > 0
    except UserError:
        return False


def is_deep(path: str | Path) -> bool:
    """Whether a file's values need a range to become 0..255; False for one that cannot be read.

    By its first bytes, as this is asked of every picture of a data set.
    """
    try:
        with open_regular(path) as file:
            head = file.read(25)
            if head.startswith(b"\x89PNG"):
                return head[24:] == b"\x10"  # bits of a value
            return (head[:4] in tiff.MAGIC or head[:1] == b"P") and _open(file).deep
    except Exception:  # as above; whoever decodes it will say what is wrong
        return False


def read_header(path: str | Path) -> Header:
    """What is known of a picture before its pixels are decoded. Counting frames may read the whole file."""
    try:
        with open_regular(path) as file:
            opened = _open(file)
            if opened.pages:
                pages, bands = tiff.count_pages(file), opened.pages[0].bands
            else:
                pages, bands = getattr(opened.image, "n_frames", 1), len(opened.image.getbands())
            return Header(opened.size, opened.deep, pages, bands)
    except Exception as error:  # as above
        raise _picture_error(path, error) from error


def _read_values(
    file: BinaryIO, opened: _Opened, reduction: int, bands: tuple[int, int, int] | None
) -> np.ndarray:
    """(H, W, 3) values before they are mapped to 0..255, JPEGs reduced, all others whole."""
    if opened.pages and opened.stored:
        return opened.stored()
    if opened.stored:
        return choose_bands(opened.stored(), bands)
    pixels = _decode_with_opencv(file, opened.image, reduction)
    pixels = _decode_with_pillow(_ended(file, opened.image)) if pixels is None else pixels
    return choose_bands(pixels, bands) if bands else pixels


def _open(file: BinaryIO, bands: tuple[int, int, int] | None = None) -> _Opened:
    """Read the header and check the pixel limit."""
    pages = tiff.read_pages(file, most=tiff.MOST_PAGES if bands else 1) if tiff.is_tiff(file) else []
    if pages and (pages[0].beyond_pillow or (bands and pages[0].plain)):
        page = pages[0]
        _check_limit(page.size[1], page.size[0])
        turned = page.size[::-1] if page.orientation >= 5 else page.size
        return _Opened(turned, page.orientation, None, lambda: _read_tiff(file, pages, bands), pages)
    file.seek(0)
    if file.read(3) in COLOUR_PFM:
        raise ValueError("a PFM of three colours; save it as TIFF")  # Pillow reads grey ones only
    file.seek(0)
    image = Image.open(file, formats=FORMATS)
    if pages and pages[0].number:  # a thumbnail comes first
        image.seek(pages[0].number)
    width, height = image.size
    _check_limit(width, height)
    orientation = _orientation(image)
    size = (width, height) if orientation >= 5 else (height, width)
    return _Opened(size, orientation, image, _find_deep_reader(file, image), pages)


def _read_tiff(file: BinaryIO, pages: list[tiff.Page], bands: tuple[int, int, int] | None) -> np.ndarray:
    """(H, W, 3) of the bands of all pages, counted on from page to page."""
    file.seek(0)
    data, count = file.read(), pages[0].bands
    if bands is None:
        return choose_bands(tiff.read_bands(data, pages, range(1, min(count, 3) + 1)), None)
    check_bands(bands, count * len(pages))
    return tiff.read_bands(data, pages, bands)


def _check_limit(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if width < 1 or height < 1:
        raise ValueError(f"the header says {width} x {height} pixels")


def _find_deep_reader(file: BinaryIO, image: Image.Image) -> Callable[[], np.ndarray] | None:
    """What reads the stored values of a PNG or PNM of more than 8 bits; None for all others."""
    form = image.tile[0][3] if image.format in ("PNG", "PPM") and image.tile else None
    if image.format == "PNG" and str(form).endswith("16B"):
        return lambda: _read_deep_png(file)
    if image.format == "PPM" and image.mode in ("I", "F"):
        return lambda: _read_deep_grey(image)
    if image.format == "PPM" and isinstance(form, tuple) and form[0] == "RGB" and form[1] > 255:
        return lambda: _read_deep_ppm(file, image)
    return None


def _read_deep_png(file: BinaryIO) -> np.ndarray:
    file.seek(0)
    data = file.read()
    if data.rfind(b"IEND") < 0:  # the end chunk
        raise ValueError("the file is truncated: the end of the PNG is missing")
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError("this PNG cannot be decoded; is it whole?")
    return values[..., None] if values.ndim == 2 else values[..., 2::-1]  # BGR; alpha is dropped


def _read_deep_grey(image: Image.Image) -> np.ndarray:
    """Floats as they are; integers of a PGM on the scale 0..65535, whose end the file itself names."""
    image.load()
    values = np.asarray(image)
    return (values if image.mode == "F" else values.astype(np.uint16))[..., None]


def _read_deep_ppm(file: BinaryIO, image: Image.Image) -> np.ndarray:
    """As ``_read_deep_grey``, for colour, of which Pillow keeps 8 bits."""
    codec, _, offset, (_, most) = image.tile[0]
    if codec != "ppm":  # numbers as text: 8 bits are what there is
        return _decode_with_pillow(image)
    file.seek(offset)
    data = file.read(6 * image.width * image.height)
    if len(data) < 6 * image.width * image.height:
        raise ValueError("the file is truncated")
    values = np.frombuffer(data, ">u2").astype(np.uint32).reshape(image.height, image.width, 3)
    return ((values * 65535 + most // 2) // most).clip(0, 65535).astype(np.uint16)


def _check_size(found: tuple[int, int], known: tuple[int, int] | None, reduction: int) -> None:
    if known is not None and found != tuple(known):
        raise ValueError(
            f"{found[1]} x {found[0]} pixels now, {known[1]} x {known[0]} when the run began; start it again"
        )
    if found[0] % reduction or found[1] % reduction:
        raise ValueError(f"{found[1]} x {found[0]} pixels cannot be reduced by {reduction}")


def _picture_error(path: str | Path, error: Exception) -> UserError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        reason = f"larger than the limit of {MAX_PIXELS // 10**6} megapixels ({error}); make it smaller"
    elif os.path.isdir(path):
        reason = "not a regular file, but a directory; name it in place of the list, or list its pictures"
    elif isinstance(error, Image.UnidentifiedImageError) and Path(path).stat().st_size == 0:
        reason = "the file is empty"
    elif isinstance(error, Image.UnidentifiedImageError) and str(path).lower().endswith(VIDEOS):
        reason = "a video; videos are not read yet: take pictures out of it"
    elif isinstance(error, Image.UnidentifiedImageError):
        reason = f"not a picture of a known format ({', '.join(FORMATS)})"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = str(error) or type(error).__name__
    return UserError(f"{path}: cannot read this picture: {reason}", DATA)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 for a missing or senseless value."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF itself, and swaps the size in the header already
    # Not image.getexif(): for PNG that decodes the whole picture in search of EXIF behind the pixels.
    value = Image.Image.getexif(image).get(ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _decode_with_opencv(file: BinaryIO, image: Image.Image, reduction: int) -> np.ndarray | None:
    """Pixels of ordinary JPEGs, reduced, and PNGs, whole, not yet turned. None for all else.

    None also where OpenCV fails: then Pillow has the last word and names the reason.
    """
    if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):  # MPO: more pictures follow the JPEG
        decode = _decode_jpeg
    # Of an animated PNG, OpenCV returns the first frame, even where that is not the PNG's own picture.
    elif image.format == "PNG" and not image.is_animated:
        decode = _decode_png
    else:
        return None
    file.seek(0)
    pixels = decode(file.read(), reduction)
    done = reduction if decode is _decode_jpeg else 1
    right = pixels is not None and pixels.shape[:2] == (image.height // done, image.width // done)
    return pixels if right else None


def _decode_jpeg(data: bytes, reduction: int) -> np.ndarray | None:
    data = data if jpeg.has_end(data) else jpeg.with_end(data)
    return cv2.imdecode(np.frombuffer(data, np.uint8), CV2_FLAGS | REDUCTIONS[reduction])


def _decode_png(data: bytes, reduction: int) -> np.ndarray | None:
    if data.rfind(b"IEND") < 0:  # the end chunk
        return None
    return cv2.imdecode(np.frombuffer(data, np.uint8), CV2_FLAGS)


def _ended(file: BinaryIO, image: Image.Image) -> Image.Image:
    """The picture for Pillow: a JPEG that lacks only its end marker with one, a PNG if it is whole."""
    if image.format not in ("JPEG", "MPO", "PNG"):
        return image
    file.seek(0)
    data = file.read()
    if image.format == "PNG":
        if data.rfind(b"IEND") < 0 and not _has_all_rows(data):
            raise ValueError("the file is truncated: the end of the PNG is missing, and so are pixels")
        return image
    return image if jpeg.has_end(data) else Image.open(io.BytesIO(jpeg.with_end(data)), formats=("JPEG",))


def _has_all_rows(data: bytes) -> bool:
    """Whether the compressed rows of a PNG come to their end, where their sum is checked.

    Of a download that stopped the rest of the file may be zeros, which decode as pixels: Pillow does not look
    at the sum.
    """
    rows, position = zlib.decompressobj(), len(PNG_SIGNATURE)
    try:
        while not rows.eof and position + 8 <= len(data):
            length, kind = struct.unpack(">I4s", data[position : position + 8])
            if kind == b"IDAT":
                rows.decompress(data[position + 8 : position + 8 + length])
            position += 12 + length
    except zlib.error:
        return False
    return rows.eof


def _decode_with_pillow(image: Image.Image) -> np.ndarray:
    """First frame as RGB; Pillow raises where the file is cut short."""
    image.load()
    return np.array(image.convert("RGB"))  # asarray would be read-only


def _average(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """The means of blocks of ``reduction`` x ``reduction`` pixels, which fill the picture exactly."""
    if reduction == 1:
        return pixels
    height, width = pixels.shape[0] // reduction, pixels.shape[1] // reduction
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
