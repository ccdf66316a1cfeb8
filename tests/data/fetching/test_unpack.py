"""Archives made by hand, honest and hostile: what is unpacked, what is refused, that nothing else changes.

Every hostile archive is unpacked into ``area/set`` and ``area`` is compared before and after, byte for byte.
"""

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.fetching import unpack as unpacking
from data.fetching.archives import Refused, _Tape, split_name
from data.fetching.unpack import show_size, unpack
from utils.errors import DATA, UserError

FILES = {
    "images/a.jpg": b"\xff\xd8 a",
    "images/deep/b.jpg": b"b" * 3000,
    "labels/a.txt": b"",
    "README": b"read me",
}


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
    """Every path below a folder: the sum of a file, where a link leads, None for a folder."""
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
    area = tmp_path / "area"
    area.mkdir()
    (area / "precious").write_bytes(b"mine")
    (area / "folder").mkdir()
    return area


def refusal_of(archive: Path, area: Path) -> str:
    """The message for an archive that must not be unpacked; nothing in ``area`` may have changed."""
    before = content_of(area)
    with pytest.raises(UserError) as error:
        unpack(archive, area / "set", label="LABEL")
    assert error.value.code == DATA
    assert content_of(area) == before
    message = str(error.value)
    assert message.startswith("LABEL: ") and "Nothing was unpacked." in message and "\n" not in message
    return message


# honest archives


def gzip_of(path, opener):
    packed = path.with_suffix(".packed")
    with opener(packed, "wb") as file:
        file.write(path.read_bytes())
    return packed


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
def test_all_files_come_out_and_are_named(kind, tmp_path, area):
    archive = ARCHIVES[kind](tmp_path / "archive")
    before = content_of(area)
    assert unpack(archive, area / "new" / "set", label="") == sorted(FILES)
    assert files_of(area / "new" / "set") == FILES
    shutil.rmtree(area / "new")
    assert content_of(area) == before  # and no temporary folder is left


def test_names_are_taken_apart_alike_everywhere():
    assert split_name("./images//a b.jpg") == ("images", "a b.jpg")
    assert split_name("images/") == ("images",)
    assert split_name("./") == split_name("") == ()
    assert split_name("img..1/..a/a..b.jpg") == ("img..1", "..a", "a..b.jpg")
    assert split_name("2024-01-01T10:30.jpg") == ("2024-01-01T10:30.jpg",)
    assert split_name("bild-ä-猫.png") == ("bild-ä-猫.png",)


def test_modes_of_the_archive_are_not_taken_over(tmp_path, area):
    def setuid(info):
        info.mode, info.uid = 0o6777, 0

    unpack(make_tar(tmp_path / "a", {"tool": setuid}), area / "set", label="")
    unpack(make_zip(tmp_path / "b", {"tool2": (b"", stat.S_IFREG | 0o6777)}), area / "set", label="")
    for name in ("tool", "tool2"):
        assert not (area / "set" / name).stat().st_mode & (stat.S_ISUID | stat.S_ISGID | 0o111)


def test_a_top_folder_named_like_the_target_is_the_target(tmp_path, area):
    archive = make_zip(tmp_path / "a", {"set/images/a.jpg": b"a", "__MACOSX/set/images/._a.jpg": b"fork"})
    assert unpack(archive, area / "set", label="") == ["images/a.jpg"]
    assert files_of(area / "set") == {"images/a.jpg": b"a"}
    other = make_zip(tmp_path / "b", {"coco/b.jpg": b"b"})
    assert unpack(other, area / "set", label="") == ["coco/b.jpg"]
    both = make_zip(tmp_path / "c", {"set/c.jpg": b"c", "d.jpg": b"d"})
    assert unpack(both, area / "set", label="") == ["d.jpg", "set/c.jpg"]


# what is there already


def test_archives_merge_into_folders_that_are_there(tmp_path, area):
    unpack(
        make_tar(tmp_path / "a", {"VOC/2007/a.jpg": b"a", "VOC/lists/train": b"1"}), area / "set", label=""
    )
    unpack(make_tar(tmp_path / "b", {"VOC/2007/b.jpg": b"b", "VOC/2012/c.jpg": b"c"}), area / "set", label="")
    names = {"VOC/2007/a.jpg": b"a", "VOC/2007/b.jpg": b"b", "VOC/2012/c.jpg": b"c", "VOC/lists/train": b"1"}
    assert files_of(area / "set") == names


