"""The one place where picture files become pixels: (H, W, 3) uint8 RGB, turned as the EXIF orientation says.

Ordinary 8-bit JPEG and PNG go through OpenCV, everything else through Pillow. What is decided here:

* transparency: alpha is dropped, the colours below it stay as stored (OpenCV does the same);
* 16 bits a channel: the high byte is kept (``>> 8``), no stretching to the picture's own range;
* several frames, pages or pictures in a file: the first one;
* a file cut short is an error. Half-grey pictures (some OpenCV releases return them) would train silently.
"""

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.errors import DATA, UserError

MAX_PIXELS = 200_000_000
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF")  # none that starts other programs
ORIENTATION = 0x0112  # EXIF tag
PNG_BIT_DEPTH = 24  # its offset in the file: the header chunk always comes first
# Orientation is applied by us on every path, so that header and pixels cannot disagree.
CV2_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

# Pillow's own limit (89 megapixels) would warn and then refuse below ours.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def decode_image(path: str | Path) -> np.ndarray:
    """Pixels of a picture file, (H, W, 3) uint8 RGB, EXIF orientation applied."""
    try:
        data = Path(path).read_bytes()
        with _open(io.BytesIO(data)) as image:
            orientation = _orientation(image)
            pixels = _decode_fast(data, image) if _is_ordinary(data, image) else None
            if pixels is None:
                pixels = _decode_with_pillow(image)
    # On malformed files Pillow's and OpenCV's parsers raise nearly anything (SyntaxError, struct.error, ...).
    except Exception as error:
        raise _picture_error(path, error) from error
    return np.ascontiguousarray(_orient(pixels, orientation))


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a picture as ``decode_image`` returns it, from the header only."""
    try:
        with _open(path) as image:
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)
    except Exception as error:  # as above
        raise _picture_error(path, error) from error


def _open(source):
    """Read the header with Pillow and check the pixel limit."""
    image = Image.open(source, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} x {height} pixels")
    if width < 1 or height < 1:
        raise ValueError(f"the header says {width} x {height} pixels")
    return image


def _picture_error(path: str | Path, error: Exception) -> UserError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        reason = f"larger than the limit of {MAX_PIXELS // 10**6} megapixels ({error}); make it smaller"
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


def _is_ordinary(data: bytes, image: Image.Image) -> bool:
    if image.format in ("JPEG", "MPO"):  # MPO: a JPEG with more pictures behind it
        return image.mode in ("L", "RGB")
    return image.format == "PNG" and data[PNG_BIT_DEPTH] == 8


def _decode_fast(data: bytes, image: Image.Image) -> np.ndarray | None:
    """OpenCV's pixels, or None where it fails: then Pillow has the last word and names the reason."""
    if image.format == "PNG":
        if data.rfind(b"IEND") < 0:
            return None
    elif data.rfind(b"\xff\xd9", _jpeg_scan_start(data)) < 0:
        raise ValueError("the file is truncated: the JPEG end marker is missing")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), CV2_FLAGS)
    if pixels is None or pixels.shape[:2] != (image.height, image.width):
        return None
    return pixels


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
