"""detect.py and inference: boxes in the picture's own pixels, files, sources, unreadable pictures."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from data.images import decode_image
from detect import find_pictures
from inference import load_detector
from utils.errors import DATA, NOT_SAVED, OK, UserError, run_main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def best(trained) -> Path:
    return trained / "weights" / "best.pt"


@pytest.fixture(scope="module")
def pictures(shapes) -> list[Path]:
    return sorted((shapes.parent / "images" / "val").glob("*.jpg"))


LOW = ("--conf-thres", 0.005)  # four epochs learn little: low enough to find something


def test_writes_pictures_labels_and_crops(command, best, pictures):
    result = command(
        "detect",
        "--weights",
        best,
        "--source",
        pictures[0].parent,
        "--save-txt",
        "--save-conf",
        "--save-crop",
        *LOW,
    )
    assert result.code == 0 and "results: runs/detect/exp" in result.out
    detector = load_detector(best)
    total = 0
    for path in pictures:
        drawn, original = decode_image(f"runs/detect/exp/{path.name}"), decode_image(path)
        assert drawn.shape == original.shape
        rows = np.loadtxt(f"runs/detect/exp/labels/{path.stem}.txt", ndmin=2).reshape(-1, 6)
        found = detector(path, conf=0.005)
        assert len(rows) == len(found.boxes)
        height, width = original.shape[:2]
        centre, half = rows[:, 1:3], rows[:, 3:5] / 2
        corners = np.concatenate((centre - half, centre + half), 1) * [width, height, width, height]
        np.testing.assert_allclose(corners, found.boxes.numpy(), atol=1e-3 * max(width, height) + 1e-2)
        np.testing.assert_allclose(rows[:, 5], found.scores.numpy(), atol=1e-6)
        total += len(rows)
    assert total > 0
    assert len(list(Path("runs/detect/exp/crops").rglob("*.jpg"))) == total


def test_loaded_detector_returns_boxes_in_the_picture(best, pictures):
    detector = load_detector(best)
    picture = cv2.resize(decode_image(pictures[0]), (333, 517))
    found = detector(picture, conf=0.001)
    assert found.size == (517, 333)
    assert found.boxes.shape == (len(found.scores), 4) == found.sigma.shape
    assert (found.boxes[:, :2] <= found.boxes[:, 2:]).all() and (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([333, 517, 333, 517])).all() and (found.sigma > 0).all()
    assert (found.scores[:-1] >= found.scores[1:]).all() and len(found.scores) <= 300
    only = detector(picture, conf=0.001, classes=[2])
    assert set(only.labels.tolist()) <= {2}
    assert len(detector(picture, conf=0.999).boxes) == 0


def test_thresholds_of_a_call(best, pictures):
    """None stands for the configuration's, 0 for 0."""
    detector = load_detector(best)
    every = detector(pictures[0], conf=0, max_det=10_000, iou=1)
    points = sum((96 // stride) ** 2 for stride in (8, 16, 32))
    assert len(every.scores) == points * len(detector.names)
    assert len(detector(pictures[0], conf=0, iou=1).scores) == 300
    assert len(detector(pictures[0], conf=0, iou=0, max_det=10_000).scores) < 300
    assert len(detector(pictures[0], conf=0, max_det=1).scores) == 1
    assert len(detector(pictures[0]).scores) == 0  # below 0.25


@pytest.mark.parametrize(
    "given", [{"conf": -0.1}, {"conf": 25}, {"iou": 1.5}, {"max_det": 0}, {"max_det": -1}]
)
def test_thresholds_of_a_call_have_bounds(best, pictures, given):
    with pytest.raises(UserError, match=rf"\({next(iter(given))}\)"):
        load_detector(best)(pictures[0], **given)


def test_input_size_of_a_loaded_detector(best, pictures):
    detector = load_detector(best, imgsz=(90, 60))
    assert detector.shape == (96, 64) and detector(pictures[0]).size == decode_image(pictures[0]).shape[:2]
    with pytest.raises(UserError, match=r"data\.imgsz is 0"):
        load_detector(best, imgsz=0)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--imgsz", 0], "data.imgsz is 0"),
        (["--max-det", 0], "val.max_det is 0"),
        (["--max-det", -1], "val.max_det is -1"),
        (["--conf-thres", 25], "val.detect_conf is 25"),
        (["--iou-thres", -1], "val.detect_iou is -1"),
        (["--line-thickness", 0], "no count from 1"),
        (["--line-thickness", -3], "no count from 1"),
        (["--device", "0,1"], "give one device"),
    ],
)
def test_bad_values_are_refused(command, best, pictures, flags, text):
    result = command("detect", "--weights", best, "--source", pictures[0], *flags)
    assert result.code == 2 and text in result.err and flags[0] in result.err
    assert "Traceback" not in result.err and "torchrun" not in result.err and not Path("runs").exists()


