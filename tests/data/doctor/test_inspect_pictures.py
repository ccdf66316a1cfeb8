"""Every picture is decoded once, and again only when it has changed."""

import hashlib
import os

import numpy as np
import pytest
from PIL import Image

import data.doctor.inspect_pictures
from data.doctor.inspect_pictures import SIDE, inspect_pictures
from utils.errors import UserError


@pytest.fixture
def paths(tmp_path):
    """Three pictures of different grey and a file that is none."""
    for number in range(3):
        Image.new("RGB", (80, 60), (50 * number,) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_text("no picture")
    return [str(tmp_path / f"{number}.png") for number in range(4)]


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    names, decode = [], data.doctor.inspect_pictures.decode_image
    monkeypatch.setattr(
        data.doctor.inspect_pictures,
        "decode_image",
        lambda path, **options: names.append(path[-5]) or decode(path, **options),
    )
    return names


def test_thumbnails_digests_and_faults(paths):
    found = inspect_pictures(paths, paths[0])
    assert found.known.all() and found.thumbnails.shape == (4, SIDE, SIDE)
    assert [int(thumbnail.mean()) for thumbnail in found.thumbnails] == [0, 50, 100, 0]
    assert found.faults[:3] == ["", "", ""] and "not a picture of a known format" in found.faults[3]
    with open(paths[1], "rb") as file:
        assert found.digests[1].tobytes() == hashlib.blake2b(file.read(), digest_size=16).digest()


def test_only_changed_and_new_pictures_are_decoded_again(paths, decoded):
    first = inspect_pictures(paths[:3], paths[0])
    assert sorted(decoded) == ["0", "1", "2"]
    decoded.clear()
    Image.new("RGB", (80, 60), (7, 7, 7)).save(paths[1])
    os.utime(paths[1], ns=(1, 1))
    again = inspect_pictures(paths[::-1], paths[0])  # another order, and one more
    assert sorted(decoded) == ["1", "3"]
    np.testing.assert_array_equal(again.thumbnails[3], first.thumbnails[0])
    assert again.thumbnails[2].mean() == 7 and again.faults[0] and not again.faults[1]
    decoded.clear()
    last = inspect_pictures(paths[::-1], paths[0])
    assert decoded == [] and last.faults == again.faults
    assert all(np.array_equal(one, other) for one, other in zip(last, again, strict=True))


def test_without_decoding_only_what_is_known(paths, decoded):
    inspect_pictures(paths[:1], paths[0])
    found = inspect_pictures(paths, paths[0], decode=False)
    assert decoded == ["0"] and found.known.tolist() == [True, False, False, False]


def test_missing_files_are_never_taken_from_the_cache(paths):
    os.unlink(paths[0])
    for _ in range(2):
        assert "No such file" in inspect_pictures(paths, paths[0]).faults[0]


def test_no_pictures():
    found = inspect_pictures([], "none")
    assert found.faults == [] and found.thumbnails.shape == (0, SIDE, SIDE)


@pytest.mark.parametrize("number", range(4))
def test_interrupted_work_is_kept(paths, monkeypatch, number):
    decode = data.doctor.inspect_pictures.decode_image
    monkeypatch.setattr(data.doctor.inspect_pictures, "CHUNK", 1)

    def interrupted(path, **options):
        if path == paths[number]:
            raise KeyboardInterrupt
        return decode(path, **options)

    monkeypatch.setattr(data.doctor.inspect_pictures, "decode_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        inspect_pictures(paths, paths[0])
    monkeypatch.setattr(data.doctor.inspect_pictures, "decode_image", decode)
    known = inspect_pictures(paths, paths[0], decode=False).known
    assert known[:number].all() and not known[number]
    assert inspect_pictures(paths, paths[0]).known.all()  # also where nothing had been done


def test_an_error_of_the_system_is_not_remembered(paths, monkeypatch):
    decode, failing = data.doctor.inspect_pictures.decode_image, [paths[1]]

    def decode_or_fail(path, **options):
        if path in failing:
            raise UserError(f"{path}: cannot read this picture: too many") from OSError(
                24, "Too many open files"
            )
        return decode(path, **options)

    monkeypatch.setattr(data.doctor.inspect_pictures, "decode_image", decode_or_fail)
    assert "too many" in inspect_pictures(paths, paths[0]).faults[1]
    failing.clear()
    found = inspect_pictures(paths, paths[0])
    assert found.faults[1] == "" and "not a picture" in found.faults[3]
