"""A split on disk becomes packed arrays; its YAML is read, resolved, and refused with reasons."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import data.spec
from data.doctor.inspect_pictures import load_sound_split
from data.formats.labels import LabelReport
from data.formats.readers import picture_ids_of
from data.formats.sources import list_pictures
from data.index import load_split, path_of
from data.spec import load_data_spec
from utils.config import DataConfig
from utils.errors import DATA, UserError

BCCD = Path(__file__).parents[2].parent / "shared" / "datasets" / "bccd"
LINE = "0 0.5 0.5 0.5 0.5\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty data set folder; the working directory lies elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def add(root, name, labels=None, *, size=(8, 6)):
    """A picture ``images/name``, width x height, with ``labels/name``."""
    picture = root / "images" / name
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(picture)
    if labels is not None:
        path = (root / "labels" / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(labels.encode() if isinstance(labels, str) else labels)
    return picture


def spec_of(root, text="train: images\nnames: [a, b]"):
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return load_data_spec(root / "data.yaml")


def error_of(call, *args, **options):
    with pytest.raises(UserError) as error:
        call(*args, **options)
    assert error.value.code == DATA
    return str(error.value)


def pictures_of(root, text, split="train"):
    return [os.path.relpath(path, root) for path in list_pictures(spec_of(root, text), split)]


# the packed arrays


def test_boxes_of_each_picture_are_where_offsets_say(root):
    add(root, "b.png", "1 0.5 0.5 0.5 0.5\n0 0.25 0.5 0.5 1\n", size=(8, 6))
    add(root, "a.png", "")
    add(root, "c/d.png", "1 0.5 0.5 1 1\n", size=(10, 20))
    index, report = load_split(spec_of(root), "train")
    assert [path_of(index, i) for i in range(3)] == [
        root / "images" / name for name in ("a.png", "b.png", "c/d.png")
    ]
    assert index.sizes.tolist() == [[6, 8], [6, 8], [20, 10]] and index.sizes.dtype == np.int32
    assert index.offsets.tolist() == [0, 0, 2, 3] and index.offsets.dtype == np.int64
    np.testing.assert_array_equal(index.boxes, [[2, 1.5, 6, 4.5], [0, 0, 4, 6], [0, 0, 10, 20]])
    assert index.labels.tolist() == [1, 0, 1] and index.areas.tolist() == [12, 24, 200]
    assert index.ignore.tolist() == [False] * 3 and index.picture_ids.tolist() == [1, 2, 3]
    assert report == LabelReport(3, 1, 3)
    assert all(array.dtype != object for array in index)


def test_sizes_follow_the_exif_orientation(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = add(root, "a.jpg", "0 0.5 0.25 1 0.5\n")
    Image.new("RGB", (8, 6)).save(picture, exif=exif)
    index, _ = load_split(spec_of(root), "train")
    assert index.sizes.tolist() == [[8, 6]] and index.boxes.tolist() == [[0, 0, 6, 4]]


def test_missing_label_files_are_background_and_counted(root):
    add(root, "a.png", LINE)
    add(root, "b.png")
    _, report = load_split(spec_of(root), "train")
    assert (report.num_background, report.num_missing) == (1, 1)


def test_no_label_file_at_all_is_an_error_that_says_where(root):
    add(root, "x/a.png")
    add(root, "y/a.png")
    text = error_of(load_split, spec_of(root), "train")
    assert "none of the 2 pictures of split 'train' has a label file" in text
    assert f"  {root}/labels/x\n  {root}/labels/y\n" in text and f"needs {root}/labels/x/a.txt" in text


def test_single_cls_makes_every_class_0(root):
    add(root, "a.png", "1 .5 .5 .5 .5\n7 .2 .2 .1 .1\n")
    index, _ = load_split(spec_of(root), "train", single_cls=True)
    assert index.labels.tolist() == [0, 0]
    assert "class 7 is outside 0..1" in error_of(load_split, spec_of(root), "train")


def test_counts_of_mended_rows(root):
    add(root, "a.png", LINE * 3 + "1 0.5 0.5 0 0.1\n1 0.96 0.5 0.1 0.1\n")
    _, report = load_split(spec_of(root), "train")
    assert report == LabelReport(1, 0, 2, num_clipped=1, num_empty=1, num_duplicate=2)


def test_numeric_stems_are_the_picture_ids():
    assert picture_ids_of(["/x/000000000139.jpg", "/x/0285.png"]).tolist() == [139, 285]
    assert picture_ids_of(["/x/139.jpg", "/x/a285.png"]).tolist() == [1, 2]
    assert picture_ids_of(["/x/7.jpg", "/y/07.jpg"]).tolist() == [1, 2]  # not distinct
    assert picture_ids_of(["/x/²3.jpg"]).tolist() == [1]
    assert picture_ids_of(["/x/" + "9" * 30 + ".jpg"]).tolist() == [1]


# faults of a split


def test_all_problems_come_at_once_with_file_and_line(root):
    add(root, "a.png", LINE + "0 320 240 50 60\n\n9 .5 .5 .1 .1\n")
    add(root, "b.png", "0,0.5,0.5,0.1,0.1\n")
    add(root, "c.png", LINE).write_bytes(b"no picture")
    spec = spec_of(root)
    lines = error_of(load_split, spec, "train").splitlines()
    assert lines[0] == f"{spec.yaml}, split 'train': 4 problems"
    assert lines[1].startswith(f"  {root}/images/c.png: cannot read this picture: not a picture of a known")
    assert lines[2].startswith(f"  {root}/labels/a.txt:2: cx is 320: these look like pixels")
    assert lines[3].startswith(f"  {root}/labels/a.txt:4: class 9 is outside 0..1")
    assert lines[4].startswith(f"  {root}/labels/b.txt:1: '0,0.5,0.5,0.1,0.1' has commas")
    assert lines[5].startswith("Mend or delete")


def test_label_that_is_a_folder_is_a_problem(root):
    add(root, "a.png", LINE)
    add(root, "b.png")
    (root / "labels" / "b.txt").mkdir()
    assert "labels/b.txt: cannot read this label file" in error_of(load_split, spec_of(root), "train")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text("0123456789.- eE\n,", max_size=80).map(str.encode))
def test_any_label_bytes_load_or_are_user_errors(root, content):
    add(root, "a.png", content)
    spec = spec_of(root)
    error = None
    try:
        index, report = load_split(spec, "train")
    except UserError as raised:
        error = raised
    if error:
        assert error.code == DATA and f"{root}/labels/a.txt" in str(error)
    else:
        assert len(index.boxes) == report.num_boxes == index.offsets[-1]


# finding pictures


def test_folders_are_searched_to_any_depth_and_sorted(root):
    names = ["b.JPG", "a.jpeg", "deep/er/x.png", "c.bmp", "d.tif", "e.TIFF", "f.webp", "g.ppm", "h.pgm"]
    for name in [*names, "i.dng", "k.jp2", "notes.txt", ".hidden.png", ".cache/l.png"]:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = pictures_of(root, "train: images\nnames: [a]")
    assert found == sorted(f"images/{name}" for name in names)


def test_links_are_followed_once(root):
    add(root, "a.png")
    (root / "images" / "loop").symlink_to(root / "images")
    (root / "far").mkdir()
    (root / "far" / "b.png").touch()
    (root / "images" / "far").symlink_to(root / "far")
    assert pictures_of(root, "train: images\nnames: [a]") == ["images/a.png", "images/far/b.png"]


def test_list_file(root):
    paths = [add(root, name) for name in ("a.png", "b.png", "c.png")]
    (root / "lists").mkdir()
    content = f"{paths[1]}\n\n./../images/a.png\r\nimages/c.png\n./../images/a.png\n"
    (root / "lists" / "train.txt").write_text("\ufeff" + content, encoding="utf-8")
    found = pictures_of(root, "train: lists/train.txt\nnames: [a]")
    assert found == ["images/a.png", "images/b.png", "images/c.png"]


def test_pictures_listed_but_missing_are_problems(root):
    add(root, "a.png", LINE)
    (root / "train.txt").write_text("./images/a.png\n./images/no.png\n", encoding="utf-8")
    text = error_of(load_split, spec_of(root, "train: train.txt\nnames: [a]"), "train")
    assert f"{root}/images/no.png: no such file" in text


def test_binary_list_file(root):
    (root / "train.txt").write_bytes(b"\xff\xd8\xff\xe0")
    text = error_of(load_split, spec_of(root, "train: train.txt\nnames: [a]"), "train")
    assert "train.txt: cannot read this as a list of pictures" in text


def test_several_sources_overlap_without_doubles(root):
    add(root, "x/a.png")
    add(root, "y/b.png")
    found = pictures_of(root, "train: [images/x, images, images/y]\nnames: [a]")
    assert found == ["images/x/a.png", "images/y/b.png"]


def test_empty_split(root):
    (root / "images").mkdir()
    text = error_of(load_split, spec_of(root), "train")
    assert "split 'train' has no pictures (.jpg" in text and f"  {root}/images" in text


# the YAML


def test_spec_of_a_usual_file(root):
    text = "path: ../set\ntrain: images\nval: [images]\ntest:\nnames:\n  1: no\n  0: on\nextra: {x: 1}\n"
    spec = spec_of(root, text)
    assert spec.yaml == root / "data.yaml" and spec.root == root
    assert spec.splits == {"train": [Path("images")], "val": [Path("images")]}
    assert spec.names == ("on", "no") and spec.category_ids == (0, 1)  # YAML 1.1 would say True, False


def test_download_is_never_run(root):
    add(root, "a.png", LINE)
    trap = root / "trap"
    script = f"import pathlib; pathlib.Path('{trap}').touch()"
    for download in (f"bash -c 'touch {trap}'", script, "https://127.0.0.1:9/x.zip"):
        text = f"train: images\nval: gone\nnames: [a]\ndownload: |\n  {download}\n"
        spec = spec_of(root, text)
        load_split(spec, "train")
        assert "val: 'gone' not found; tried" in error_of(load_split, spec, "val")
    assert not trap.exists()


def test_path_is_taken_from_the_yaml_then_from_the_working_directory(root, tmp_path):
    add(tmp_path / "elsewhere" / "pool", "a.png")
    assert spec_of(root, "path: pool\ntrain: images\nnames: [a]").root == tmp_path / "elsewhere" / "pool"
    add(root / "pool", "a.png")
    assert spec_of(root, "path: pool\ntrain: images\nnames: [a]").root == root / "pool"


def test_splits_are_taken_from_path_then_yaml_then_working_directory(root, tmp_path):
    text = "path: pool\ntrain: images\nnames: [a]"
    (root / "pool").mkdir()
    for base in (tmp_path / "elsewhere", root, root / "pool"):
        picture = add(base, "a.png")
        assert list_pictures(spec_of(root, text), "train") == [str(picture)]


def test_missing_folder_names_every_path_tried(root, tmp_path):
    text = error_of(load_split, spec_of(root, "path: pool\ntrain: pics\nnames: [a]"), "train")
    away = tmp_path / "elsewhere"
    tried = [root / "pool" / "pics", away / "pool" / "pics", root / "pics", away / "pics"]
    assert "train: 'pics' not found; tried:\n" + "\n".join(f"  {path}" for path in tried) in text


def test_missing_split(root):
    text = error_of(load_split, spec_of(root, "train: images\nval: images\nnames: [a]"), "test")
    assert "no split 'test'; the file has: train, val" in text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("names: [a]", "none of the keys train, val, test is there"),
        ("Train: images\nnames: [a]", "There are 'Train', 'names'"),
        (
            "train: images/train\nnames: classes.txt",
            "names: 'classes.txt' is text; write the names themselves",
        ),
        ("train: images", "names: needs a list of class names"),
        ("train: images\nnames: []", "names: needs a list"),
        ("train: images\nnames: abc", "names: 'abc' is text"),
        ("train: images\nnames: [a, b, a]", "names: 'a' stands there more than once"),
        (
            "train: images\nnames: {0: a, 2: b}",
            "2 classes need the keys 0..1; missing [1], instead there are [2]",
        ),
        ("train: images\nnames: {a: 0, b: 1}", "key 'a' is not a class index"),
        ("train: images\nnames: [a, true]", "class 1 is True, not text; put the name in quotes"),
        ("train: images\nnames: [a, ~]", "class 1 is None, not text"),
        ("train: images\nnames: [a, '']", "class 1 is '', not text"),
        ("train: images\nnames: [a]\nnc: 2", "nc: 2, but names has 1 entries"),
        ("train: images\nnames: [a]\nnc: many", "nc: 'many' is not a number of classes"),
        ("train: 3\nnames: [a]", "train: 3 is not a folder, a list file, or a list of these"),
        ("train: []\nnames: [a]", "train: [] is not a folder"),
        ("train: [images, {}]\nnames: [a]", "is not a folder"),
        ("path: [x]\ntrain: images\nnames: [a]", "path: ['x'] is not the name of a folder"),
    ],
)
def test_bad_yaml_content(root, text, reason):
    message = error_of(spec_of, root, text)
    assert message.startswith(f"{root / 'data.yaml'}: ") and reason in message


def test_broken_yaml_names_file_and_line(root):
    assert "data.yaml:2" in error_of(spec_of, root, "train: images\nnames: ]a\n")


def test_nc_may_stand_for_names_and_digits_are_names(root):
    assert spec_of(root, "train: images\nnc: 2").names == ("class0", "class1")
    assert spec_of(root, "train: images\nnames: [7, 8]\nnc: 2").names == ("7", "8")


def test_odd_paths_are_user_errors(root):
    for name in ("x" * 3000, "a\\0b", "~nobody_here/x"):
        spec = spec_of(root, f'path: "{name}"\ntrain: "{name}"\nnames: [a]')
        assert "not found; tried" in error_of(load_split, spec, "train")


def test_argument_may_be_a_folder_or_a_name_in_data(root, tmp_path, monkeypatch):
    expected = spec_of(root)
    assert load_data_spec(root).yaml == expected.yaml
    monkeypatch.chdir(root)
    assert load_data_spec("data.yaml").yaml == load_data_spec(".").yaml == expected.yaml
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(data.spec, "REPOSITORY", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy.yaml").write_text("train: images\nnames: [a]", encoding="utf-8")
    assert (
        load_data_spec("toy.yaml").yaml
        == load_data_spec("data/toy.yaml").yaml
        == tmp_path / "data" / "toy.yaml"
    )
    text = error_of(load_data_spec, "no.yaml")
    tried = [tmp_path / folder / "no.yaml" for folder in ("elsewhere", "data", ".")]
    assert text == "data set 'no.yaml' not found; tried:\n" + "\n".join(f"  {path}" for path in tried)


@pytest.mark.skipif(not BCCD.exists(), reason="/work/shared/datasets/bccd is not here")
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_bccd_equals_its_coco_json(split):
    index, report = load_split(load_data_spec(BCCD), split)
    truth = json.loads((BCCD / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
    assert report.num_pictures == len(truth["images"]) and report.num_boxes == len(truth["annotations"])
    first = min(category["id"] for category in truth["categories"])
    for i in range(len(index.paths)):
        (image,) = [item for item in truth["images"] if item["file_name"] == path_of(index, i).name]
        assert index.sizes[i].tolist() == [image["height"], image["width"]]
        owned = [item for item in truth["annotations"] if item["image_id"] == image["id"]]
        expected = np.array([[*item["bbox"], item["category_id"] - first] for item in owned])
        expected[:, 2:4] += expected[:, :2]
        rows = slice(index.offsets[i], index.offsets[i + 1])
        found = np.column_stack([index.boxes[rows], index.labels[rows]])
        for table in (found, expected):
            table[:] = table[np.lexsort(table.round().T)]
        np.testing.assert_allclose(found, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("count", [100_001, 50_000_000, 10**12])
def test_senseless_numbers_of_classes_are_refused_at_once(root, count):
    assert f"nc: {count} is more than 100,000 classes" in error_of(
        spec_of, root, f"train: images\nnc: {count}"
    )


def test_many_names_are_compared_in_linear_time(root):
    class Name(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other):
            Name.compared += 1
            return str.__eq__(self, other)

        def strip(self):
            return self

    names = [Name(f"n{number}") for number in range(2000)]
    assert data.spec._read_names(root, {"names": names}) == tuple(names)
    compared, Name.compared = Name.compared, 0
    assert compared < 10 * len(names)  # of 4,000,000 pairs


LONG = "x" * 5000
KEY = "x" * 900  # YAML has no longer ones


@pytest.mark.parametrize(
    "text",
    [
        f"train: images\nnames: [{LONG}, {LONG}]",
        "train: images\nnames: [" + ", ".join(f"n{number // 2}" for number in range(9000)) + "]",
        "train: images\nnames: {" + ", ".join(f"{2 * number}: a" for number in range(3000)) + "}",
        f"train: images\nnames: {{{KEY}: a}}",
        f"train: images\nnames: [a, [{LONG}]]",
        f"train: images\nnames: [a]\nnc: {LONG}",
        f"train: images\nnames: [a]\nvoc_offset: {LONG}",
        f"train: images\nnames: [a]\nformat: {LONG}",
        f"train: images\nnames: [a]\nimages: {{{KEY}: x}}",
        f"train: [[{LONG}]]\nnames: [a]",
        f"path: [{LONG}]\ntrain: images\nnames: [a]",
    ],
)
def test_values_in_errors_are_cut(root, text):
    message = error_of(spec_of, root, text)
    assert len(message) < 500 + len(str(root)) and "..." in message


def test_paths_and_categories_in_errors_are_cut(root):
    spec = spec_of(root, f"train: {LONG}\nnames: [a]")
    assert len(error_of(load_split, spec, "train")) < 3000
    assert len(error_of(load_data_spec, LONG)) < 3000
    categories = [{"id": number, "name": f"{number}{LONG}"} for number in range(200)]
    (root / "a.json").write_text(json.dumps({"images": [], "categories": categories}), encoding="utf-8")
    message = error_of(spec_of, root, f"train: a.json\nnames: [{LONG}]")
    assert len(message) < 10_000 and message.endswith(" and 100 more")


def test_pictures_that_are_cut_short_are_left_out_where_faults_are_skipped(tmp_path):
    """Their header is fine, so only a full decode tells."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    for number in range(3):
        path = tmp_path / "images" / f"{number}.jpg"
        Image.fromarray(noise).save(path)
        (tmp_path / "labels" / f"{number}.txt").write_text(
            "0 0.5 0.5 0.5 0.5\n" * (number == 1) + "0 .5 .5 .1 .1\n"
        )
    path = tmp_path / "images" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "d.yaml").write_text("train: images\nval: images\nnames: [a]\n")
    spec, cfg = load_data_spec(tmp_path / "d.yaml"), DataConfig(label_errors="skip")
    index, report = load_sound_split(spec, "train", cfg)
    assert [path_of(index, i).name for i in range(2)] == ["0.jpg", "2.jpg"]
    assert (report.num_pictures, report.num_left_out, report.num_boxes) == (2, 1, 2)
    assert index.offsets.tolist() == [0, 1, 2] and len(index.boxes) == len(index.areas) == 2
    for number in (0, 2):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="not one picture can be read"):
        load_sound_split(spec, "train", cfg)


@pytest.mark.parametrize("kind", ["label file", "picture"])
def test_an_error_of_the_system_is_not_remembered(root, monkeypatch, kind):
    add(root, "a.png", LINE), add(root, "b.png", LINE)
    spec, target = spec_of(root), {"label file": "data.formats.yolo", "picture": "data.images"}[kind]

    def fail(path, **_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(f"{target}.open_regular", fail)
        assert "Too many open files" in error_of(load_split, spec, "train")
    assert load_split(spec, "train")[1].num_boxes == 2
    (root / "labels" / "a.txt").write_bytes(b"\0")  # of the file itself: remembered
    error_of(load_split, spec, "train")
    with monkeypatch.context() as patch:
        patch.setattr("data.index.read_files", None)
        error_of(load_split, spec, "train")
