"""The doctor: what it finds, what it says, what it never does."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

import data.doctor.diagnosis
from data.check import check_before_training, check_parser, main
from data.doctor.diagnosis import diagnose
from data.spec import load_data_spec
from utils.config import Config
from utils.errors import DATA, OK, UserError, run_main

REAL = Path(__file__).parents[2].parent / "shared" / "datasets"
NUM = {"train": 12, "val": 6}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """18 pictures of 160x120 with three boxes each, of two classes."""
    root = tmp_path_factory.mktemp("healthy")
    rng, seed = np.random.default_rng(0), 0
    for split, count in NUM.items():
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(count):
            seed += 1
            cv2.imwrite(str(root / "images" / split / f"{number:02}.jpg"), draw(seed))
            rows = [f"{k % 2} {x:.4f} {y:.4f} {w:.4f} {h:.4f}" for k, (x, y, w, h) in enumerate(boxes(rng))]
            (root / "labels" / split / f"{number:02}.txt").write_text("\n".join(rows) + "\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return root


def draw(seed):
    """Noise of two scales, 160x120."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.random((5, 6, 3)), (160, 120), interpolation=cv2.INTER_CUBIC)
    return (255 * (0.8 * coarse + 0.2 * rng.random((120, 160, 3))).clip(0, 1)).astype(np.uint8)


def boxes(rng):
    size = rng.uniform(0.1, 0.3, (3, 2))
    return np.hstack([rng.uniform(size / 2, 1 - size / 2), size])


@pytest.fixture
def root(healthy, tmp_path):
    """A copy to be wrecked."""
    shutil.copytree(healthy, tmp_path / "set")
    return tmp_path / "set"


def doctor(root, *flags, capsys=None):
    """(exit code, JSON facts)."""
    report = root.parent / "report.json"
    code, _ = call("--data", root, "--json", report, *flags)
    if capsys:
        capsys.readouterr()
    return code, json.loads(report.read_text())


