"""Packed pictures: the pixels of the letterbox; room is checked first; reused for the same files only."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import data.picture_cache
from data.cache import cache_folder
from data.images import decode_image
from data.index import Index, path_of
from data.letterbox import plan_letterbox, resize
from data.picture_cache import HEADER, cache_pictures
from data.pixels import Pixels
from utils.errors import DATA, UserError
from utils.training.device import free_memory

ROOT = Path(__file__).parents[2]
SHAPE = (64, 96)
SIZES = [(40, 60), (96, 64), (33, 50), (128, 192)]
PIXELS = [(64, 96), (64, 43), (63, 96), (64, 96)]  # as the letterbox fits them, by hand
linux = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")


@pytest.fixture
def index(tmp_path, monkeypatch) -> Index:
    """Four pictures of noise, and a cache of their own."""
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "cache"))
    paths, rng = [], np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        paths.append(os.fsencode(tmp_path / f"{number}.png"))
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(paths[-1].decode())
    return Index(
        paths=np.array(paths),
        sizes=np.array(SIZES, np.int32),
        offsets=np.zeros(5, np.int64),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        ignore=np.zeros(0, bool),
        areas=np.zeros(0, np.float32),
        picture_ids=np.arange(4) + 1,
    )


def disk(index, shape=SHAPE):
    return cache_pictures({"train": index}, shape, "disk")["train"]


def fitted(index, number) -> np.ndarray:
    """Picture ``number`` as validation and detection show it."""
    letterbox = plan_letterbox(SIZES[number], SHAPE)
    return resize(decode_image(path_of(index, number), reduction=letterbox.reduction), letterbox.resized)


def files() -> list[Path]:
    return sorted((cache_folder() / "pictures").glob("*.pixels"))


def refusal(index, kind) -> str:
    with pytest.raises(UserError) as error:
        cache_pictures({"train": index, "val": index}, SHAPE, kind)
    return str(error.value)


def test_without_a_cache_there_is_nothing(index):
    assert cache_pictures({"train": index, "val": index}, SHAPE, "none") == {"train": None, "val": None}
    assert not cache_folder().exists()


@pytest.mark.parametrize("kind", [pytest.param("ram", marks=linux), "disk"])
def test_pixels_are_those_of_the_letterbox(index, kind, capsys):
    pictures = cache_pictures({"train": index, "val": index}, SHAPE, kind)
    for held in pictures.values():
        assert [tuple(size) for size in held.sizes.tolist()] == PIXELS
        for number in range(len(SIZES)):
            assert np.array_equal(held(number), fitted(index, number))
            assert not held(number).flags.writeable
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("cache: 4 train pictures, ")
    size = HEADER + 3 * sum(height * width for height, width in PIXELS)
    assert f"{size / 1e9:.3g} GB" in lines[0]


def test_another_process_maps_the_file_itself(index):
    """Where processes are not forked, a source of pixels travels without its pixels."""
    held = disk(index)
    packed = pickle.dumps(held)
    assert len(packed) < 2000 < held(0).nbytes
    assert np.array_equal(pickle.loads(packed)(2), held(2))


# memory


@linux
def test_files_in_memory_have_no_name(index):
    before = set(os.listdir("/dev/shm"))
    pictures = cache_pictures({"train": index}, SHAPE, "ram")["train"]
    assert set(os.listdir("/dev/shm")) <= before
    assert pictures(0).shape == (64, 96, 3)
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line]
    assert maps and all(line.endswith("(deleted)") for line in maps)


@linux
def test_memory_is_given_back(index):
    def count() -> int:
        return Path("/proc/self/maps").read_text().count("/dev/shm")

    before, descriptors = count(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        cache_pictures({"train": index}, SHAPE, "ram")
    assert count() == before and len(os.listdir("/proc/self/fd")) == descriptors


@linux
@pytest.mark.parametrize("source", ["memory", "/dev/shm"])
def test_memory_is_checked_first(index, monkeypatch, source):
    """Both splits together: each has 4096 + 67,968 bytes or so; a fifth of what is free must stay."""
    needed = 2 * (HEADER + 3 * sum(height * width for height, width in PIXELS) + 4 * len(PIXELS))
    for free, enough in ((needed / 0.8 + 10, True), (needed / 0.8 - 10, False)):
        room = {"memory": 10**12, "/dev/shm": 10**12} | {source: int(free)}
        monkeypatch.setattr(data.picture_cache, "free_memory", lambda _, room=room: room["memory"])
        monkeypatch.setattr(
            data.picture_cache.shutil,
            "disk_usage",
            lambda _, room=room: SimpleNamespace(free=room["/dev/shm"]),
        )
        if enough:
            cache_pictures({"train": index, "val": index}, SHAPE, "ram")
            continue
        text = refusal(index, "ram")
        assert text.startswith("--cache ram: ") and source in text and "--cache disk" in text
        assert f"{needed / 1e9:.3g} GB" in text and f"{int(free) / 1e9:.3g} GB" in text


def test_without_shared_memory_the_disk_is_named(index, monkeypatch, tmp_path):
    monkeypatch.setattr(data.picture_cache, "SHARED_MEMORY", tmp_path / "none")
    assert "--cache disk" in refusal(index, "ram")


@linux
def test_free_memory_is_some():
    assert 10**7 < free_memory(torch.device("cpu")) < 10**14


# disk


def test_the_disk_is_checked_first(index, monkeypatch, tmp_path):
    monkeypatch.setattr(data.picture_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    text = refusal(index, "disk")
    assert "disk has 1e-06 GB free" in text and "LTRB_CACHE" in text and not files()
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTRB_CACHE", str(tmp_path / "file"))
    assert "LTRB_CACHE" in refusal(index, "disk")


def test_the_next_run_reuses_the_file(index, capsys, monkeypatch):
    first = [disk(index)(number).copy() for number in range(4)]
    assert "s" in capsys.readouterr().out
    monkeypatch.setattr(data.pictures, "decode_image", None)
    monkeypatch.setattr(data.picture_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    again = disk(index)
    assert all(np.array_equal(again(number), first[number]) for number in range(4))
    out = capsys.readouterr().out
    assert re.fullmatch(r"cache: 4 train pictures, \S+ GB from \S+\.pixels\n", out)
    assert len(files()) == 1 and not list(files()[0].parent.glob("*.part"))


def test_other_sizes_and_pictures_have_other_files(index):
    disk(index), disk(index, (96, 96)), disk(index, (96, 64))
    assert len(files()) == 3
    fewer = index._replace(
        paths=index.paths[:3],
        sizes=index.sizes[:3],
        offsets=index.offsets[:4],
        picture_ids=index.picture_ids[:3],
    )
    assert len(disk(fewer).sizes) == 3 and len(files()) == 4


def rebuilt(index, capsys, reason: str) -> None:
    """The next run says why it builds anew, and what it builds is right; the one after reuses that."""
    capsys.readouterr()
    held = disk(index)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and f"is built anew, {reason}" in out[0], out
    for number in range(4):
        assert np.array_equal(held(number), fitted(index, number))
    disk(index)
    assert "GB from" in capsys.readouterr().out


def test_a_changed_picture_makes_the_file_stale(index, capsys):
    disk(index)
    pixels = 255 - decode_image(path_of(index, 2))
    Image.fromarray(pixels).save(path_of(index, 2))
    os.utime(path_of(index, 2), ns=(1, 1))
    rebuilt(index, capsys, "pictures have changed")


@pytest.mark.parametrize("size", [5, HEADER, HEADER + 1000, -1])
def test_a_file_cut_short_is_seen(index, capsys, size):
    disk(index)
    (path,) = files()
    os.truncate(path, size if size > 0 else path.stat().st_size - 1)
    rebuilt(index, capsys, "it is cut short: " if size != 5 else "pictures have changed")


def flip(path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip(path, 40), "it is damaged"),
        (lambda path: flip(path, -1), "it is damaged"),
        (lambda path: path.write_bytes(b""), "it is of another version"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to(path)), "[Errno"),
    ],
    ids=["header", "sums", "empty", "pipe", "device", "loop"],
)
def test_a_damaged_file_is_built_anew(index, capsys, damage, reason):
    disk(index)
    damage(files()[0])
    rebuilt(index, capsys, reason)


@pytest.mark.parametrize("number", range(4))
def test_a_damaged_picture_is_decoded_instead(index, capsys, number):
    held = disk(index)
    flip(files()[0], int(held._offsets[number]) + 7)
    again = disk(index)
    capsys.readouterr()
    for i in range(4):
        assert np.array_equal(again(i), fitted(index, i))
    err = capsys.readouterr().err
    assert err.count("is damaged at") == 1 and str(path_of(index, number)) in err


def test_a_damaged_deep_picture_keeps_the_range(index, capsys):
    path = path_of(index, 0)
    Image.fromarray(np.full(SIZES[0], 2048, np.uint16)).save(path)
    held, again = (
        cache_pictures({"train": index}, SHAPE, "disk", pixels=Pixels((0, 4095)))["train"] for _ in range(2)
    )
    wanted = held(0).copy()
    flip(files()[0], int(held._offsets[0]) + 7)
    assert np.array_equal(again(0), wanted) and "is damaged at" in capsys.readouterr().err


def test_a_pipe_in_place_of_the_lock_or_the_part_is_not_waited_for(index):
    disk(index)
    (path,) = files()
    path.unlink()
    (path.parent / "lock").unlink()
    os.mkfifo(path.parent / "lock")
    os.mkfifo(path.with_suffix(".part"))
    disk(index)
    assert files() == [path]


def test_a_file_of_another_version_is_built_anew(index, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(data.picture_cache, "VERSION", 99)
        disk(index)
    rebuilt(index, capsys, "it is of another version")


def test_what_a_killed_build_left_is_written_over(index, capsys):
    disk(index)
    (path,) = files()
    content = path.read_bytes()
    path.with_suffix(".part").write_bytes(content[:HEADER] + b"x" * 2 * len(content))
    path.unlink()
    disk(index)
    assert files() == [path] and path.read_bytes() == content


@pytest.mark.parametrize("kind", [pytest.param("ram", marks=linux), "disk"])
def test_an_unreadable_picture_is_named_and_nothing_is_kept(index, kind):
    path_of(index, 1).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1\.png") as error:
        cache_pictures({"train": index}, SHAPE, kind)
    assert error.value.code == DATA
    assert not list(cache_folder().rglob("*.pixels")) and not list(cache_folder().rglob("*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_a_run_waits_for_another_that_builds(index, capsys):
    """The other holds the lock for a moment; then the file is there, and this one only maps it."""
    folder = cache_folder() / "pictures"
    folder.mkdir(parents=True)
    text = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'wb'); "
        "fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(0.5)"
    )
    other = subprocess.Popen([sys.executable, "-c", text, folder / "lock"], stdout=subprocess.PIPE)
    other.stdout.readline()
    disk(index)
    other.communicate()
    assert "waiting for another run" in capsys.readouterr().out and len(files()) == 1


# several ranks


def test_the_other_ranks_map_what_the_first_of_their_machine_built(index, monkeypatch, capsys):
    """They get its paths, decode nothing and print nothing."""
    built = []
    monkeypatch.setattr(data.picture_cache, "on_each_node", lambda build: built.append(build()) or built[-1])
    first = disk(index)
    capsys.readouterr()
    monkeypatch.setattr(data.picture_cache, "on_each_node", lambda build: built[0])
    monkeypatch.setattr(data.pictures, "decode_image", None)
    second = disk(index)
    assert all(np.array_equal(first(number), second(number)) for number in range(4))
    assert capsys.readouterr().out == ""


RANKS = """
import sys
import numpy as np, torch
from data.index import load_split
from data.picture_cache import cache_pictures
from data.spec import load_data_spec
from utils.training import distributed

distributed.start(torch.device("cpu"))
index = load_split(load_data_spec(sys.argv[1]), "train")[0]
held = cache_pictures({"train": index}, (64, 64), "ram")["train"]
total = torch.tensor(float(sum(held(i).sum(dtype=np.int64) for i in range(len(held.sizes)))))
assert distributed.global_sum(total) == 2 * total > 0
distributed.stop()
"""


@linux
@pytest.mark.slow
def test_two_ranks_share_one_file_in_memory(shapes, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        tmp_path / "ranks.py",
        shapes,
    ]
    subprocess.run(list(map(str, launch)), check=True, timeout=120, cwd=ROOT)
