"""Pipes, devices and endless files in place of those of a data set: refused by name, never waited for."""

import os
import re
import shutil
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.index import load_split
from data.spec import load_data_spec
from tests.data.test_formats import make_pictures, write_coco, write_voc, write_yolo
from utils.config_files import load_config, read_yaml
from utils.errors import NOT_SAVED, UserError
from utils.files import (
    discard_parts,
    fit_name,
    open_regular,
    read_many,
    replacing,
    write_to,
    write_whole,
)
from utils.training.checkpoint import load_checkpoint
from utils.training.run_folder import results_into


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path)


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def endless(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10**12)  # holes: it takes no room


KINDS = {pipe: "not a regular file", device: "not a regular file", endless: "more than the limit of"}
FILES = {  # what writes a data set -> files of it
    write_yolo: ("labels/a.txt",),
    write_voc: ("xml/a.xml",),
    write_coco: ("a.json",),
}


CASES = [(write, kind) for write in FILES for kind in KINDS]
CASES.remove((write_coco, endless))  # one JSON file holds a whole data set, so its size has no limit


@pytest.mark.parametrize(("write", "kind"), CASES)
def test_label_files_that_are_no_files_are_refused(write, kind, tmp_path):
    yaml = write(make_pictures(tmp_path / "set"))
    file = yaml.parent / FILES[write][0]
    file.unlink()
    kind(file)
    with pytest.raises(UserError) as error:
        load_split(load_data_spec(yaml), "train")
    assert str(file) in str(error.value)
    assert KINDS[kind] in str(error.value) or "not found" in str(error.value)


@pytest.mark.parametrize("kind", [pipe, device])
@pytest.mark.parametrize("name", ["list.txt", "data.yaml", "images/a.png", "classes.txt"])
def test_other_files_that_are_no_files_are_refused(name, kind, tmp_path):
    yaml = write_yolo(make_pictures(tmp_path / "set"))
    if name == "list.txt":
        yaml.write_text("train: list.txt\nval: list.txt\nnames: [cat, dog]\n")
    elif name == "classes.txt":
        shutil.copytree(yaml.parent / "images", tmp_path / "set" / "images" / "train")
        yaml.unlink()
    (yaml.parent / name).unlink(missing_ok=True)
    kind(yaml.parent / name)
    with pytest.raises(UserError, match=r"regular file|usual layouts|not found|neither a file nor a folder"):
        load_split(load_data_spec(yaml if name == "data.yaml" else yaml.parent), "train")


def test_only_regular_files_are_opened(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    with open_regular(tmp_path / "a", most=5) as file:
        assert file.read() == b"12345"
    with pytest.raises(ValueError, match="5 bytes are more than the limit of 4"):
        open_regular(tmp_path / "a", most=4)
    with pytest.raises(ValueError, match="not a regular file"):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "b")


READERS = {
    "cfg.yaml": lambda path: load_config(cfg=str(path)),
    "hyp.yaml": lambda path: load_config(hyp=str(path)),
    "loss.yaml": lambda path: load_config(loss=str(path)),
    "data.yaml": read_yaml,
    "best.pt": load_checkpoint,
    "best.safetensors": load_checkpoint,
}


@pytest.mark.parametrize("kind", [pipe, device, folder, loop, nowhere, endless])
@pytest.mark.parametrize("name", READERS)
def test_configurations_and_weights_that_are_no_files_are_refused(name, kind, tmp_path):
    kind(tmp_path / name)
    with ends_within(20), pytest.raises(UserError, match=name.partition(".")[0]) as error:
        READERS[name](tmp_path / name)
    assert error.value.code == 2 and "\n" not in str(error.value)