def call(*flags):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["check", *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            run_main(main)
    return ended.value.code, None


def codes(facts, severity=None):
    """(code, split, count) of the findings."""
    found = [item for item in facts["findings"] if severity in (None, item["severity"])]
    return {(item["code"], item["split"], item["count"]) for item in found}


def label(root, number, split="train"):
    return root / "labels" / split / f"{number:02}.txt"


def picture(root, number, split="train"):
    return root / "images" / split / f"{number:02}.jpg"


def add(root, number, row, split="train"):
    with open(label(root, number, split), "a") as file:
        file.write(row + "\n")


def tree_hash(root):
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        state = path.stat()
        digest.update(f"{path} {state.st_mtime_ns} {state.st_mode}".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


# what it finds


def test_nothing_to_complain_about(root, capsys):
    code, facts = doctor(root)
    assert code == OK and facts["trainable"] and facts["exit_code"] == OK and facts["findings"] == []
    assert facts["splits"]["train"]["pictures"] == facts["splits"]["train"]["decoded"] == 12
    assert [item["boxes"] for item in facts["classes"]] == [{"train": 24, "val": 12}, {"train": 12, "val": 6}]
    out = capsys.readouterr().out
    assert "nothing to complain about" in out and "no faults: ready to train\nnext: python train.py" in out


FAULTS = {  # code -> row
    "separator": "0;0.5;0.5;0.1;0.1",
    "not-finite": "0 nan 0.5 0.1 0.1",
    "outside": "0 0.96 0.5 0.2 0.1",
    "pixels": "0 80 60 20 20",
    "class": "2 0.5 0.5 0.1 0.1",
    "columns": "0 0.5 0.5 0.1",
    "negative": "0 0.5 0.5 -0.1 0.1",
}


@pytest.mark.parametrize("code", FAULTS)
def test_faulty_rows_are_errors_with_their_line(root, code):
    add(root, 3, FAULTS[code])
    exit_code, facts = doctor(root)
    assert exit_code == DATA and not facts["trainable"] and codes(facts) == {(code, "train", 1)}
    place = facts["findings"][0]["places"][0]
    assert (place["path"], place["line"]) == (str(label(root, 3)), 4) and facts["findings"][0]["remedy"]


def test_unreadable_pictures(root):
    content = picture(root, 0).read_bytes()
    picture(root, 0).write_bytes(content[: len(content) // 2])  # its header is fine
    picture(root, 1).write_bytes(b"")
    code, facts = doctor(root)
    assert code == DATA and ("picture", "train", 2) in codes(facts)
    assert [place["path"] for place in facts["findings"][0]["places"]] == [
        str(picture(root, n)) for n in (0, 1)
    ]
    code, facts = doctor(root, "--label-errors", "skip")  # training leaves out both
    assert code == OK and codes(facts) == {("picture", "train", 2)}


def test_label_errors_skip_and_clip(root):
    add(root, 3, FAULTS["outside"])
    assert doctor(root, "--label-errors", "skip")[0] == OK
    code, facts = doctor(root, "--label-errors", "clip")
    assert code == OK and codes(facts) == {("clipped", "train", 1)}


def test_the_next_command_judges_labels_as_the_check_did(root, capsys):
    assert call("--data", root, "--label-errors", "skip")[0] == OK
    assert " --cfg n --label-errors skip\n" in capsys.readouterr().out
    assert call("--data", root)[0] == OK
    assert capsys.readouterr().out.endswith(" --cfg n\n")


def test_counts_of_what_the_reader_mends(root):
    label(root, 0).unlink()
    add(root, 1, "0 0.5 0.5 0 0.1")
    add(root, 2, label(root, 2).read_text().splitlines()[0])
    label(root, 3).write_bytes(b"\xef\xbb\xbf" + label(root, 3).read_bytes())
    code, facts = doctor(root)
    expected = {("empty", "train", 1), ("duplicate-box", "train", 1)}
    assert code == OK and codes(facts, "warning") == expected
    assert codes(facts, "note") == {("no-label-file", "train", 1), ("bom", "train", 1)}


def test_orphans(root):
    picture(root, 4).rename(root / "images" / "train" / "04.JPEG")
    picture(root, 5).rename(root / "images" / "train" / "O5.jpg")
    (root / "labels" / "train" / "o5.txt").write_text("")
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    code, facts = doctor(root)
    finding = next(item for item in facts["findings"] if item["code"] == "orphan")
    assert [(Path(place["path"]).name, place["text"]) for place in finding["places"]] == [
        ("05.txt", "no picture of this name"),
        ("o5.txt", "no picture of this name, but there is O5.jpg"),
    ]
    assert code == OK


def test_pictures_that_no_list_names_make_no_orphans(root):
    names = sorted((root / "images" / "train").iterdir())
    (root / "list.txt").write_text("\n".join(map(str, names[:10])))
    (root / "data.yaml").write_text("train: list.txt\nval: images/val\nnames: [cat, dog]\n")
    assert doctor(root)[1]["findings"] == []


def test_copies_between_and_within_splits(root):
    shutil.copy(picture(root, 0), picture(root, 90, "val"))
    small = cv2.resize(cv2.imread(str(picture(root, 1))), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(picture(root, 91, "val")), small)
    shutil.copy(picture(root, 2), picture(root, 92))
    code, facts = doctor(root)
    leak = next(item for item in facts["findings"] if item["code"] == "leak")
    assert code == OK and (leak["severity"], leak["split"], leak["count"]) == ("warning", "val", 2)
    assert [(Path(place["path"]).name, place["text"]) for place in leak["places"]] == [
        ("90.jpg", f"same bytes as {picture(root, 0)}"),
        ("91.jpg", f"looks like {picture(root, 1)}"),
    ]
    assert ("copy", "train", 1) in codes(facts, "note")


def test_a_split_that_is_another_one_is_not_told_picture_by_picture(root):
    """As COCO128 has it: each picture is its own copy."""
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    leak = next(item for item in doctor(root)[1]["findings"] if item["code"] == "leak")
    assert {place["text"] for place in leak["places"]} == {"the same file"}


def test_classes(root):
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog, bird, fish]\n")
    add(root, 0, "2 0.5 0.5 0.2 0.2", "val")
    code, facts = doctor(root)
    assert code == OK and codes(facts) == {("class-not-in-train", "", 1), ("class-unused", "", 1)}
    assert "1 (bird)" in facts["findings"][0]["text"] and "1 (fish)" in facts["findings"][1]["text"]


def test_boxes_that_are_small_at_this_input(root):
    for number in range(12):
        label(root, number).write_text(f"0 0.{number + 20} 0.5 0.1 0.1\n1 0.5 0.5 0.012 0.012\n")
    # 160x120 at 640: 4 px a px. 0.012 of 120 = 1.44 px -> 5.8 px; at 160 1.44 px
    assert codes(doctor(root, "--imgsz", 640)[1]) == {("boxes-tiny", "train", 12)}
    assert codes(doctor(root, "--imgsz", 160)[1]) == {("boxes-lost", "train", 12)}


def test_bins_are_audited_at_the_size_asked_for(root):
    label(root, 0).write_text("0 0.5 0.5 1 1\n")
    facts = doctor(root, "--imgsz", 480, 640, "--set", "model.reg_max=4")[1]
    # the whole picture, 640x480 in 640x480: level 5's middle points lie 336 px from a side, 10.5 strides
    assert facts["shape"] == [480, 640] and facts["bins"]["inexpressible"] == 1
    assert facts["bins"]["least_reg_max"] == 11 and ("bins", "train", 1) in codes(facts)
    assert doctor(root, "--imgsz", 480, 640)[1]["bins"]["inexpressible"] == 0


def test_a_split_that_cannot_be_read_does_not_hide_the_others(root):
    shutil.rmtree(root / "images" / "val")
    add(root, 3, FAULTS["pixels"])
    code, facts = doctor(root)
    assert code == DATA and codes(facts, "error") == {("split", "val", 0), ("pixels", "train", 1)}


def test_training_needs_both_splits(root):
    (root / "data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    assert codes(doctor(root)[1]) == {("split", "val", 0)}
    assert doctor(root, "--splits", "train")[0] == OK


def test_headers_only_above_many_pictures(root, monkeypatch):
    monkeypatch.setattr(data.doctor.diagnosis, "MANY_PICTURES", 17)
    facts = doctor(root)[1]
    assert codes(facts) == {("headers-only", "", 0)} and facts["splits"]["train"]["decoded"] == 0
    assert doctor(root, "--full")[1]["splits"]["train"]["decoded"] == 12
    assert doctor(root)[1]["findings"] == []  # all are known by now


# what it says


def test_the_table_says_what_where_and_what_to_do(root, capsys, monkeypatch):
    for number in range(5):
        add(root, number, FAULTS["pixels"])
    monkeypatch.chdir(root)
    code, _ = call("--data", root)
    out = capsys.readouterr().out
    assert code == DATA and max(map(len, out.splitlines()[1:])) <= 110
    assert "ERROR   train  label rows in pixels or percent: 5\n" in out and "... and 2 more" in out
    assert "                 labels/train/00.txt:4: " in out and "-> write fractions, 0..1" in out
    assert out.endswith(
        "1 error: NOT ready to train\nnext: mend the errors, then run the same command again\n"
    )


def test_json_to_the_standard_output_is_all_there_is(root, capsys):
    call("--data", root)
    label(root, 0).write_text("0 0.5 0.5 0.1 0.1\n" * 2)  # the reader says that it reads again
    capsys.readouterr()
    call("--data", root, "--json", "-")
    facts = json.loads(capsys.readouterr().out)
    assert facts["schema"] == 1 and facts["format"] == "yolo"
    assert facts.keys() == {
        *("schema", "data", "format", "shape", "reg_max", "levels", "label_errors", "trainable", "exit_code"),
        *("splits", "classes", "bins", "findings", "pixel_range"),
    }


def test_json_that_cannot_be_written(root, capsys):
    assert call("--data", root, "--json", root / "none" / "a.json")[0] == 2
    assert "cannot be written: No such file" in capsys.readouterr().err


def test_the_flags_of_train_py_are_understood():
    args = check_parser().parse_args(["--data", "x", "--img", "480", "640", "--set", "model.reg_max=20"])
    assert args.imgsz == (480, 640) and args.sets == ["model.reg_max=20"]


# what it never does


def test_the_data_set_stays_as_it_is_even_if_read_only(root):
    add(root, 3, FAULTS["pixels"])
    paths = [root, *root.rglob("*")]
    for path in paths:
        os.chmod(path, 0o555 if path.is_dir() else 0o444)
    before = tree_hash(root)
    assert doctor(root)[0] == DATA
    assert tree_hash(root) == before
    for path in paths:
        os.chmod(path, 0o755 if path.is_dir() else 0o644)


# before training


def config(root):
    return Config.model_validate({"data": {"path": str(root)}})


def test_before_training_only_what_matters_is_printed(root, capsys):
    shutil.copy(picture(root, 0), picture(root, 90, "val"))
    shutil.copy(picture(root, 2), picture(root, 92))
    check_before_training(load_data_spec(root), config(root))
    out = capsys.readouterr().out
    assert (
        "train: 13 pictures (1 background), 36 boxes" in out
        and "pictures that are in train as well: 1" in out
    )
    assert "repeat another" not in out  # a note
    assert f"ready to train; python -m data.check --data {root / 'data.yaml'} shows all" in out


def test_before_training_errors_stop(root):
    content = picture(root, 0).read_bytes()
    picture(root, 0).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not ready to train") as error:
        check_before_training(load_data_spec(root), config(root))
    assert error.value.code == DATA and "pictures that cannot be read: 1" in str(error.value)


@pytest.mark.parametrize("name", ["bccd", "deeppcb", "coco_free"])
def test_real_sets_are_ready_and_no_hint_is_given(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there")
    spec = load_data_spec(REAL / name)
    found = diagnose(spec, Config(), splits=tuple(spec.splits))
    hints = {"corners", "classes-from-1", "class-0-unused", "orphan", "bom"}
    assert found.trainable and not hints & {finding.code for finding in found.findings}
