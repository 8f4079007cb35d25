"""Names of strangers are shown with everything visible that could steer a terminal or mislead a reader."""

from __future__ import annotations

import json
import unicodedata

import pytest

from cutline.schemas.errors import BadPhoto, UsageError
from cutline.schemas.safe_text import for_log, for_page, for_terminal, json_for_terminal, written_out

ZERO_WIDTH_JOINERS = "\u200c\u200d"  # part of words in Persian and Hindi, and of emoji
HOSTILE = {
    "\x1b[31m": r"\x1b[31m",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x9b31m": r"\x9b31m",
    "\r": r"\r",
    "\x08": r"\x08",
    "\x7f": r"\x7f",
    "\x85": r"\x85",
    "\u200b": r"\u200b",
    "\u200e": r"\u200e",
    "\u200f": r"\u200f",
    "\u202a": r"\u202a",
    "\u202e": r"\u202e",
    "\u2066": r"\u2066",
    "\u2069": r"\u2069",
    "\ufeff": r"\ufeff",
    "\u2028": r"\u2028",
    "\u2029": r"\u2029",
    "\u061c": r"\u061c",
    "\udcff": r"\udcff",
    "\U000e0041": r"\U000e0041",
}


@pytest.mark.parametrize(("hostile", "shown"), HOSTILE.items(), ids=HOSTILE.values())
def test_each_is_written_out_in_every_medium(hostile: str, shown: str) -> None:
    name = f"a{hostile}b"
    for safe in (written_out, for_terminal, for_page, for_log):
        assert safe(name) == f"a{shown}b"
    assert str(UsageError(name)) == f"a{shown}b"
    assert BadPhoto("truncated", name).detail == name  # tables keep what there is


def test_nothing_of_the_kind_is_left_out() -> None:
    """By Unicode's own categories: controls, formats, surrogates, separators of lines."""
    for code in range(0x110000):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            shown = for_terminal(character)
            is_visible = shown != character
            number_sign = (0x600 <= code <= 0x8E2 and code != 0x61C) or 0x110BD <= code <= 0x13455
            assert is_visible or character in ZERO_WIDTH_JOINERS or number_sign or code >= 0xFFF9, hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "año 2026.jpg",
        "чёрный пёс",
        "一只狗",
        "می\u200cخواهم",
        "👨\u200d👩\u200d👧.png",
        "שלום",
        "❤\ufe0f",
        "a\u0301",
    ],
)
def test_words_of_any_language_stay_as_they_are(text: str) -> None:
    assert for_terminal(text) == for_page(text) == for_log(text) == text


def test_a_terminal_and_a_log_get_one_line_and_a_page_keeps_its_lines() -> None:
    assert for_terminal("a\nb\tc") == for_log("a\nb\tc") == r"a\nb\tc"
    assert for_page("a\nb") == "a\nb"
    assert len(for_log("x" * 10_000)) < 1_000


@pytest.mark.parametrize("hostile", HOSTILE)
def test_json_means_the_same_and_holds_nothing_raw(hostile: str) -> None:
    text = json_for_terminal(json.dumps({"name": hostile}, ensure_ascii=False))
    assert json.loads(text) == {"name": hostile}
    assert for_terminal(text) == text
