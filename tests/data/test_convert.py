"""A data set comes back the same from every format it is written in; what cannot, is said.

Sources are COCO sets, the format that holds most. Boxes are xyxy px, sizes (height, width).
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from data import convert as module
from data.convert import convert, main
from data.index import load_split, path_of
from data.spec import load_data_spec
from utils.errors import DATA, USAGE, UserError

FORMATS = ("yolo", "coco", "voc")
REAL = Path(__file__).parents[2].parent / "shared" / "datasets"
HOSTILE = (
    "no",
    "1e3",
    "a/b",
    "<i>&amp;\"'",
    "x: y #z",
    "- 7",
    "ü\u2028😀",
    "null",
    "../..",
    "a  b",
    "{c}",
    "%s",
)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty data set folder; the working directory lies elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def make(root, pictures, *, names=("a", "b"), ids=(3, 70), split="train"):
    """A COCO split of ``{file: ((height, width), [(label, box, ignore, area or None), ...])}``."""
    images, notes = [], []
    for number, (file, ((height, width), rows)) in enumerate(pictures.items(), 11):
        path = root / "images" / split / file
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = {".jfif": "JPEG", ".jp2": "PNG"}.get(path.suffix)
        Image.new("1" if path.suffix == ".png" else "L", (width, height)).save(path, kind)
        images.append({"id": number, "file_name": file})
        for label, (left, top, right, bottom), ignore, area in rows:
            box = [left, top, right - left, bottom - top]
            note = {"id": len(notes), "image_id": number, "category_id": ids[label], "bbox": box}
            notes.append(note | {"iscrowd": int(ignore), "area": box[2] * box[3] if area is None else area})
    categories = [{"id": key, "name": name} for key, name in zip(ids, names, strict=True)]
    content = {"images": images, "annotations": notes, "categories": categories}
    (root / f"{split}.json").write_text(json.dumps(content))
    splits = [name for name in ("train", "val") if (root / f"{name}.json").exists()]
    lines = [f"{name}: {name}.json" for name in splits]
    folders = ", ".join(f"{name}: images/{name}" for name in splits)
    (root / "data.yaml").write_text("\n".join(["format: coco", *lines, f"images: {{{folders}}}"]))
    return load_data_spec(root)


def box(*sides, label=0, ignore=False, area=None):
    return label, sides, ignore, area


def one(*rows, size=(60, 80)):
    return {"a.png": (size, list(rows))}


def read(folder, split="train"):
    return load_split(load_data_spec(folder), split)[0]


def names_of(index):
    return [path_of(index, i).name for i in range(len(index.paths))]


def assert_same(old, new, *, crowds=True):
    """Equal pictures and labels, boxes to 1e-6 px; without ``crowds`` those to ignore are gone."""
    keep = np.ones_like(old.ignore) if crowds else ~old.ignore
    pictures = np.repeat(np.arange(len(old.paths)), np.diff(old.offsets))[keep]
    assert names_of(new) == names_of(old)
    np.testing.assert_array_equal(new.sizes, old.sizes)
    np.testing.assert_array_equal(np.repeat(np.arange(len(new.paths)), np.diff(new.offsets)), pictures)
    np.testing.assert_array_equal(new.labels, old.labels[keep])
    np.testing.assert_array_equal(new.ignore, old.ignore[keep])
    np.testing.assert_allclose(new.boxes, old.boxes[keep], rtol=0, atol=1e-6)


def error_of(code, call, *args, **options):
    with pytest.raises(UserError) as error:
        call(*args, **options)
    assert error.value.code == code
    return str(error.value)


def tree_of(folder):
    """Every path below a folder with its bytes and time."""
    paths = sorted(folder.rglob("*"))
    return [(str(path), path.is_file() and path.read_bytes(), path.lstat().st_mtime_ns) for path in paths]


# the boxes


@st.composite
def rows_of(draw, height, width):
    """A box of any size from 0.01 px, in any place, perhaps on the border."""
    left = draw(st.floats(0, width - 0.01) | st.just(0.0))
    top = draw(st.floats(0, height - 0.01) | st.just(0.0))
    right = draw(st.floats(left + 0.01, width) | st.just(float(width))) if left + 0.01 < width else width
    bottom = draw(st.floats(top + 0.01, height) | st.just(float(height))) if top + 0.01 < height else height
    return box(left, top, right, bottom, label=draw(st.integers(0, 1)), ignore=draw(st.booleans()))


@st.composite
def pictures_of(draw):
    """Pictures whose boxes differ by more than the last bits: boxes that become equal are read as one."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=2))
    differ = {"unique_by": lambda row: tuple(round(side, 3) for side in row[1])}
    rows = [draw(st.lists(rows_of(*size), max_size=4, **differ)) for size in sizes]
    return {f"{i}.png": (size, part) for i, (size, part) in enumerate(zip(sizes, rows, strict=True))}


