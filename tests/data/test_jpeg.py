"""A JPEG without its end marker is read where every pixel is there, and an error where one is missing."""

import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

from data.images import decode_image
from data.jpeg import has_end
from tests.data.odd_pictures import encoded
from utils.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (43, 51, 3)).astype(np.uint8)
SMOOTH = cv2.GaussianBlur(NOISE, (0, 0), 3)
PICTURES = {"noise": NOISE, "smooth": SMOOTH, "sky": np.where(np.arange(43)[:, None, None] < 20, SMOOTH, 200)}
KINDS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "444": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 1},
    "restart_rows": {"restart_marker_rows": 1},
    "progressive_restarts": {"progressive": True, "restart_marker_blocks": 3},
    "optimised": {"optimize": True},
    "fine": {"quality": 95},
    "thumbnail": {"exif": b"Exif\0\0" + encoded(NOISE[:8, :8], "JPEG")},
}
TAILS = {"nothing": b"", "half": b"\xff", "zeros": bytes(500), "ones": b"\xff" * 100}


def jpeg(picture: str, kind: str, mode: str = "RGB") -> bytes:
    return encoded(Image.fromarray(PICTURES[picture].astype(np.uint8)).convert(mode), "JPEG", **KINDS[kind])


@pytest.mark.parametrize(("picture", "kind"), list(itertools.product(PICTURES, KINDS)))
def test_all_pixels_without_an_end_and_no_cut_that_shows(tmp_path, picture, kind):
    whole, path = jpeg(picture, kind), tmp_path / "a.jpg"
    path.write_bytes(whole)
    expected = decode_image(path).astype(int)
    for tail in TAILS.values():
        path.write_bytes(whole[:-2] + tail)
        np.testing.assert_array_equal(decode_image(path), expected)
    for length in (*range(100, len(whole) - 2, 151), *range(len(whole) - 12, len(whole) - 2)):
        path.write_bytes(whole[:length])
        try:
            found = decode_image(path)
        except UserError:
            continue
        # what was cut off lies in blocks beyond the picture's edge
        np.testing.assert_array_equal(found, expected, err_msg=f"{length} of {len(whole)} bytes")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_modes(tmp_path, mode):
    whole, path = jpeg("smooth", "baseline", mode), tmp_path / "a.jpg"
    path.write_bytes(whole)
    expected = decode_image(path)
    path.write_bytes(whole[:-2])
    np.testing.assert_array_equal(decode_image(path), expected)
    path.write_bytes(whole[:-30])
    with pytest.raises(UserError, match="truncated"):
        decode_image(path)


def test_a_progressive_file_between_two_scans_is_coarse_and_an_error(tmp_path):
    whole, path = jpeg("smooth", "progressive"), tmp_path / "a.jpg"
    scans = [at for at in range(len(whole)) if whole[at : at + 2] in (b"\xff\xda", b"\xff\xc4")]
    assert len(scans) >= 15  # tables and scans
    for start in scans[4:]:
        path.write_bytes(whole[:start])
        with pytest.raises(UserError, match="truncated"):
            decode_image(path)


def test_reduced_and_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encoded(np.repeat(np.repeat(SMOOTH[:40, :48], 2, 0), 2, 1), "JPEG", exif=exif)
    (tmp_path / "whole.jpg").write_bytes(whole)
    (tmp_path / "a.jpg").write_bytes(whole[:-2])
    for reduction in (1, 2, 4):
        found = [decode_image(tmp_path / name, reduction=reduction) for name in ("whole.jpg", "a.jpg")]
        np.testing.assert_array_equal(*found)


def test_only_an_end_behind_the_first_scan_counts():
    whole = jpeg("smooth", "thumbnail")
    assert (
        has_end(whole) and has_end(whole + bytes(9)) and not has_end(whole[:-2]) and not has_end(whole[:300])
    )
