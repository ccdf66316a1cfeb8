"""What strangers can send: class names, configurations, archives, YAML files.

A hostile input must end in a message and have no effect: no file changes, none is written elsewhere, no
process starts and no socket opens. Hostile weights stand in tests/utils/training/test_weights_file.py; more
archives, answers of servers and `download` entries in tests/data/test_unpack.py and test_download.py.
"""

import json
import os
import shutil
import socket
import struct
import subprocess
import tarfile
import unicodedata
import zipfile
import zlib
from pathlib import Path

import pytest
import torch

from data.check import main as check_data
from data.images import decode_image
from data.index import load_split
from data.prepare import prepare_data
from data.spec import load_data_spec
from data.unpack import Refused, unpack
from inference import load_detector, make_detector
from models.detector import build_detector
from tests.conftest import Result
from tests.data.test_unpack import KINDS, NAMES, TOO_MUCH, make_tar, make_zip, of_type
from tests.effects import memory_limit, state_of, watched
from utils.config import ModelConfig
from utils.config_files import load_config
from utils.errors import DATA, OK, USAGE, UserError
from utils.training.checkpoint import load_checkpoint, save_checkpoint


def test_effects_are_seen(tmp_path):
    with watched(tmp_path / "free") as seen:
        (tmp_path / "free").mkdir()
        (tmp_path / "free" / "a").write_text("")
        (tmp_path / "free" / "a").read_text()
        assert seen == []
        (tmp_path / "b").write_text("")
        (tmp_path / "b").rename(tmp_path / "free" / "b")
        subprocess.run(["true"], check=True)
        socket.socket().close()
    assert [effect.split()[0] for effect in seen][:3] == ["open", "os.rename", "subprocess.Popen"]
    assert any(effect.startswith("socket.__new__") for effect in seen)


# class names from weights and data sets

CLASS_NAMES = (
    (
        "\x1b[2J\x1b]0;owned\x07",
        "a\nerror: all is well\r",
        "\u202egpj.exe\u2066",
        "../../../escaped",
        "CON",
        "a\0b",
    ),
    ("", "\ud800", "/tmp/escaped", "a/b", "A?B", "x" * 100_000 + "\x9b31m"),
    ("$\\frac{$ _^", "..", "a_b", "a:b", "A/b", "\u2028\u00a0 . "),
)


@pytest.fixture(scope="module")
def renamed(trained, tmp_path_factory):
    """``renamed(names)``: trained weights with other class names, that find each class in any picture."""

    def make(names, **changes) -> Path:
        content = load_checkpoint(trained / "weights" / "best.pt")
        for key, tensor in content["ema"].items():
            if key.startswith("head.cls_outputs."):
                tensor.zero_()
        content["names"] = list(names)
        for key, value in changes.items():
            section, name = key.split("__")
            content["config"][section][name] = value
        path = tmp_path_factory.mktemp("weights") / "weights.pt"
        save_checkpoint(path, {key: value for key, value in content.items() if key != "schema"})
        return path

    return make


def assert_prints_plainly(result) -> None:
    letters = {letter for letter in result.out + result.err if unicodedata.category(letter)[0] == "C"}
    assert letters <= {"\n"} and "Traceback" not in result.err
    assert max(map(len, (result.out + result.err).splitlines())) < 5000


def assert_only_below(folder: str, changed) -> None:
    assert [name for name in changed if not f"{name}/".startswith("runs/")] == []
    assert {path.name for path in Path(folder).parent.iterdir()} == {Path(folder).name}
    assert {path.name for path in Path("runs").iterdir()} == {Path(folder).parent.name}


@pytest.mark.parametrize("names", CLASS_NAMES)
def test_detection_with_hostile_class_names(names, renamed, command, shapes, tmp_path):
    weights, picture = renamed(names), sorted((shapes.parent / "images" / "val").glob("*.jpg"))[0]
    with watched(tmp_path, os.environ["LTRB_CACHE"]) as seen:
        flags = ["--weights", weights, "--source", picture, "--save-txt", "--save-crop", "--max-det", 60]
        result = command("detect", *flags, "--iou-thres", 0.1)
    assert result.code == OK and seen == []
    assert_prints_plainly(result)
    assert_only_below("runs/detect/exp", state_of(tmp_path))
    crops = sorted(Path("runs/detect/exp/crops").iterdir())
    assert len(crops) == len({crop.name.casefold() for crop in crops}) == len(names)
    rows = Path(f"runs/detect/exp/labels/{picture.stem}.txt").read_text().splitlines()
    assert sum(len(list(crop.iterdir())) for crop in crops) == len(rows) == 60
    assert decode_image(f"runs/detect/exp/{picture.name}").any()
    refused = command("detect", *flags, "--classes", 99)
    assert refused.code == USAGE
    assert_prints_plainly(refused)


