"""Files of a workspace are put in place whole, and what stands in the way is moved aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutline.tasks.storage.disk import make_folder, put_in_place
from cutline.tasks.storage.workspace import Workspace


def test_a_folder_in_place_of_a_file_is_moved_aside_and_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "runs" / "a.json"
    (target / "inner").mkdir(parents=True)
    whole = tmp_path / "whole"
    whole.write_text("new")
    put_in_place(whole, target, tmp_path)
    assert target.read_text() == "new"
    (aside,) = (tmp_path / "runs").glob("a.json.aside-*")
    assert (aside / "inner").is_dir()
    assert f"'{target}': expected a file" in capsys.readouterr().err


@pytest.mark.parametrize("in_the_way", ["shards", "shards/images"])
def test_a_file_in_place_of_a_folder_is_moved_aside(in_the_way: str, tmp_path: Path) -> None:
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).write_text("old")
    make_folder(tmp_path / "shards" / "images", tmp_path)
    assert (tmp_path / "shards" / "images").is_dir()
    (aside,) = (tmp_path / in_the_way).parent.glob("*.aside-*")
    assert aside.read_text() == "old"


def test_a_file_outside_the_workspace_is_never_moved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("the user's")
    root = tmp_path / "file" / "workspace"
    with pytest.raises(OSError, match="file"):
        make_folder(root / "tmp", root)
    assert (tmp_path / "file").read_text() == "the user's"


@pytest.mark.parametrize("folder", ["tmp", "running", "runs", "shards", "partial"])
def test_a_workspace_goes_on_where_a_file_stands_in_place_of_its_folder(folder: str, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / folder).write_text("damaged")
    with workspace.at_work_on():
        workspace.write_text("runs/a.json", "{}")
        workspace.write_text("shards/images/a.json", "{}")
        workspace.partial("images", "a")
    assert (tmp_path / "runs" / "a.json").read_text() == "{}"
