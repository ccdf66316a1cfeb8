"""What lies in a data set and is not looked at is counted and named: a warning above 1 %, below it a note."""

import pytest
from PIL import Image

from data.doctor.unread import find_unread
from data.index import read_split
from data.spec import load_data_spec

BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
XML = f"<annotation><object><name>a</name>{BOX}</object></annotation>"


def make(root, files, extra="names: [a]", source="images"):
    """Pictures by their ending, all others with a label or an object in them."""
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png", ".bmp"):
            Image.new("RGB", (16, 16)).save(path)
        else:
            path.write_text(XML if path.suffix.lower() == ".xml" else "0 .5 .5 .5 .5\n")
    (root / "data.yaml").write_text(f"train: {source}\n{extra}\n")
    spec = load_data_spec(root / "data.yaml")
    return find_unread(spec, {"train": read_split(spec, "train")})


PLAIN = ["images/a.jpg", "labels/a.txt", "images/b.jpg", "labels/b.txt"]
CASES = [
    (PLAIN, []),
    ([*PLAIN, "classes.txt", "labels/classes.txt", "images/notes.txt"], []),
    ([*PLAIN, "images/a.png"], [("label-shared", 1)]),
    ([*PLAIN, "images/a.png", "images/a.bmp", "images/b.png"], [("label-shared", 3)]),
    ([*PLAIN, "images/a.txt"], [("label-unread", 1)]),
    ([*PLAIN, "images/c.jpg", "labels/c.TXT"], [("label-unread", 1)]),
    ([*PLAIN, "labels/a.TXT"], []),  # a.txt is read
    ([*PLAIN, "images/c.jpg", "annotations/c.xml"], [("label-unread", 1)]),
    ([*PLAIN, "images/c.jpg", "Annotations/c.xml", "Annotations/a.xml"], [("label-unread", 1)]),
    ([*PLAIN, "images/x/c.jpg", "labels/c.txt"], [("label-unread", 1)]),  # looked for in labels/x
    ([*PLAIN, "images/x/c.jpg", "x/labels/c.txt"], [("label-unread", 1)]),
    ([*PLAIN, "images/x/a.jpg"], []),  # a background; labels/a.txt is of images/a.jpg
    ([*PLAIN, "images/c.jp2", "images/deep/d.heic", "images/.hidden.gif"], [("picture-unread", 2)]),
    ([*PLAIN, *(f"images/x.{end}" for end in ("cr3", "RAF", "jpx", "pam"))], [("picture-unread", 4)]),
    ([*PLAIN, "images/x.mp4", "images/y.MKV"], [("video-unread", 2)]),
    ([*PLAIN, "images/README", "images/a.1"], []),  # no pictures
]


@pytest.mark.parametrize(("files", "expected"), CASES, ids=lambda value: str(value)[-60:])
def test_what_is_not_looked_at(tmp_path, files, expected):
    findings = make(tmp_path, files)
    assert [(finding.code, finding.count) for finding in findings] == expected
    for finding in findings:
        assert finding.severity == "warning" and finding.remedy and str(finding.count) in finding.text
        assert all(place.path.startswith(str(tmp_path)) for place in finding.places)


def test_a_picture_without_an_ending(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("x", "frame.0001"):
        Image.new("RGB", (16, 16)).save(tmp_path / "images" / name, "PNG")
    (finding,) = make(tmp_path, PLAIN)
    assert (finding.code, finding.count) == ("picture-unread", 2) and "no ending" in finding.places[0].text


def test_two_folders_called_images(tmp_path):
    files = [f"images/t/{part}/{name}" for part, name in (("images", "a.jpg"), ("labels", "a.txt"))]
    (finding,) = make(tmp_path, [*files, "labels/t/images/a.txt"])
    assert finding.places[0].path == f"{tmp_path}/labels/t/images/a.txt"
    assert f"read from {tmp_path}/images/t/labels" in finding.places[0].text


def test_voc_files_that_are_shared_or_not_read(tmp_path):
    extra = "annotations: xml\nnames: [a]"
    files = ["images/x/a.jpg", "images/y/a.jpg", "images/x/b.jpg", "images/x/c.jpg", "xml/a.xml", "xml/b.XML"]
    found = make(tmp_path, [*files, "labels/x/c.txt", "Annotations/x/b.xml"], extra)
    assert [(finding.code, finding.count) for finding in found] == [("label-shared", 1), ("label-unread", 3)]


def test_few_are_a_note(tmp_path):
    files = [
        f"{kind}/{number}.{end}"
        for number in range(120)
        for kind, end in (("images", "jpg"), ("labels", "txt"))
    ]
    (finding,) = make(tmp_path, [*files, "images/0.png"])
    assert (finding.severity, finding.count) == ("note", 1)


@pytest.mark.parametrize(
    ("names", "count"),
    [
        ("[cat, dog]", 0),
        ("[Cat, cat]", 1),
        ("[traffic light, traffic_light, TrafficLight, car]", 1),
        ('["a b", "a  b", "c", "C"]', 2),
        ('["\\u00e9", "e\\u0301"]', 1),  # one letter, two codes
        ("[car, cart]", 0),
    ],
)
def test_classes_that_people_take_for_one(tmp_path, names, count):
    findings = make(tmp_path, PLAIN, f"names: {names}")
    assert [finding.count for finding in findings] == [count] * (count > 0)
    assert all(finding.code == "class-alike" and finding.severity == "warning" for finding in findings)
