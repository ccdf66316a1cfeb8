"""The one place where picture files become pixels: (H, W, 3) uint8 RGB, turned as the EXIF orientation says.

Ordinary JPEGs and PNGs go through OpenCV, everything else through Pillow. What is decided here:

* transparency: alpha is dropped, the colours below it stay as stored (OpenCV does the same);
* 16 bits a channel: the high byte is kept (``>> 8``), no stretching to the picture's own range;
* several frames, pages or pictures in a file: the first one;
* a file cut short is an error. Half-grey pictures (some OpenCV releases return them) would train silently;
* a picture larger than its use is decoded at 1/2, 1/4 or 1/8 (``choose_reduction``), where that divides both
  sides: pixel i of the reduced picture covers the pixels [ri, ri + r) of the whole one, whatever the
  orientation, so boxes scale by exactly 1/r. JPEGs then skip most of their inverse transform; all else is
  decoded whole and averaged.

Sizes are (height, width).
"""

from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image

from utils.errors import DATA, UserError
from utils.files import open_regular

MAX_PIXELS = 200_000_000
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # none that starts other programs
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


def decode_image(path: str | Path, *, reduction: int = 1, size: tuple[int, int] | None = None) -> np.ndarray:
    """Pixels of a picture file, (H / reduction, W / reduction, 3) uint8 RGB, EXIF orientation applied.

    ``size`` is the whole picture's as the caller knows it, from ``read_size`` or the index: a file that has
    another one by now is an error, like every file that cannot be read whole. ``reduction`` must divide both
    sides (``choose_reduction``).
    """
    try:
        with open_regular(path) as file, _open(file) as image:
            _check_size(_size(image), size, reduction)
            orientation = _orientation(image)
            pixels = _decode_with_opencv(file, image, reduction)
            if pixels is None:
                pixels = _average(_decode_with_pillow(image), reduction)
    # On malformed files Pillow's and OpenCV's parsers raise nearly anything (SyntaxError, struct.error, ...).
    except Exception as error:
        raise _picture_error(path, error) from error
    return np.ascontiguousarray(_orient(pixels, orientation))


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a picture as ``decode_image`` returns it, from the header only."""
    try:
        with open_regular(path) as file, _open(file) as image:
            return _size(image)
    except Exception as error:  # as above
        raise _picture_error(path, error) from error


def _open(file: BinaryIO) -> Image.Image:
    """Read the header with Pillow and check the pixel limit."""
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if width < 1 or height < 1:
        raise ValueError(f"the header says {width} x {height} pixels")
    return image


def _size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)


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
    elif isinstance(error, Image.UnidentifiedImageError) and Path(path).stat().st_size == 0:
        reason = "the file is empty"
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
    """Reduced pixels of ordinary JPEGs and PNGs, not yet turned. None for all else.

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
    right = pixels is not None and pixels.shape[:2] == (image.height // reduction, image.width // reduction)
    return pixels if right else None


def _decode_jpeg(data: bytes, reduction: int) -> np.ndarray | None:
    if data.rfind(b"\xff\xd9", _jpeg_scan_start(data)) < 0:
        raise ValueError("the file is truncated: the JPEG end marker is missing")
    return cv2.imdecode(np.frombuffer(data, np.uint8), CV2_FLAGS | REDUCTIONS[reduction])


def _decode_png(data: bytes, reduction: int) -> np.ndarray | None:
    if data.rfind(b"IEND") < 0:  # the end chunk
        return None
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), CV2_FLAGS)
    return None if pixels is None else _average(pixels, reduction)


def _jpeg_scan_start(data: bytes) -> int:
    """Offset of the first scan. An end marker before it belongs to the thumbnail in the EXIF block."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return position
        marker = data[position + 1]
        if marker == 0xDA:
            return position
        # 0xFF is padding, 0x01 and 0xD0..0xD8 have no length
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _decode_with_pillow(image: Image.Image) -> np.ndarray:
    """First frame as RGB; Pillow raises where the file is cut short."""
    image.load()
    if image.mode == "F":
        raise ValueError("pixels are 32-bit floats; convert the picture to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_from_16_bits(np.asarray(image))
    return np.array(image.convert("RGB"))  # asarray would be read-only


def _grey_from_16_bits(pixels: np.ndarray) -> np.ndarray:
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise ValueError(f"pixels range from {low} to {high}, more than 16 bits; convert the picture")
    return np.repeat((pixels >> 8).astype(np.uint8)[..., None], 3, axis=2)


def _average(pixels: np.ndarray, reduction: int) -> np.ndarray:
    """The means of blocks of ``reduction`` x ``reduction`` pixels, which fill the picture exactly."""
    if reduction == 1:
        return pixels
    height, width = pixels.shape[0] // reduction, pixels.shape[1] // reduction
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