def test_equal_files_stay_and_missing_ones_come(tmp_path, area):
    archive = make_zip(tmp_path / "a", FILES)
    unpack(archive, area / "set", label="")
    kept = (area / "set" / "README").stat()
    (area / "set" / "images" / "a.jpg").unlink()
    (area / "set" / "mine.txt").write_text("mine")
    unpack(archive, area / "set", label="")
    assert files_of(area / "set") == {**FILES, "mine.txt": b"mine"}
    assert (area / "set" / "README").stat() == kept


def test_a_file_with_other_content_is_never_replaced(tmp_path, area):
    (area / "set" / "images").mkdir(parents=True)
    (area / "set" / "images" / "a.jpg").write_bytes(b"my own")
    message = refusal_of(make_zip(tmp_path / "a", FILES), area)
    assert f"{area / 'set' / 'images' / 'a.jpg'} is there already, with other content" in message
    assert "move it away" in message


@pytest.mark.parametrize("there", ["file", "folder", "link", "dangling link", "link to a folder"])
def test_a_thing_of_another_kind_in_the_way_is_refused(there, tmp_path, area):
    (area / "set").mkdir()
    if there == "file":
        (area / "set" / "images").write_bytes(b"")
    elif there == "folder":
        (area / "set" / "README").mkdir()
    else:
        target = {"link": "precious", "dangling link": "nowhere", "link to a folder": "folder"}[there]
        (area / "set" / ("README" if there == "link" else "images")).symlink_to(area / target)
    assert "is in the way" in refusal_of(make_zip(tmp_path / "a", FILES), area)


def test_a_target_that_is_a_link_is_followed(tmp_path, area):
    (area / "set").symlink_to(area / "folder")
    unpack(make_zip(tmp_path / "a", {"set/a": b"a"}), area / "set", label="")
    assert files_of(area / "folder") == {"a": b"a"}


def test_a_target_that_is_a_file_is_refused(tmp_path, area):
    (area / "set").write_bytes(b"a file")
    assert "cannot be unpacked" in refusal_of(make_zip(tmp_path / "a", FILES), area)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_move_that_fails_half_way_is_undone(error, tmp_path, area, monkeypatch):
    """Into a folder that is there, README comes first, then images: the second rename fails."""
    (area / "set" / "labels").mkdir(parents=True)
    (area / "set" / "mine").write_bytes(b"mine")
    before, rename, calls = content_of(area), os.rename, []

    def fail_second(old, new):
        calls.append(new)
        if len(calls) == 2:
            raise error
        rename(old, new)

    monkeypatch.setattr(unpacking.os, "rename", fail_second)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        unpack(make_zip(tmp_path / "a", FILES), area / "set", label="")
    assert content_of(area) == before and len(calls) == 3


def test_ctrl_c_while_writing_leaves_nothing(tmp_path, area, monkeypatch):
    before = content_of(area)
    archive = make_zip(tmp_path / "a", FILES)
    write = unpacking._write_member

    def interrupt(member, path):
        if member.name == "labels/a.txt":
            raise KeyboardInterrupt
        return write(member, path)

    monkeypatch.setattr(unpacking, "_write_member", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, area / "set", label="")
    assert content_of(area) == before


# hostile names

