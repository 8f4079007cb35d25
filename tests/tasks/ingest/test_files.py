"""Every file of a data set is listed or told of, names find their photographs, and nothing leads out."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cutline.schemas.errors import UnknownDataset
from cutline.tasks.ingest.files import scan
from cutline.tasks.storage.workspace import WORKSPACE_MARKER
from tests.support.datasets import photo, put, read


def test_hidden_files_and_mac_folders_are_passed_over(root: Path) -> None:
    put(
        root,
        **{"a.jpg": photo(), "._a.jpg": b"x", ".git/b.jpg": b"x", "__MACOSX/a.jpg": b"x", "c/.d/e.jpg": b"x"},
    )
    found = read(root)
    assert (list(found.photos), found.problems) == (["a.jpg"], [])


def test_links_and_odd_files_cost_one_reject_each_and_never_block(root: Path, tmp_path: Path) -> None:
    put(tmp_path, **{"secret.jpg": photo(9)})
    put(root, **{"a.jpg": photo(), "folder.jpg/inside.png": photo(1, "PNG")})
    (root / "inside.jpg").symlink_to("a.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "loop.jpg").symlink_to("loop.jpg")
    (root / "up").symlink_to(tmp_path, target_is_directory=True)
    (root / "again").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "pipe.jpg")
    os.mkfifo(root / "captions.txt")
    (root / "latin\udce9.jpg").write_bytes(photo(2))
    found = read(root)
    assert sorted(found.photos) == ["a.jpg", "folder.jpg/inside.png", "inside.jpg"]
    assert found.reasons == [
        ("captions.txt", "not_a_file"),
        ("folder.jpg", "not_a_file"),
        ("gone.jpg", "not_a_file"),
        ("latin\\udce9.jpg", "bad_name"),
        ("loop.jpg", "not_a_file"),
        ("out.jpg", "outside_dataset"),
        ("pipe.jpg", "not_a_file"),
        ("up", "outside_dataset"),
    ]


def test_a_photograph_that_cannot_be_read_is_not_reported_missing_as_well(root: Path) -> None:
    os.mkfifo(root / "pipe.jpg")
    put(root, **{"captions.txt": "image,caption\npipe.jpg,A pipe\n"})
    found = read(root)
    assert found.reasons == [("pipe.jpg", "not_a_file")]
    assert found.captions == {None: ["A pipe"]}


def test_names_are_found_in_any_folder_in_any_case_and_composed_or_not(root: Path) -> None:
    put(root, **{"x/A.JPG": photo(), "y/cafe\u0301.jpg": photo(1), "z/d.png": photo(2, "PNG")})
    put(root, **{"captions.txt": "image,caption\na.jpg,One\ncaf\u00e9.jpg,Two\nsome\\z\\d.png,Three\n"})
    assert read(root).captions == {"x/A.JPG": ["One"], "y/cafe\u0301.jpg": ["Two"], "z/d.png": ["Three"]}


def test_a_photograph_without_an_ending_is_one_where_the_data_set_names_it(root: Path) -> None:
    put(root, **{"images/0001": photo(), "captions.csv": "image,caption\n0001,One\n"})
    found = read(root)
    assert (list(found.photos), found.captions) == (["images/0001"], {"images/0001": ["One"]})


def test_among_files_of_one_name_the_folder_decides_and_none_is_guessed(root: Path) -> None:
    put(
        root,
        **{f"{i}/image.jpg": photo(i) for i in range(3)} | {"thumbs/a.jpg": photo(7), "full/a.jpg": photo(8)},
    )
    names = ["images/1/image.jpg", "9/image.jpg", "a.jpg"]
    put(root, **{"captions.txt": "image,caption\n" + "".join(f"{name},{name[0]}\n" for name in names)})
    found = read(root)
    assert found.captions == {"1/image.jpg": ["i"], None: ["9", "a"]}
    assert found.reasons == [("9/image.jpg", "missing_photo"), ("a.jpg", "ambiguous_name")]
    assert (
        found.problems[1].detail == "2 files have this name ('full/a.jpg', 'thumbs/a.jpg'); tell the folder"
    )


def test_a_file_that_lies_twice_in_a_data_set_is_one_by_its_name(root: Path) -> None:
    put(root, **{"x/a.jpg": photo(), "x/x/a.jpg": photo(), "captions.txt": "image,caption\na.jpg,One"})
    assert read(root).captions == {"x/a.jpg": ["One"]}


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/hosts", "images/../../secret.jpg", "C:\\secret.jpg"])
def test_a_name_that_leaves_the_data_set_is_refused_and_its_caption_kept(root: Path, name: str) -> None:
    put(root.parent, **{"secret.jpg": photo()})
    put(root, **{"a.jpg": photo(1), "captions.txt": f"image,caption\n{name},One\n{name},Two\na.jpg,Three\n"})
    found = read(root)
    assert found.reasons == [(name, "outside_dataset")]
    assert found.captions == {None: ["One", "Two"], "a.jpg": ["Three"]}


def test_a_file_that_has_become_a_pipe_since_is_not_waited_for(root: Path) -> None:
    files = scan(put(root, **{"a.txt": "One"}))
    (root / "a.txt").unlink()
    os.mkfifo(root / "a.txt")
    with pytest.raises(OSError, match="not a regular file"):
        files.read_text("a.txt")


def test_only_the_files_and_folders_that_are_meant_are_read_and_none_twice(root: Path) -> None:
    put(
        root,
        **{
            name: photo() for name in ("a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg", "z/e.jpg", "x.txt", ".f.jpg")
        },
    )
    (root / "gone.jpg").symlink_to("nowhere")
    found = read(root, only=["a.jpg", "x", "x/y", "x/c.jpg", "x.txt", ".f.jpg"])
    assert list(found.photos) == [".f.jpg", "a.jpg", "x.txt", "x/c.jpg", "x/y/d.jpg"]
    assert found.problems == []
    assert list(read(root, only=["."]).photos) == ["a.jpg", "b.jpg", "x/c.jpg", "x/y/d.jpg", "z/e.jpg"]


def test_of_a_manifest_only_the_photographs_that_it_names_are_read(root: Path) -> None:
    put(root, **{name: photo() for name in ("a.jpg", "b.jpg", "x/c.jpg", "z/e.jpg", "captions.txt")})
    (root / "gone.jpg").symlink_to("nowhere")
    (root / "other.jpg").symlink_to("nowhere")
    names = ["x/c.jpg", "gone.jpg", "missing.jpg", str(root / "a.jpg"), "../out.jpg"]
    pq.write_table(pa.table({"path": names}), root / "some.parquet")
    found = read(root, only=["some.parquet", "z"])
    assert (found.layout, sorted(found.photos)) == ("parquet", ["a.jpg", "x/c.jpg", "z/e.jpg"])
    assert found.reasons == [
        ("../out.jpg", "outside_dataset"),
        ("gone.jpg", "not_a_file"),
        ("missing.jpg", "missing_photo"),
    ]
    assert read(root).layout == "folder"  # a table of names alone makes no data set


# ---- workspaces ----


def test_a_workspace_in_a_data_set_is_passed_over_unless_it_is_meant(root: Path) -> None:
    put(root, **{"a.jpg": photo(), f"w/{WORKSPACE_MARKER}": "", "w/b.jpg": photo(1), "w/x/c.jpg": photo(2)})
    assert list(read(root).photos) == ["a.jpg"]
    assert list(read(root, only=["w/x"]).photos) == ["w/x/c.jpg"]
    assert list(read(root / "w/x").photos) == ["c.jpg"]


def test_a_data_set_that_is_a_workspace_itself_is_refused(root: Path) -> None:
    put(root, **{"a.jpg": photo(), WORKSPACE_MARKER: ""})
    with pytest.raises(UnknownDataset, match=r"is a workspace.*--workspace"):
        read(root)
    assert list(read(root, only=["a.jpg"]).photos) == ["a.jpg"]


def test_what_is_named_and_not_come_upon_is_a_reject(root: Path, tmp_path: Path) -> None:
    put(root, **{"a.jpg": photo(), "sub/b.jpg": photo(1), "real/c.jpg": photo(2)})
    (root / "link").symlink_to("real", target_is_directory=True)
    found = read(root, only=["a.jpg", "sub", "link", "gone.jpg"])
    assert sorted(found.photos) == ["a.jpg", "sub/b.jpg"]
    assert found.reasons == [("gone.jpg", "vanished"), ("link", "vanished")]