def test_flags_reach_the_detector(command, best, pictures):
    flags = ["--conf", 0.005, "--max-det", 2, "--img", 90, "--save-txt", "--nosave"]
    result = command("detect", "--weights", best, "--source", pictures[0].parent, *flags)
    assert result.code == 0 and result.out.count("using 96x96") == 1
    rows = [path.read_text().splitlines() for path in Path("runs/detect/exp/labels").iterdir()]
    assert [len(lines) for lines in rows] == [2] * len(pictures)
    assert result.out.count(" (2 boxes, the limit: --max-det)") == len(pictures)
    assert f"{len(pictures)} pictures have 2 boxes, the limit" in result.out


def test_hub_loads_without_a_network(best, pictures, tmp_path):
    program = (
        "import sys, torch; root, weights, picture = sys.argv[1:]; "
        "detector = torch.hub.load(root, 'detector', weights, source='local', imgsz=64); "
        "print(detector.shape, detector(picture).size)"
    )
    line = [sys.executable, "-c", program, str(ROOT), str(best), str(pictures[0])]
    result = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.stdout == f"(64, 64) {decode_image(pictures[0]).shape[:2]}\n", result.stderr


def test_unreadable_pictures_are_skipped_and_the_exit_code_says_so(command, best, pictures, tmp_path):
    data = pictures[0].read_bytes()
    Path("in/deep").mkdir(parents=True)
    Path("in/good.jpg").write_bytes(data)
    Path("in/deep/good.jpg").write_bytes(data)
    Path("in/cut.jpg").write_bytes(data[: len(data) // 2])
    Path("in/empty.png").write_bytes(b"")
    result = command("detect", "--weights", best, "--source", "in", *LOW)
    assert result.code == 4 and "2 pictures done, 2 skipped" in result.out
    assert "cut.jpg" in result.err and "empty.png" in result.err and "Traceback" not in result.err
    assert {path.name for path in Path("runs/detect/exp").iterdir()} == {"good.jpg", "good_2.jpg"}


def test_sources(command, best, pictures):
    folder = pictures[0].parent
    Path("list.txt").write_text(f"{pictures[0]}\n\n{pictures[1]}\n")
    for source, count in ((pictures[0], 1), (folder / "00000[12].jpg", 2), ("list.txt", 2), (folder, 6)):
        result = command("detect", "--weights", best, "--source", source, "--nosave")
        assert result.code == 0 and f"{count} pictures done" in result.out
    assert not list(Path("runs/detect").rglob("*.jpg"))
    result = command("detect", "--weights", best, "--source", "nowhere/*.jpg")
    assert result.code == 4 and "nowhere/*.jpg" in result.err and "working directory" in result.err


def test_a_list_that_is_no_text(command, best, pictures):
    Path("list.txt").write_bytes(pictures[0].read_bytes())
    result = command("detect", "--weights", best, "--source", "list.txt")
    assert result.code == 4 and "list.txt" in result.err and "UTF-8" in result.err
    assert "Traceback" not in result.err and not Path("runs").exists()


def test_classes_must_exist(command, best, pictures):
    result = command("detect", "--weights", best, "--source", pictures[0], "--classes", 1, 9)
    assert result.code == 2 and "--classes 9" in result.err and "1 triangle" in result.err
    assert not Path("runs").exists()


def test_a_result_never_replaces_another(command, best, pictures):
    Path("in").mkdir()
    data = pictures[0].read_bytes()
    for name in ("a.jpg", "a.data", os.fsdecode(b"\xff\x1b.jpg")):  # JPEGs all
        Path("in", name).write_bytes(data)
    result = command("detect", "--weights", best, "--source", "in/*")
    assert result.code == 0 and "in/\\udcff\\x1b.jpg: " in result.out and "\x1b" not in result.out
    written = sorted(path.name for path in Path("runs/detect/exp").iterdir())
    assert written == ["a.jpg", "a_2.jpg", os.fsdecode(b"\xff\x1b.jpg")]


def test_folders_and_lists_hold_what_a_data_set_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a/z.jpg", "in/a.JPG", "in/.hidden/b.jpg", "in/.c.jpg", "in/folder.jpg/d.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert find_pictures("in") == [Path("in/a/z.jpg"), Path("in/a.JPG"), Path("in/folder.jpg/d.png")]
    Path("in/list.txt").write_text("a.JPG\n\n a/z.jpg\n/b/c.jpg\ngone.jpg\n", encoding="utf-8-sig")
    expected = [Path("in/a.JPG"), Path("in/a/z.jpg"), Path("/b/c.jpg"), Path("in/gone.jpg")]
    assert find_pictures("in/list.txt") == expected
    Path("in/list.txt").write_bytes(b"a.JPG\nb\0.jpg\n")
    with pytest.raises(UserError, match=r"^--source in/list\.txt:2: holds a NUL") as error:
        find_pictures("in/list.txt")
    assert error.value.code == DATA


@pytest.mark.parametrize(
    "stem", ["a" * 251, "\u00e4" * 125, "-rf", "%s{0}", "new\nline", "\x1b[31m", "con", "\udcff"]
)
def test_any_name_of_a_picture_gets_its_results(stem, trained, tmp_path, command):
    """Twice the same name, so that a number is added to it."""
    for folder in ("one", "two"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "in" / "x.png")
        os.rename(tmp_path / "in" / "x.png", tmp_path / "in" / folder / f"{stem}.png")
    weights = trained / "weights" / "best.pt"
    flags = ("--conf-thres", 0, "--max-det", 1, "--save-txt", "--save-crop")
    result = command("detect", "--weights", weights, "--source", "in", "--device", "cpu", *flags)
    assert result.code == 0, result.err
    folder = tmp_path / "runs" / "detect" / "exp"
    assert [len(list(folder.glob(f"{part}*.*"))) for part in ("", "labels/", "crops/*/")] == [2, 2, 2]
    assert f"{stem}.png" in os.listdir(folder) and "\x1b" not in result.out


def test_a_working_folder_that_is_gone_is_one_line(tmp_path, monkeypatch, capfd):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as ended:
        run_main(lambda: pytest.fail("it was run"))
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith("error: the working directory is gone")


def test_folders_are_searched_for_all_that_is_read_and_the_rest_is_counted(tmp_path, capsys):
    names = ["a.JPG", "b.jfif", "c.jpe", "d.gif", "e.avif", "f.dib", "g.pnm", "h.MPO"]
    for name in [*names, "i.HEIC", "k.heic", "l.jp2", "notes.txt", "m.json", ".hidden.heic"]:
        (tmp_path / name).touch()
    assert [path.name for path in find_pictures(str(tmp_path))] == names
    assert capsys.readouterr().out.startswith("left out: 1 .HEIC, 1 .heic, 1 .jp2: formats")
    (tmp_path / "i.HEIC").unlink(), (tmp_path / "k.heic").unlink(), (tmp_path / "l.jp2").unlink()
    assert len(find_pictures(str(tmp_path))) == len(names) and not capsys.readouterr().out


def test_what_a_folder_holds_beside_pictures_is_counted(tmp_path, capsys):
    endings = "cr3", "raf", "orf", "rw2", "jpx", "pam", "mp4", "avi", "MOV", "mkv"
    for name in ("a.png", "Makefile", *(f"x.{end}" for end in endings)):
        (tmp_path / name).touch()
    for name in ("bare", "bare.0001"):
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    assert [path.name for path in find_pictures(str(tmp_path))] == ["a.png"]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("left out: 1 .cr3, 1 .jpx, 1 .orf, 1 .pam, 1 .raf, 1 .rw2: formats")
    assert said[1].startswith("left out: 1 .MOV, 1 .avi, 1 .mkv, 1 .mp4: videos are not read yet")
    assert said[2].startswith("left out: 2 without an ending: name")


def test_a_video_is_called_one(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(99))
    with pytest.raises(UserError, match="videos are not read yet"):
        decode_image(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("pictures", "stops"), [((), True), (("2/x/y.png",), True), (("1/a.png", "2/a.png"), False)]
)
def test_a_whole_disk_as_source_is_refused(tmp_path, monkeypatch, pictures, stops):
    monkeypatch.setattr("detect.MOST_LOOKS", 40)
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        for other in range(30):
            (tmp_path / str(number) / f"{other}.txt").touch()
    for name in pictures:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if not stops:
        assert len(find_pictures(str(tmp_path))) == len(pictures)
        return
    with pytest.raises(UserError, match=r"--source .* files and folders, .* nearer to the pictures") as error:
        find_pictures(str(tmp_path))
    assert error.value.code == DATA


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_stands_where_a_result_goes(kind, command, best, pictures, tmp_path):
    picture = pictures[0]
    place = tmp_path / "runs" / "detect" / "exp" / picture.name
    place.parent.mkdir(parents=True)
    (tmp_path / "mine").write_text("precious")
    make = {"pipe": os.mkfifo, "link": lambda path: path.symlink_to(tmp_path / "mine"), "folder": os.mkdir}
    make[kind](place)
    result = command("detect", "--weights", best, "--source", picture, "--exist-ok")
    if kind == "folder":
        assert result.code == NOT_SAVED and f"{picture.name}: cannot be written" in result.err
    else:
        assert result.code == OK and place.is_file() and not place.is_symlink()
    assert (tmp_path / "mine").read_text() == "precious" and len(os.listdir(place.parent)) == 1
