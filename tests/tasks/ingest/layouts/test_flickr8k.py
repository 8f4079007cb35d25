"""Flickr8k's file and its lists of splits are read as published; a malformed line costs only itself."""

from __future__ import annotations

from pathlib import Path

from tests.support.datasets import photo, put, read


def test_flickr8k_with_its_lists(root: Path) -> None:
    put(
        root,
        **{
            "Flicker8k_Dataset/a.jpg": photo(),
            "Flicker8k_Dataset/b.jpg": photo(1),
            "text/Flickr8k.token.txt": "a.jpg#0\tA dog\u2028runs .\r\na.jpg#1\tTwo\r\n"
            "b.jpg#0\tThree\r\ngone.jpg#0\tFour\r\n",
            "text/Flickr_8k.trainImages.txt": "a.jpg\n",
            "text/Flickr_8k.devImages.txt": "gone.jpg\nlost.jpg\n",
            "text/Flickr_8k.testImages.txt": "b.jpg\n",
        },
    )
    found = read(root)
    a, b = "Flicker8k_Dataset/a.jpg", "Flicker8k_Dataset/b.jpg"
    assert found.captions == {a: ["A dog\u2028runs .", "Two"], b: ["Three"], None: ["Four"]}
    assert found.missing == {"gone.jpg": ["Four"]}
    assert found.splits == {a: {"train"}, b: {"test"}, None: {"dev"}}
    assert found.reasons == [("gone.jpg", "missing_photo"), ("lost.jpg", "missing_photo")]


def test_flickr8k_without_lists_and_with_malformed_lines(root: Path) -> None:
    lines = (
        b"\xef\xbb\xbfa.jpg#0\tOne\nno tab here\na.jpg\tno number\n\na.jpg#1\tcaf\xe9\n"
        + b"a.jpg#1\t"
        + b"x" * 2**21
        + b"\na.jpg#2\tLast"
    )
    put(root, **{"a.jpg": photo(), "Flickr8k.token.txt": lines})
    found = read(root)
    assert found.captions == {"a.jpg": ["One", "caf\udce9", "Last"]}
    assert found.splits == {"a.jpg": {None}}
    assert found.reasons == [(f"Flickr8k.token.txt:{line}", "malformed") for line in (2, 3, 6)]


def test_lines_may_end_as_on_an_old_mac(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1), "Flickr8k.token.txt": "a.jpg#0\tOne\rb.jpg#0\tTwo\r"})
    assert read(root).captions == {"a.jpg": ["One"], "b.jpg": ["Two"]}
    put(root, **{"Flickr8k.token.txt": b"image,caption\ra.jpg,Three\r", "sub/c.jpg": photo(2)})
    (root / "Flickr8k.token.txt").rename(root / "captions.txt")
    assert read(root).captions == {"a.jpg": ["Three"]}
    (root / "captions.txt").unlink()
    put(root, **{"sub/c.txt": "Four\rFive"})
    assert read(root).captions["sub/c.jpg"] == ["Four", "Five"]
