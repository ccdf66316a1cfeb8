"""TIFF files of every type, number of bands and way of storing them give the values that were written."""

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from data.images import decode_image, read_header, read_size, read_stored
from data.pixels import Pixels
from data.tiff import read_bands, read_pages
from tests.data.tiff_files import tiff_file
from utils.errors import UserError

TYPES = ("u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8")
WAYS = {
    "plain": {},
    "big_endian": {"order": ">"},
    "planar": {"planar": True},
    "deflated": {"deflated": True},
    "planar_deflated_big_endian": {"planar": True, "deflated": True, "order": ">"},
    "tiled": {"tile": 16},
    "tiled_planar": {"tile": 16, "planar": True},
}


def values_of(kind: str, bands: int, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(100, 50, (20, 24, bands))
    return (np.abs(values) if kind[0] == "u" else values).astype(kind)


def read(data: bytes) -> np.ndarray:
    pages = read_pages(io.BytesIO(data))
    return read_bands(data, pages, range(1, pages[0].bands * len(pages) + 1))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", TYPES)
def test_values_are_those_written(kind, way):
    for bands, count in itertools.product((1, 2, 3, 4, 5, 8), (1, 3)):
        pages = [values_of(kind, bands, seed) for seed in range(count)]
        found = read(tiff_file(*pages, **way))
        assert found.dtype == np.dtype(kind)
        np.testing.assert_array_equal(
            found, np.concatenate(pages, 2), err_msg=f"{bands} bands, {count} pages"
        )


@pytest.mark.parametrize("way", [{}, {"tile": 16}, {"planar": True}], ids=["strip", "tiled", "planar"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i4"])
def test_differences_are_undone_band_by_band(kind, way):
    for bands in (1, 3, 5):
        values = values_of(kind, bands)
        values[0, :3, 0] = 0, 120, 3  # differences below 0 wrap around
        found = read(tiff_file(values, predictor=True, deflated=True, **way))
        np.testing.assert_array_equal(found, values)


def test_twelve_bits_that_are_packed():
    values = np.random.default_rng(0).integers(0, 4096, (20, 23)).astype(np.uint16)
    np.testing.assert_array_equal(read(tiff_file(values, bits=12))[..., 0], values)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "raw"])
def test_what_libtiff_wrote(compression):
    values = np.random.default_rng(0).integers(0, 4096, (50, 60)).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", compression=compression)
    np.testing.assert_array_equal(read(buffer.getvalue())[..., 0], values)


def test_only_pages_like_the_first_are_bands():
    page, other = values_of("u2", 1), values_of("u2", 1, seed=1)
    file = tiff_file(page, page[:10, :12], other, other, page, subfile=(0, 1, 0, 1, 4))
    np.testing.assert_array_equal(read(file), np.concatenate([page, other], 2))  # no thumbnail, level, mask


@pytest.mark.parametrize("kind", ["grey", "colour", "deep"])
@pytest.mark.parametrize("marks", [(1, 0), (4, 0), (1, 1, 0, 1), (1, 5, 4, 0)])
def test_a_thumbnail_before_the_picture_is_passed_over(tmp_path, kind, marks):
    values = values_of("u2" if kind == "deep" else "u1", 3 if kind == "colour" else 1)
    pages = [values if not mark else values[:10, :12] for mark in marks]
    path = tmp_path / "a.tif"
    path.write_bytes(tiff_file(*pages, subfile=marks))
    assert read_size(path) == (20, 24)
    header = read_header(path)
    assert header.size == (20, 24) and header.pages == 1
    for bands in (None, (1, 1, 1)):
        pixels = Pixels(range=(0, 255), bands=bands)
        found = decode_image(path, pixels=pixels, size=(20, 24))
        np.testing.assert_array_equal(found[..., 0], values[..., 0].clip(0, 255))


def test_pages_of_other_sizes_are_counted(tmp_path):
    page = values_of("u1", 1)
    for name, marks, count in (("a", (0, 0), 2), ("b", (0, 1), 1), ("c", (1, 1), 1), ("d", (1, 0, 0), 2)):
        sizes = [page, page[:10, :12], page[:5]]
        (tmp_path / name).write_bytes(tiff_file(*sizes[: len(marks)], subfile=marks))
        assert read_header(tmp_path / name).pages == count, name


def test_the_old_mark_of_a_thumbnail(tmp_path):
    page, info = Image.fromarray(values_of("u1", 1)[..., 0]), TiffImagePlugin.ImageFileDirectory_v2()
    info[255] = 2
    page.resize((12, 10)).save(
        tmp_path / "a.tif", save_all=True, append_images=[page], tiffinfo=info
    )  # both pages are marked: the larger is taken
    assert read_size(tmp_path / "a.tif") == (20, 24) and read_header(tmp_path / "a.tif").pages == 1


def test_white_is_zero_with_and_without_bands(tmp_path):
    values, info = values_of("u1", 1)[..., 0], TiffImagePlugin.ImageFileDirectory_v2()
    info[262] = 0
    for name, picture in (("grey", Image.fromarray(values)), ("bits", Image.fromarray(values > 99))):
        path = tmp_path / f"{name}.tif"
        picture.save(path, tiffinfo=info)
        plain, chosen = decode_image(path), decode_image(path, pixels=Pixels(bands=(1, 1, 1)))
        np.testing.assert_array_equal(plain, chosen)
        expected = values if name == "grey" else (values > 99) * 255
        np.testing.assert_array_equal(plain[..., 0], expected)


def test_a_circle_of_pages_ends():
    page = values_of("u1", 1)
    file = bytearray(tiff_file(page, page))
    first = int.from_bytes(file[4:8], "little")
    entries = int.from_bytes(file[first : first + 2], "little")
    link = first + 2 + 12 * entries
    file[link : link + 4] = file[4:8]  # the first page names itself as the next
    assert len(read_pages(io.BytesIO(file))) == 1


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_file_cut_short_is_an_error(tmp_path, way):
    values = values_of("u2", 5)
    whole = tiff_file(values, **way)
    refused = 0
    for length in range(0, len(whole), 101):
        (tmp_path / "a.tif").write_bytes(whole[:length])
        try:
            found = read_stored(tmp_path / "a.tif", (5, 1, 3))
        except UserError:
            refused += 1
        else:  # nothing but the link to a next page was cut off
            np.testing.assert_array_equal(found, values[..., [4, 0, 2]])
    assert refused >= length // 101


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("directory", [b"", bytes(2), b"\1\0" + struct.pack("<HHII", 256, 4, 1, 5)])
def test_a_damaged_header_is_said(tmp_path, directory):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x08\0\0\0" + directory + bytes(4))
    with pytest.raises(UserError, match=r"a\.tif: .*(header|without pictures)"):
        decode_image(path)