@pytest.mark.parametrize("names", [CLASS_NAMES[0], CLASS_NAMES[2]])  # YAML holds no half of a surrogate pair
def test_validation_with_hostile_class_names(names, renamed, command, shapes, tmp_path):
    shutil.copytree(shapes.parent, tmp_path / "set")
    text = f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n"
    (tmp_path / "set" / "data.yaml").write_text(text)
    names = [name.strip() for name in names]
    weights, before = renamed(names), state_of(tmp_path)
    flags = ["--data", tmp_path / "set" / "data.yaml", "--workers", 0]
    with watched(tmp_path, os.environ["LTRB_CACHE"]) as seen:
        result = command("val", "--weights", weights, *flags)
    assert result.code == OK, result.err
    assert [effect for effect in seen if "'git'" not in effect] == []  # the commit of the measurement
    assert_prints_plainly(result)
    assert_only_below(
        "runs/val/exp", {name for name, state in state_of(tmp_path).items() if before.get(name) != state}
    )
    assert list(json.loads(Path("runs/val/exp/metrics.json").read_text())["per_class"]) == names
    assert Path("runs/val/exp/PR_curve.png").stat().st_size > 10_000
    refused = command("val", "--weights", renamed([*names[1:], names[0]]), *flags)
    assert refused.code == USAGE and "not those of the data" in refused.err
    assert_prints_plainly(refused)


@pytest.mark.parametrize("names", [CLASS_NAMES[0], CLASS_NAMES[2]])
def test_the_doctor_with_hostile_class_names(names, shapes, tmp_path, capfd, monkeypatch):
    shutil.copytree(shapes.parent, tmp_path / "set")
    text = f"train: images/train\nval: images/val\nnames: {json.dumps([*names, 'never there'])}\n"
    (tmp_path / "set" / "data.yaml").write_text(text)
    (tmp_path / "set" / "labels" / "train" / "000001.txt").rename(
        tmp_path / "set" / "labels" / "train" / "x\x1b[2J\x9b.txt"
    )
    monkeypatch.setattr("sys.argv", ["check.py", "--data", str(tmp_path / "set")])
    check_data()
    result = Result(OK, *capfd.readouterr())
    assert "classes without any box" in result.out
    assert_prints_plainly(result)


# the configuration in weights


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
@pytest.mark.parametrize(
    "changes",
    [
        {"width": 8.0, "depth": 8.0, "levels": [2, 3, 4, 5, 6], "reg_max": 64, "max_channels": 65_536},
        {"width": 8.0},
        {"depth": 8.0},
        {"reg_max": 64},
        {"levels": [2, 3, 4, 5, 6]},
        {"quality_branch": "dgqp"},
    ],
)
def test_a_configuration_of_another_size_takes_no_memory(changes, renamed):
    weights = renamed("abcdef", **{f"model__{key}": value for key, value in changes.items()})
    with (
        memory_limit(2 * 2**30),
        pytest.raises(UserError, match="not those of the model it describes") as error,
    ):
        load_detector(weights)
    assert str(weights) in str(error.value)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_tensors_that_only_claim_their_size_take_no_memory():
    """Each is a part of one that the file does hold: together they are 200 times the file."""
    cfg = ModelConfig(width=2, depth=8)
    with torch.device("meta"):
        shapes = build_detector(cfg, 6).state_dict()
    bank = torch.zeros(max(tensor.numel() for tensor in shapes.values()))
    count = torch.zeros((), dtype=torch.int64)
    tensors = {
        key: bank[: own.numel()].view(own.shape) if own.is_floating_point() else count
        for key, own in shapes.items()
    }
    limit = 10 * bank.nbytes
    assert sum(tensor.nbytes for tensor in tensors.values()) > 2 * limit
    with memory_limit(limit), pytest.raises(UserError, match="its tensors share"):
        make_detector(cfg, tensors, num_classes=6, where="weights.pt")


def test_weights_without_classes_are_refused():
    with pytest.raises(UserError, match=r"weights\.pt is damaged: it names no classes"):
        make_detector(ModelConfig(), {}, num_classes=0, where="weights.pt")


def test_weights_name_no_data_set_to_fetch_and_no_number_of_processes(renamed, command, tmp_path):
    (tmp_path / "data.yaml").write_text("train: gone\nval: gone\nnames: [a]\ndownload: bash fetch.sh\n")
    changes = {"data__path": str(tmp_path / "data.yaml"), "data__workers": 256, "data__cache": "disk"}
    weights = renamed("abcdef", **changes)
    assert load_detector(weights).config.data.workers is None
    assert "--data" in command("val", "--weights", weights, "--download").err
    run = tmp_path / "theirs" / "weights"
    run.mkdir(parents=True)
    shutil.copy(weights, run / "last.pt")
    result = command("train", "--resume", run.parent, "--download")
    assert result.code == USAGE and "name the data set with --data" in result.err
    assert [path.name for path in run.parent.rglob("*")] == ["weights", "last.pt"]
    before = state_of(tmp_path)
    with watched(tmp_path, os.environ["LTRB_CACHE"]) as seen:
        result = command("val", "--weights", weights)
    assert result.code in (USAGE, DATA) and seen == [] and state_of(tmp_path) == before
    assert_prints_plainly(result)


