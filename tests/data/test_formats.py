"""One data set in the three formats gives the same index; each reader refuses faults with file and line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.formats.sources import list_pictures
from data.index import load_split, path_of, read_split
from data.prepare import prepare_data
from data.spec import find_data_yaml, load_data_spec
from tests.data.reading import error_of, load
from utils.errors import UserError

REAL = Path(__file__).parents[2].parent / "shared" / "datasets"
SIZES = {"b": (40, 20), "a": (30, 50), "c": (16, 16)}  # width, height
BOXES = {  # class, xyxy px
    "a": [("dog", (3, 5, 20.5, 40)), ("cat", (0, 0, 30, 50))],
    "b": [("cat", (10, 4, 20, 19))],
    "c": [],
}
NAMES = ("cat", "dog")
IDS = {"cat": 7, "dog": 90}


def make_pictures(folder):
    """A new folder with images/a.png, b.png, c.png."""
    (folder / "images").mkdir(parents=True)
    for name, size in SIZES.items():
        Image.new("RGB", size).save(folder / "images" / f"{name}.png")
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The pictures a, b, c; the working directory lies elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return make_pictures(tmp_path / "set")


def coco_content():
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 90, "name": "dog"}, {"id": 7, "name": "cat"}]
    for number, (stem, (width, height)) in enumerate(SIZES.items(), 11):
        content["images"].append({"id": number, "file_name": f"{stem}.png", "width": width, "height": height})
        for name, (x1, y1, x2, y2) in BOXES[stem]:
            row = {"image_id": number, "category_id": IDS[name], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            content["annotations"].append(
                row | {"id": len(content["annotations"]) + 1, "area": 9, "iscrowd": 0}
            )
    return content


def write_coco(root, content=None):
    """The YAML's path, of COCO JSON in one indented object a line."""
    (root / "a.json").write_text(json.dumps(content or coco_content(), indent=1), encoding="utf-8")
    (root / "data.yaml").write_text("train: a.json\nimages: images\n", encoding="utf-8")
    return root / "data.yaml"


def xml_of(stem, objects=None):
    width, height = SIZES[stem]
    lines = ["<annotation>", f"<size><width>{width}</width><height>{height}</height></size>"]
    for name, corners in BOXES[stem] if objects is None else objects:
        tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
        lines.append(f"<object><name>{name}</name>\n<bndbox>{box}</bndbox></object>")
    return "\n".join([*lines, "</annotation>"])


def write_voc(root, extra="names: [cat, dog]"):
    (root / "xml").mkdir(exist_ok=True)
    for stem in BOXES:
        (root / "xml" / f"{stem}.xml").write_text(xml_of(stem), encoding="utf-8")
    (root / "data.yaml").write_text(f"train: images\nannotations: xml\n{extra}\n", encoding="utf-8")
    return root / "data.yaml"


def write_yolo(root):
    (root / "labels").mkdir()
    for stem, rows in BOXES.items():
        width, height = SIZES[stem]
        text = ""
        for name, (x1, y1, x2, y2) in rows:
            values = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            text += f"{NAMES.index(name)} {' '.join(map(repr, values))}\n"
        (root / "labels" / f"{stem}.txt").write_text(text, encoding="utf-8")
    (root / "data.yaml").write_text("train: images\nnames: [cat, dog]\n", encoding="utf-8")
    return root / "data.yaml"


def sorted_rows(index):
    """Boxes with their picture's number and class, in one order."""
    owner = np.repeat(np.arange(len(index.sizes)), np.diff(index.offsets))
    rows = np.column_stack((owner, index.labels, index.boxes))
    return rows[np.lexsort(rows.round(1).T[::-1])]


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_the_formats_give_the_same_index(root, write):
    yaml = write(root)
    spec = load_data_spec(yaml)
    index, report = load(yaml)
    assert spec.format == write.__name__.removeprefix("write_") and spec.names == NAMES
    assert [path_of(index, i).stem for i in range(3)] == ["a", "b", "c"]
    assert index.sizes.tolist() == [[50, 30], [20, 40], [16, 16]] and index.offsets.tolist() == [0, 2, 3, 3]
    expected = [[0, 0, 0, 0, 30, 50], [0, 1, 3, 5, 20.5, 40], [1, 0, 10, 4, 20, 19]]
    np.testing.assert_allclose(sorted_rows(index), expected, atol=1e-9)
    assert index.boxes.dtype == index.areas.dtype == np.float64 and not index.ignore.any()
    assert (report.num_pictures, report.num_background, report.num_boxes) == (3, 1, 3)


