"""A gallery shows every caption once, in order, a page at a time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cutline.tasks.report.gallery import Wish, captions_page, whole_word
from cutline.tasks.storage.runs import Captions, History
from cutline.tasks.storage.workspace import ReadOnlyWorkspace
from tests.support.histories import RUN, many_captions, small_history


@pytest.fixture
def captions(tmp_path: Path) -> Captions:
    written = small_history(tmp_path / "workspace", tmp_path / "dataset")
    history = History(ReadOnlyWorkspace(written.workspace.root))
    return history.captions(history.run(RUN))


def shown(captions: Captions, wish: Wish) -> list[str]:
    return [row["caption"] for row in captions_page(captions, wish, 10).rows]


@pytest.mark.parametrize(("sort", "reverse"), [("best", True), ("worst", False)])
def test_pages_by_score_hold_each_caption_once_in_order(tmp_path: Path, sort: str, reverse: bool) -> None:
    history = History(ReadOnlyWorkspace(many_captions(tmp_path / "w", 500).workspace.root))
    captions = history.captions(history.run(RUN))
    pages = [captions_page(captions, Wish(sort=sort, page=page), 48) for page in range(1, 12)]
    scores = [row["score"] for page in pages for row in page.rows]
    assert [len(page.rows) for page in pages] == [48] * 10 + [20]
    assert {(page.total, page.pages) for page in pages} == {(500, 11)}
    assert scores == sorted(scores, reverse=reverse)
    assert len({row["photo_id"] for page in pages for row in page.rows}) == 500


def test_what_is_likest_a_guess_comes_first_where_that_is_asked_for(captions: Captions) -> None:
    rows = captions_page(captions, Wish(sort="far"), 10).rows
    assert rows[0]["caption"] == "a dog on the beach"
    assert [round(row["distance"], 1) for row in rows] == [1.3, 0.8, 0.8, 0.8, 0.8, 0.8]


def test_a_page_behind_the_last_is_the_last(captions: Captions) -> None:
    page = captions_page(captions, Wish(sort="path", page=10**7), 4)
    assert (page.page, page.pages, len(page.rows)) == (2, 2, 2)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dog", 4),  # not the hotdog
        ("DOG", 4),
        ("dog beach", 1),
        ("beach dog", 1),
        ("hotdog", 1),
        ("zebra", 0),
        ("", 6),
        ("   ", 6),
        ("(and", 1),
        ("c++", 1),
        ("[", 0),
        (".*", 0),
        ("<script>", 1),
        ("\\", 0),
        ("'s", 1),
    ],
)
def test_words_are_found_whole_and_taken_as_they_are(captions: Captions, words: str, found: int) -> None:
    assert len(shown(captions, Wish(words))) == found


def test_words_are_found_as_pythons_own_patterns_find_them(captions: Captions) -> None:
    for word in ("dog", "a", "cat", "children"):
        expected = [text for text in shown(captions, Wish()) if re.search(rf"(?i)\b{word}\b", text)]
        assert shown(captions, Wish(word)) == expected
    assert whole_word("dog") == r"(?i)\bdog\b"


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("photo4.jpg", ["a cat"]),
        ("OTO4.", ["a cat"]),
        (
            "photo",
            [
                "a dog on the beach",
                "A hotdog, please",
                "two children (and a Dog)",
                "a cat",
                "c++ is no dog's life",
            ],
        ),
        ("photo.", []),  # the dot is one
        ("<script>", ["<b>a dog</b> & <script>alert(2)</script>"]),
    ],
)
def test_files_are_found_by_a_part_of_their_path(captions: Captions, file: str, found: list[str]) -> None:
    assert shown(captions, Wish(file=file)) == found


def test_words_and_a_file_are_looked_for_together(captions: Captions) -> None:
    assert shown(captions, Wish("dog", file="photo", split="train")) == [
        "a dog on the beach",
        "two children (and a Dog)",
    ]


def test_a_split_is_shown_alone(captions: Captions) -> None:
    assert shown(captions, Wish(split="dev")) == ["a cat"]
    assert shown(captions, Wish(split="unlabelled")) == []
