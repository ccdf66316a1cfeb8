"""One decode function for every kind of picture file, whole and reduced, and the three places that use it.

The corpus of odd files is ``odd_pictures``.
"""

import argparse
import contextlib
import io
import os
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

import data.images
import inference
from data.images import choose_reduction, decode_image, read_size
from data.index import Index
from data.pictures import DecodedPictures
from data.pixels import AS_STORED
from detect import look_at
from inference import LoadedDetector
from tests.data.odd_pictures import (
    HEIGHT,
    WIDTH,
    Odd,
    black_png,
    bombs,
    cuts,
    encoded,
    interlaced_png,
    odd_pictures,
    smooth,
)
from utils.config import Config
from utils.errors import DATA, UserError
from utils.structures import Detections

CORPUS = odd_pictures()
ODD_FILES = Path(__file__).parents[2].parent / "shared" / "datasets" / "odd_files"

corpus = pytest.mark.parametrize("odd", CORPUS, ids=lambda odd: odd.name)


@pytest.fixture
def pixels():
    return smooth()


def save(path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def difference(path, expected) -> int:
    decoded = decode_image(path)
    assert decoded.dtype == np.uint8 and decoded.shape == expected.shape
    assert decoded.flags.c_contiguous and decoded.flags.writeable
    assert read_size(path) == decoded.shape[:2]
    return np.abs(decoded.astype(int) - expected).max()


def refusal(path) -> UserError | None:
    try:
        decode_image(path)
    except UserError as error:
        return error


def block_means(pixels: np.ndarray, reduction: int) -> np.ndarray:
    rows, columns = pixels.shape[0] // reduction, pixels.shape[1] // reduction
    return pixels.reshape(rows, reduction, columns, reduction, 3).mean((1, 3))


# whole pictures


def test_the_corpus_is_large_and_its_names_differ():
    assert len({odd.name for odd in CORPUS}) == len(CORPUS) >= 90


@corpus
def test_pixels_and_header_size_are_what_was_written(tmp_path, odd):
    assert difference(save(tmp_path / odd.name, odd.data), odd.pixels) <= odd.tolerance


def test_16_bits_are_not_stretched_and_not_clipped(tmp_path):
    (odd,) = (odd for odd in CORPUS if odd.name == "grey16.png")
    path = save(tmp_path / odd.name, odd.data)
    assert decode_image(path).mean() == pytest.approx(127.5, abs=1)  # Pillow's convert gives 251


# files cut short


@corpus
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_file_cut_anywhere_is_an_error_or_whole(tmp_path, odd):
    """Some cuts take nothing of the first picture: end chunks, later frames, bytes behind the end."""
    lengths = cuts(odd.data)
    assert len(set(lengths)) == 10
    refused = 0
    for length in lengths:
        path = save(tmp_path / odd.name, odd.data[:length])
        if error := refusal(path):
            assert str(path) in str(error) and error.code == DATA
            refused += 1
        else:
            assert difference(path, odd.pixels) <= odd.tolerance
    assert refused >= 4


@pytest.mark.parametrize("kind", ["baseline", "progressive", "thumbnail", "png", "interlaced"])
def test_every_cut_through_the_pixels_is_an_error(tmp_path, kind):
    """Progressive and interlaced files show a whole but coarse picture early on: that is none either."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    exif = b"Exif\0\0" + encoded(noise[:8, :8], "JPEG")  # ends with an end marker of its own
    content = {
        "baseline": lambda: encoded(noise, "JPEG"),
        "progressive": lambda: encoded(noise, "JPEG", progressive=True),
        "thumbnail": lambda: encoded(noise, "JPEG", exif=exif),
        "png": lambda: encoded(noise, "PNG"),
        "interlaced": lambda: interlaced_png(noise),
    }[kind]()
    pixels_end = len(content) - (20 if kind in ("png", "interlaced") else 2)  # what comes after
    assert decode_image(save(tmp_path / "a.jpg", content)).shape == noise.shape
    for length in (*range(0, pixels_end, 67), pixels_end - 1):
        for tail in (b"", bytes(500)):  # zeros: a download into a preallocated file
            path = save(tmp_path / "a.jpg", content[:length] + tail)
            with pytest.raises(UserError, match=r"a\.jpg: cannot read this picture"):
                decode_image(path)


@pytest.mark.parametrize(("kind", "end"), [("JPEG", 30), ("PNG", 13)])
def test_a_forgiving_decoder_is_not_asked(tmp_path, pixels, monkeypatch, kind, end):
    """Some releases of OpenCV return half-grey pictures for files cut short."""
    content = encoded(pixels, kind)[:-end]
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full_like(pixels, 128))
    path = save(tmp_path / "a", content)
    assert refusal(path) or np.array_equal(decode_image(path), pixels)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "PPM", "GIF"])
def test_truncated_files_of_other_formats_are_errors(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    content = encoded(noise, kind)
    for share in (0.02, 0.5, 0.95):
        path = save(tmp_path / "a", content[: int(len(content) * share)])
        with pytest.raises(UserError, match="cannot read this picture"):
            decode_image(path)


@pytest.mark.parametrize("animated", [False, True])
def test_a_png_whose_rest_is_zeros_is_no_picture_and_one_without_end_is(tmp_path, animated):
    noise = np.random.default_rng(0).integers(0, 60, (2, 48, 64, 3), np.uint8)
    frames = list(map(Image.fromarray, noise))
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=animated, append_images=frames[1:] if animated else [])
    data = buffer.getvalue()
    first_rows = data.index(b"IDAT")
    path = tmp_path / "a.png"
    path.write_bytes(data[:-12])
    assert np.array_equal(decode_image(path), noise[0])
    for kept in range(first_rows + 60, first_rows + 3000, 211):
        path.write_bytes(data[:kept] + bytes(len(data) - kept))
        with pytest.raises(UserError, match=r"a\.png: .*truncated"):
            decode_image(path)


def test_truncated_jpeg_is_called_so(tmp_path, pixels):
    path = save(tmp_path / "a.jpg", encoded(pixels, "JPEG")[:-100])
    for reduction in (1, 8):
        with pytest.raises(UserError, match=r"a\.jpg: .*truncated"):
            decode_image(path, reduction=reduction)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_raise_nothing_but_user_errors(tmp_path, pixels):
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM"):
        whole = encoded(pixels, kind)
        for _ in range(40):
            broken = bytearray(whole)
            for position in generator.integers(0, min(len(whole), 400), 3):
                broken[position] = generator.integers(256)
            path = save(tmp_path / "a", broken)
            with contextlib.suppress(UserError):
                size = read_size(path)
                assert size[0] * size[1] > 4_000_000 or decode_image(path).shape == (*size, 3)


# what is refused


@pytest.mark.parametrize(("name", "content"), bombs().items())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused_by_their_header(tmp_path, monkeypatch, name, content):
    path = save(tmp_path / name, content)
    assert len(content) < 2_000_000
    monkeypatch.setattr(cv2, "imdecode", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    start = time.process_time()
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=rf"{name}: .*200 megapixels .20000 x 20000 pixels"):
            read(path)
    assert time.process_time() - start < 1


def test_the_bomb_is_a_proper_picture(tmp_path):
    """Else it could be refused for another reason; 4 megapixels of the same make are read."""
    path = save(tmp_path / "a.png", black_png((2000, 2000)))
    assert decode_image(path).shape == (2000, 2000, 3) and not decode_image(path).any()


def test_pixel_limit(tmp_path, pixels, monkeypatch):
    path = save(tmp_path / "a.png", encoded(pixels, "PNG"))
    monkeypatch.setattr(data.images, "MAX_PIXELS", HEIGHT * WIDTH)
    assert decode_image(path).shape == pixels.shape
    monkeypatch.setattr(data.images, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=r"larger than the limit of .* megapixels .80 x 48 pixels"):
            read(path)


def test_the_limit_warns_of_nothing_below_it(tmp_path, recwarn):
    path = save(tmp_path / "a.pgm", b"P5\n20000 10000\n255\n")
    assert read_size(path) == (10_000, 20_000)  # Pillow alone warns here
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello world" * 50, "not a picture"),
        (b"\xff\xd8\xff", "cannot read this picture"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, content, reason):
    path = save(tmp_path / "a.jpg", content)
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=rf"a\.jpg: .*{reason}"):
            read(path)


def test_missing_file_and_folder(tmp_path):
    for read in (decode_image, read_size):
        with pytest.raises(UserError, match=r"no\.jpg: cannot read this picture: No such file"):
            read(tmp_path / "no.jpg")
        with pytest.raises(UserError, match="directory"):
            read(tmp_path)


# reduced pictures


@pytest.mark.parametrize(
    ("size", "needed", "reduction"),
    [
        ((3000, 4000), (480, 640), 4),  # 750 x 1000; an eighth, 375 x 500, is too small
        ((3000, 4000), (720, 960), 4),
        ((3000, 4000), (375, 500), 8),
        ((3000, 4000), (375.5, 500), 4),
        ((3000, 4000), (100, 501), 4),  # one axis decides
        ((3000, 4000), (20, 20), 8),  # no more than 8
        ((2250, 4000), (360, 640), 2),  # 4 does not divide 2250
        ((427, 640), (100, 150), 1),
        ((480, 640), (640, 853), 1),  # enlarged
        ((8, 8), (1, 1), 8),
    ],
)
def test_choose_reduction(size, needed, reduction):
    assert choose_reduction(size, needed) == reduction
    assert choose_reduction(size[::-1], needed[::-1]) == reduction


@given(st.tuples(*[st.integers(1, 6000)] * 2), st.tuples(*[st.integers(1, 6000)] * 2))
def test_choose_reduction_leaves_enough_and_takes_all_it_can(size, needed):
    def suits(reduction):
        return all(n % reduction == 0 and n // reduction >= m for n, m in zip(size, needed, strict=True))

    chosen = choose_reduction(size, needed)
    assert chosen == 1 or suits(chosen)
    assert not any(suits(larger) for larger in (2, 4, 8) if larger > chosen)


@corpus
def test_reduced_pictures_are_block_means(tmp_path, odd):
    """Turned as the whole picture is. JPEG's inverse transform at 1/r is close to the mean, not the same."""
    path = save(tmp_path / odd.name, odd.data)
    whole = decode_image(path)
    for reduction in (2, 4, 8):
        reduced = decode_image(path, reduction=reduction, size=whole.shape[:2])
        means = block_means(whole, reduction)
        assert reduced.shape == means.shape and reduced.dtype == np.uint8 and reduced.flags.c_contiguous
        error = np.abs(reduced - means)
        if odd.data[:2] != b"\xff\xd8":
            assert error.max() <= 0.5
        elif odd.name == "422.jpg" and reduction == 8:
            assert error.mean() <= 6  # libjpeg repeats the one colour sample of 16 pixels; 5.1 measured
        else:
            assert error.mean() <= 1  # 0.72 measured


def test_ordinary_jpegs_are_never_decoded_whole_to_be_reduced(tmp_path, pixels, monkeypatch):
    shapes, imdecode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *args: shapes.append(imdecode(*args)) or shapes[-1])
    for options in ({}, {"progressive": True}):
        path = save(tmp_path / "a.jpg", encoded(pixels, "JPEG", **options))
        for reduction in (1, 2, 4, 8):
            decode_image(path, reduction=reduction)
            assert shapes[-1].shape == (HEIGHT // reduction, WIDTH // reduction, 3)


def test_a_reduction_that_does_not_divide_is_refused(tmp_path):
    for kind in ("JPEG", "PNG", "GIF"):
        path = save(tmp_path / "a", encoded(np.zeros((44, 80, 3), np.uint8), kind))
        assert decode_image(path, reduction=4).shape == (11, 20, 3)
        with pytest.raises(UserError, match="80 x 44 pixels cannot be reduced by 8"):
            decode_image(path, reduction=8)


def test_a_picture_replaced_since_its_size_was_read_is_an_error(tmp_path, pixels):
    exif = Image.Exif()
    exif[274] = 6
    path = save(tmp_path / "a.jpg", encoded(pixels, "JPEG", exif=exif))
    assert decode_image(path, size=(80, 48)).shape == (80, 48, 3)
    with pytest.raises(UserError, match=r"a\.jpg: .*48 x 80 pixels now, 80 x 48 when the run began"):
        decode_image(path, size=(48, 80))


# the three users


class Seen(Exception):
    """Thrown by the model below, with its input."""


class Eyes:
    """Stands for a model."""

    strides = (1,)

    def __call__(self, images):
        raise Seen(images[0].permute(1, 2, 0).cpu().numpy())


def detector(imgsz: tuple[int, int]) -> LoadedDetector:
    config = Config().model_copy(update={"data": Config().data.model_copy(update={"imgsz": imgsz})})
    return LoadedDetector(Eyes(), config, ("thing",), inference.select_device("cpu"))


def seen_by_detector(path, shape) -> np.ndarray:
    with pytest.raises(Seen) as seen:
        detector(shape)(path)
    return seen.value.args[0]


def seen_in_training_and_validation(path, size, needed) -> np.ndarray:
    fields = dict.fromkeys(Index._fields)
    index = Index(**fields | {"paths": np.array([os.fsencode(path)]), "sizes": np.array([size], np.int32)})
    return DecodedPictures(index, np.array([needed]), keep=0)(0)


@corpus
def test_check_train_and_detect_see_the_same_pixels(tmp_path, odd: Odd):
    """At the picture's own scale, and at a quarter of it, where all of them decode reduced."""
    path = save(tmp_path / odd.name, odd.data)
    size = read_size(path)
    for reduction in (1, 4):
        shape = size[0] // reduction, size[1] // reduction
        checked = decode_image(path, reduction=reduction)
        assert np.array_equal(seen_by_detector(path, shape), checked)
        assert np.array_equal(seen_in_training_and_validation(path, size, shape), checked)


def test_an_array_is_seen_like_its_file_unless_that_is_reduced(tmp_path, pixels):
    path = save(tmp_path / "a.jpg", encoded(pixels, "JPEG", quality=95))
    array = decode_image(path)
    assert np.array_equal(seen_by_detector(array, (40, 64)), seen_by_detector(path, (40, 64)))
    reduced = seen_by_detector(path, (11, 19))  # from 12 x 20
    assert 0 < np.abs(seen_by_detector(array, (11, 19)).astype(int) - reduced).mean() <= 1


class Asked:
    """Stands for a detector: notes what it is given."""

    pixels = AS_STORED
    plan = LoadedDetector.plan
    shape = LoadedDetector.shape

    def __init__(self, imgsz: tuple[int, int]):
        self.config, self.stride, self.given = detector(imgsz).config, 1, []

    def __call__(self, picture, **_) -> Detections:
        self.given.append(picture)


@pytest.mark.parametrize(
    ("flags", "imgsz", "reads_file", "keeps"),
    [
        ({"nosave": True, "save_crop": False}, (48, 80), True, False),  # nothing to draw: no second decode
        ({"nosave": False, "save_crop": False}, (48, 80), False, True),  # one decode serves both
        ({"nosave": True, "save_crop": True}, (48, 80), False, True),
        ({"nosave": False, "save_crop": False}, (32, 32), True, True),  # 32 x 19 from 40 x 24
    ],
)
def test_detect_decodes_the_whole_picture_only_to_draw(tmp_path, pixels, flags, imgsz, reads_file, keeps):
    path, asked = save(tmp_path / "a.jpg", encoded(pixels, "JPEG")), Asked(imgsz)
    _, picture = look_at(path, asked, argparse.Namespace(classes=None, agnostic_nms=False, **flags))
    assert (asked.given[0] is path) == reads_file
    assert (picture is not None) == keeps
    assert picture is None or np.array_equal(picture, decode_image(path))


# cost, and real files


@pytest.mark.parametrize("reduction", [1, 4])
def test_an_ordinary_jpeg_is_decoded_once_and_no_larger_than_asked(tmp_path, monkeypatch, reduction):
    """Only a file without its end marker costs more decodings; seconds are for benchmarks."""
    path = save(tmp_path / "a.jpg", encoded(np.zeros((64, 96, 3), np.uint8), "JPEG"))
    sizes, imdecode = [], cv2.imdecode

    def counted(*arguments):
        pixels = imdecode(*arguments)
        sizes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(cv2, "imdecode", counted)
    decode_image(path, reduction=reduction)
    assert sizes == [(64 // reduction, 96 // reduction, 3)]


@pytest.mark.skipif(not ODD_FILES.exists(), reason="/work/shared/datasets/odd_files is not here")
def test_odd_files():
    path = ODD_FILES / "DJI_0019.JPG"
    whole = decode_image(path)
    assert whole.shape == (2250, 4000, 3)
    assert np.abs(decode_image(path, reduction=2) - block_means(whole, 2)).mean() <= 0.6  # measured: 0.41
    for path in ODD_FILES.glob("raccoon-*.jpg"):
        assert decode_image(path).shape[:2] == read_size(path)


@pytest.mark.parametrize("read", [read_size, decode_image])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "link to a pipe"])
def test_only_regular_files_are_opened(tmp_path, read, kind):
    path = tmp_path / "f.jpg"
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"f\.jpg: cannot read this picture: not a regular file") as error:
        read(path)
    assert error.value.code == DATA
