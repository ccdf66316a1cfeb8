"""Pipes, devices and endless files in place of those of a data set: refused by name, never waited for."""

import os
import shutil
from pathlib import Path

import pytest

from data.index import load_split
from data.spec import load_data_spec
from tests.data.test_formats import make_pictures, write_coco, write_voc, write_yolo
from utils.errors import UserError
from utils.files import open_regular


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def endless(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10**12)  # holes: it takes no room


KINDS = {pipe: "not a regular file", device: "not a regular file", endless: "more than the limit of"}
FILES = {  # what writes a data set -> files of it
    write_yolo: ("labels/a.txt",),
    write_voc: ("xml/a.xml",),
    write_coco: ("a.json",),
}


CASES = [(write, kind) for write in FILES for kind in KINDS]
CASES.remove((write_coco, endless))  # one JSON file holds a whole data set, so its size has no limit


@pytest.mark.parametrize(("write", "kind"), CASES)
def test_label_files_that_are_no_files_are_refused(write, kind, tmp_path):
    yaml = write(make_pictures(tmp_path / "set"))
    file = yaml.parent / FILES[write][0]
    file.unlink()
    kind(file)
    with pytest.raises(UserError) as error:
        load_split(load_data_spec(yaml), "train")
    assert str(file) in str(error.value)
    assert KINDS[kind] in str(error.value) or "not found" in str(error.value)


@pytest.mark.parametrize("kind", [pipe, device])
@pytest.mark.parametrize("name", ["list.txt", "data.yaml", "images/a.png", "classes.txt"])
def test_other_files_that_are_no_files_are_refused(name, kind, tmp_path):
    yaml = write_yolo(make_pictures(tmp_path / "set"))
    if name == "list.txt":
        yaml.write_text("train: list.txt\nval: list.txt\nnames: [cat, dog]\n")
    elif name == "classes.txt":
        shutil.copytree(yaml.parent / "images", tmp_path / "set" / "images" / "train")
        yaml.unlink()
    (yaml.parent / name).unlink(missing_ok=True)
    kind(yaml.parent / name)
    with pytest.raises(UserError, match=r"regular file|usual layouts|not found|neither a file nor a folder"):
        load_split(load_data_spec(yaml if name == "data.yaml" else yaml.parent), "train")


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    with open_regular(tmp_path / "a", most=5) as file:
        assert file.read() == b"12345"
    with pytest.raises(ValueError, match="5 bytes are more than the limit of 4"):
        open_regular(tmp_path / "a", most=4)
    with pytest.raises(ValueError, match="not a regular file"):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "b")