NAMES = {
    "/tmp/evil": "absolute",
    "//server/share": "absolute",
    "../evil": "'..'",
    "images/../../evil": "'..'",
    "a/..": "'..'",
    "..": "'..'",
    "..\\evil": "backslash",
    "images\\a.jpg": "backslash",
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
    with pytest.raises(Refused):
        split_name(name)


@pytest.mark.parametrize("name", ["a\0b", "good.jpg\0../evil", "\0"])
def test_names_with_a_nul_are_refused(name, tmp_path, area):
    with pytest.raises(Refused, match="control character"):
        split_name(name)
    tar = make_tar(
        tmp_path / "a", {"x": lambda info: info.pax_headers.update(path=name)}, form=tarfile.PAX_FORMAT
    )
    assert "control character" in refusal_of(tar, area)


def test_a_nul_hidden_in_a_zip_is_refused(tmp_path, area):
    """zipfile itself cuts the name there, so that ``a.jpg`` would come out."""
    archive = make_zip(tmp_path / "a", {"a.jpg#../b": b"x"})
    archive.write_bytes(archive.read_bytes().replace(b"a.jpg#../b", b"a.jpg\0../b"))
    assert "control character" in refusal_of(archive, area)


# hostile kinds


def of_type(kind, link=""):
    def change(info):
        info.type, info.linkname = kind, link

    return change


KINDS = {
    "symbolic link": {"x": of_type(tarfile.SYMTYPE, "/etc")},
    "written through": {"x": of_type(tarfile.SYMTYPE, ".."), "x/evil": b"evil"},
    "hard link": {"x": of_type(tarfile.LNKTYPE, "../precious")},
    "inside link": {"a": b"a", "b": of_type(tarfile.SYMTYPE, "a")},
    "device": {"x": of_type(tarfile.CHRTYPE)},
    "block device": {"x": of_type(tarfile.BLKTYPE)},
    "fifo": {"x": of_type(tarfile.FIFOTYPE)},
    "unknown": {"x": of_type(b"Z")},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_links_and_devices_of_a_tar_are_refused(kind, mode, tmp_path, area):
    message = refusal_of(make_tar(tmp_path / "a", KINDS[kind], mode=mode), area)
    name = "'b'" if kind == "inside link" else "'x'"
    expected = {
        "written through": "symbolic link",
        "inside link": "symbolic link",
        "block device": "device",
        "fifo": "named pipe",
        "unknown": "of an unknown kind",
    }
    assert f"{name} is " in message and expected.get(kind, kind) in message


@pytest.mark.parametrize(
    ("mode", "word"),
    [
        (stat.S_IFLNK, "symbolic link"),
        (stat.S_IFIFO, "named pipe"),
        (stat.S_IFCHR, "device"),
        (stat.S_IFBLK, "device"),
        (stat.S_IFSOCK, "socket"),
    ],
)
def test_links_and_devices_of_a_zip_are_refused(mode, word, tmp_path, area):
    files = {"x": (b"..", mode | 0o777), "x/evil": b"evil"}
    message = refusal_of(make_zip(tmp_path / "a", files), area)
    assert "'x' is a" in message and word in message


def test_an_encrypted_zip_is_refused(tmp_path, area):
    archive = make_zip(tmp_path / "a", {"secret": b"x"})
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # general purpose flag of the central directory
    archive.write_bytes(data)
    assert "'secret' is encrypted" in refusal_of(archive, area)


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("names", [("a/b", "a"), ("a", "a/b"), ("same", "./same"), ("a", "a/")])
def test_members_that_clash_are_refused(names, make, tmp_path, area):
    if names == ("a", "a/"):
        names = ("a", "./a//")
    archive = make(tmp_path / "a", {names[0]: b"1", names[1]: b"2" if not names[1].endswith("/") else b""})
    assert "clashes with an earlier member" in refusal_of(archive, area)


# bombs


def test_a_zip_bomb_is_refused(tmp_path, area, monkeypatch):
    monkeypatch.setattr(unpacking, "SMALL", 10**6)
    archive = make_zip(tmp_path / "a", {"a.bmp": bytes(400_000), "b.bmp": bytes(700_000)})
    assert 1100 < archive.stat().st_size < 5000  # times 200 is at most 1.0 MB
    message = refusal_of(archive, area)
    assert "'b.bmp' has 700.0 kB" in message and "unpack to more than 1.0 MB, as bombs do" in message
    monkeypatch.setattr(unpacking, "MAX_RATIO", 1000)
    unpack(archive, area / "set", label="")


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_a_tar_bomb_is_refused(mode, tmp_path, area, monkeypatch):
    monkeypatch.setattr(unpacking, "SMALL", 10**6)
    archive = make_tar(tmp_path / "a", {"a.bmp": bytes(400_000), "b.bmp": bytes(5_000_000)}, mode=mode)
    assert archive.stat().st_size < 25_000
    assert "'b.bmp' has 5.0 MB: " in refusal_of(archive, area)


def test_zeros_behind_the_end_of_a_tar_are_counted(tmp_path, area, monkeypatch):
    monkeypatch.setattr(unpacking, "SMALL", 10**6)
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 100)
    plain = make_tar(tmp_path / "plain", {"a": b"a"})
    plain.write_bytes(plain.read_bytes() + bytes(3_000_000))
    assert "stream has more than 1,051,200 bytes" in refusal_of(gzip_of(plain, gzip.open), area)


def test_a_huge_declared_size_is_refused(tmp_path, area):
    """Both formats declare 10 TB for a member that has none of it."""

    def huge(info):
        info.size = 10**13

    message = refusal_of(make_tar(tmp_path / "a", {"big": huge}), area)
    assert "'big' has 10000.0 GB" in message
    archive = make_zip(tmp_path / "b", {"big": b"x" * 50})
    data = bytearray(archive.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 0xFFFFFFF0)  # uncompressed size
    archive.write_bytes(data)
    assert "'big' has 4.3 GB" in refusal_of(archive, area)


def test_a_size_that_is_not_kept_is_refused(tmp_path, area):
    archive = make_zip(tmp_path / "b", {"short": b"x" * 50}, compression=zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\1\2") + 24, 5000)
    archive.write_bytes(data)
    refusal_of(archive, area)


def test_the_limits_for_a_file_and_for_members(tmp_path, area, monkeypatch):
    archive = make_tar(tmp_path / "a", {"a": b"12", "b": b"1234"})
    monkeypatch.setattr(unpacking, "MAX_FILE", 3)
    assert "'b' has 4 bytes: the limit for one file is 3 bytes" in refusal_of(archive, area)
    monkeypatch.setattr(unpacking, "MAX_FILE", 4)
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 1)
    assert "more than 1 members" in refusal_of(archive, area)


def test_the_free_disk_is_a_limit(tmp_path, area, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=unpacking.RESERVE + 1000)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda folder: usage)
    archive = make_tar(tmp_path / "a", {"a": b"1" * 600, "b": b"1" * 401})
    assert "'b' has 401 bytes: the archive needs more than the 1.0 kB that are free" in refusal_of(
        archive, area
    )
    unpack(make_tar(tmp_path / "b", {"a": b"1" * 600, "b": b"1" * 400}), area / "set", label="")


