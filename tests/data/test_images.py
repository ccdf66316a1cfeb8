"""One decode function for every kind of picture file."""

import contextlib
import io
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

import data.images
from data.images import decode_image, read_size
from utils.errors import DATA, UserError

ORIENTATION = 0x0112
HEIGHT, WIDTH = 24, 40
ODD_FILES = Path(__file__).parents[2].parent / "shared" / "datasets" / "odd_files"


@pytest.fixture
def pixels():
    """A smooth picture whose four corners differ: red grows to the right, green downwards, blue is 40."""
    red = np.linspace(10, 240, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, 0)
    green = np.linspace(20, 220, HEIGHT).astype(np.uint8)[:, None].repeat(WIDTH, 1)
    return np.dstack([red, green, np.full_like(red, 40)])


def save(path, image, **options):
    Image.fromarray(image).save(path, **options) if isinstance(image, np.ndarray) else image.save(
        path, **options
    )
    return path


def difference(path, expected):
    decoded = decode_image(path)
    assert decoded.dtype == np.uint8 and decoded.shape == expected.shape
    assert decoded.flags.c_contiguous and decoded.flags.writeable
    assert read_size(path) == decoded.shape[:2]
    return np.abs(decoded.astype(int) - expected).max()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_files_come_back_exactly_in_rgb_order(tmp_path, pixels, suffix):
    assert difference(save(tmp_path / f"a.{suffix}", pixels), pixels) == 0


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files_come_back_in_rgb_order(tmp_path, pixels, suffix):
    assert difference(save(tmp_path / f"a.{suffix}", pixels, quality=95), pixels) <= 12


def test_content_decides_not_the_suffix(tmp_path, pixels):
    assert difference(save(tmp_path / "a.jpg", pixels, format="PNG"), pixels) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_turns_pixels_and_size_alike(tmp_path, pixels, kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = save(tmp_path / "a", pixels, format=kind, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    assert difference(path, expected) <= 3  # two JPEG decoders


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_none(tmp_path, pixels, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert difference(save(tmp_path / "a.png", pixels, exif=exif), pixels) == 0


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_keeps_its_high_byte(tmp_path, suffix):
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), ramp)
    assert difference(path, np.dstack([ramp >> 8] * 3)) == 0
    assert decode_image(path).mean() == pytest.approx(127.5, abs=1)  # Pillow's convert gives 251


def test_16_bit_big_endian_tiff(tmp_path):
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    image = Image.frombytes("I;16B", (WIDTH, HEIGHT), ramp.astype(">u2").tobytes())
    assert difference(save(tmp_path / "a.tif", image), np.dstack([ramp >> 8] * 3)) == 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_colour_keeps_its_high_byte(tmp_path, pixels, suffix):
    deep = pixels.astype(np.uint16) * 256 + 99
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), deep[..., ::-1])
    assert difference(path, pixels) == 0


def test_32_bit_pictures_are_refused(tmp_path):
    floats = save(tmp_path / "f.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    with pytest.raises(UserError, match="32-bit floats"):
        decode_image(floats)
    integers = save(tmp_path / "i.tif", Image.fromarray(np.full((4, 4), 70_000, np.int32)))
    with pytest.raises(UserError, match="70000, more than 16 bits"):
        decode_image(integers)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_grey_becomes_three_equal_channels(tmp_path, kind):
    grey = np.full((HEIGHT, WIDTH), 77, np.uint8)
    assert difference(save(tmp_path / "a", grey, format=kind), np.full((HEIGHT, WIDTH, 3), 77)) <= 1


def test_palette_with_and_without_transparency(tmp_path, pixels):
    palette = Image.fromarray(pixels).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert difference(save(tmp_path / "a.png", palette), expected) == 0
    assert difference(save(tmp_path / "b.png", palette, transparency=3), expected) == 0
    assert difference(save(tmp_path / "c.gif", palette), expected) == 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_alpha_is_dropped_and_colours_below_it_stay(tmp_path, pixels, suffix):
    clear = np.dstack([pixels, np.zeros((HEIGHT, WIDTH), np.uint8)])
    assert difference(save(tmp_path / f"a.{suffix}", clear), pixels) == 0


def test_grey_with_alpha(tmp_path):
    image = Image.merge("LA", [Image.new("L", (WIDTH, HEIGHT), 90), Image.new("L", (WIDTH, HEIGHT), 0)])
    assert difference(save(tmp_path / "a.png", image), np.full((HEIGHT, WIDTH, 3), 90)) == 0


def test_cmyk_jpeg(tmp_path, pixels):
    path = save(tmp_path / "a.jpg", Image.fromarray(pixels).convert("CMYK"), quality=95)
    assert difference(path, pixels) <= 12


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_bit_is_black_and_white(tmp_path, suffix):
    bits = np.indices((HEIGHT, WIDTH)).sum(0) % 2
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(bits.astype(bool)))
    assert difference(path, np.dstack([bits * 255] * 3)) == 0


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(tmp_path, kind):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    path = save(tmp_path / "a", frames[0], format=kind, save_all=True, append_images=frames[1:], **options)
    assert difference(path, np.asarray(frames[0])) == 0


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_truncated_jpeg_is_an_error(tmp_path, pixels, share, progressive):
    buffer = io.BytesIO()
    thumbnail = io.BytesIO()  # ends with an end marker of its own, inside the EXIF block
    Image.fromarray(pixels).resize((8, 8)).save(thumbnail, "JPEG")
    exif = b"Exif\0\0" + thumbnail.getvalue()
    large = Image.fromarray(pixels).resize((400, 240))
    large.save(buffer, "JPEG", exif=exif, progressive=progressive)
    whole = buffer.getvalue()
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    assert decode_image(path).shape == (240, 400, 3)
    path.write_bytes(whole[: min(int(len(whole) * share), len(whole) - 2)])
    with pytest.raises(UserError, match=r"a\.jpg: .*truncated") as error:
        decode_image(path)
    assert error.value.code == DATA
    path.write_bytes(path.read_bytes() + bytes(5000))  # a download into a preallocated file
    with pytest.raises(UserError, match="truncated"):
        decode_image(path)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_other_truncated_files_are_errors(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    path = save(tmp_path / "a", noise, format=kind)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="cannot read this picture") as error:
        decode_image(path)
    assert str(path) in str(error.value)


