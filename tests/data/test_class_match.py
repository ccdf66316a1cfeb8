"""Weights measure data of their classes: also where a rare one does not occur, or the order is another."""

import json

import pytest
from PIL import Image

from data.class_match import match_classes
from data.index import load_split
from data.spec import load_data_spec
from utils.errors import UserError

WEIGHTS = ("cat", "dog", "red fox")


def write_voc(root, classes, names):
    for number, name in enumerate(classes):
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        text = f"<annotation><object><name>{name}</name>{box}</object></annotation>"
        (root / f"{number}.xml").write_text(text)
    return "annotations: .\n"


def write_coco(root, classes, names):
    known = sorted(set(classes), reverse=True)
    content = {
        "categories": [{"id": 5 + place, "name": name} for place, name in enumerate(known)],
        "images": [{"id": place, "file_name": f"{place}.png"} for place in range(len(classes))],
        "annotations": [
            {"id": place, "image_id": place, "category_id": 5 + known.index(name), "bbox": [1, 1, 8, 8]}
            for place, name in enumerate(classes)
        ],
    }
    (root / "a.json").write_text(json.dumps(content))
    return ""


def write_yolo(root, classes, names):
    for number, name in enumerate(classes):
        (root / f"{number}.txt").write_text(f"{names.index(name)} .5 .5 .5 .5\n")
    return ""


WRITERS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}


def spec_of(root, format, classes, names=None):
    for number in range(len(classes)):
        Image.new("RGB", (16, 16)).save(root / f"{number}.png")
    more = WRITERS[format](root, classes, names)
    source = "a.json" if format == "coco" else "."
    listed = f"names: {list(names)}\n" if names else ""
    (root / "data.yaml").write_text(f"train: {source}\nformat: {format}\n{more}{listed}")
    return load_data_spec(root / "data.yaml")


@pytest.mark.parametrize("format", ["voc", "coco"])
@pytest.mark.parametrize(
    "classes", [["dog", "cat"], ["red fox"], ["red fox", "dog", "cat", "cat"]], ids=["subset", "one", "all"]
)
@pytest.mark.parametrize("names", [None, ("red fox", "dog", "cat")])
def test_labels_by_name_are_measured_in_the_order_of_the_weights(tmp_path, format, classes, names):
    spec = match_classes(spec_of(tmp_path, format, classes, names), WEIGHTS, weights="best.pt")
    assert spec.names == WEIGHTS and len(set(spec.category_ids)) == 3
    index, _ = load_split(spec, "train")
    assert [WEIGHTS[label] for label in index.labels] == classes


def test_yolo_names_that_begin_like_the_weights(tmp_path, capsys):
    spec = match_classes(spec_of(tmp_path, "yolo", ["dog"], ("cat", "dog")), WEIGHTS, weights="best.pt")
    assert spec.names == WEIGHTS and load_split(spec, "train")[0].labels.tolist() == [1]
    assert "no names for red fox; taken from best.pt" in capsys.readouterr().out


LINE = "names: [cat, dog, red fox]"
REFUSED = [
    ("yolo", ["dog"], ("dog", "cat"), ["YOLO labels hold numbers", LINE]),
    ("yolo", ["dog"], ("dog",), ["YOLO labels hold numbers", LINE]),
    ("yolo", ["dog"], ("dog", "wolf"), ["Measure on the data set it was trained on"]),
    ("voc", ["cat", "dog", "red fox", "wolf"], None, ["do not know: wolf", "--label-errors skip", LINE]),
    ("coco", ["cat", "dog", "red fox", "wolf"], None, ["do not know: wolf", LINE]),
    ("coco", ["cat", "wolf"], None, ["Measure on the data set it was trained on"]),
    ("voc", ["bird"], None, ["Measure on the data set it was trained on"]),
]


@pytest.mark.parametrize(("format", "classes", "names", "texts"), REFUSED)
def test_other_classes_are_refused_with_the_line_to_write(tmp_path, format, classes, names, texts):
    with pytest.raises(UserError) as error:
        match_classes(spec_of(tmp_path, format, classes, names), WEIGHTS, weights="best.pt")
    assert all(text in str(error.value) for text in texts), str(error.value)
    if LINE in texts and format == "coco":  # the advice works
        spec = spec_of(tmp_path, format, classes, WEIGHTS)
        assert match_classes(spec, WEIGHTS, weights="best.pt") == spec
        assert load_split(spec, "train")[1].num_boxes == 3


def test_names_may_list_a_class_that_no_json_file_has_but_no_other_word_for_one_that_it_has(tmp_path):
    spec = spec_of(tmp_path, "coco", ["dog", "cat"], WEIGHTS)
    assert spec.names == WEIGHTS and spec.category_ids == (6, 5, 1)
    with pytest.raises(UserError, match="'kat' is no category of the JSON files"):
        spec_of(tmp_path, "coco", ["dog", "cat"], ("kat", "dog"))