@contextmanager
def ends_within(seconds: int):
    """A wait for a pipe, or for the end of a device, fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("name", "most", "wanted"),
    [
        ("a.jpg", 255, "a.jpg"),
        ("a" * 251 + ".jpg", 255, "a" * 251 + ".jpg"),
        ("a" * 252 + ".jpg", 255, "a" * 238 + "-[0-9a-f]{12}.jpg"),
        ("\u00e4" * 200 + ".jpg", 255, "\u00e4" * 119 + "-[0-9a-f]{12}.jpg"),
        ("a." + "b" * 300, 50, "a." + "b" * 35 + "-[0-9a-f]{12}"),
        ("\udcff" * 300, 40, "\udcff" * 27 + "-[0-9a-f]{12}"),
    ],
)
def test_names_fit_the_disk(name, most, wanted):
    found = fit_name(name, most)
    assert re.fullmatch(wanted, found) and len(os.fsencode(found)) <= most
    assert found == fit_name(name, most) and (found == name or found != fit_name(name + "x", most))


def test_a_pipe_is_written_to_only_where_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ends_within(20):
        with pytest.raises(OSError, match="No such device"):
            write_to(tmp_path / "pipe", "x")
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        write_to(tmp_path / "pipe", "text")
        assert os.read(reader, 10) == b"text"
        os.close(reader)
    with pytest.raises(OSError, match="Is a directory"):
        write_to(tmp_path, "x")


@pytest.mark.parametrize("kind", [pipe, device, loop, nowhere], ids=lambda kind: kind.__name__)
def test_a_result_replaces_what_has_its_name_and_waits_for_nobody(kind, tmp_path):
    path = tmp_path / "a.txt"
    kind(path)
    with ends_within(5):
        write_whole(path, "é\n")
    assert path.read_bytes() == "é\n".encode() and not path.is_symlink() and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError])
def test_a_result_is_whole_or_not_there(stop, tmp_path):
    (tmp_path / "a").write_text("old")

    def write_half():
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise stop

    with pytest.raises(stop if isinstance(stop, type) else OSError):
        write_half()
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_folder_in_the_way_of_a_result_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with (
        pytest.raises(UserError, match=r"/a: cannot be written .*--project") as told,
        results_into(tmp_path),
    ):
        write_whole(tmp_path / "a", "x")
    assert told.value.code == NOT_SAVED and os.listdir(tmp_path) == ["a"]


def test_a_result_may_have_the_longest_name(tmp_path):
    write_whole(tmp_path / ("x" * 255), b"1")
    assert [len(name) for name in os.listdir(tmp_path)] == [255]


def test_only_unfinished_results_are_discarded(tmp_path):
    """What a killed process left goes; what a user keeps in the folder of a run stays."""
    with replacing(tmp_path / "results.csv"):
        (at_work,) = tmp_path.iterdir()
    (tmp_path / at_work.name).write_text("of a process that was killed")
    (tmp_path / ".note.part").write_text("the user's")
    discard_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".note.part", "results.csv"]


@pytest.mark.parametrize(("seconds", "alone"), [([0.19] * 11, 11), ([0.19, 0.19, 0.21, 0.19], 3)])
def test_files_are_read_in_order_by_threads_only_from_where_the_disk_is_waited_for(
    monkeypatch, seconds, alone
):
    paths, readers, clocks = [str(number) for number in range(2563)], [], {"wall": 0.0, "busy": 0.0}
    monkeypatch.setattr("utils.files.time.perf_counter", lambda: clocks["wall"])
    monkeypatch.setattr("utils.files.time.thread_time", lambda: clocks["busy"])

    def read(part):
        readers.append(threading.get_ident())
        clocks["wall"] += seconds[min(len(readers), len(seconds)) - 1]
        clocks["busy"] += 0.1
        return list(part)

    assert [path for part in read_many(read, paths) for path in part] == paths
    assert len(readers) == 11 and readers[:alone] == [threading.get_ident()] * alone
    assert threading.get_ident() not in readers[alone:]


def test_of_no_files_nothing_is_read():
    assert list(read_many(lambda part: pytest.fail("asked"), [])) == []
