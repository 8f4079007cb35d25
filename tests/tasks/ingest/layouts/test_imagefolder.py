"""Metadata of an image folder: JSON lines or CSV, with captions in any column of captions."""

from __future__ import annotations

from pathlib import Path

from tests.support.datasets import photo, put, read


def test_imagefolder_with_a_metadata_file_a_split(root: Path) -> None:
    put(root, **{"train/x/a.jpg": photo(), "validation/b.png": photo(1, "PNG"), "test/c.jpg": photo(2)})
    put(
        root,
        **{"train/metadata.jsonl": '{"file_name": "x/a.jpg", "text": "One"}\n{"text": "?"}\nnonsense\n[]\n'},
    )
    put(root, **{"validation/metadata.jsonl": '{"file_name": "b.png", "captions": ["Two", "Three"]}\n'})
    put(
        root,
        **{"test/metadata.csv": 'file_name,caption\nc.jpg,"Four, ""five"""\ngone.jpg,Six\nc.jpg,too,many\n'},
    )
    found = read(root)
    assert found.captions == {
        "train/x/a.jpg": ["One"],
        "validation/b.png": ["Two", "Three"],
        "test/c.jpg": ['Four, "five"'],
        None: ["Six"],
    }
    assert found.missing == {"test/gone.jpg": ["Six"]}
    assert found.splits == {
        "train/x/a.jpg": {"train"},
        "validation/b.png": {"dev"},
        "test/c.jpg": {"test"},
        None: {"test"},
    }
    assert found.reasons == [
        ("gone.jpg", "missing_photo"),
        ("test/metadata.csv:4", "malformed"),
        *((f"train/metadata.jsonl:{line}", "malformed") for line in (2, 3, 4)),
    ]


def test_metadata_at_the_root_names_folders_or_has_a_split_column(root: Path) -> None:
    put(root, **{"train/a.jpg": photo(), "test/b.jpg": photo(1), "c.jpg": photo(2)})
    rows = 'file_name,split,text\ntrain/a.jpg,,"[""One"", ""Two""]"\n'
    rows += "test/b.jpg,,[sic] Three\nc.jpg,validation,Four\n"
    put(root, **{"metadata.csv": rows})
    found = read(root)
    assert found.captions == {"train/a.jpg": ["One", "Two"], "test/b.jpg": ["[sic] Three"], "c.jpg": ["Four"]}
    assert found.splits == {"train/a.jpg": {"train"}, "test/b.jpg": {"test"}, "c.jpg": {"dev"}}


def test_a_quote_that_is_never_closed_does_not_swallow_the_next_rows(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "b.jpg": photo(1)})
    put(
        root,
        **{"metadata.csv": 'file_name,text\na.jpg,"broken\nb.jpg,"fine, really"\nb.jpg,"over\ntwo lines"\n'},
    )
    found = read(root)
    assert found.captions == {"a.jpg": ["broken"], "b.jpg": ["fine, really", "over\ntwo lines"]}


def test_a_split_that_is_none_costs_its_row_and_is_never_taken_for_training(root: Path) -> None:
    put(root, **{f"{name}.jpg": photo(number) for number, name in enumerate("abc")})
    rows = ["file_name,split,caption", "a.jpg, test,One", "b.jpg,holdout,Two", "c.jpg,,Three"]
    put(root, **{"metadata.csv": "\n".join(rows)})
    found = read(root)
    assert found.captions == {"a.jpg": ["One"], "c.jpg": ["Three"]}
    assert found.splits == {"a.jpg": {"test"}, "c.jpg": {None}}
    assert found.reasons == [("metadata.csv:3", "malformed")]
    assert "found 'holdout'" in found.problems[0].detail


def test_two_columns_of_one_name_are_both_read(root: Path) -> None:
    put(root, **{"a.jpg": photo(), "metadata.csv": "file_name,caption,caption\na.jpg,One,Two"})
    assert read(root).captions == {"a.jpg": ["One", "Two"]}
