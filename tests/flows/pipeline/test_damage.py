"""After any damage to a file of the workspace the next run completes as usual."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from cutline.flows.cli.main import main
from cutline.flows.orchestration.server import DATABASE, home_with_database, is_damaged
from tests.flows.conftest import Ran, cutline, draw, tables


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip a bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def replace(path: Path) -> None:
    """Put a folder in place of the file."""
    path.unlink()
    (path / "inner").mkdir(parents=True)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "delete": Path.unlink,
    "empty": empty,
    "truncate": truncate,
    "flip": flip,
    "replace": replace,
}
KINDS = {
    "table of files": "shards/ingest/*.files.parquet",
    "table of photographs": "shards/ingest/*.photos.parquet",
    "squares": "shards/images/*.images.parquet",
    "features": "shards/image_features/*.parquet",
    "tokens": "shards/tokens/*.parquet",
    "record": "shards/images/*.json",
    "record of ingest": "shards/ingest/*.json",
    "weights": "shards/language_model/*.h5",
    "run": "runs/*.json",
    "code": "code/*.json",
    "report": "reports/*/report.html",
    "bundle": "bundles/*/bundle.json",
}


def damage(workspace: Path, kind: str, how: str) -> None:
    found = sorted(workspace.glob(KINDS[kind]))
    assert found
    for path in found:
        DAMAGES[how](path)


# A run meets files of every kind that are damaged in one way, all at once.
@pytest.mark.parametrize("changed", [False, True], ids=["same photographs", "another photograph"])
@pytest.mark.parametrize("how", DAMAGES)
def test_the_next_run_completes_whatever_was_damaged(
    how: str, changed: bool, ran: Ran, tmp_path: Path
) -> None:
    copy = ran.copy(tmp_path)
    copy.run()  # the data set has another path now
    before = tables(copy.workspace)
    for kind in KINDS:
        damage(copy.workspace, kind, how)
    if changed:
        draw(copy.dataset / "images" / "unlabelled2.png", 33)
    record = copy.run()
    assert record["run"]
    after = tables(copy.workspace)
    same = [name for name in before if name.startswith(("language_model", "captions", "vocabulary"))]
    assert same
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_lost_table_of_files_is_made_again_though_the_data_set_changed(
    how: str, ran: Ran, tmp_path: Path
) -> None:
    copy = ran.copy(tmp_path)
    copy.run()
    damage(copy.workspace, "table of files", how)
    draw(copy.dataset / "images" / "unlabelled2.png", 33)
    record = copy.run()
    ingest = next(stage for stage in record["stages"] if stage["name"] == "ingest")
    assert ingest["made"] == 1


@pytest.mark.parametrize("how", ["empty", "truncate", "flip header", "replace", "text"])
def test_a_damaged_history_of_prefect_is_moved_aside(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = home_with_database(tmp_path) / DATABASE
    assert not is_damaged(database)
    if how == "text":
        database.write_text("this is no database")
    elif how == "flip header":
        database.write_bytes(b"\0" + database.read_bytes()[1:])
    else:
        DAMAGES[how](database)
    assert is_damaged(database)
    home_with_database(tmp_path)
    assert not is_damaged(database)
    assert len(list(database.parent.glob(f"{DATABASE}.aside-*"))) == 1
    assert "the database of Prefect's history" in capsys.readouterr().err


def test_a_history_that_is_in_use_stays(tmp_path: Path) -> None:
    database = home_with_database(tmp_path) / DATABASE
    inode = database.stat().st_ino
    with sqlite3.connect(database) as other:
        other.execute("BEGIN EXCLUSIVE")
        home_with_database(tmp_path)
    assert database.stat().st_ino == inode


# -- places that cannot be used are told of before anything is written ---------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    draw(folder / "a.png", 1)
    return folder


@pytest.mark.parametrize("command", ["run", "caption"])
def test_a_workspace_that_is_the_folder_of_the_photographs_is_refused_without_a_trace(
    command: str, photos: Path, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path / "a.csv")] if command == "caption" else []
    done = CliRunner().invoke(main, [command, str(photos), *out, "--workspace", str(photos)])
    assert done.exit_code == 2
    assert "found the folder of the photographs" in done.output
    assert [path.name for path in photos.iterdir()] == ["a.png"]


@pytest.mark.parametrize("out", ["file/a.csv", "/proc/none/a.parquet", "file/deeper/a.jsonl"])
@pytest.mark.parametrize("option", ["--out", "--attention"])
def test_a_place_that_cannot_be_written_is_told_of_before_the_work(
    option: str, out: str, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    place = str(tmp_path / out)
    if option == "--attention":
        place = str(Path(place).with_suffix(".parquet"))
    options = {"--out": str(tmp_path / "fine.csv"), option: place}
    workspace = tmp_path / "workspace"
    named = [part for pair in options.items() for part in pair]
    done = CliRunner().invoke(main, ["caption", str(photos), *named, "--workspace", str(workspace)])
    assert done.exit_code == 2
    assert f"{option} '{place}': expected a folder that can be written" in done.output
    assert not workspace.exists()


def test_search_after_a_run_without_a_usable_photograph_says_so(server: str, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"no photograph")
    workspace = tmp_path / "workspace"
    cutline("caption", folder, "--out", tmp_path / "a.csv", "--workspace", workspace, check=False)
    found = cutline("search", "a dog", "--workspace", workspace, check=False)
    assert found.returncode == 2
    assert "had no photograph that could be used" in found.stderr
    assert "Traceback" not in found.stderr
