"""A few photographs of a run with their captions: the best ones to show, from few shards."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from cutline.schemas.errors import DamagedFile
from cutline.schemas.records import RunRecord
from cutline.tasks.engine.partition import partition
from cutline.tasks.report.samples import samples
from cutline.tasks.storage.tables import empty_table
from tests.support.histories import RUN, Written, photos_of, picture, predictions_of, squares

FILES = {f"photo{number}.jpg": picture(number) for number in range(12)}
SPLITS = {f"photo{number}.jpg": "dev" for number in range(8)}  # the others are for training


@pytest.fixture
def photos() -> pl.DataFrame:
    return photos_of(FILES, SPLITS)


@pytest.fixture
def run(photos: pl.DataFrame, tmp_path: Path) -> tuple[Written, RunRecord]:
    """A run over twelve photographs, in shards of two at most."""
    written = Written(tmp_path / "workspace", tmp_path / "dataset")
    shards: dict[str, list[str]] = {"images": [], "predictions": []}
    tables = {"photos": photos, "captions": empty_table("captions")}
    shards["ingest"] = [written.shard("ingest", "a" * 32, tables)]
    for (split,), part in photos.group_by("split", maintain_order=True):
        for one in partition(part["photo_id"].to_list(), str(split), most=2):
            rows = part.slice(one.start, one.stop - one.start)
            said = predictions_of(
                {id_: (f"of {path}", -0.5) for id_, path in rows["photo_id", "path"].rows()}
            )
            for stage, tables in (
                ("images", {"images": squares(rows)}),
                ("predictions", {"predictions": said}),
            ):
                key = f"{len(shards[stage]):032x}"
                shards[stage].append(written.shard(stage, key, tables, partition=one.partition))
    written.run(RUN, shards)
    return written, next(written.workspace.runs())


def test_photographs_that_nothing_was_learned_from_come_first_each_with_its_own_caption(
    run: tuple[Written, RunRecord],
) -> None:
    written, record = run
    found = samples(written.workspace, record, 10)
    assert [sample.split for sample in found] == ["dev"] * 8 + ["train"] * 2
    assert {sample.path for sample in found[:8]} == set(SPLITS)
    assert all(sample.caption == f"of {sample.path}" for sample in found)
    assert all(sample.distance == pytest.approx(0.8) for sample in found)


def test_those_that_are_asked_for_are_shown_and_no_shard_of_others_is_read(
    run: tuple[Written, RunRecord], photos: pl.DataFrame
) -> None:
    written, record = run
    wanted = photos.filter(pl.col("path").is_in(["photo3.jpg", "photo11.jpg"]))["photo_id"].to_list()
    for file in (written.workspace.root / "shards" / "images").glob("*.parquet"):
        if not pl.read_parquet(file)["photo_id"].is_in(wanted).any():
            file.unlink()
    found = samples(written.workspace, record, 10, wanted)
    assert {sample.caption for sample in found} == {"of photo3.jpg", "of photo11.jpg"}


def test_a_shard_that_is_gone_is_told_and_its_photographs_are_not_left_out_in_silence(
    run: tuple[Written, RunRecord],
) -> None:
    written, record = run
    written.workspace.remove([f"shards/predictions/{record.shards['predictions'][0]}.json"])
    with pytest.raises(DamagedFile, match="caption"):
        samples(written.workspace, record, 10)
