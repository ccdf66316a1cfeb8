"""Where something is not found, one line names what lies near and what to do with it."""

import json
import unicodedata

import pytest
from PIL import Image

from data.index import load_split
from data.spec import load_data_spec
from utils.errors import UserError

ROW = "0 .5 .5 .5 .5\n"
YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


def make(root, *, picture="images/{}/a.jpg", label="labels/{}/a.txt", yaml=YAML):
    for split in ("train", "val"):
        for path in (root / picture.format(split), root / label.format(split)):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(root / picture.format(split))
        (root / label.format(split)).write_text(ROW)
    if yaml:
        (root / "data.yaml").write_text(yaml)
    return root


def error_of(path, split="train"):
    with pytest.raises(UserError) as error:
        load_split(load_data_spec(path), split)
    return str(error.value)


COMPOSED = unicodedata.normalize("NFC", "\u00e9")
LABELS = [  # picture, label, entry
    ("images/{}/a.jpg", "annotations/{}/a.txt", "images"),
    ("images/{}/a.jpg", "labels/{}/A.txt", "images"),
    ("images/{}/A.JPG", "labels/{}/a.txt", "images"),
    ("images/{}/a.jpg", "labels/{}/a.jpg.txt", "images"),
    ("Images/{}/a.jpg", "Labels/{}/a.txt", "Images"),
    ("JPEGImages/{}/a.jpg", "labels/{}/a.txt", "JPEGImages"),
    ("images/{}/a.jpg", "labels/{}/obj/a.txt", "images"),
    (f"images/{{}}/{unicodedata.normalize('NFD', COMPOSED)}.jpg", f"labels/{{}}/{COMPOSED}.txt", "images"),
]


@pytest.mark.parametrize(("picture", "label", "entry"), LABELS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_that_lie_elsewhere_or_are_spelled_otherwise(tmp_path, picture, label, entry, split):
    root = make(tmp_path, picture=picture, label=label, yaml=YAML.replace("images", entry))
    *_, said = error_of(root, split).splitlines()
    assert said.startswith(
        f"{root / label.format(split)} is there: put these files where they are looked for"
    )


def test_labels_of_another_split_are_not_offered(tmp_path):
    root = make(tmp_path)
    (root / "labels/val/a.txt").unlink()
    assert "is there" not in error_of(root, "val")


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("xml/{}/a.xml", "write format: voc and annotations: "),
        ("ann/{}/a.json", "convert them to YOLO, COCO or VOC"),
    ],
)
def test_label_files_of_another_format(tmp_path, label, text):
    assert text in error_of(make(tmp_path, label=label)).splitlines()[-1]


@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "dataset.yaml", "dataset.yml"])
def test_the_yaml_of_a_folder(tmp_path, name):
    root = make(tmp_path, yaml="")
    (root / name).write_text(YAML)
    assert load_data_spec(root).names == ("cat", "dog")


@pytest.mark.parametrize("name", ["pets.yaml", "pets-1/data.yaml", "pets-1/data.yml"])
@pytest.mark.parametrize("picture", ["images/{}/a.jpg", "pictures/{}/a.jpg"])
def test_a_yaml_that_has_to_be_named(tmp_path, name, picture):
    root = make(tmp_path, yaml="", picture=picture)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text(YAML)
    assert f"{root / name} is there: give it as --data" in error_of(root)


@pytest.mark.parametrize(
    "entry",
    [
        "/kaggle/input/set/images/train",
        "C:\\set\\images\\train",
        "../../set/images/train",
        "set/images/train",
    ],
)
def test_an_entry_of_another_machine_names_its_part_that_is_here(tmp_path, entry, monkeypatch):
    monkeypatch.chdir(make(tmp_path / "here").parent)
    (tmp_path / "here/data.yaml").write_text(YAML.replace("images/train", entry))
    assert error_of(tmp_path / "here").endswith(
        f"{tmp_path}/here/images/train is there: write train: images/train"
    )


def test_names_by_digits_as_text(tmp_path):
    root = make(tmp_path, yaml=YAML.replace("[cat, dog]", json.dumps({"1": "dog", "0": "cat"})))
    assert load_data_spec(root).names == ("cat", "dog")


def test_json_under_annotations_is_told_from_voc(tmp_path):
    text = error_of(make(tmp_path, yaml="train: images/train\nannotations: {train: a.json}\n"))
    assert "For COCO write train: a.json and images: {train: 'images/train'}" in text