@pytest.mark.parametrize(
    "path", ["\x1b[2J", "a\nb\0c", "/dev/zero", "x" * 100_000, "\ud800", "//host/share/x.yaml"]
)
def test_a_hostile_path_in_weights_is_only_shown(path, renamed, command, tmp_path):
    weights = renamed("abcdef", data__path=path)
    with watched(tmp_path, os.environ["LTRB_CACHE"]) as seen:
        result = command("val", "--weights", weights)
    assert result.code in (USAGE, DATA) and len(result.err.splitlines()) <= 6 and seen == []
    assert_prints_plainly(result)
    assert not list(tmp_path.iterdir())


def test_hostile_keys_in_weights_are_only_shown(renamed, command):
    for changes in (
        {"model__\x1b[2J\n": 1},
        {"model__width": "\x1b[2J" * 1000},
        {"model__levels": {"\ud800": 1}},
    ):
        result = command("detect", "--weights", renamed("abcdef", **changes), "--source", "x.jpg")
        assert result.code == USAGE
        assert_prints_plainly(result)


# archives


def _local_name_differs(path: Path) -> Path:
    """The directory of the zip says a.jpg, the member itself ../b.x."""
    data = make_zip(path, {"a.jpg#": b"x"}).read_bytes()
    path.write_bytes(data.replace(b"a.jpg#", b"../b.x", 1))
    return path


def _overlapping(path: Path) -> Path:
    """Two entries of the directory share the bytes of one member, as in bombs without nesting."""
    data = bytearray(make_zip(path, {"a.jpg": bytes(10**6), "b.jpg": b""}).read_bytes())
    first, second = data.index(b"PK\1\2"), data.rindex(b"PK\1\2")
    data[second + 16 : second + 28] = data[first + 16 : first + 28]  # sum and sizes
    data[second + 42 : second + 46] = data[first + 42 : first + 46]  # place
    path.write_bytes(data)
    return path


def _second_name(path: Path) -> Path:
    """Info-ZIP's extra field with another name in Unicode, which newer versions of zipfile take."""
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("a.jpg")
        name = b"../evil"
        info.extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(b"a.jpg")) + name
        archive.writestr(info, b"x")
    return path


def _pax(**headers):
    change = {"x.jpg": lambda info: info.pax_headers.update(headers)}
    return lambda path: make_tar(path, change, form=tarfile.PAX_FORMAT)


REFUSED = {
    **{f"tar, {kind}": lambda path, kind=kind: make_tar(path, KINDS[kind]) for kind in KINDS},
    **{f"zip, {name!a}": lambda path, name=name: make_zip(path, {name: b"x"}) for name in NAMES},
    **{kind: make for kind, (make, limits, _) in TOO_MUCH.items() if not limits and "tar." not in kind},
    "tar, link over a folder": lambda path: make_tar(
        path, {"d/a.jpg": b"", "d": of_type(tarfile.SYMTYPE, "/tmp")}
    ),
    "tar, pax path above": _pax(path="../evil"),
    "tar, pax size": _pax(size="-1000000"),
    "tar, pax makes it a link": lambda path: make_tar(
        path, {"x": of_type(tarfile.SYMTYPE, "a" * 200)}, form=tarfile.PAX_FORMAT
    ),
    "zip, names differ": _local_name_differs,
    "zip, overlapping members": _overlapping,
    "tar.gz, bomb": lambda path: make_tar(path, {"a.bmp": bytes(80 * 2**20)}, mode="w:gz"),
}
for kind in ("zip", "left out", "all pax"):  # no bombs by the true limits
    REFUSED.pop(kind)


@pytest.fixture
def area(tmp_path):
    (tmp_path / "area" / "set").mkdir(parents=True)
    (tmp_path / "area" / "precious").write_bytes(b"mine")
    return tmp_path / "area"


@pytest.mark.parametrize("kind", REFUSED)
def test_hostile_archives_have_no_effect(kind, tmp_path, area):
    archive = REFUSED[kind](tmp_path / "archive")
    before = state_of(tmp_path)
    with watched(area / "set") as seen, pytest.raises(Refused):
        unpack(archive, area / "set")
    shutil.rmtree(area / "set")
    before.pop("area/set")
    assert seen == [] and state_of(tmp_path) == before