@given(pictures_of(), st.tuples(st.sampled_from(FORMATS), st.sampled_from(FORMATS)), st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_boxes_survive_every_pair_of_formats(pictures, pair, offset):
    with tempfile.TemporaryDirectory() as folder:
        spec = make(Path(folder) / "set", pictures)
        old = read(Path(folder) / "set")
        for step, format in enumerate(pair):
            out = Path(folder) / f"out{step}"
            convert(spec, format, out, voc_offset=offset if format == "voc" else 0)
            spec = load_data_spec(out)
        assert_same(old, read(out), crowds="yolo" not in pair)
        if "yolo" not in pair and "voc" not in pair:
            np.testing.assert_allclose(read(out).areas, old.areas, rtol=1e-12)


def test_numbers_worked_by_hand(root):
    """80 x 60 px, a box from (10, 15) to (30.5, 45): centre (20.25, 30), extent (20.5, 30)."""
    spec = make(root, one(box(10, 15, 30.5, 45, label=1)))
    for format in FORMATS:
        convert(spec, format, root.parent / format, voc_offset=int(format == "voc"))
    text = (root.parent / "yolo" / "labels" / "train" / "a.txt").read_text()
    assert text == "1 0.253125 0.5 0.25625 0.5\n"
    (note,) = json.loads((root.parent / "coco/annotations/instances_train.json").read_text())["annotations"]
    assert note == {
        "id": 1,
        "image_id": 11,
        "category_id": 70,
        "bbox": [10, 15, 20.5, 30],
        "area": 615,
        "iscrowd": 0,
    }
    xml = ElementTree.parse(root.parent / "voc" / "Annotations" / "train" / "a.xml").getroot()
    assert [node.text for node in xml.find("object/bndbox")] == ["11", "16", "30.5", "45"]
    assert [node.text for node in xml.find("size")] == ["80", "60", "3"]
    assert (xml.find("folder").text, xml.find("filename").text) == ("JPEGImages/train", "a.png")
    assert (xml.find("object/name").text, xml.find("object/difficult").text) == ("b", "0")
    assert load_data_spec(root.parent / "voc").voc_offset == 1


def test_coco_keeps_ids_areas_and_crowds_as_its_own_reader_sees_them(root):
    spec = make(root, one(box(1, 2, 3, 5, area=4.5), box(0, 0, 80, 60, label=1, ignore=True, area=77.25)))
    convert(spec, "coco", root.parent / "out")
    coco = COCO(root.parent / "out" / "annotations" / "instances_train.json")
    assert coco.loadCats(coco.getCatIds()) == [{"id": 3, "name": "a"}, {"id": 70, "name": "b"}]
    assert coco.loadImgs(11) == [{"id": 11, "file_name": "a.png", "height": 60, "width": 80}]
    first, second = coco.loadAnns([1, 2])
    assert (first["area"], first["iscrowd"], second["area"], second["iscrowd"]) == (4.5, 0, 77.25, 1)
    new = load_data_spec(root.parent / "out")
    assert (new.names, new.category_ids) == (spec.names, spec.category_ids)


def test_sizes_are_those_of_the_turned_picture(root):
    spec = make(root, {"a.jpg": ((60, 80), [])})
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: 60 wide, 80 high
    Image.new("L", (80, 60)).save(root / "images" / "train" / "a.jpg", exif=exif)
    for format in FORMATS:
        convert(spec, format, root.parent / format)
    (image,) = json.loads((root.parent / "coco/annotations/instances_train.json").read_text())["images"]
    assert (image["height"], image["width"]) == (80, 60)
    xml = ElementTree.parse(root.parent / "voc" / "Annotations" / "train" / "a.xml").getroot()
    assert (xml.find("size/width").text, xml.find("size/height").text) == ("60", "80")


def test_background_pictures_stay(root):
    spec = make(root, {"a.png": ((6, 8), []), "b.png": ((6, 8), [box(1, 1, 2, 2)])})
    for format in FORMATS:
        convert(spec, format, root.parent / format)
        assert read(root.parent / format).offsets.tolist() == [0, 0, 1]
    assert (root.parent / "yolo" / "labels" / "train" / "a.txt").read_bytes() == b""


# what is lost


def test_losses_are_counted_a_line_each(root):
    rows = [box(1, 1, 5, 5, area=3), box(2, 2, 9, 9, ignore=True, area=5), box(3, 3, 6, 6, ignore=True)]
    spec = make(root, one(*rows, box(4, 4, 8, 8)))
    lost = {}
    for format in FORMATS:
        done = convert(spec, format, root.parent / format)
        lost[format] = [line.split(":")[0] for line in done.notes[1:-1]]
        assert done.reports["train"].num_boxes == 4
        assert done.num_written == {"train": len(read(root.parent / format).boxes)}
    both = ["2 category ids lost", "1 picture ids lost"]
    assert lost["yolo"] == [
        "2 crowd or difficult boxes left out",
        "1 areas of masks lost, which decide small, medium, large",
        *both,
    ]
    assert lost["voc"] == ["2 areas of masks lost, which decide small, medium, large", *both]
    assert lost["coco"] == []
    for format in ("coco", "voc"):
        assert read(root.parent / format).ignore.tolist() == [False, True, True, False]


def test_picture_ids_live_on_in_names_that_are_numbers(root):
    spec = make(root, {"11.png": ((6, 8), []), "12.png": ((6, 8), [box(1, 1, 2, 2)])}, ids=(0, 1))
    for format in FORMATS:
        assert len(convert(spec, format, root.parent / format).notes) == 2
        assert read(root.parent / format).picture_ids.tolist() == [11, 12]


@pytest.mark.parametrize(
    ("spell", "lost"), [(lambda n: f"x{n}", 2), (lambda n: 10**12 + n, 2), (lambda n: n, 0)]
)
def test_ids_of_any_kind_come_back_in_coco(root, spell, lost):
    spec = make(root, {"1.png": ((6, 8), []), "2.png": ((6, 8), [box(1, 1, 2, 2)])}, ids=(0, 1))
    file = next(root.rglob("*.json"))
    content = json.loads(file.read_text())
    for number, image in enumerate(content["images"], 1):
        own = [row for row in content["annotations"] if row["image_id"] == image["id"]]
        for item, key in [(image, "id"), *((row, "image_id") for row in own)]:
            item[key] = spell(number)
    file.write_text(json.dumps(content))
    convert(spec, "coco", root.parent / "coco")
    (written,) = (root.parent / "coco").rglob("*.json")
    images = {image["file_name"]: image["id"] for image in json.loads(written.read_text())["images"]}
    assert images == {"1.png": spell(1), "2.png": spell(2)}
    assert len(read(root.parent / "coco").boxes) == 1
    notes = convert(spec, "yolo", root.parent / "yolo").notes
    assert [note for note in notes if "picture ids lost" in note] == [
        f"{lost} picture ids lost: yolo has file names only"
    ] * (lost > 0)


# names


@pytest.mark.parametrize("format", FORMATS)
def test_hostile_class_names_come_back(root, format):
    rows = [box(1, 1, 5 + i, 5, label=i) for i in range(len(HOSTILE))]
    spec = make(root, one(*rows), names=HOSTILE, ids=range(len(HOSTILE)))
    convert(spec, format, root.parent / "out")
    assert load_data_spec(root.parent / "out").names == HOSTILE
    assert_same(read(root), read(root.parent / "out"))


def test_control_characters_are_spelled_out_for_xml_only(root):
    names = ("a\x01b", "c\nd\x85e")
    spec = make(root, one(box(1, 1, 5, 5), box(1, 1, 6, 6, label=1)), names=names)
    for format in ("yolo", "coco"):
        convert(spec, format, root.parent / format)
        assert load_data_spec(root.parent / format).names == names
    done = convert(spec, "voc", root.parent / "voc")
    assert load_data_spec(root.parent / "voc").names == ("a\\x01b", "c\\nd\\x85e")
    assert read(root.parent / "voc").labels.tolist() == [0, 1]
    assert "class 'a\\x01b' is called 'a\\\\x01b': voc cannot hold its name" in done.notes


@pytest.mark.parametrize("format", FORMATS)
def test_half_a_surrogate_pair_is_spelled_out(root, format):
    spec = make(root, one(box(1, 1, 5, 5)), names=("\ud800x", "b"))
    convert(spec, format, root.parent / "out")
    assert load_data_spec(root.parent / "out").names == ("\\ud800x", "b")


def test_names_that_would_become_equal_are_refused(root):
    spec = make(root, one(), names=("a\x01", "a\\x01"))
    assert "both be called 'a\\\\x01'" in error_of(DATA, convert, spec, "voc", root.parent / "out")


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2))
@settings(max_examples=15, deadline=None)
def test_any_class_names_can_be_read_again(names):
    names = [f"{i}{name}.".replace("\0", "") for i, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        spec = make(Path(folder) / "set", one(box(1, 1, 5, 5), box(2, 2, 6, 6, label=1)), names=names)
        for format in FORMATS:
            convert(spec, format, Path(folder) / format)
            if format != "voc":
                assert load_data_spec(Path(folder) / format).names == spec.names
            assert read(Path(folder) / format).labels.tolist() == [0, 1]


# pictures and their places


@pytest.mark.parametrize("format", FORMATS)
def test_equal_names_in_different_folders_stay_apart(root, format):
    files = ["x/1.png", "y/1.png", "1.png", "images/1.png", "JPEGImages/z/1.png", "ü &<b>/ä.b.png"]
    files += ["\x02.png", os.fsdecode(b"\xff/\xfe.png")]
    size = (60, 80)
    spec = make(root, {file: (size, [box(1, 1, 5 + i, 5)]) for i, file in enumerate(files)})
    convert(spec, format, root.parent / "out")
    new, old = read(root.parent / "out"), read(root)
    assert_same(old, new)
    folder = root.parent / "out" / ("JPEGImages" if format == "voc" else "images") / "train"
    assert sorted(str(path_of(new, i).relative_to(folder)) for i in range(len(files))) == sorted(files)


@pytest.mark.parametrize("format", FORMATS)
def test_a_lone_folder_below_the_split_is_kept(root, format):
    spec = make(root, {"x/1.png": ((6, 8), [])} | {"x/2.png": ((6, 8), [box(1, 1, 2, 2)])})
    convert(spec, format, root.parent / "out")
    assert path_of(read(root.parent / "out"), 0).parts[-3:] == ("train", "x", "1.png")


def test_pictures_outside_of_the_named_folder_count_from_what_all_have_in_common(root):
    spec = make(root, {"a.png": ((6, 8), []), "../more/a.png": ((6, 8), [box(1, 1, 2, 2)])})
    convert(spec, "voc", root.parent / "out")
    assert_same(read(root), read(root.parent / "out"))
    assert (root.parent / "out" / "JPEGImages" / "train" / "more" / "a.png").exists()


def test_pictures_of_a_list_and_of_several_folders(root):
    make(root, {"x/1.png": ((6, 8), []), "y/1.png": ((6, 8), []), "y/z/2.png": ((6, 8), [])})
    pictures = root / "images" / "train"
    (root / "list.txt").write_text(f"{pictures}/x/1.png\n{pictures}/y/z/2.png\n")
    for path in pictures.rglob("*.png"):
        label = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 .5 .5 .5 .5\n")
    text = "train: [images/train/x, images/train/y]\nval: list.txt\nnames: [a]"
    (root / "yolo.yaml").write_text(text)
    convert(load_data_spec(root / "yolo.yaml"), "voc", root.parent / "out")
    for split, files in (("train", ["x/1.png", "y/1.png", "y/z/2.png"]), ("val", ["x/1.png", "y/z/2.png"])):
        index = read(root.parent / "out", split)
        folder = root.parent / "out" / "JPEGImages" / split
        assert [str(path_of(index, i).relative_to(folder)) for i in range(len(files))] == files
        assert index.boxes.tolist() == [[2, 1.5, 6, 4.5]] * len(files)


def test_pictures_that_would_share_a_label_file_are_refused_with_both_paths(root):
    spec = make(root, {"x/a.png": ((6, 8), []), "x/a.jpg": ((6, 8), [box(1, 1, 2, 2)])})
    for format in ("yolo", "voc"):
        text = error_of(DATA, convert, spec, format, root.parent / "out")
        assert f"{root}/images/train/x/a.jpg and {root}/images/train/x/a.png would share" in text
    assert not (root.parent / "out").exists()
    convert(spec, "coco", root.parent / "out")
    assert_same(read(root), read(root.parent / "out"))


@pytest.mark.parametrize("file", ["a.jp2", ".a.png", ".x/a.png"])
def test_pictures_that_a_folder_would_not_show_are_refused(root, file):
    spec = make(root, {file: ((6, 8), [box(1, 1, 2, 2)])})
    for format in ("yolo", "voc"):
        assert f"{root}/images/train/{file}" in error_of(DATA, convert, spec, format, root.parent / "out")
    convert(spec, "coco", root.parent / "out")
    assert_same(read(root), read(root.parent / "out"))


def test_links_are_relative_and_lead_to_the_original(root):
    spec = make(root, {"x/a.png": ((6, 8), [box(1, 1, 2, 2)])})
    done = convert(spec, "yolo", root.parent / "new" / "out")
    link = root.parent / "new" / "out" / "images" / "train" / "x" / "a.png"
    assert link.is_symlink() and not os.path.isabs(os.readlink(link))
    assert link.resolve() == root / "images" / "train" / "x" / "a.png"
    assert done.notes[-1].startswith("pictures: relative links into")
    again = convert(load_data_spec(done.out), "coco", root.parent / "again")  # not a link to a link
    assert os.readlink(again.out / "images/train/x/a.png") == "../../../../set/images/train/x/a.png"


def test_copies_stand_alone(root):
    spec, old = make(root, one(box(1, 1, 2, 2))), read(root)
    done = convert(spec, "coco", root.parent / "out", pictures="copy")
    shutil.rmtree(root)
    shutil.move(root.parent / "out", root.parent / "moved")
    assert_same(old, read(root.parent / "moved"))
    assert done.notes[-1].startswith("pictures: copied from")


def test_where_links_fail_pictures_are_copied_and_it_is_said(root, monkeypatch):
    def fail(*_):
        raise OSError("no links here")

    spec = make(root, one(box(1, 1, 2, 2)))
    monkeypatch.setattr(module.os, "symlink", fail)
    done = convert(spec, "yolo", root.parent / "out")
    picture = done.out / "images" / "train" / "a.png"
    assert picture.is_file() and not picture.is_symlink()
    assert done.notes[-1].startswith("pictures: copied from")


def test_none_points_to_the_original_pictures(root):
    spec = make(root, {"x/a.png": ((6, 8), [box(1, 1, 2, 2)])})
    done = convert(spec, "coco", root.parent / "out", pictures="none")
    assert not (done.out / "images").exists()
    assert path_of(read(done.out), 0) == root / "images" / "train" / "x" / "a.png"
    for format in ("yolo", "voc"):
        text = error_of(USAGE, convert, spec, format, root.parent / "other", pictures="none")
        assert "choose link or copy, or --to coco" in text


# what is refused, and what is left behind


def test_nothing_is_overwritten(root):
    spec = make(root, one(box(1, 1, 2, 2)))
    (root.parent / "full").mkdir()
    (root.parent / "full" / "mine.txt").write_text("precious")
    (root.parent / "file").write_text("precious")
    (root.parent / "dangling").symlink_to(root.parent / "nowhere" / "file")
    assert "not empty" in error_of(USAGE, convert, spec, "yolo", root.parent / "full")
    assert "not a folder" in error_of(USAGE, convert, spec, "yolo", root.parent / "file")
    assert "another file system" in error_of(USAGE, convert, spec, "yolo", "/")
    assert [path.name for path in (root.parent / "full").iterdir()] == ["mine.txt"]
    (root.parent / "empty").mkdir()
    convert(spec, "yolo", root.parent / "empty")
    assert_same(read(root), read(root.parent / "empty"))


@pytest.mark.parametrize("source", FORMATS)
def test_source_folders_are_never_written_to(root, source):
    first = make(root, {"x/a.png": ((6, 8), [box(1, 1, 2, 2)])})
    convert(first, source, root.parent / "source", pictures="copy")
    spec, before = load_data_spec(root.parent / "source"), tree_of(root.parent / "source")
    labels = {"yolo": "labels/train/x", "coco": "annotations", "voc": "Annotations/train/x"}[source]
    pictures = "JPEGImages" if source == "voc" else "images"
    for place in (labels, f"{pictures}/train", f"{pictures}/train/x/new"):
        text = error_of(USAGE, convert, spec, "coco", root.parent / "source" / place / "out")
        assert "belongs to the data set" in text
    for format in FORMATS:
        convert(spec, format, root.parent / format)
    assert tree_of(root.parent / "source") == before


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
@pytest.mark.parametrize("empty", [False, True], ids=["new", "empty"])
def test_a_failure_leaves_nothing(root, monkeypatch, failure, empty):
    make(root, one(box(1, 1, 2, 2)))
    spec = make(root, one(box(1, 1, 2, 2)), split="val")
    out = root.parent / "work" / "out"
    (out if empty else out.parent).mkdir(parents=True)
    write = module.write_yolo

    def fail_late(new, part):
        write(new, part)
        if part.split == "val":
            raise failure

    monkeypatch.setattr(module, "write_yolo", fail_late)
    with pytest.raises(UserError if isinstance(failure, OSError) else KeyboardInterrupt):
        convert(spec, "yolo", out)
    assert [path.name for path in out.parent.iterdir()] == ["out"] * empty
    assert not empty or not any(out.iterdir())


def test_an_out_that_fills_meanwhile_is_kept(root, monkeypatch):
    spec, out = make(root, one(box(1, 1, 2, 2))), root.parent / "work" / "out"
    write = module.write_yolo

    def write_slowly(new, part):
        write(new, part)
        out.mkdir()
        (out / "mine.txt").write_text("precious")

    monkeypatch.setattr(module, "write_yolo", write_slowly)
    assert "cannot write" in error_of(DATA, convert, spec, "yolo", out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_faulty_labels_stop_or_are_skipped(root):
    make(root, one(box(1, 1, 2, 2)))
    convert(load_data_spec(root), "yolo", root.parent / "yolo")
    label = root.parent / "yolo" / "labels" / "train" / "a.txt"
    label.write_text(label.read_text() + "0 0.5 0.5\n")
    spec = load_data_spec(root.parent / "yolo")
    assert f"{label}:2" in error_of(DATA, convert, spec, "coco", root.parent / "out")
    done = convert(spec, "coco", root.parent / "out", label_errors="skip")
    assert (done.reports["train"].num_skipped, done.num_written) == (1, {"train": 1})


def test_an_offset_needs_xml(root):
    spec = make(root, one(box(1, 1, 2, 2)))
    assert "--to voc" in error_of(USAGE, convert, spec, "coco", root.parent / "out", voc_offset=1)


# the command


def test_command_says_what_was_done_and_what_next(root, capsys):
    make(root, one(box(1, 1, 2, 2), box(1, 1, 3, 3, ignore=True)))
    make(root, one(), split="val")
    out = root.parent / "my out"
    main(["--data", str(root), "--to", "yolo", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 1 pictures") and lines[0].endswith("1 boxes written")
    assert lines[1].startswith("val: 1 pictures (1 background)") and lines[1].endswith("0 boxes written")
    assert "1 crowd or difficult boxes left out: YOLO labels have no mark for them" in lines
    assert lines[-2:] == [f"written: {out}", f"next: python train.py --data '{out}/data.yaml' --cfg n"]


def test_only_the_splits_asked_for(root, capsys):
    make(root, one(box(1, 1, 2, 2)))
    make(root, one(), split="val")
    main(["--data", str(root), "--to", "coco", "--out", str(root.parent / "out"), "--splits", "train"])
    assert list(load_data_spec(root.parent / "out").splits) == ["train"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: python -m data.check --data ")


@pytest.mark.parametrize("name", ["bccd", "coco_free", "deeppcb"])
def test_real_sets_through_all_formats(tmp_path, name):
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there")
    images = "images: {train: images/train, val: images/val}"
    splits = "\n".join(f"{split}: annotations/instances_{split}.json" for split in ("train", "val"))
    (tmp_path / "source.yaml").write_text(f"path: {REAL / name}\nformat: coco\n{splits}\n{images}\n")
    for chain in (("voc", "coco", "yolo"), ("yolo", "voc", "coco")):
        spec = load_data_spec(tmp_path / "source.yaml")
        for step, format in enumerate(chain):
            out = tmp_path / f"{chain[0]}{step}"
            convert(spec, format, out, splits=["val"])
            spec = load_data_spec(out)
        assert_same(read(tmp_path / "source.yaml", "val"), read(out, "val"), crowds=False)