@pytest.mark.skipif(not REAL.exists(), reason="the real pictures are not there")
def test_bccd_is_the_same_in_all_formats(tmp_path):
    root = REAL / "bccd"
    coco = (
        "train: annotations/instances_train.json\nval: annotations/instances_val.json\n"
        "images: {train: images/train, val: images/val}"
    )
    voc = (
        "train: images/train\nval: images/val\nnames: [RBC, WBC, Platelets]\n"
        "annotations: {train: original_annotations/train, val: original_annotations/val}"
    )
    for number, text in enumerate((coco, voc)):
        (tmp_path / f"{number}.yaml").write_text(f"path: {root}\n{text}\n", encoding="utf-8")
    for split in ("train", "val"):
        expected, _ = load_split(load_data_spec(root / "data.yaml"), split)
        for number in (0, 1):
            index, _ = load_split(load_data_spec(tmp_path / f"{number}.yaml"), split)
            assert np.array_equal(index.paths, expected.paths)
            np.testing.assert_allclose(sorted_rows(index), sorted_rows(expected), rtol=0, atol=0.01)


@pytest.mark.skipif(not REAL.exists(), reason="the real pictures are not there")
def test_coco_free_has_the_same_boxes_beside_crowds(tmp_path):
    root = REAL / "coco_free"
    text = f"path: {root}\ntrain: annotations/instances_train.json\nval: annotations/instances_val.json\n"
    (tmp_path / "coco.yaml").write_text(text, encoding="utf-8")
    spec = load_data_spec(tmp_path / "coco.yaml")
    assert len(spec.names) == 80 and spec.category_ids[-1] == 90
    for split in ("train", "val"):
        index, report = load_split(spec, split)
        expected, _ = load_split(load_data_spec(root / "data.yaml"), split)
        assert report.num_ignored == index.ignore.sum() > 0
        rows, other = sorted_rows(index), sorted_rows(expected)
        owner = np.repeat(np.arange(len(index.sizes)), np.diff(index.offsets))
        crowd = np.column_stack((owner, index.labels, index.boxes))[index.ignore]
        plain = rows[~(rows[:, None] == crowd[None]).all(2).any(1)]
        np.testing.assert_allclose(plain, other, rtol=0, atol=0.01)


# VOC


def test_difficult_objects_are_ignored_and_parts_are_no_objects(root):
    write_voc(root)
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    text = xml_of("a").replace("</name>\n", f"</name><difficult>1</difficult>{part}\n", 1)
    (root / "xml" / "a.xml").write_text(text, encoding="utf-8")
    index, report = load(root / "data.yaml")
    assert index.ignore.tolist() == [True, False, False] and report.num_ignored == 1


def test_voc_offset_counts_pixels_from_one(root):
    yaml = write_voc(root, "names: [cat, dog]\nvoc_offset: 1")
    (root / "xml" / "a.xml").write_text(xml_of("a", BOXES["a"][:1]), encoding="utf-8")
    index, _ = load(yaml)
    # 3, 5 -> 2, 4; the right and lower edge stay: pixel 20 counted from 1 ends at edge 20
    assert index.boxes[0].tolist() == [2, 4, 20.5, 40]


def test_names_are_collected_where_none_are_listed(root):
    assert load_data_spec(write_voc(root, "")).names == NAMES


def test_a_missing_xml_file_is_background(root):
    yaml = write_voc(root)
    (root / "xml" / "a.xml").unlink()
    _, report = load(yaml)
    assert (report.num_missing, report.num_background, report.num_boxes) == (1, 2, 1)
    for path in (root / "xml").iterdir():
        path.unlink()
    assert "Name the folder of the XML files: annotations" in error_of(yaml)


def test_the_layout_of_voc_itself(root):
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("b  1\na -1\nc  0\n", encoding="utf-8")
    (root / "images").rename(root / "JPEGImages")
    write_voc(root)
    (root / "xml").rename(root / "Annotations")
    (root / "data.yaml").unlink()
    spec = load_data_spec(root)  # no YAML: by its looks
    index, report = load_split(spec, "train")
    assert spec.format == "voc" and spec.names == ("cat",)  # a, the only one with a dog, is left out
    assert [path_of(index, i).stem for i in range(2)] == ["b", "c"] and report.num_boxes == 1


