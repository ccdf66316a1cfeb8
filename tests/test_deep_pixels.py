"""12-bit pictures from the training to detection: the range is found once and is the same everywhere."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import decode_image
from data.pixels import Pixels
from inference import load_detector
from tests.data.tiff_files import tiff_file
from utils.config_files import config_from_plain, read_yaml
from utils.errors import DATA, OK, UserError
from utils.training.checkpoint import load_checkpoint, save_checkpoint

DEEP = Pixels((0, 4095), (3, 1, 2))
LEAST = ("--cfg", "demo", "--img", 32, "--batch", 2, "--workers", 0, "--device", "cpu", "--noplots")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """data.yaml of pictures of three bands of 12 bits."""
    root = tmp_path_factory.mktemp("deep")
    generator = np.random.default_rng(0)
    for split, count in {"train": 4, "val": 2}.items():
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for number in range(count):
            values = generator.integers(0, 4096, (32, 48, 3)).astype("u2")
            (root / "images" / split / f"{number}.tif").write_bytes(tiff_file(values))
            (root / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (root / "d.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    return root / "d.yaml"


@pytest.fixture
def run(command, deep, tmp_path, monkeypatch):
    """The folder of a finished run on these pictures, in bands 3, 1, 2."""
    monkeypatch.chdir(tmp_path)
    bands = ("--set", "data.bands=[3,1,2]")
    done = command("train", "--data", deep, "--epochs", 1, "--name", "x", *bands, *LEAST)
    assert done.code == OK and "pixels:   12 bits in uint16 files (0..4095) -> 0..255" in done.out
    return tmp_path / "runs" / "train" / "x"


def test_the_range_is_kept_and_used_everywhere(command, deep, run, tmp_path):
    saved = load_checkpoint(run / "weights" / "last.pt")["config"]["data"]
    assert (saved["pixel_range"], saved["bands"]) == ([0, 4095], [3, 1, 2])
    assert read_yaml(run / "config.yaml")["data"]["pixel_range"] == [0, 4095]
    detector = load_detector(run / "weights" / "best.pt")
    assert detector.pixels == DEEP
    # other data than it was trained on, of other brightness: still the run's range
    dark = tmp_path / "dark.tif"
    dark.write_bytes(tiff_file(np.full((32, 32, 3), [100, 200, 400], "u2")))
    np.testing.assert_array_equal(decode_image(dark, pixels=detector.pixels)[0, 0], [25, 6, 12])
    found = command("detect", "--weights", run / "weights" / "best.pt", "--source", dark, "--conf-thres", 1)
    assert found.code == OK and "nearly black" not in found.out
    drawn = decode_image("runs/detect/exp/dark.tif")  # without boxes
    np.testing.assert_array_equal(drawn[0, 0], [25, 6, 12])  # what was looked at is what is drawn
    measured = command("val", "--weights", run / "weights" / "best.pt", "--workers", 0)
    assert measured.code == OK


def test_detect_sees_the_same_with_and_without_pictures(command, deep, run):
    rows = []
    for name, more in {"a": ["--save-crop"], "b": ["--nosave"]}.items():
        given = ("--weights", run / "weights" / "best.pt", "--source", deep.parent / "images/val")
        told = command("detect", *given, "--conf", 0, "--max-det", 5, "--save-txt", "--save-conf",
                       "--project", "found", "--name", name, *more)  # fmt: skip
        assert told.code == OK, told.err
        rows.append([path.read_text() for path in sorted(Path("found", name, "labels").iterdir())])
    assert rows[0] == rows[1] and all(rows[0])


@pytest.mark.parametrize(("value", "warned"), [(0, True), (2000, False), (65535, True)])
def test_detect_warns_of_values_beyond_the_runs_range(command, run, tmp_path, value, warned):
    (tmp_path / "a.tif").write_bytes(tiff_file(np.full((32, 32, 3), value, "u2")))
    told = command("detect", "--weights", run / "weights" / "best.pt", "--source", tmp_path / "a.tif")
    assert ("warning: 1 pictures are nearly black or white" in told.out) == warned
    assert ("these weights take the values 0..4095" in told.out) == warned


def test_a_resumed_run_measures_nothing(command, deep, run, monkeypatch):
    monkeypatch.setattr("data.doctor.brightness.measure_pixels", None)
    on = ("--data", deep, "--resume", run, "--epochs", 2, "--set", "data.pixel_range=auto")
    done = command("train", *on, "--device", "cpu", "--workers", 0, "--noplots")
    assert done.code == OK, done.err
    assert load_checkpoint(run / "weights" / "last.pt")["config"]["data"]["pixel_range"] == [0, 4095]


def test_older_checkpoints_keep_the_high_byte(run, tmp_path):
    content = load_checkpoint(run / "weights" / "last.pt")
    for key in ("pixel_range", "bands"):
        del content["config"]["data"][key]
    assert config_from_plain(content["config"]).data.pixel_range == "full"
    save_checkpoint(tmp_path / "old.pt", content)
    assert load_detector(tmp_path / "old.pt").pixels == Pixels()


def test_detect_warns_of_deep_pictures_that_come_out_black(command, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((32, 32), 2000, np.uint16)).save(tmp_path / "a.png")
    weights = ("--weights", trained / "weights" / "best.pt", "--source", tmp_path / "a.png")
    assert "warning: 1 pictures are nearly black or white" in command("detect", *weights).out
    told = command("detect", *weights, "--set", "data.pixel_range=[0,4095]")
    assert told.code == OK and "nearly black" not in told.out


@pytest.mark.parametrize(
    "picture",
    [np.zeros((8, 8, 3), np.uint16), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8),
     np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)],
    ids=["uint16", "float", "grey", "alpha", "empty"],
)  # fmt: skip
def test_arrays_of_other_kinds_are_refused(trained, picture):
    with pytest.raises(UserError, match=r"must be .height, width, 3. uint8 RGB") as error:
        load_detector(trained / "weights" / "best.pt")(picture)
    assert error.value.code == DATA