def test_a_full_disk_is_said(tmp_path, area, monkeypatch):
    def fail(member, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(unpacking, "_write_member", fail)
    assert "No space left on device" in refusal_of(make_zip(tmp_path / "a", FILES), area)


# tar headers that tarfile alone would believe


def header(name=b"x", *, size=0, kind=b"0", data=b""):
    block = bytearray(tarfile.TarInfo(name.decode()).tobuf(tarfile.GNU_FORMAT))
    block[156:157] = kind
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % size
    if size < 0:
        block[124] = 0xFF
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize("kind", [b"0", b"5", b"Z"])
def test_a_negative_size_is_refused(kind, tmp_path, area):
    """It would lead tarfile back to the start for ever, and give room for others."""
    (tmp_path / "a").write_bytes(header(b"y") + header(size=-1024, kind=kind) + bytes(1024))
    message = refusal_of(tmp_path / "a", area)
    assert "'x'" in message or "damaged" in message  # newer versions of tarfile see it themselves


def test_a_tape_only_runs_forwards():
    tape = _Tape(io.BytesIO(bytes(2048)), 4096)
    tape.seek(1024)
    assert tape.tell() == 1024
    with pytest.raises(Refused, match="leads backwards"):
        tape.seek(1023)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_a_header_that_wants_all_memory_is_refused(kind, tmp_path, area):
    size = 8 * 2**20
    (tmp_path / "plain").write_bytes(header(size=size, kind=kind, data=bytes(size)) + header() + bytes(1024))
    message = refusal_of(gzip_of(tmp_path / "plain", gzip.open), area)
    assert "a header of the archive wants 8,388,608 bytes" in message


def test_a_sparse_file_is_refused(tmp_path, area):
    block = bytearray(header(b"holes", size=0, kind=b"S"))
    block[386:410] = b"%011o\0%011o\0" % (0, 0)
    block[483:495] = b"%011o\0" % (10**9)  # its size with the holes
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a").write_bytes(bytes(block) + bytes(1024))
    assert "'holes' is a sparse file" in refusal_of(tmp_path / "a", area)


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


def test_a_web_page_is_not_an_archive(tmp_path, area):
    (tmp_path / "a").write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")
    message = refusal_of(tmp_path / "a", area)
    assert "no .zip or .tar archive" in message and "a web page: open the URL in a browser" in message


def test_an_archive_without_files_is_refused(tmp_path, area):
    assert "holds no files" in refusal_of(make_zip(tmp_path / "a", {}), area)
    folder = of_type(tarfile.DIRTYPE)
    assert "holds no files" in refusal_of(make_tar(tmp_path / "b", {"images": folder}), area)


WHOLE: dict[str, bytes] = {}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(ARCHIVES)), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1)
)
def test_spoilt_bytes_end_in_a_message_or_in_files_below_the_target(tmp_path, kind, changes):
    if not WHOLE:
        WHOLE.update({kind: make(tmp_path / "whole").read_bytes() for kind, make in ARCHIVES.items()})
    data = bytearray(WHOLE[kind])
    for place, mask in changes:
        data[min(int(place * len(data)), len(data) - 1)] ^= mask
    area = tmp_path / "fuzz"
    shutil.rmtree(area, ignore_errors=True)
    area.mkdir()
    (area / "archive").write_bytes(data)
    expected = [area / "archive", area / "set"]
    try:
        unpack(area / "archive", area / "set", label="LABEL")
    except UserError:
        expected.pop()
    assert sorted(area.iterdir()) == expected
    assert not [path for path in area.rglob("*") if path.is_symlink()]


def test_sizes_are_shown_in_decimal_units():
    assert [show_size(n) for n in (0, 999, 1000, 7_040_000, 19_336_861_798)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "7.0 MB",
        "19.3 GB",
    ]
