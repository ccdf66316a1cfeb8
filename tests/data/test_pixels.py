"""Values of any type become 0..255 by one rule for the whole data set; 8 bits stay as stored."""

import re

import numpy as np
import pytest

from data.cache import stat_files
from data.doctor.measure_pixels import measure_pixels
from data.images import decode_image, is_deep, read_size
from data.pixels import Measured, Pixels, choose_range, describe_range, pixels_of
from tests.data.odd_pictures import TURNS, encoded, encoded_by_opencv
from tests.data.tiff_files import tiff_file
from utils.config import DataConfig
from utils.errors import UserError

RAMP = np.linspace(0, 1, 32 * 48).reshape(32, 48)


def colour(values: np.ndarray) -> np.ndarray:
    return np.dstack([values, values[::-1], values[:, ::-1]])


def png(values: np.ndarray) -> bytes:
    return encoded_by_opencv(values[..., ::-1] if values.ndim == 3 else values, ".png")


def pnm(values: np.ndarray, most: int) -> bytes:
    kind = "P6" if values.ndim == 3 else "P5"
    return f"{kind} {values.shape[1]} {values.shape[0]} {most}\n".encode() + values.astype(">u2").tobytes()


DEEP = {  # content, range that auto stands for, as shares of which the values were made
    "8_in_16.png": (png((RAMP * 255).astype(np.uint16)), (0, 255)),
    "10_in_16.png": (png((RAMP * 1023).astype(np.uint16)), (0, 1023)),
    "12_in_16.png": (png((RAMP * 4095).astype(np.uint16)), (0, 4095)),
    "14_in_16.tif": (tiff_file((RAMP * 16383).astype("u2")), (0, 16383)),
    "16.png": (png((RAMP * 65535).astype(np.uint16)), (0, 65535)),
    "12_colour.png": (png((colour(RAMP) * 4095).astype(np.uint16)), (0, 4095)),
    "12_colour.tif": (tiff_file((colour(RAMP) * 4095).astype("u2")), (0, 4095)),
    "12_planar.tif": (tiff_file((colour(RAMP) * 4095).astype("u2"), planar=True), (0, 4095)),
    "12_big_endian.tif": (tiff_file((RAMP * 4095).astype("u2"), order=">"), (0, 4095)),
    "12_packed.tif": (tiff_file((RAMP * 4095).astype("u2"), bits=12), (0, 4095)),
    "int32.tif": (encoded((RAMP * 1023).astype(np.int32), "TIFF"), (0, 1023)),
    "uint32.tif": (tiff_file((RAMP * (2**20 - 1)).astype("u4")), (0, 2**20 - 1)),
    "ct.tif": (tiff_file((RAMP * 4095 - 1024).round().astype("i2")), (-1024, 3071)),
    "share.tif": (tiff_file(RAMP.astype("f4")), (0, 1)),
    "share_double.tif": (tiff_file(RAMP.astype("f8")), (0, 1)),
    "half.tif": (tiff_file(RAMP.astype("f2")), (0, 1)),
    "whole_floats.tif": (tiff_file((RAMP * 255).round().astype("f4")), (0, 255)),
    "kelvin.tif": (tiff_file((RAMP * 40 + 270).astype("f4")), (270, 310)),
    "pgm.pgm": (pnm(RAMP * 65535, 65535), (0, 65535)),
    "12_in_pgm.pgm": (pnm(RAMP * 4095, 65535), (0, 4095)),
    "pgm_4095.pgm": (pnm(RAMP * 4095, 4095), (0, 65535)),  # the file says what is white
    "ppm_4095.ppm": (pnm(colour(RAMP) * 4095, 4095), (0, 65535)),
}  # fmt: skip


def measured(path) -> Measured:
    return measure_pixels([str(path)], stat_files([str(path)]), "key", bands=None)


