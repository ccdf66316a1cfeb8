"""The range of the pixels is found once, said, and kept; what is dark or left aside is counted."""

import io

import numpy as np
import pytest
from PIL import Image

from data.doctor import measure_pixels
from data.doctor.diagnosis import diagnose
from data.doctor.report import format_diagnosis, to_plain
from data.images import decode_image
from data.pixels import pixels_of
from data.spec import load_data_spec
from tests.data.tiff_files import tiff_file
from utils.config import Config, DataConfig

SIZE = (48, 64)


def noise(low: float, high: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, SIZE)


@pytest.fixture
def check(tmp_path):
    """Writes pictures {split/name: content}, each with one box, and returns what the doctor says."""

    def run(pictures: dict, **settings):
        for name, content in pictures.items():
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                Image.fromarray(content).save(path)
            label = tmp_path / "labels" / f"{name.rpartition('.')[0]}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.5 0.5\n")
        (tmp_path / "d.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
        config = Config(data=DataConfig(path=str(tmp_path / "d.yaml"), imgsz=64, **settings))
        return diagnose(load_data_spec(config.data.path), config, splits=("train", "val"))

    return run


def findings(diagnosis) -> dict[tuple[str, str], tuple[str, int]]:
    return {(f.code, f.split): (f.severity, f.count) for f in diagnosis.findings}


def twelve(seed: int) -> np.ndarray:
    return noise(0, 4096, seed).astype(np.uint16)


def test_twelve_bits_in_sixteen(check, tmp_path):
    found = check({f"{split}/{i}.png": twelve(i) for i, split in enumerate(("train", "train", "val"))})
    assert found.config.data.pixel_range == (0, 4095)
    assert found.pixels == "pixels:   12 bits in uint16 files (0..4095) -> 0..255"
    assert found.pixels in format_diagnosis(found) and to_plain(found)["pixel_range"] == [0, 4095]
    assert "train: mean brightness 12" in format_diagnosis(found)
    assert not {"dark", "flat", "narrow-range"} & {code for code, _ in findings(found)}
    picture = decode_image(tmp_path / "images" / "val" / "2.png", pixels=pixels_of(found.config.data))
    assert picture.mean() == pytest.approx(127.5, abs=3)


def test_validation_pictures_do_not_move_the_range(check):
    found = check({"train/0.png": twelve(0), "val/1.png": noise(0, 65536).astype(np.uint16)})
    assert found.config.data.pixel_range == (0, 4095)
    assert found.brightness["val"].white > 0.9


def test_eight_bits_only(check):
    found = check({f"{split}/0.png": noise(0, 256).astype(np.uint8) for split in ("train", "val")})
    assert found.config.data.pixel_range == "full" and found.pixels == "pixels:   8 bits as stored"


def test_a_mixture_is_stated(check):
    found = check(
        {"train/0.png": twelve(0), "train/1.png": noise(0, 256).astype(np.uint8), "val/2.png": twelve(2)}
    )
    assert "1 pictures of 8 bits, as stored" in found.pixels


@pytest.mark.parametrize("span", ["full", (0, 1000)])
def test_what_is_given_is_not_measured(check, monkeypatch, span):
    monkeypatch.setattr("data.doctor.brightness.measure_pixels", None)
    found = check({f"{split}/0.png": twelve(0) for split in ("train", "val")}, pixel_range=span)
    assert found.config.data.pixel_range == span


def test_dark_and_narrow_pictures_are_warned_of(check):
    dark = {f"{split}/{i}.png": noise(0, 15, i).astype(np.uint8) for i, split in enumerate(("train", "val"))}
    assert findings(check(dark))["dark", "train"] == ("warning", 1)
    centikelvin = {name: noise(29_000, 31_000).astype(np.uint16) for name in dark}
    found = check(centikelvin)
    assert found.config.data.pixel_range == (0, 32767) or found.config.data.pixel_range == (0, 65535)
    assert findings(found)["narrow-range", "train"][0] == "warning"
    finding = next(f for f in found.findings if f.code == "narrow-range")
    assert "--set data.pixel_range=[29" in finding.remedy


def test_one_dark_picture_of_many_is_a_note(check):
    bright = {f"train/{i}.png": noise(0, 256, i).astype(np.uint8) for i in range(1, 110)}
    dark = np.full(SIZE, 3, np.uint8)
    found = check({"train/0.png": dark, **bright, "val/0.png": bright["train/1.png"]})
    assert findings(found)["dark", "train"] == ("note", 1)


def test_pages_bands_and_frames_are_counted(check):
    pages = [noise(0, 256, seed).astype("u1") for seed in range(10)]
    kinds = {"pages": tiff_file(*pages), "bands": tiff_file(np.dstack(pages[:8]))}
    for number, (name, content) in enumerate(kinds.items()):
        files = {f"train/{number}.tif": content, f"val/{number}.tif": content}
        assert findings(check(files))[name, "train"][0] == "warning"
        (found,) = (f for f in check(files, bands=(4, 3, 2)).findings if (f.code, f.split) == (name, "train"))
        assert found.severity == "note" and "4, 3, 2" in found.text
        assert ("10 pages", "8 bands")[number] in found.places[-1].text


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO"])
def test_further_frames_are_counted(check, kind):
    frames, buffer = [Image.fromarray(noise(0, 256, seed).astype("u1")) for seed in range(3)], io.BytesIO()
    frames = [frame.convert("RGB") for frame in frames]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    name = "0.jpg" if kind == "MPO" else f"0.{kind.lower()}"
    found = check({f"train/{name}": buffer.getvalue(), f"val/{name}": buffer.getvalue()})
    assert findings(found)["frames", "train"] == ("note", 1)
    assert "3 pictures" in next(f for f in found.findings if f.code == "frames").places[0].text


def test_measured_once_and_again_only_when_something_changed(check, tmp_path, monkeypatch):
    pictures = {f"{split}/0.png": twelve(0) for split in ("train", "val")}
    read, count = measure_pixels.read_stored, []
    monkeypatch.setattr(measure_pixels, "read_stored", lambda *given: count.append(given) or read(*given))
    assert check(pictures).config.data.pixel_range == (0, 4095) and len(count) == 2  # train and val
    path = tmp_path / "images/train/0.png"
    check({}), check({})
    assert len(count) == 2
    Image.fromarray((twelve(0) // 16).astype(np.uint16)).save(path)
    assert check({}).config.data.pixel_range == (0, 255) and len(count) == 3


def test_of_many_deep_pictures_a_fixed_sample_is_read(check, monkeypatch):
    monkeypatch.setattr(measure_pixels, "MOST_READ", 4)
    read, paths = measure_pixels.read_stored, set()
    monkeypatch.setattr(
        measure_pixels, "read_stored", lambda path, bands: paths.add(path[-6:]) or read(path, bands)
    )
    pictures = {f"train/{i:02}.png": twelve(i) for i in range(10)} | {"val/00.png": twelve(0)}
    assert check(pictures).config.data.pixel_range == (0, 4095)
    assert sorted(paths) == ["00.png", "02.png", "05.png", "07.png"]


def whole(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint16)


SPLITS = {  # training picture, validation picture -> what is said of val
    "deeper": (whole(noise(0, 4096)), whole(noise(0, 65536)), "beyond-range"),
    "a little deeper": (noise(250, 310).astype("f4"), noise(250, 315).astype("f4"), None),
    "lower": (noise(0, 3000).astype("i2"), noise(-2000, 3000).astype("i2"), "beyond-range"),
    "darker": (whole(noise(0, 65536)), whole(noise(0, 4096)), "narrow-range"),
    "alone deep": (noise(0, 256).astype("u1"), whole(noise(0, 16384)), "beyond-range"),
    "alone deep, 16 bits": (noise(0, 256).astype("u1"), whole(noise(0, 65536)), None),
    "alone deep in train": (whole(noise(0, 4096)), noise(0, 256).astype("u1"), None),
    "equal": (whole(noise(0, 4096)), whole(noise(0, 4000, 1)), None),
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_of_another_range_than_train(check, name):
    train, val, code = SPLITS[name]
    told = findings(check({"train/0.tif": tiff_file(train), "val/0.tif": tiff_file(val)}))
    found = {kind for kind, split in told if split == "val"} & {"beyond-range", "narrow-range"}
    assert found == ({code} if code else set())
    assert not {kind for kind, split in told if split == "train"} & {"beyond-range", "narrow-range"}


def test_white_pictures_are_counted(check):
    blank = np.full(SIZE, 250, np.uint8)
    assert findings(check({"train/0.png": blank, "val/0.png": blank}))["pale", "train"] == ("warning", 1)


def test_zeros_and_ones_are_all_that_a_mask_has(check):
    content = tiff_file((noise(0, 1) < 0.3).astype("f4"))
    assert ("range-ends", "train") not in findings(check({"train/0.tif": content, "val/0.tif": content}))


@pytest.mark.parametrize("number", [3.4e38, -3.4e38])
def test_a_number_for_no_value(check, number):
    content = tiff_file(np.where(noise(0, 1) < 0.3, number, np.rint(noise(0, 80, 1))).astype("f4"))
    told = findings(check({"train/0.tif": content, "val/0.tif": content}))
    assert told["range-ends", "train"][0] == told["range-ends", "val"][0] == "warning"


FRAME = np.arange(SIZE[1])[None] < SIZE[1] // 4  # a quarter of the pixels
NUMBERS = {  # picture with a number for no value -> the range of all others
    "float": (np.where(FRAME, -9999, noise(0, 200)).astype("f4"), (0, 200)),
    "few": (np.where(np.arange(SIZE[1])[None] < 3, -9999, noise(0, 200)).astype("f4"), (0, 200)),
    "int16": (np.where(FRAME, -32768, noise(0, 400)).astype("i2"), (0, 400)),
    "uint16": (np.where(FRAME, 65535, noise(0, 3000)).astype("u2"), (0, 3000)),
    "kelvin": (np.where(FRAME, 0, noise(290, 310)).astype("f4"), (290, 310)),
    "both": (np.where(FRAME, -9e9, np.where(FRAME[:, ::-1], 9e9, noise(0, 200))).astype("f4"), (0, 200)),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_crushes_the_range(check, name):
    values, rest = NUMBERS[name]
    clean = tiff_file(values[:, SIZE[1] // 4 : -SIZE[1] // 4])
    found = check({"train/0.tif": tiff_file(values), "val/0.tif": clean})
    (finding,) = (f for f in found.findings if (f.code, f.split) == ("range-ends", "train"))
    low, high = map(float, finding.remedy.partition("=[")[2].rstrip("]").split(","))
    assert (low, high) == pytest.approx(rest, abs=3) and finding.severity == "warning"
    codes = findings(check({}, pixel_range=(low, high)))
    assert not {"range-ends", "narrow-range", "beyond-range"} & {code for code, _ in codes}


ORDINARY = {
    "black border": np.where(FRAME, 0, noise(500, 4096)).astype("u2"),
    "saturated": np.minimum(noise(0, 6000), 4095).astype("u2"),
    "hot pixels": np.where(noise(0, 1, 2) < 0.003, 65535, noise(0, 3000)).astype("u2"),
    "8 bits": np.where(FRAME, 255, noise(0, 40)).astype("u1"),
    "mask": FRAME.repeat(SIZE[0], 0).astype("u2"),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_ends_are_not_taken_for_no_value(check, name):
    content = tiff_file(ORDINARY[name])
    told = findings(check({"train/0.tif": content, "val/0.tif": content}))
    assert "range-ends" not in {code for code, _ in told}


def test_no_number_for_no_value_of_another_split_is_put_into_the_range(check):
    clean, marked = noise(0, 200).astype("f4"), np.where(FRAME, -9999, noise(0, 200)).astype("f4")
    told = check({"train/0.tif": tiff_file(clean), "val/0.tif": tiff_file(marked)})
    assert not {"beyond-range", "range-ends", "narrow-range"} & {code for code, _ in findings(told)}


@pytest.mark.parametrize("code", ["narrow-range", "beyond-range"])
def test_a_setting_that_would_spoil_another_split_is_not_offered(check, code):
    wide, eight = whole(noise(0, 4096)), whole(noise(0, 256))
    train, val = (wide, eight) if code == "narrow-range" else (eight, wide)
    found = check({"train/0.tif": tiff_file(train), "val/0.tif": tiff_file(val)})
    (finding,) = (f for f in found.findings if (f.code, f.split) == (code, "val"))
    assert "pixel_range" not in finding.remedy and "one scale" in finding.remedy


def test_a_given_range_that_burns_a_split_is_warned_of(check):
    pictures = {"train/0.png": whole(noise(0, 4096)), "val/0.png": whole(noise(0, 254))}
    told = findings(check(pictures, pixel_range=(0, 253)))
    assert told["range-ends", "train"][0] == "warning" and ("range-ends", "val") not in told
    assert findings(check({}, pixel_range=(0, 1)))["range-ends", "train"][0] == "warning"
