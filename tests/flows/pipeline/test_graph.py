"""Ingest, images and captions without Prefect: packs that go and come back, a workspace in a data set."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cutline.flows.commands.prune import find_unused, remove
from cutline.flows.pipeline.graph import Wiring, digest_of_pairs
from cutline.flows.pipeline.run_record import describe, finish, last_run, reject_rate
from cutline.schemas.records import Record
from cutline.schemas.settings import ReportSettings, Settings
from cutline.tasks.engine import executor
from cutline.tasks.engine.planner import Planner
from cutline.tasks.engine.stage import Shard, Stage, StageContext
from cutline.tasks.report.stage import REPORT, _reject_thumbnails
from cutline.tasks.storage.workspace import Workspace
from tests.flows.conftest import draw

SETTINGS = Settings()


def look(store: Workspace, dataset: Path, retry: bool = False, made: bool = True) -> Planner:
    """Walk over ingest, images and captions, and have what is missing made."""

    def maker(_stage: Stage, shards: list[Shard], _reused: int) -> list[Record]:
        return [executor.make_shard(shard, store, lambda _rows: None) for shard in shards]

    planner = Planner(store, maker if made else None, last_run(store, "run", dataset), retry=retry)
    wiring = Wiring(planner, dataset, SETTINGS)
    ingest = wiring.ingest()
    wiring.images(ingest)
    wiring.tokens(ingest)
    return planner


def rejects(planner: Planner) -> list[tuple[str, str, str]]:
    """Name, reason and detail of what the images stage rejected."""
    root = planner.workspace.root
    tables = [
        pl.read_parquet(root / record.output("rejects.parquet").path)
        for record in planner.stages[1].present
        if record.has("rejects.parquet")
    ]
    return [row for table in tables for row in table.select("name", "reason", "detail").iter_rows()]


def made(planner: Planner) -> dict[str, int]:
    return {stage_plan.stage.name: len(stage_plan.reasons) for stage_plan in planner.stages}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four drawn photographs in a Parquet file, and one beside it."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    captions = [draw(tmp_path / "photo.png", number) for number in range(4)]
    images = []
    for number in range(4):
        draw(tmp_path / "photo.png", number)
        images.append((tmp_path / "photo.png").read_bytes())
    pq.write_table(pa.table({"image": images, "text": captions}), folder / "all.parquet")
    draw(folder / "beside.png", 7)
    return folder


def test_photographs_in_parquet_are_cropped_also_in_a_workspace_that_was_moved(
    dataset: Path, tmp_path: Path
) -> None:
    first = look(Workspace(tmp_path / "one"), dataset)
    assert rejects(first) == []
    assert sum(record.rows_out for record in first.stages[1].present) == 5
    (tmp_path / "one").rename(tmp_path / "two")
    two = Workspace(tmp_path / "two")
    for path in (two.root / "shards/images").iterdir():
        path.unlink()
    again = look(two, dataset)
    assert made(again) == {"ingest": 0, "images": len(first.stages[1].shards), "tokens": 0}
    assert [record.outputs[0].digest for record in again.stages[1].present] == [
        record.outputs[0].digest for record in first.stages[1].present
    ]


def test_another_name_of_a_missing_photograph_makes_what_learns_by_that_anew_and_nothing_else(
    tmp_path: Path,
) -> None:
    digests: dict[bool, set[str]] = {False: set(), True: set()}
    for names in (["gone.jpg", "gone.jpg"], ["gone.jpg", "lost.jpg"]):
        rows = {
            "caption_id": ["a", "b"],
            "photo_id": [None] * 2,
            "missing_photo": names,
            "split": ["train"] * 2,
        }
        pl.DataFrame(rows).cast({"photo_id": pl.String}).write_parquet(tmp_path / "captions.parquet")
        for missing, found in digests.items():
            found.add(digest_of_pairs(tmp_path / "captions.parquet", "train", missing=missing))
    assert {missing: len(found) for missing, found in digests.items()} == {False: 1, True: 2}


def test_a_pack_that_is_gone_costs_rejects_that_a_retry_brings_back(dataset: Path, tmp_path: Path) -> None:
    store = Workspace(tmp_path / "workspace")
    whole = look(store, dataset)
    for path in [*(store.root / "packs").iterdir(), *(store.root / "shards/images").iterdir()]:
        path.unlink()
    without = look(store, dataset)
    assert {(name, reason) for name, reason, _ in rejects(without)} == {
        (f"all.parquet/row-{row}", "vanished") for row in range(4)
    }
    assert all("`cutline rejects --retry`" in detail for _, _, detail in rejects(without))
    back = look(store, dataset, retry=True)
    assert rejects(back) == []
    assert back.stages[0].reasons == ["the data set is looked at again"]
    assert [record.outputs[0].digest for record in back.stages[1].present] == [
        record.outputs[0].digest for record in whole.stages[1].present
    ]
    assert look(store, dataset, made=False).complete


def test_prune_keeps_the_packs_that_a_run_refers_to_and_no_others(dataset: Path, tmp_path: Path) -> None:
    store = Workspace(tmp_path / "workspace")
    planner = look(store, dataset)
    packs = sorted((store.root / "packs").iterdir())
    assert [path.suffix for path in packs] == [".npy", ".pack"]
    store.write_run(describe(planner, "run", dataset, SETTINGS))
    (store.root / "packs" / f"{'0' * 32}.pack").write_bytes(b"of a file that has changed")
    remove(find_unused(store.root))
    assert sorted((store.root / "packs").iterdir()) == packs
    assert look(store, dataset, made=False).complete
    next((store.root / "runs").iterdir()).unlink()
    remove(find_unused(store.root))
    assert not list((store.root / "packs").iterdir())


def test_the_run_made_last_is_the_newest_also_after_the_clock_was_set_back(
    dataset: Path, tmp_path: Path
) -> None:
    store = Workspace(tmp_path / "workspace")
    before = describe(look(store, dataset), "run", dataset, SETTINGS)
    before = before.model_copy(update={"run": "20991231-235959-ffffff"})
    store.write_run(before)
    store.write_text("runs/notes.json", "of no run")
    (dataset / "beside.png").unlink()
    run = finish(look(store, dataset), "run", dataset, SETTINGS)
    assert run.run.startswith("21000101-000000-")
    assert [found.run for found in store.runs()] == [run.run, before.run]
    remove(find_unused(store.root, keep=1))
    assert [found.run for found in store.runs()] == [run.run]


def test_looking_at_a_data_set_copies_no_photographs_that_the_workspace_holds(
    dataset: Path, tmp_path: Path
) -> None:
    store = Workspace(tmp_path / "workspace")
    look(store, dataset)
    shutil.copy(dataset / "beside.png", dataset / "beside too.png")
    preview = Workspace(tmp_path / "preview")
    preview.borrow_packs(store)
    planner = Planner(store, preview=preview)
    assert Wiring(planner, dataset, SETTINGS).ingest().one
    assert all(path.is_symlink() for path in (preview.root / "packs").iterdir())


def test_the_rate_of_rejects_is_a_share_of_all_that_was_read(tmp_path: Path) -> None:
    lines = ["image,caption"]
    for number in range(2):
        name = f"{number}.png"
        lines += [f"{name},{draw(tmp_path / name, number)}", *[f"{name},..."] * 15]
    lines.append("0.png,&amp; &lt;")  # no word, as its tokens show
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    (tmp_path / "broken.png").write_bytes(b"")
    planner = look(Workspace(tmp_path.parent / "workspace"), tmp_path)
    assert reject_rate(planner) == pytest.approx((30 + 1 + 1) / (3 + 33))


def test_of_a_folder_of_things_that_are_no_files_all_is_rejected_and_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    draw(folder / "good.png", 1)
    for number in range(3):
        os.mkfifo(folder / f"pipe{number}.png")
        (folder / f"link{number}.png").symlink_to("nowhere.png")
    (folder / "folder.jpg").mkdir()
    planner = look(Workspace(tmp_path / "workspace"), folder)
    assert reject_rate(planner) == pytest.approx(7 / 8)
    (ingest,) = planner.stages[0].present
    assert (ingest.rows_in, ingest.rows_out, ingest.rejected) == (8, 1, 7)
    assert look(Workspace(tmp_path / "workspace"), folder, made=False).complete  # they do not pass by waiting


def test_a_folder_that_changes_while_it_is_looked_through_is_looked_through_again(
    dataset: Path, tmp_path: Path
) -> None:
    """A mount that is away for a moment, between the look that names the work and the work."""
    store = Workspace(tmp_path / "workspace")

    def makes_while_it_is_away(_stage: Stage, shards: list[Shard], _reused: int) -> list[Record]:
        (dataset / "beside.png").rename(tmp_path / "away.png")
        made = [executor.make_shard(shard, store, lambda _rows: None) for shard in shards]
        (tmp_path / "away.png").rename(dataset / "beside.png")
        return made

    (first,) = Wiring(Planner(store, makes_while_it_is_away), dataset, SETTINGS).ingest().present
    assert first.rows_out == 4 + 4
    told = pl.read_parquet(store.file(first.output("rejects.parquet").path))
    assert told.select("name", "reason").rows() == [(".", "changed")]
    (again,) = look(store, dataset).stages[0].present
    assert again.rows_out == 4 + 4 + 1
    assert look(store, dataset, made=False).complete


def test_a_workspace_inside_the_data_set_is_no_part_of_it(dataset: Path) -> None:
    store = Workspace(dataset / "data/workspace")
    assert not look(store, dataset, made=False).complete
    assert not store.root.exists()  # looking leaves no mark
    with store.at_work_on():  # writes first of all
        first = look(store, dataset)
        again = look(store, dataset)
    draw(store.root / "shards/drawn.png", 9)
    assert made(again) == made(look(store, dataset, made=False)) == {"ingest": 0, "images": 0, "tokens": 0}
    photos = pl.read_parquet(store.root / first.stages[0].present[0].output("photos.parquet").path)
    assert photos.height == 5


def test_rejected_photographs_are_shown_from_parquet_files_too(dataset: Path, tmp_path: Path) -> None:
    store = Workspace(tmp_path / "workspace")
    ingest = look(store, dataset).stages[0].present[0]
    draw(dataset / "copy.png", 7)
    names = ["all.parquet/row-1", "copy.png", "gone.png"]
    rows = {"stage": "ingest", "kind": "photo", "name": names, "reason": "duplicate", "detail": "x"}
    sources = {
        "settings": Settings(report=ReportSettings(thumbnail_px=16)).model_dump(),
        "dataset": str(dataset),
        "photos": ingest.output("photos.parquet").path,
    }
    shard = Shard(REPORT, "", {}, {}, "", sources, 0, "report")
    context = StageContext(shard, store, tmp_path, lambda _rows: None)
    thumbnails = _reject_thumbnails(context, pl.DataFrame(rows))
    assert sorted(thumbnails) == names[:2]
    assert all(picture.shape[2] == 3 for picture in thumbnails.values())