VOC_FAULTS = [
    ("<name>dog</name>", "<name>dgo</name>", 3, "'dgo' is none of the names of the data set"),
    ("<name>dog</name>", "<name></name>", 3, "this object has no name"),
    ("<xmin>3</xmin>", "<xmin>three</xmin>", 4, "xmin is 'three', not a number"),
    ("<xmin>3</xmin>", "", 3, "xmin is missing, not a number"),
    ("<ymax>40</ymax>", "<ymax>inf</ymax>", 4, "ymax is inf, not a finite number"),
    ("<xmin>3</xmin>", "<xmin>30</xmin>", 4, "xmin is 30 and xmax is 20.5: the box is turned over"),
    ("<xmax>20.5</xmax>", "<xmax>99</xmax>", 3, "beyond the right edge"),
    ("</annotation>", "", 7, "cannot read this as VOC XML: no element found"),
    ("<annotation>", "<html>", 1, "the file holds <html>, not <annotation>"),
    (
        "<width>30</width>",
        "<width>31</width>",
        0,
        "written for a picture of 31 x 50, but the file is 30 x 50",
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "text"), VOC_FAULTS)
def test_voc_faults_are_named_with_their_line(root, old, new, line, text):
    yaml = write_voc(root)
    changed = xml_of("a").replace(old, new, 1)
    assert changed != xml_of("a")
    (root / "xml" / "a.xml").write_text(changed, encoding="utf-8")
    where = f"a.xml:{line}: " if line else "a.xml: "
    assert f"{where}" in error_of(yaml) and text in error_of(yaml)


def test_deep_xml_is_refused():
    from data.formats.voc import parse_xml

    with pytest.raises(ValueError):
        parse_xml(b"<annotation>" + b"<a>" * 100)


# the cache


def test_labels_come_from_the_cache_until_a_file_changes(root, capsys, monkeypatch):
    yaml = write_yolo(root)
    first, report = load(yaml)
    monkeypatch.setattr("data.formats.readers.read_size", lambda path: pytest.fail("read again"))
    again, same = load(yaml)
    assert same == report and all(
        np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(first, again, strict=True)
    )
    monkeypatch.undo()
    (root / "labels" / "b.txt").write_text("1 .5 .5 .5 .5\n", encoding="utf-8")
    changed, _ = load(yaml)
    assert changed.labels.tolist() == [1, 0, 1]
    assert f"labels read again, as {root}/labels/b.txt changed" in capsys.readouterr().out
    Image.new("RGB", (8, 8)).save(root / "images" / "d.png")
    assert len(load(yaml)[0].sizes) == 4
    assert "as 1 pictures are new and 0 gone" in capsys.readouterr().out
    Image.new("RGB", (9, 8)).save(root / "images" / "d.png")
    assert load(yaml)[0].sizes[3].tolist() == [8, 9]


def test_an_edited_class_and_swapped_files_are_seen(root):
    """Total bytes stay the same in both cases."""
    yaml = write_yolo(root)
    load(yaml)
    path = root / "labels" / "b.txt"
    path.write_text(path.read_text().replace("0 ", "1 ", 1))
    assert load(yaml)[0].labels.tolist() == [1, 0, 1]
    other = root / "labels" / "a.txt"
    first, second = path.read_text(), other.read_text()
    path.write_text(second)
    other.write_text(first)
    assert load(yaml)[0].offsets.tolist() == [0, 1, 3, 3]


def test_options_have_entries_of_their_own_and_problems_are_kept(root):
    yaml = write_yolo(root)
    (root / "labels" / "b.txt").write_text("1 .99 .5 .5 .5\n", encoding="utf-8")
    spec = load_data_spec(yaml)
    for _ in range(2):
        assert "beyond the right edge" in error_of(yaml)
        assert read_split(spec, "train").problems == read_split(spec, "train").problems
        assert load(yaml, label_errors="clip")[1].num_clipped == 1
        assert load(yaml, label_errors="skip")[1].num_skipped == 1
        assert load_split(
            load_data_spec(yaml, single_cls=True), "train", single_cls=True, label_errors="clip"
        )[0].labels.tolist() == [0, 0, 0]


def test_a_damaged_cache_entry_is_read_over(root, monkeypatch, tmp_path):
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "cache"))
    yaml = write_yolo(root)
    first, _ = load(yaml)
    (entry,) = (tmp_path / "cache" / "labels").iterdir()
    for content in (entry.read_bytes()[:-40], b"", b"PK\x05\x06" + b"\0" * 18):
        entry.write_bytes(content)
        assert all(np.array_equal(a, b) for a, b in zip(load(yaml)[0], first, strict=True))


def test_a_cache_that_cannot_be_written_costs_one_line(root, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "file"))
    assert load(write_yolo(root))[1].num_boxes == 3
    assert "cache not written" in capsys.readouterr().err


# the YAML


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: images\nformat: darknet\nnames: [a]", "format: 'darknet' is none of yolo, coco, voc"),
        ("train: images\nvoc_offset: 2\nnames: [a]", "voc_offset: 2 is neither 0"),
        ("train: images\nannotations: {trian: x}\nnames: [a]", "annotations: 'trian' is no split"),
        ("train: images\nimages: {train: 3}\nnames: [a]", "images.train: 3 is not a folder"),
        ("train: gone.json", "train: 'gone.json' not found; tried"),
        ("train: images\nformat: coco", "_annotations.coco.json not found; name the JSON file of the split"),
        ("train: a.json\nimages: gone", "images: 'gone' not found; tried"),
    ],
)
def test_yaml_faults(root, text, expected):
    write_coco(root)
    (root / "data.yaml").write_text(text, encoding="utf-8")
    assert expected in error_of(root / "data.yaml")