@pytest.mark.parametrize("name", DEEP)
def test_every_depth_fills_0_to_255(tmp_path, name):
    content, wanted = DEEP[name]
    (tmp_path / name).write_bytes(content)
    assert is_deep(tmp_path / name)
    span = choose_range(measured(tmp_path / name))
    assert span == pytest.approx(wanted, abs=1e-3)
    found = decode_image(tmp_path / name, pixels=Pixels(span)).astype(int)
    shown = colour(RAMP) if "colour" in name or "planar" in name or "ppm" in name else np.dstack([RAMP] * 3)
    assert read_size(tmp_path / name) == found.shape[:2] == RAMP.shape
    assert np.abs(found - shown * 255).max() <= (2 if "8_in" in name or "10_in" in name else 1)
    assert found.min() == 0 and found.max() >= 254
    half = decode_image(tmp_path / name, reduction=2, pixels=Pixels(span)).astype(int)
    blocks = found.reshape(16, 2, 24, 2, 3).mean((1, 3))
    assert np.abs(half - blocks).max() <= 1


def test_the_range_is_the_data_sets_not_the_pictures(tmp_path):
    for number, share in enumerate((0.25, 1)):
        (tmp_path / f"{number}.png").write_bytes(png((RAMP * share * 4095).astype(np.uint16)))
    found = [decode_image(tmp_path / f"{n}.png", pixels=Pixels((0, 4095))).max() for n in range(2)]
    assert found == [64, 255]


