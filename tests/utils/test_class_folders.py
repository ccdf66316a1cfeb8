"""Class names as folders: inside, legible, never two in one."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.class_folders import MAX_BYTES, folder_name, name_folders

FOLDERS = {
    "cat": "cat",
    "traffic light": "traffic light",
    "../../etc": "_.._etc",
    "/etc/passwd": "_etc_passwd",
    "a/b\x1b[0m": "a_b__0m",
    "a\\b\0c\r\n": "a_b_c__",
    "\u202egpj": "_gpj",
    "\ud800": "_",
    "...": "class",
    "": "class",
    " .hidden. ": "hidden",
    "CON": "_CON",
    "nul.txt": "_nul.txt",
    "com1": "_com1",
    "LPT³ .a": "_LPT³ .a",
    "conin$": "conin_",
    "console": "console",
    "com10": "com10",
    "猫": "猫",
    "e\u0301te\u0301": "été",
    "x" * 1000: "x" * 100,
    "猫" * 1000: "猫" * 33,  # 3 bytes each
}


@pytest.mark.parametrize("name", FOLDERS)
def test_names_become_folders(name):
    assert folder_name(name) == FOLDERS[name]


def test_no_two_names_share_a_folder():
    names = ("a/b", "a?b", "a_b", "A_B", "a_b_2", "a:b", "a/b")
    assert name_folders(names) == {
        "a/b": "a_b_3",  # what can stand as it is comes first, and A_B is a_b on some disks
        "a?b": "a_b_4",
        "a_b": "a_b",
        "A_B": "A_B_2",
        "a_b_2": "a_b_2_2",
        "a:b": "a_b_5",
    }
    assert len(set(name_folders(map(chr, range(32))).values())) == 32


@given(st.lists(st.text(max_size=8) | st.sampled_from(["a", "A", "a_2", "../a", "é", "e\u0301", "con"])))
def test_folders_are_safe_and_differ_on_every_disk(names):
    folders = name_folders(names)
    assert folders.keys() == set(names)
    seen = {unicodedata.normalize("NFD", folder).lower() for folder in folders.values()}
    assert len(seen) == len(folders)
    for folder in folders.values():
        assert not set(folder) & set('/\\:*?"<>|') and folder.isprintable() and folder == folder.strip(" .")
        assert 0 < len(folder.encode()) <= MAX_BYTES + 10
