"""Lists of pictures, however other programs write them; what is no list is told with the one thing to do."""

import pytest
from PIL import Image

from data.formats import listing
from data.formats.sources import list_pictures
from data.index import load_split, read_split
from data.spec import load_data_spec
from utils.errors import DATA, UserError


@pytest.fixture
def root(tmp_path, monkeypatch):
    """images/train/a, b, images/val/a and labels of each; the working directory lies elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    listing.say_once.cache_clear()
    root = tmp_path / "set"
    for name in ("train/a", "train/b", "val/a"):
        add_picture(root / "images" / f"{name}.jpg", root / "labels" / f"{name}.txt")
    return root


def add_picture(picture, label):
    for path in (picture, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32)).save(picture)
    label.write_text("0 .5 .5 .5 .5\n")


def listed(root, text, *, place="train.txt", entry=None):
    """Pictures of a list below the data set's folder."""
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    (root / "data.yaml").write_text(f"path: .\ntrain: {entry or place}\nnames: [x]\n")
    pictures = list_pictures(load_data_spec(root / "data.yaml"), "train")
    return [picture.removeprefix(f"{root}/") for picture in pictures]


BOTH = ["images/train/a.jpg", "images/train/b.jpg"]
SPELLINGS = {
    "plain": "images/train/a.jpg\nimages/train/b.jpg\n",
    "windows": "images\\train\\a.jpg\r\nimages\\train\\b.jpg\r\n",
    "windows with a dot": ".\\images\\train\\a.jpg\n.\\images\\train\\b.jpg\n",
    "mixed separators": "images/train\\a.jpg\nimages\\train/b.jpg\n",
    "dot": "./images/train/a.jpg\n./images/train/b.jpg\n",
    "mark and blank lines": "\ufeffimages/train/a.jpg\n\n  \nimages/train/b.jpg  \n\n",
    "utf-16": "images\\train\\a.jpg\r\nimages\\train\\b.jpg\r\n".encode("utf-16"),
    "quotes": "\"images/train/a.jpg\"\n'images\\train\\b.jpg'\n",
    "comments": "# pictures\nimages/train/a.jpg\n#images/train/c.jpg\nimages/train/b.jpg\n",
    "twice": "images/train/a.jpg\nimages/train/b.jpg\nimages\\train\\a.jpg\n./images/train/a.jpg\n",
    "drive": "C:\\data\\set\\images\\train\\a.jpg\nC:\\data\\set\\images\\train\\b.jpg\n",
    "drive, root": "D:/images/train/a.jpg\nD:/images/train/b.jpg\n",
    "share": "\\\\host\\share\\images\\train\\a.jpg\n\\\\host\\share\\images\\train\\b.jpg\n",
    "another machine": "/home/me/set/images/train/a.jpg\n/home/me/set/images/train/b.jpg\n",
    "another folder": "data/images/train/a.jpg\ndata/images/train/b.jpg\n",
    "colab": "../content/images/train/a.jpg\n../content/images/train/b.jpg\n",
    "partly moved": "images/train/a.jpg\n/content/set/images/train/b.jpg\n",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_a_path(root, spelling, capsys):
    assert listed(root, SPELLINGS[spelling]) == BOTH
    moved = spelling.split(",")[0] in ("drive", "share", "another machine", "another folder", "colab")
    said = capsys.readouterr().out
    assert ("pictures are listed below" in said) == (moved or spelling == "partly moved"), said
    assert said.count("\n") <= 1


def test_lists_are_read_beside_them_and_below_the_root(root):
    assert listed(root, "a.jpg\nb.jpg\n", place="images/train/list.txt") == BOTH
    assert listed(root, SPELLINGS["windows"], place="lists/train.txt", entry="lists\\train.txt") == BOTH


def test_names_that_hold_a_backslash_a_quote_or_a_hash(root):
    for name in ("a\\b", "'c'", "#d"):
        add_picture(root / f"{name}.jpg", root / f"{name}.txt")
    assert listed(root, "a\\b.jpg\n'c'.jpg\n#d.jpg\n") == ["#d.jpg", "'c'.jpg", "a\\b.jpg"]


AMBIGUOUS = [  # two folders, of which nobody knows which is ours; two lines that would be one picture
    "/x/images/train/a.jpg\n/y/images/train/b.jpg\n",
    "/x/train/images/val/a.jpg\n/x/train/images/../images/val/a.jpg\n",
]


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_where_there_is_doubt_pictures_are_missing(root, text):
    listed(root, text)
    found = read_split(load_data_spec(root / "data.yaml"), "train")
    assert {problem.kind for problem in found.problems} == {"missing picture"}
    with pytest.raises(UserError) as error:
        load_split(load_data_spec(root / "data.yaml"), "train")
    assert "no such file" in str(error.value) and "delete" not in str(error.value)


def test_lines_of_another_set_do_not_become_pictures_that_are_listed(root):
    listed(root, "images/train/a.jpg\nimages/train/b.jpg\n/old/images/train/a.jpg\n/old/images/train/b.jpg\n")
    found = read_split(load_data_spec(root / "data.yaml"), "train")
    assert [problem.path for problem in found.problems] == [f"/old/images/train/{x}.jpg" for x in "ab"]


def test_a_picture_that_is_not_there_stays_missing(root):
    listed(root, "images/train/a.jpg\nimages/train/gone.jpg\nC:\\images\\train\\lost.jpg\n")
    found = read_split(load_data_spec(root / "data.yaml"), "train")
    assert [problem.kind for problem in found.problems] == ["missing picture"] * 2


WRONG = [
    ("x*.jpg", "", "'x*.jpg' is a pattern, and these are not read here; name the folder"),
    ("train.csv", "path,x1,y1\n", "'train.csv' is a table; export the labels as YOLO, COCO or VOC"),
    ("train.xml", "<annotations>", "'train.xml' is an XML file; name the folder of the pictures here"),
    ("train.tfrecord", "\0\1", "'train.tfrecord' is a TFRecord"),
    ("train.zip", "PK", "'train.zip' is an archive; unpack it"),
    ("train.jpg", "", "'train.jpg' is a picture; name its folder"),
    ("other.yaml", "a: 1", "'other.yaml' is a YAML file; give it as --data"),
    ("train.npy", "x", "'train.npy' is no text"),
    ("train.txt", "a.jpg,1,2,3,4,cat\nb.jpg,1,2,3,4,dog\n", "this is no list of pictures (line 1: "),
    ("train.txt", "filename;label\n", "this is no list of pictures"),
    ("train.txt", "<annotation>\n", "this is no list of pictures"),
    ("train.txt", '{"images": []}', "this is no list of pictures"),
    ("train.txt", "", "split 'train' has no pictures"),
    ("train.txt", "# nothing\n\n", "split 'train' has no pictures"),
    ("train.txt", b"\xff\xfea\0\n", "cannot read this as a list of pictures (UTF-8"),
    ("train.txt", b"\xff\n", "cannot read this as a list of pictures (UTF-8"),
]


@pytest.mark.parametrize(("name", "text", "expected"), WRONG)
def test_what_is_no_list_is_told_in_a_line(root, name, text, expected):
    with pytest.raises(UserError) as error:
        listed(root, text, place=name)
    assert expected in str(error.value) and error.value.code == DATA


def test_a_json_file_is_coco_unless_the_yaml_says_otherwise(root):
    (root / "a.json").write_text("{}")
    (root / "data.yaml").write_text("train: a.json\nformat: yolo\nnames: [x]\n")
    with pytest.raises(UserError, match="a JSON file; if it is COCO's, write format: coco"):
        load_data_spec(root / "data.yaml")


def cvat(folder, *, prefix="data/", names="obj.names"):
    """CVAT's YOLO 1.1: labels beside the pictures, paths from a folder above."""
    for part, stems in (("train", "ab"), ("valid", "c")):
        for stem in stems:
            place = folder / f"obj_{part}_data" / stem
            add_picture(place.with_suffix(".jpg"), place.with_suffix(".txt"))
        lines = [f"{prefix}obj_{part}_data/{stem}.jpg\n" for stem in stems]
        (folder / f"{part}.txt").write_text("".join(lines))
    (folder / "obj.names").write_text("cat\ndog\n")
    entries = {"classes": 2, "train": f"{prefix}train.txt", "valid": f"{prefix}valid.txt"}
    entries |= {"names": f"{prefix}{names}", "backup": "backup/"}
    (folder / "obj.data").write_text("".join(f"{key} = {value}\n" for key, value in entries.items()))
    return folder


@pytest.mark.parametrize(
    "place", ["cvat", "images/cvat"]
)  # below a folder images labels lie beside all the same
@pytest.mark.parametrize("prefix", ["data/", "", "build\\x64\\data\\"])
@pytest.mark.parametrize("named", ["folder", "file"])
def test_the_folder_of_cvats_yolo(root, place, prefix, named):
    folder = cvat(root / place, prefix=prefix)
    spec = load_data_spec(folder if named == "folder" else folder / "obj.data")
    assert spec.names == ("cat", "dog") and spec.format == "yolo"
    counts = [load_split(spec, split)[1] for split in ("train", "val")]
    assert [(report.num_pictures, report.num_boxes) for report in counts] == [(2, 2), (1, 1)]


def test_cvats_folder_without_its_data_file_or_names(root):
    folder = cvat(root / "cvat")
    (folder / "obj.data").unlink()
    spec = load_data_spec(folder)
    assert spec.names == ("cat", "dog") and load_split(spec, "val")[1].num_boxes == 1
    folder = cvat(root / "other", names="gone.names")
    with pytest.raises(UserError, match="names"):
        load_data_spec(folder)


LAYOUTS = {  # pictures, labels that exist -> the one that is read
    "images/t/images/a.jpg": [
        ("images/t/labels/a.txt",),
        ("labels/t/images/a.txt",),
        ("images/t/images/a.txt",),
    ],
    "images/t/a.jpg": [("labels/t/a.txt",), ("images/t/a.txt",), ("labels/t/a.txt", "images/t/a.txt")],
    "t/a.jpg": [("t/a.txt",)],
}


@pytest.mark.parametrize(
    ("picture", "labels"), [(key, item) for key, items in LAYOUTS.items() for item in items]
)
def test_labels_are_found_where_another_folder_is_called_images(tmp_path, picture, labels):
    for label in labels:
        add_picture(tmp_path / picture, tmp_path / label)
    (tmp_path / "data.yaml").write_text(f"train: {picture.rpartition('/')[0]}\nnames: [x]\n")
    found = read_split(load_data_spec(tmp_path / "data.yaml"), "train")
    assert found.label_files == [str(tmp_path / labels[0])] and found.report.num_boxes == 1