def test_whole_16_bits_differ_from_their_high_byte_by_rounding_only(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    (tmp_path / "a.png").write_bytes(png(values))
    high, ranged = (
        decode_image(tmp_path / "a.png", pixels=Pixels(s)).astype(int) for s in (None, (0, 65535))
    )
    np.testing.assert_array_equal(high[..., 0], values >> 8)
    assert np.abs(high - ranged).max() == 1


def test_eight_bits_do_not_heed_a_range(tmp_path):
    values = (colour(RAMP) * 255).astype(np.uint8)
    for name, kind in {"a.png": "PNG", "a.tif": "TIFF", "a.bmp": "BMP", "a.ppm": "PPM"}.items():
        (tmp_path / name).write_bytes(encoded(values, kind))
        assert not is_deep(tmp_path / name)
        np.testing.assert_array_equal(decode_image(tmp_path / name, pixels=Pixels((0, 4095))), values)


def test_beyond_the_range_is_cut(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff_file(np.array([[-5, 0, 50, 100, 900]], "i2")))
    assert decode_image(tmp_path / "a.tif", pixels=Pixels((0, 100)))[0, :, 0].tolist() == [
        0,
        0,
        128,
        255,
        255,
    ]


@pytest.mark.parametrize(
    ("values", "span", "reason"),
    [
        (np.full((4, 4), np.nan, "f4"), (0, 1), "16 pixels are NaN or infinite"),
        (np.array([[0, np.inf]], "f4"), (0, 1), "1 pixels are NaN or infinite"),
        (np.ones((4, 4), "f4"), None, "floating-point .* set data.pixel_range"),
        (np.full((4, 4), 70_000, "i4"), None, "70000, more than 16 bits: set data.pixel_range"),
        (np.full((4, 4), -1, "i2"), None, "from -1 to -1, more than 16 bits"),
    ],
)
def test_what_no_range_can_mend_is_an_error(tmp_path, values, span, reason):
    (tmp_path / "a.tif").write_bytes(tiff_file(values))
    with pytest.raises(UserError, match=rf"a\.tif: cannot read this picture: .*{reason}"):
        decode_image(tmp_path / "a.tif", pixels=Pixels(span))


PAGES = [np.full((8, 12), 20 * number, "u1") for number in range(10)]


@pytest.mark.parametrize(
    ("content", "bands", "shown"),
    [
        (tiff_file(*PAGES), None, (0, 0, 0)),  # the first page, grey
        (tiff_file(*PAGES), (4, 3, 2), (60, 40, 20)),
        (tiff_file(np.dstack(PAGES)), None, (0, 20, 40)),
        (tiff_file(np.dstack(PAGES)), (8, 1, 8), (140, 0, 140)),
        (tiff_file(np.dstack(PAGES), planar=True), (8, 1, 8), (140, 0, 140)),
        (tiff_file(np.dstack(PAGES[1:3])), None, (20, 20, 20)),  # of two the first, as grey
        (tiff_file(np.dstack(PAGES[1:3])), (2, 1, 2), (40, 20, 40)),
        (tiff_file(np.dstack(PAGES[:3]), np.dstack(PAGES[3:6])), (4, 6, 1), (60, 100, 0)),
        (encoded(np.dstack(PAGES[:3]), "PNG"), (3, 2, 1), (40, 20, 0)),
        (encoded(np.dstack(PAGES[:3]), "TIFF"), (3, 2, 1), (40, 20, 0)),
    ],
)
def test_bands(tmp_path, content, bands, shown):
    (tmp_path / "a").write_bytes(content)
    found = decode_image(tmp_path / "a", pixels=Pixels(bands=bands))
    assert found.shape == (8, 12, 3) and (found == shown).all()


def test_too_few_bands_are_named(tmp_path):
    for content, count in ((tiff_file(*PAGES), 10), (encoded(np.dstack(PAGES[:3]), "PNG"), 3)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(UserError, match=rf"has {count} bands, but data.bands asks for \[1, 2, 11\]"):
            decode_image(tmp_path / "a", pixels=Pixels(bands=(1, 2, 11)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiffs_are_turned_like_others(tmp_path, orientation):
    values = (RAMP * 255).astype(np.uint8)
    (tmp_path / "a.tif").write_bytes(tiff_file(values.astype("u2"), orientation=orientation))
    found = decode_image(tmp_path / "a.tif", pixels=Pixels((0, 255)))
    np.testing.assert_array_equal(found[..., 0], TURNS[orientation](values))
    assert read_size(tmp_path / "a.tif") == found.shape[:2]


@pytest.mark.parametrize(
    ("found", "span", "words"),
    [
        (Measured(9, 0, 0, (), 0, 0, True), None, "8 bits as stored"),
        (Measured(9, 9, 9, ("uint16",), 3, 4000, True), (0, 4095), r"12 bits in uint16 files \(0\.\.4095\)"),
        (
            Measured(9, 4, 4, ("uint16",), 0, 200, True),
            (0, 255),
            r"8 bits in uint16 .*; 5 pictures of 8 bits",
        ),
        (Measured(9, 9, 9, ("float32",), 270.5, 310, False), (270.5, 310), r"float32 files \(270.5\.\.310\)"),
        (Measured(9, 9, 9, ("int16",), -1024, 3071, True), (-1024, 3071), r"int16 files \(-1024\.\.3071\)"),
        (Measured(9, 9, 9, ("uint16",), 7, 7, False), (7, 8), r"uint16 files \(7\.\.8\)"),
        (Measured(9, 9, 9, ("float32",), 0, 1, True), (0, 1), r"float32 files \(0\.\.1\)"),
        (Measured(9, 9, 9, ("float64",), 0, 0, True), (0, 1), r"float64 files \(0\.\.1\)"),
        (Measured(9, 9, 9, ("uint16",), 0, 1, True), (0, 255), "8 bits in uint16 files"),
        (Measured(9, 9, 9, ("float32",), 0, 3.4e38, True), (0, 3.4e38), r"\(0\.\.3\.4e\+38\)"),
        (Measured(9, 9, 9, ("uint64",), 0, 2.0**64, True), (0, 2.0**64), "uint64 files"),
    ],
)
def test_the_rule_and_its_words(found, span, words):
    assert choose_range(found) == span
    assert re.search(words, describe_range(found, span or "full"))


def test_configuration():
    assert pixels_of(DataConfig()) == pixels_of(DataConfig(pixel_range="full")) == Pixels()
    given = DataConfig(pixel_range=[0, 4095], bands=[3, 2, 1])
    assert pixels_of(given) == Pixels((0, 4095), (3, 2, 1))
    for bad in ({"pixel_range": [5, 5]}, {"pixel_range": [9, 1]}, {"pixel_range": "x"}, {"bands": [0, 1, 2]},
                {"bands": [1, 2]}, {"pixel_range": [0, 1e-320]}):  # fmt: skip
        with pytest.raises(ValueError):
            DataConfig(**bad)
