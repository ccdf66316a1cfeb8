"""Laws of the generated data set: same bytes, prefixes, equal labels in both formats, tight boxes, atomic.

The shapes of the hand-worked cases are squares, given as contours (N, 2), xy px.
"""

import filecmp
import json
import os
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from data import shapes
from utils.errors import DATA, USAGE, UserError

SIDES = (240, 480)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A small data set, read only."""
    root = tmp_path_factory.mktemp("shapes") / "a"
    shapes.make_shapes(root, num_train=24, num_val=6)
    return root


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, list[shapes.Shape]]]:
    """The first pictures of the default training split with their shapes."""
    return [shapes.draw_picture(0, "train", number, SIDES) for number in range(1, 61)]


def files_of(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def read_coco(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def test_same_seed_gives_the_same_bytes(root, tmp_path):
    shapes.make_shapes(tmp_path / "b", num_train=24, num_val=6)
    names = files_of(root)
    assert (
        len(names) == 2 * (24 + 6) + 2 + 2
    )  # pictures and labels, two annotation files, data.yaml, shapes.json
    assert files_of(tmp_path / "b") == names
    assert filecmp.cmpfiles(root, tmp_path / "b", names, shallow=False) == (names, [], [])


def test_fewer_pictures_are_the_first_of_more(root, tmp_path):
    shapes.make_shapes(tmp_path / "b", num_train=5, num_val=2)
    names = [name for name in files_of(tmp_path / "b") if name.endswith((".jpg", ".txt"))]
    assert len(names) == 14
    assert filecmp.cmpfiles(root, tmp_path / "b", names, shallow=False) == (names, [], [])
    few, many = read_coco(tmp_path / "b", "train"), read_coco(root, "train")
    assert few["images"] == many["images"][:5]
    assert few["annotations"] == many["annotations"][: len(few["annotations"])]


def test_seed_split_and_number_all_change_the_picture():
    first, _ = shapes.draw_picture(0, "train", 1, (64, 64))
    for other in ((1, "train", 1), (0, "val", 1), (0, "train", 2)):
        assert not np.array_equal(first, shapes.draw_picture(*other, (64, 64))[0])


def test_yolo_labels_equal_coco_boxes(root):
    for split, count in (("train", 24), ("val", 6)):
        coco = read_coco(root, split)
        assert [category["name"] for category in coco["categories"]] == list(shapes.CLASSES)
        assert [image["id"] for image in coco["images"]] == list(range(1, count + 1))
        for image in coco["images"]:
            notes = [note for note in coco["annotations"] if note["image_id"] == image["id"]]
            text = (root / "labels" / split / image["file_name"]).with_suffix(".txt").read_text()
            rows = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 5)
            size = np.array([image["width"], image["height"]])
            boxes = np.hstack([(rows[:, 1:3] - rows[:, 3:] / 2) * size, rows[:, 3:] * size])  # xywh px
            np.testing.assert_allclose(boxes, np.reshape([n["bbox"] for n in notes], (-1, 4)), atol=1e-3)
            assert rows[:, 0].tolist() == [note["category_id"] - 1 for note in notes]


def test_coco_boxes_are_those_of_the_shapes(root):
    notes = read_coco(root, "train")["annotations"]
    placed = [shape for number in range(1, 25) for shape in shapes.draw_picture(0, "train", number, SIDES)[1]]
    assert len(notes) == len(placed) > 50
    for note, shape in zip(notes, placed, strict=True):
        x, y, w, h = note["bbox"]
        assert [x, y, x + w, y + h] == shape.box.tolist()
        assert note["area"] == w * h and note["iscrowd"] == 0 and note["category_id"] == shape.label + 1


def test_files_have_the_sizes_that_coco_states(root):
    for image in read_coco(root, "train")["images"]:
        picture = cv2.imread(str(root / "images" / "train" / image["file_name"]))
        assert picture.shape == (image["height"], image["width"], 3)


def test_boxes_bound_the_pixels_that_drawing_changes(scenes):
    """On black or on white each shape must change something in its outermost rows and columns."""
    checked = 0
    for picture, placed in scenes:
        for shape in placed:
            changed = np.zeros(picture.shape[:2], bool)
            for ground in (0, 255):
                canvas = np.full_like(picture, ground)
                shapes.paint(np.random.default_rng(0), canvas, shape)
                changed |= (canvas != ground).any(axis=2)
            y, x = np.nonzero(changed)
            bounds = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
            assert np.abs(bounds - shape.box).max() <= 1
            checked += 1
    assert checked > 150


def test_box_of_a_square_worked_by_hand():
    """Corners (10.5, 20.25) and (30.5, 40.25): the box is the square, to the eighth of a pixel."""
    square = np.array([[10.5, 20.25], [30.5, 20.25], [30.5, 40.25], [10.5, 40.25]])
    occupied = np.zeros((64, 48), bool)
    shape = shapes.rasterise([square], 0, 0.0, occupied)
    np.testing.assert_allclose(shape.box, [10.5, 20.25, 30.5, 40.25], atol=0.126)
    assert shape.mask.sum() == pytest.approx(400, rel=0.02)
    right = square + np.array([27.5, 0])  # x from 38 to 58, the picture ends at 48
    shape = shapes.rasterise([right], 0, 0.0, occupied)
    np.testing.assert_allclose(shape.box, [38, 20.25, 48, 40.25], atol=0.126)


def test_hidden_shapes_are_not_drawn():
    """A square of 20 px of which the left 11 (visible: 45 %) or 13 columns (35 %) are covered."""
    square = np.array([[10.0, 10], [30, 10], [30, 30], [10, 30]])
    for columns, drawn in ((11, True), (13, False)):
        occupied = np.zeros((64, 64), bool)
        occupied[:, : 10 + columns] = True
        assert (shapes.rasterise([square], 0, 0.0, occupied) is not None) == drawn


def test_boxes_lie_inside_the_picture_and_all_classes_occur(scenes):
    for picture, placed in scenes:
        height, width = picture.shape[:2]
        for shape in placed:
            x1, y1, x2, y2 = shape.box
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    assert {shape.label for _, placed in scenes for shape in placed} == set(range(len(shapes.CLASSES)))


def test_scenes_vary(scenes):
    counts = [len(placed) for _, placed in scenes]
    assert min(counts) == 0 and max(counts) >= 12
    sizes = np.array([(s.box[2:] - s.box[:2]).max() for _, placed in scenes for s in placed])
    assert (sizes < 18).mean() > 0.01 and sizes.max() > 180
    assert ((sizes > 18) & (sizes < 170)).mean() > 0.8
    long_sides = [max(picture.shape[:2]) for picture, _ in scenes]
    assert min(long_sides) >= SIDES[0] and max(long_sides) <= SIDES[1]
    assert len({picture.shape for picture, _ in scenes}) > 20


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    draw = shapes.draw_picture

    def draw_two(seed, split, number, sides):
        if number == 3:
            raise KeyboardInterrupt
        return draw(seed, split, number, sides)

    monkeypatch.setattr(shapes, "draw_picture", draw_two)
    with pytest.raises(KeyboardInterrupt):
        shapes.make_shapes(tmp_path / "a", num_train=4, num_val=1)
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_refused_and_kept(tmp_path):
    for record in (None, "{}", "[]", "not json", '{"made_by": "somebody"}'):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / "precious.txt").write_text("mine")
        if record is not None:
            (tmp_path / "a" / shapes.RECORD).write_text(record)
        with pytest.raises(UserError, match=r"not made by data\.shapes") as caught:
            shapes.make_shapes(tmp_path / "a", num_train=1, num_val=1)
        assert caught.value.code == DATA
        assert (tmp_path / "a" / "precious.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_pipe_as_its_record_makes_a_folder_foreign(tmp_path):
    os.mkfifo(tmp_path / shapes.RECORD)
    with pytest.raises(UserError, match=r"not made by data\.shapes"):
        shapes.make_shapes(tmp_path, num_train=1, num_val=1)


def test_same_recipe_is_left_alone_and_another_one_replaces(tmp_path, monkeypatch):
    root = tmp_path / "a"
    root.mkdir()  # an empty folder is nobody's
    shapes.make_shapes(root, num_train=2, num_val=1, sides=(64, 96))
    (root / "note.txt").write_text("still here")
    with monkeypatch.context() as patch:
        patch.delattr(shapes, "draw_picture")  # nothing is drawn a second time
        shapes.make_shapes(root, num_train=2, num_val=1, sides=(64, 96))
    assert (root / "note.txt").exists()
    shapes.make_shapes(root, num_train=3, num_val=1, sides=(64, 96))
    assert len(list((root / "images" / "train").iterdir())) == 3
    assert not (root / "note.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_old_folder_may_vanish_under_our_hands(tmp_path, monkeypatch):
    """Another process moves the old folder away between our look at it and our own move."""
    root, replace = tmp_path / "a", os.replace
    shapes.make_shapes(root, num_train=1, num_val=1, sides=(64, 64))

    def replace_too_late(source, target):
        if source == root:
            shutil.rmtree(root)
        replace(source, target)

    monkeypatch.setattr(shapes.os, "replace", replace_too_late)
    shapes.make_shapes(root, num_train=2, num_val=1, sides=(64, 64))
    assert len(files_of(root)) == 2 * 3 + 4


@pytest.mark.parametrize("earlier", [False, True], ids=["nothing before", "another recipe before"])
def test_concurrent_generations_do_not_corrupt(tmp_path, monkeypatch, earlier):
    """All wait for each other before they publish, so each finds the folder missing or of the old recipe."""
    root, failures = tmp_path / "a", []
    if earlier:
        shapes.make_shapes(root, num_train=1, num_val=1, sides=(64, 64))
    barrier, publish = threading.Barrier(3), shapes.publish

    def publish_together(*paths):
        barrier.wait(timeout=10)
        publish(*paths)

    def make():
        try:
            shapes.make_shapes(root, num_train=4, num_val=2, sides=(64, 64))
        except Exception as error:
            failures.append(error)

    monkeypatch.setattr(shapes, "publish", publish_together)
    workers = [threading.Thread(target=make) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert len(files_of(root)) == 2 * 6 + 4
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_impossible_parameters_are_refused(tmp_path):
    for wrong in ({"num_train": 0}, {"num_val": -1}, {"seed": -1}, {"sides": (480, 240)}, {"sides": (8, 64)}):
        with pytest.raises(UserError, match=next(iter(wrong))) as caught:
            shapes.make_shapes(tmp_path / "a", **wrong)
        assert caught.value.code == USAGE
    assert list(tmp_path.iterdir()) == []


def test_ensure_makes_only_the_shipped_set_and_only_once(tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(shapes, "SHIPPED_ROOT", tmp_path / "shapes")
    monkeypatch.setattr(shapes, "make_shapes", calls.append)
    shapes.ensure_shapes(tmp_path / "shapes.yaml")  # somebody's file of the same name
    assert calls == [] and capsys.readouterr().out == ""
    shapes.ensure_shapes(shapes.SHIPPED_YAML)
    assert calls == [tmp_path / "shapes"]
    assert capsys.readouterr().out.count("\n") == 1
    (tmp_path / "shapes").mkdir()
    recipe = {"made_by": shapes.MADE_BY, "version": shapes.VERSION}
    (tmp_path / "shapes" / shapes.RECORD).write_text(json.dumps(recipe))
    shapes.ensure_shapes(shapes.SHIPPED_YAML)
    assert len(calls) == 1 and capsys.readouterr().out == ""


def test_shipped_yaml_points_at_the_shipped_folder():
    spec = yaml.safe_load(shapes.SHIPPED_YAML.read_text())
    assert (shapes.SHIPPED_YAML.parent / spec["path"]).resolve() == shapes.SHIPPED_ROOT
    assert tuple(spec["names"].values()) == shapes.CLASSES
    assert (spec["train"], spec["val"]) == ("images/train", "images/val")


def test_command_says_where_and_what_next(tmp_path, capsys):
    shapes.main(["--root", str(tmp_path / "a"), "--num-train", "2", "--num-val", "1"])
    out = capsys.readouterr().out
    assert (
        str(tmp_path / "a") in out
        and f"train.py --cfg demo --hyp demo --data {tmp_path / 'a' / 'data.yaml'}" in out
    )
    assert (tmp_path / "a" / "data.yaml").read_text().startswith("path: .\n")
