"""Archives made by hand, honest and hostile: what is unpacked, what is refused, and that nothing leaves."""

import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data import unpack as unpacking
from data.unpack import KEPT, Refused, show_size, split_name, unpack

FILES = {
    "images/a.jpg": b"\xff\xd8 a",
    "images/deep/B.PNG": b"b" * 3000,
    "labels/a.txt": b"",
    "README": b"read me",
}
LEFT_OUT = (  # what Python, a shell, a linker or ltrb itself might take up
    *("train.py", "hotcoco.PY", "a.pyc", "sitecustomize.py", "evil.pth", "lib.so", "x.pyd", "x.dll", "go.sh"),
    *(
        "w.pt",
        "a.npy",
        "a.pkl",
        "setup.cfg",
        "pyvenv.cfg",
        "p.toml",
        "in.zip",
        "in.tar.gz",
        "x.exe",
        "x.html",
    ),
    *("Makefile", "run", "a.jpg.py", "a.py\u200b", "a.\uff50\uff59", "a.txt~"),
    *(".bashrc", ".git/hooks/a.txt", "images/.a.jpg", ".ltrb-download.json", "__MACOSX/images/._a.jpg"),
)


def make_zip(path, files, *, compression=zipfile.ZIP_DEFLATED):
    """``files``: name -> bytes, or (bytes, mode of Unix)."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            data, mode = data if isinstance(data, tuple) else (data, 0)
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, compression
            archive.writestr(info, data)
    return path


def make_tar(path, files, *, mode="w", form=tarfile.GNU_FORMAT):
    """``files``: name -> bytes, or a function that changes the TarInfo of an empty member."""
    with tarfile.open(path, mode, format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            if callable(data):
                data(info)
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def content_of(folder: Path) -> dict[str, object]:
    """Every path below a folder: the bytes of a file, where a link leads, None for a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
    return found


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in content_of(folder).items() if data is not None}


@pytest.fixture
def area(tmp_path):
    """A folder with something in it that nobody may touch; archives are unpacked into its ``set``."""
    (tmp_path / "area" / "set").mkdir(parents=True)
    (tmp_path / "area" / "precious").write_bytes(b"mine")
    return tmp_path / "area"


def refusal_of(archive: Path, area: Path) -> str:
    """The message for an archive that must not be unpacked; nothing beside ``set`` may have changed."""
    with pytest.raises(Refused) as error:
        unpack(archive, area / "set")
    inside = [path for path in (area / "set").rglob("*") if path.is_symlink()]
    shutil.rmtree(area / "set")
    assert content_of(area) == {"precious": b"mine"} and not inside
    (area / "set").mkdir()
    return str(error.value)