def test_bytes_after_the_jpeg_end_are_fine(tmp_path, pixels):
    path = save(tmp_path / "a.jpg", pixels)
    expected = decode_image(path)
    path.write_bytes(path.read_bytes() + b"\0" * 100 + b"trailing")
    assert difference(path, expected) == 0


def test_multi_picture_jpeg(tmp_path, pixels):
    first = Image.fromarray(pixels)
    path = save(tmp_path / "a.jpg", first, format="MPO", save_all=True, append_images=[first.rotate(180)])
    assert difference(path, pixels) <= 30


def test_pixel_limit_is_checked_before_decoding(tmp_path, pixels, monkeypatch):
    path = save(tmp_path / "a.png", pixels)
    monkeypatch.setattr(data.images, "MAX_PIXELS", HEIGHT * WIDTH)
    assert decode_image(path).shape == pixels.shape
    monkeypatch.setattr(data.images, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    monkeypatch.setattr(cv2, "imdecode", None)
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=r"larger than the limit of .* megapixels .40 x 24 pixels"):
            read(path)


def test_limit_is_200_megapixels_in_silence(tmp_path, recwarn):
    header = b"P5\n20000 10000\n255\n"
    path = tmp_path / "a.pgm"
    path.write_bytes(header)
    assert read_size(path) == (10_000, 20_000)  # Pillow alone warns here
    assert not recwarn.list
    path.write_bytes(b"P5\n50000 10000\n255\n")
    with pytest.raises(UserError, match="200 megapixels"):
        read_size(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a picture"),
        (b"hello world" * 50, "not a picture"),
        (b"\xff\xd8\xff", "cannot read this picture"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=rf"a\.jpg: .*{reason}"):
            read(path)


def test_missing_file_and_folder(tmp_path):
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=r"no\.jpg: cannot read this picture: No such file"):
            read(tmp_path / "no.jpg")
        with pytest.raises(UserError, match="directory"):
            read(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_raise_nothing_but_user_errors(tmp_path, pixels):
    generator = np.random.default_rng(0)
    path = tmp_path / "a"
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM"):
        whole = bytearray(save(path, pixels, format=kind).read_bytes())
        for _ in range(40):
            broken = bytearray(whole)
            for position in generator.integers(0, min(len(whole), 400), 3):
                broken[position] = generator.integers(256)
            path.write_bytes(broken)
            with contextlib.suppress(UserError):
                size = read_size(path)
                assert size[0] * size[1] > 4_000_000 or decode_image(path).shape == (*size, 3)


def test_ordinary_jpeg_costs_little_more_than_imdecode(tmp_path):
    picture = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (960, 1280, 3)).astype(np.uint8), (0, 0), 3
    )
    path = save(tmp_path / "a.jpg", picture)
    data_ = np.fromfile(path, np.uint8)

    def best(call):
        times = []
        for _ in range(9):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    bare = best(lambda: cv2.imdecode(data_, cv2.IMREAD_COLOR))
    assert best(lambda: decode_image(path)) <= 2 * bare  # measured: 1.05


@pytest.mark.skipif(not ODD_FILES.exists(), reason="/work/shared/datasets/odd_files is not here")
def test_odd_files():
    assert decode_image(ODD_FILES / "DJI_0019.JPG").shape == (2250, 4000, 3)
    for path in ODD_FILES.glob("raccoon-*.jpg"):
        assert decode_image(path).shape[:2] == read_size(path)