def test_a_second_name_is_not_taken(tmp_path, area):
    archive = _second_name(tmp_path / "archive")
    with watched(area / "set") as seen:
        unpack(archive, area / "set")
    assert seen == [] and os.listdir(area / "set") == ["a.jpg"]


# YAML files

ALIASES = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
SET = "train: images\nval: images\nnames: [a]\n"
YAMLS = {  # text -> what the message says
    "apply": ("train: !!python/object/apply:os.system ['touch TRAP']\n", "python/object/apply"),
    "object": ("names: !!python/object:subprocess.Popen {args: [touch, TRAP]}\n", "python/object"),
    "new": ("a: !!python/object/new:os.system [touch TRAP]\n", "python/object/new"),
    "module": ("a: !!python/module:antigravity\n", "python/module"),
    "name": ("train: !!python/name:os.system\n", "python/name"),
    "own tag": ("train: !include /etc/passwd\n", "!include"),
    "binary": ("train: !!binary aW1hZ2Vz\n", "binary"),
    "aliases": (ALIASES + SET, "repeats a list or a mapping"),
    "cycle": ("a: &a [*a]\n" + SET, "*a"),
    "merge": ("a: &a {x: 1}\nb: {<<: *a}\n" + SET, "repeats a list or a mapping"),
    "script": (
        "train: gone\nval: gone\nnames: [a]\ndownload: |\n  import os\n  os.system('touch TRAP')\n",
        "Scripts are never run",
    ),
    "bash": ("train: gone\nval: gone\nnames: [a]\ndownload: bash -c 'touch TRAP'\n", "Scripts are never run"),
    "file": ("train: gone\nval: gone\nnames: [a]\ndownload: [file:///etc/passwd]\n", "Scripts are never run"),
    "to": (
        "train: gone\nval: gone\nnames: [a]\ndownload: {url: https://example.org/a.zip, to: ../../x}\n",
        "a folder inside",
    ),
    "traversal": ("path: ../../..\ntrain: ../../../../etc/ssl\nval: /etc/ssl\nnames: [a]\n", "train"),
    "nested": ("a: " + "[" * 100_000 + "\n", "nested too deeply"),
    "nested blocks": ("".join(f"{' ' * depth}a:\n" for depth in range(3000)), "nested too deeply"),
    "huge integer": (f"{SET}nc: {'9' * 100_000}\n", "more than 64 bits"),
    "many classes": ("train: images\nval: images\nnc: 1000000000\n", "more than 100,000 classes"),
    "twice": (SET + "train: images2\n", "stands here again"),
    "key": ("train: images\n? [1, 2]\n: 3\nnames: [a]\n", "a key must be a single value"),
    "escape": ("\x1b[2J: 1\n" + SET, "not allowed in YAML"),
    "surrogate": ('train: images\nnames: ["\\ud800"]\n', "surrogate"),
}


def read_data_set(yaml: Path) -> None:
    prepare_data(yaml, download=True)
    load_split(load_data_spec(yaml), "train")


@pytest.mark.parametrize("kind", YAMLS)
def test_hostile_data_set_files_have_no_effect(kind, tmp_path, area, monkeypatch):
    text, words = YAMLS[kind]
    monkeypatch.chdir(area)
    (area / "data.yaml").write_text(text)
    before = state_of(tmp_path)
    with memory_limit(2**30), watched(os.environ["LTRB_CACHE"]) as seen, pytest.raises(UserError) as error:
        read_data_set(area / "data.yaml")
    assert seen == [] and state_of(tmp_path) == before
    assert words in str(error.value) and error.value.code == DATA and len(str(error.value)) < 2000


@pytest.mark.parametrize("kind", YAMLS)
def test_hostile_settings_have_no_effect(kind, tmp_path, area, monkeypatch):
    monkeypatch.chdir(area)
    (area / "hyp.yaml").write_text(YAMLS[kind][0])
    before = state_of(tmp_path)
    with watched() as seen, pytest.raises(UserError) as error:
        load_config(hyp=area / "hyp.yaml")
    assert seen == [] and state_of(tmp_path) == before
    assert error.value.code == USAGE and "hyp.yaml" in str(error.value)


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "1 TB", "binary", "gone"])
def test_files_that_are_no_yaml_have_no_effect(kind, tmp_path, area):
    path = area / "data.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "1 TB":
        with open(path, "wb") as file:
            file.truncate(10**12)
    elif kind == "binary":
        path.write_bytes(bytes(range(256)) * 100)
    names = sorted(os.listdir(area))
    for read in (lambda: load_data_spec(path), lambda: load_config(hyp=path), lambda: load_data_spec(area)):
        with watched() as seen, pytest.raises(UserError) as error:
            read()
        assert seen == [] and "area" in str(error.value)
    assert sorted(os.listdir(area)) == names