def test_pictures_of_a_json_file_that_lie_nowhere(root):
    write_coco(root)
    (root / "images").rename(root / "pictures")
    (root / "data.yaml").write_text("train: a.json\n", encoding="utf-8")
    text = error_of(root / "data.yaml")
    assert (
        "b.png, which a.json lists, is in none of:" in text
        and "Name the folder: images: {train: <folder>}" in text
    )
    (root / "data.yaml").write_text("train: a.json\nimages: pictures\n", encoding="utf-8")
    assert load(root / "data.yaml")[1].num_pictures == 3


def test_a_folder_without_a_yaml_and_without_a_layout(root):
    with pytest.raises(UserError, match="none of the usual layouts"):
        load_data_spec(root)
    assert find_data_yaml(root) == root


def test_nothing_to_download(root, capsys):
    prepare_data(write_yolo(root), download=True)
    assert "nothing to fetch" in capsys.readouterr().out


# lists and classes, from a review


def image_set(root, text, *, folder="JPEGImages", name="train.txt"):
    """Names of the pictures of a VOC list, below the data set's folder."""
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    if not (root / folder).exists():
        (root / "images").rename(root / folder)
    (root / "ImageSets" / "Main" / name).write_text(text, encoding="utf-8")
    (root / "data.yaml").write_text(f"train: ImageSets/Main/{name}\nnames: [cat]\n", encoding="utf-8")
    spec = load_data_spec(root / "data.yaml")
    return [str(Path(path).relative_to(root)) for path in list_pictures(spec, "train")]


def test_an_image_set_holds_stems_with_spaces_and_marks(root):
    for name in ("my cat.png", "cat 0.png", "7.png", "your dog.png"):
        shutil.copy(root / "images" / "a.png", root / "images" / name)
    text = "my cat 0\ncat 0\n7\nyour dog -1\na\t 1\nb -1\n"
    expected = ["7.png", "a.png", "cat 0.png", "my cat.png"]  # cat 0 is a picture, not cat with a mark
    assert image_set(root, text) == [f"JPEGImages/{name}" for name in expected]


def test_an_image_set_may_hold_file_names_and_paths(root):
    (root / "images" / "deep").mkdir()
    shutil.copy(root / "images" / "a.png", root / "images" / "deep" / "d.PNG")
    shutil.copy(root / "images" / "a.png", root / "images" / "b.tif")
    text = "a.png 1\nb\ndeep/d 0\nJPEGImages/c.png\n"
    expected = ["a.png", "b.png", "c.png", "deep/d.PNG"]  # b.png comes before b.tif
    assert image_set(root, text) == [f"JPEGImages/{name}" for name in expected]


def test_a_picture_of_an_image_set_that_is_nowhere(root):
    found = image_set(root, "gone 1\ngone.png\n")
    assert found == ["ImageSets/Main/gone.png", "JPEGImages/gone.jpg"]


@pytest.mark.parametrize("name", ["train.txt", "ImageSets/Main/train.txt"])
def test_a_nul_in_a_list_is_named_with_its_line(root, name):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"a\n\nb\0c\n")
    (root / "data.yaml").write_text(f"train: {name}\nnames: [cat]\n", encoding="utf-8")
    assert f"{path}:3: holds a NUL character" in error_of(root / "data.yaml")


def test_names_are_collected_once_and_of_the_splits_that_are_there(root, monkeypatch):
    write_voc(root, "")
    yaml = root / "data.yaml"
    yaml.write_text("train: images\ntest: gone\nannotations: xml\n", encoding="utf-8")
    assert load_data_spec(yaml).names == NAMES
    with monkeypatch.context() as patch:
        patch.setattr("data.spec.collect_names", lambda files: pytest.fail("read again"))
        assert load_data_spec(yaml).names == NAMES
    (root / "xml" / "a.xml").write_text(xml_of("a").replace("dog", "wolf"), encoding="utf-8")
    assert load_data_spec(yaml).names == ("cat", "wolf")
    yaml.write_text("train: gone\nannotations: xml\nformat: voc\n", encoding="utf-8")
    assert "train: 'gone' not found" in error_of(yaml)


def test_a_yolo_folder_without_names_says_what_to_write(root):
    (root / "images").rename(root / "pictures")
    shutil.copytree(root / "pictures", root / "images" / "train")
    with pytest.raises(UserError, match=r"write classes\.txt, one name a line, into the folder"):
        load_data_spec(root)
    (root / "classes.txt").write_text("cat\ndog\n", encoding="utf-8")
    assert load_data_spec(root).names == NAMES