ARCHIVES = {
    "zip": lambda path: make_zip(path, FILES),
    "stored zip": lambda path: make_zip(path, FILES, compression=zipfile.ZIP_STORED),
    "bzip2 zip": lambda path: make_zip(path, FILES, compression=zipfile.ZIP_BZIP2),
    "tar": lambda path: make_tar(path, FILES),
    "pax tar": lambda path: make_tar(path, FILES, form=tarfile.PAX_FORMAT),
    "ustar": lambda path: make_tar(path, FILES, form=tarfile.USTAR_FORMAT),
    "tar.gz": lambda path: make_tar(path, FILES, mode="w:gz"),
    "tar.bz2": lambda path: make_tar(path, FILES, mode="w:bz2"),
    "tar.xz": lambda path: make_tar(path, FILES, mode="w:xz"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_all_data_comes_out(kind, tmp_path, area):
    assert unpack(ARCHIVES[kind](tmp_path / "archive"), area / "set") == (4, 0, "")
    assert files_of(area / "set") == FILES


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_no_data_is_left_out_and_counted(name, make, tmp_path, area):
    archive = make(tmp_path / "a", {**FILES, name: b"evil", "second.py": b"evil"})
    assert unpack(archive, area / "set") == (4, 2, repr(name))
    assert files_of(area / "set") == FILES
    only = make(tmp_path / "b", {name: b"evil"})
    assert f"holds no files of a data set; left out: 1, such as {name!r}" in refusal_of(only, area)


def test_every_ending_that_comes_out_is_of_pictures_or_text(tmp_path, area):
    names = {f"a{number}{ending.upper()}": b"" for number, ending in enumerate(KEPT)}
    assert unpack(make_zip(tmp_path / "a", names), area / "set").num_files == len(KEPT)
    assert not {".py", ".pth", ".so", ".sh", ".pkl", ".npy", ".pt", ".cfg", ".toml", ""} & {*KEPT}


def test_names_are_taken_apart_alike_everywhere():
    assert split_name("./images//a b.jpg") == ("images", "a b.jpg")
    assert split_name("images/") == ("images",)
    assert split_name("./") == split_name("") == ()
    assert split_name("img..1/..a/a..b.jpg") == ("img..1", "..a", "a..b.jpg")
    assert split_name("2024-01-01T10:30.jpg") == ("2024-01-01T10:30.jpg",)
    assert split_name("bild-ä-猫.png") == ("bild-ä-猫.png",)


def test_modes_of_the_archive_are_not_taken_over(tmp_path, area):
    unpack(make_tar(tmp_path / "a", {"a.jpg": lambda info: setattr(info, "mode", 0o6777)}), area / "set")
    unpack(make_zip(tmp_path / "b", {"b.jpg": (b"", stat.S_IFREG | 0o6777)}), area / "set")
    for name in ("a.jpg", "b.jpg"):
        assert not (area / "set" / name).stat().st_mode & (stat.S_ISUID | stat.S_ISGID | 0o111)


NAMES = {
    "/tmp/evil": "absolute",
    "//server/share": "absolute",
    "../evil": "'..'",
    "images/../../evil": "'..'",
    "a/..": "'..'",
    "..": "'..'",
    "..\\evil": "backslash",
    "\\\\server\\share": "backslash",
    "C:/evil": "drive letter",
    "a/c:evil": "drive letter",
    "a\nb": "control character",
    "a\x1b[2Jb": "control character",
    "a\x9b2Jb": "control character",
    "a\u202egpj.exe": "control character",
    "a\u2028b": "control character",
    "a/... ": "dot or a blank",
    "a./b": "dot or a blank",
    "/".join("d" * 40): "deeper than 32",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_hostile_names_are_refused(name, make, tmp_path, area):
    message = refusal_of(make(tmp_path / "a", {"good.jpg": b"x", name: b"evil"}), area)
    assert repr(name)[1:40] in message and NAMES[name] in message


@pytest.mark.parametrize("name", ["a\0b", "good.jpg\0../evil", "\0"])
def test_names_with_a_nul_are_refused(name, tmp_path, area):
    """In a pax header; and in a zip, where zipfile itself would cut the name there."""
    change = {"x": lambda info: info.pax_headers.update(path=name)}
    assert "control" in refusal_of(make_tar(tmp_path / "a", change, form=tarfile.PAX_FORMAT), area)
    archive = make_zip(tmp_path / "b", {name.replace("\0", "#"): b"x"})
    archive.write_bytes(archive.read_bytes().replace(name.replace("\0", "#").encode(), name.encode()))
    assert "control character" in refusal_of(archive, area)


def make_pax(path, *headers: dict[str, str], every: dict[str, str] | None = None):
    """A .tar.gz with an empty file for each of the pax headers."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, pax_headers=every) as archive:
        for number, records in enumerate(headers or [{}]):
            info = tarfile.TarInfo(f"{number}.txt")
            info.pax_headers = records
            archive.addfile(info)
    return path


def of_type(kind, link=""):
    def change(info):
        info.type, info.linkname = kind, link

    return change


KINDS = {
    "symbolic link": {"x.jpg": of_type(tarfile.SYMTYPE, "/etc")},
    "written through": {"x.jpg": of_type(tarfile.SYMTYPE, ".."), "x.jpg/evil.jpg": b"evil"},
    "hard link": {"x.jpg": of_type(tarfile.LNKTYPE, "../precious")},
    "device": {"x.jpg": of_type(tarfile.CHRTYPE)},
    "block device": {"x.jpg": of_type(tarfile.BLKTYPE)},
    "fifo": {"x.jpg": of_type(tarfile.FIFOTYPE)},
    "unknown": {"x.jpg": of_type(b"Z")},
}
ZIP_KINDS = (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)


@pytest.mark.parametrize("kind", [*KINDS, *ZIP_KINDS])
def test_links_and_devices_are_refused(kind, tmp_path, area):
    if kind in KINDS:
        archive = make_tar(tmp_path / "a", KINDS[kind])
    else:
        archive = make_zip(tmp_path / "a", {"x.jpg": (b"..", kind | 0o777), "x.jpg/evil.jpg": b"evil"})
    assert "'x.jpg' is a link, a device" in refusal_of(archive, area)


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("names", [("a.txt/b.txt", "a.txt"), ("a.txt", "a.txt/b.txt"), ("a.txt", "./a.txt")])
def test_members_that_clash_are_refused(names, make, tmp_path, area):
    archive = make(tmp_path / "a", {names[0]: b"1", names[1]: b"2"})
    assert "clashes with an earlier member" in refusal_of(archive, area)


def test_names_that_differ_in_case_both_come_out_or_clash(tmp_path, area, monkeypatch):
    archive = make_zip(tmp_path / "a", {"a.jpg": b"1", "A.jpg": b"2"})
    assert unpack(archive, area / "set").num_files == 2
    shutil.rmtree(area / "set")
    (area / "set").mkdir()
    real = unpacking._write_file  # on a disk that takes them for one
    lower = lambda member, path: real(member, path.with_name(path.name.lower()))  # noqa: E731
    monkeypatch.setattr(unpacking, "_write_file", lower)
    assert "clashes with an earlier member" in refusal_of(archive, area)


# bombs, sizes


def patched(path, offset, value):
    """A zip with another 4-byte number in its first directory entry."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + offset, value)
    path.write_bytes(data)
    return path


def header(name=b"x.jpg", *, size=0, kind=b"0", data=b""):
    """A tar header that tarfile itself would not write."""
    block = bytearray(tarfile.TarInfo(name.decode()).tobuf(tarfile.GNU_FORMAT))
    block[156:157] = kind
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % size
    if size < 0:
        block[124] = 0xFF
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def sparse() -> bytes:
    block = bytearray(header(b"holes.jpg", kind=b"S"))
    block[386:410], block[483:495] = b"%011o\0%011o\0" % (0, 0), b"%011o\0" % (10**9)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def packed(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data))
    return path


BIG = {"a.bmp": bytes(400_000), "b.bmp": bytes(5_000_000)}
TWO = {"a.jpg": b"12", "b.jpg": b"1234"}
LONG = bytes(8 * 2**20)
TOO_MUCH = {  # archive, changed limits -> message
    "zip": (lambda path: make_zip(path, BIG), {}, "as bombs do"),
    "tar.gz": (lambda path: make_tar(path, BIG, mode="w:gz"), {}, "'b.bmp' has 5.0 MB: "),
    "tar.xz": (lambda path: make_tar(path, BIG, mode="w:xz"), {}, "'b.bmp' has 5.0 MB: "),
    "tar.bz2": (lambda path: make_tar(path, BIG, mode="w:bz2"), {}, "'b.bmp' has 5.0 MB: "),
    "left out": (lambda path: make_zip(path, {"a.py": bytes(5_000_000)}), {}, "'a.py' has 5.0 MB"),
    "behind the end": (
        lambda path: packed(path, make_tar(path, {"a.jpg": b"a"}).read_bytes() + bytes(3_000_000)),
        {"MAX_MEMBERS": 100},
        "stream has more than 1,051,200 bytes",
    ),
    "10 TB": (
        lambda path: make_tar(path, {"a.jpg": lambda info: setattr(info, "size", 10**13)}),
        {},
        "'a.jpg' has 10000.0 GB",
    ),
    "4 GB": (lambda path: patched(make_zip(path, {"a.jpg": b"x"}), 24, 0xFFFFFFF0), {}, "'a.jpg' has 4.3 GB"),
    "not kept": (
        lambda path: patched(make_zip(path, {"a.jpg": b"x" * 50}, compression=0), 24, 5000),
        {},
        "a.jpg",
    ),
    "a file": (lambda path: make_tar(path, TWO), {"MAX_FILE": 3}, "the limit for one file is 3 bytes"),
    "members": (lambda path: make_tar(path, TWO), {"MAX_MEMBERS": 1}, "more than 1 members"),
    "disk": (
        lambda path: make_tar(path, TWO),
        {"RESERVE": 2**62},
        "needs more than the 0 bytes that are free",
    ),
    "long name": (
        lambda path: packed(path, header(size=len(LONG), kind=b"L", data=LONG)),
        {},
        "wants 8,388,608",
    ),
    "long pax": (
        lambda path: packed(path, header(size=len(LONG), kind=b"x", data=LONG)),
        {},
        "wants 8,388,608",
    ),
    "pax": (lambda path: make_pax(path, {"note": "x" * 2**16}), {}, "a header of the archive wants 66,048"),
    "long pax chain": (
        lambda path: packed(path, 40 * header(size=2048, kind=b"x", data=bytes(2048))),
        {},
        "a header of the archive wants 2,048",
    ),
    "all pax": (
        lambda path: make_pax(path, *({"note": "x" * 60_000} for _ in range(20))),
        {},
        "the headers of the archive",
    ),
    "global pax": (
        lambda path: make_pax(path, every=dict.fromkeys(map(str, range(200)), "x")),
        {},
        "than 100",
    ),
    "xz": (
        lambda path: make_tar(path, {"a.jpg": b"a"}, mode="w:xz"),
        {"MAX_MEMORY": 2**20},
        "takes more than 1.0 MB of memory to unpack; unpack it yourself",
    ),
    "sparse": (lambda path: packed(path, sparse()), {}, "'holes.jpg' is a link"),
    "negative": (lambda path: packed(path, header(b"y.jpg") + header(size=-1024) + bytes(1024)), {}, ""),
    "backwards": (lambda path: packed(path, header(b"y.jpg") + header(size=-1024, kind=b"5")), {}, ""),
    "no files": (lambda path: make_zip(path, {}), {}, "holds no files"),
    "folders": (lambda path: make_tar(path, {"images": of_type(tarfile.DIRTYPE)}), {}, "holds no files"),
    "encrypted": (
        lambda path: patched(make_zip(path, {"a.jpg": b"x"}), 8, 1),
        {},
        "'a.jpg' is encrypted",
    ),
    "web page": (
        lambda path: path.write_bytes(b"<!DOCTYPE html><html>Sign in</html>") and path,
        {},
        "a web page: open the URL in a browser",
    ),
    "7z": (lambda path: path.write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(100)) and path, {}, "no .zip or .tar"),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_bombs_lies_and_no_archives_are_refused(kind, tmp_path, area, monkeypatch):
    make, limits, text = TOO_MUCH[kind]
    for name, value in ({"SMALL": 10**6} | limits).items():
        monkeypatch.setattr(unpacking, name, value)
    assert text in refusal_of(make(tmp_path / "a"), area)


def test_memory_is_that_of_one_member(tmp_path, area):
    tar = make_pax(tmp_path / "a", *({f"note{i}": "x" for i in range(1000)} for _ in range(20)))
    tracemalloc.start()
    unpack(tar, area / "set")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # 2.9e6 with the headers of all members
    small, large = zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED
    for kind, chunk in {small: 4096, large: 2**20}.items():  # a MiB of bzip2 becomes 20 GB
        with zipfile.ZipFile(make_zip(tmp_path / "b", FILES, compression=kind)) as file:
            assert {member.chunk for member in unpacking._zip_members(file)} == {chunk}


def test_more_memory_than_there_is_becomes_a_line(tmp_path, area, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(unpacking, "_write_file", fail)
    assert "more memory to unpack than there is" in refusal_of(make_zip(tmp_path / "a", FILES), area)


@pytest.mark.parametrize("padding", [0, 4])
def test_an_xz_of_several_streams(padding, tmp_path, area):
    data = make_tar(tmp_path / "a", FILES).read_bytes()
    parts = [lzma.compress(part) for part in (data[:700], data[700:])]
    (tmp_path / "b").write_bytes(bytes(padding).join([*parts, b""]))
    assert unpack(tmp_path / "b", area / "set") == (4, 0, "") and files_of(area / "set") == FILES
    (tmp_path / "b").write_bytes(b"".join([*parts, b"junk" * 9]))
    shutil.rmtree(area / "set")
    (area / "set").mkdir()
    assert "damaged" in refusal_of(tmp_path / "b", area)


# damage


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_cut_anywhere_is_refused(kind, tmp_path, area):
    data = ARCHIVES[kind](tmp_path / "whole").read_bytes()
    end = len(data) if "tar." in kind or "zip" in kind else data.rindex(b"read me") + 512
    for cut in {0, 1, 5, 100, 511, 512, 513, 1024, end // 3, end // 2, end - 9, end - 1}:
        if cut < end:
            (tmp_path / "cut").write_bytes(data[:cut])
            refusal_of(tmp_path / "cut", area)


@pytest.mark.parametrize(("kind", "place"), [("tar.gz", -6), ("tar.bz2", 20), ("tar.xz", -20), ("zip", 40)])
def test_a_wrong_check_sum_is_called_damage(kind, place, tmp_path, area):
    data = bytearray(ARCHIVES[kind](tmp_path / "whole").read_bytes())
    data[place] ^= 1
    (tmp_path / "spoilt").write_bytes(data)
    message = refusal_of(tmp_path / "spoilt", area)
    assert "the archive is damaged" in message and "Fetch it again" in message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example("zip", [(0.9921875, 1)])  # its directory leads before the beginning of the file
@given(
    st.sampled_from(sorted(ARCHIVES)), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1)
)
def test_spoilt_bytes_end_in_a_message_or_in_files_below_the_target(tmp_path, kind, changes):
    whole = tmp_path / kind
    data = bytearray((whole if whole.exists() else ARCHIVES[kind](whole)).read_bytes())
    for place, mask in changes:
        data[min(int(place * len(data)), len(data) - 1)] ^= mask
    area = tmp_path / "fuzz"
    shutil.rmtree(area, ignore_errors=True)
    (area / "set").mkdir(parents=True)
    (area / "archive").write_bytes(data)
    with suppress(Refused):
        unpack(area / "archive", area / "set")
    assert sorted(area.iterdir()) == [area / "archive", area / "set"]
    assert not [path for path in area.rglob("*") if path.is_symlink()]


def test_sizes_are_shown_in_decimal_units():
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 7_040_000: "7.0 MB", 19_336_861_798: "19.3 GB"}
    assert {size: show_size(size) for size in sizes} == sizes
