"""What a terminal gets to see of texts from elsewhere."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.wording import printable, show_class

TEXTS = {
    "cat": "cat",
    "машина 猫 ñ": "машина 猫 ñ",
    "\x1b[2J\x1b]0;title\x07": "\\x1b[2J\\x1b]0;title\\x07",
    "a\nb\r\tc\0": "a\\nb\\r\\tc\\x00",
    "\x9b31m": "\\x9b31m",  # the control sequence introducer in one character
    "\u202egpj\u2066\u200f": "\\u202egpj\\u2066\\u200f",
    "a\u2028b\u2029": "a\\u2028b\\u2029",
    "\ud800": "\\ud800",
    "\ufeff\U000e0041": "\\ufeff\\U000e0041",
    "می\u200cخواهم": "می\u200cخواهم",  # Persian needs this one
    "a\u00a0b\u3000c": "a\u00a0b\u3000c",
}


@pytest.mark.parametrize("text", TEXTS)
def test_what_steers_a_terminal_is_spelled_out(text):
    assert printable(text) == TEXTS[text]


@given(st.text(st.characters()))
def test_what_is_printable_stays_and_all_is_one_line_that_can_be_encoded(text):
    shown = printable(text)
    assert len(shown.encode().splitlines()) <= 1 and printable(shown) == shown
    assert shown == text or not text.isprintable()


def test_no_control_character_at_all_comes_through():
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert not set(printable(every)) & {
        *map(chr, range(32)),
        *map(chr, range(0x7F, 0xA0)),
        "\u202e",
        "\ud800",
    }


def test_long_class_names_are_cut():
    assert show_class("x" * 80) == "x" * 80 and show_class("x" * 81) == "x" * 77 + "..."
    assert len(show_class("\x1b" * 10**7)) == 77 * 4 + 3
