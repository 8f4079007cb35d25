"""Photographs without annotations, with or without a text beside each."""

from __future__ import annotations

from pathlib import Path

from tests.support.datasets import photo, put, read


def test_a_bare_folder_with_and_without_captions_beside(root: Path) -> None:
    put(
        root,
        **{"a.JPG": photo(), "a.txt": "\ufeffOne\r\n\r\nTwo\x0bstill two\n", "sub/b.png": photo(1, "PNG")},
    )
    put(
        root,
        **{
            "gone.txt": "Three",
            "README.txt": "not a caption",
            "sub/notes.txt": "no pair here",
            "e.webp": b"",
            "e.txt": "",
        },
    )
    found = read(root)
    assert found.captions == {
        "a.JPG": ["One", "Two\x0bstill two"],
        "sub/b.png": [],
        "e.webp": [""],
        None: ["Three"],
    }
    assert found.missing == {"gone": ["Three"]}
    assert found.reasons == [
        ("README.txt", "not_read"),
        ("gone", "missing_photo"),
        ("sub/notes.txt", "not_read"),
    ]


def test_a_text_beside_two_photographs_is_the_firsts(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "a.png": photo(1, "PNG"), "a.txt": "One"})
    assert read(root).captions == {"a.jpg": ["One"], "a.png": []}


def test_folders_named_as_splits_tell_them(root: Path) -> None:
    put(root, **{"train/a.jpg": photo(), "train/a.txt": "One", "test/b.jpg": photo(1)})
    assert read(root).splits == {"train/a.jpg": {"train"}, "test/b.jpg": {"test"}}


def test_a_text_as_large_as_no_caption_is_refused_unread(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "a.txt": b"x" * (17 * 2**20)})
    found = read(root)
    assert found.reasons == [("a.txt", "unreadable")]
    assert found.captions == {"a.jpg": []}
