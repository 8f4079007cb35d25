"""Times predicted by the rates of an earlier run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutline.schemas.records import Output, Record, RunRecord
from cutline.tasks.engine.estimate import estimates
from cutline.tasks.engine.planner import Planner, StagePlan
from cutline.tasks.engine.stage import Shard, Stage
from cutline.tasks.storage.workspace import Workspace

INGEST = Stage("ingest", "cutline.tasks.ingest.stage:make_ingest")
IMAGES = Stage("images", "cutline.tasks.images.stage:make_images_shard")
FUSION = Stage("fusion", "cutline.tasks.training.stage:make_fusion")


def record(stage: str, key: str, rows: int, took_s: float, reused: int = 0, **settings: int) -> Record:
    output = Output(name="x", path="x", size=0, mtime_ns=0, digest="")
    return Record(
        stage=stage, key=key, partition="", inputs={}, settings=settings, code="", lineage="",
        outputs=[output], rows_in=rows, rows_out=rows, rejected=0, reused_rows=reused, took_s=took_s,
        made_at="", versions={},
    )  # fmt: skip


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    """An earlier run: 100 rows of ingest, images at 10 rows a second, fusion at 2 s a pass."""
    workspace = Workspace(tmp_path)
    made = [
        record("ingest", "i", 100, 1.0),
        record("images", "a", 60, 6.0),
        record("images", "b", 40, 2.0, reused=20),
        record("fusion", "f", 80, 20.0, epochs=10),
    ]
    for one in made:
        workspace.write_record(one)
    return Planner(workspace)


EARLIER = RunRecord(
    run="r", command="run", dataset="d", workspace="w", settings={}, stages=[], finished_at="",
    shards={"ingest": ["i"], "images": ["a", "b"], "fusion": ["f"]},
)  # fmt: skip
SETTINGS = {"ingest": {}, "images": {}, "fusion": {"epochs": 5}}


def shard(stage: Stage, rows: int) -> Shard:
    return Shard(stage, "", {}, {}, "", rows=rows)


def predicted(planner: Planner, *stages: StagePlan) -> dict[str, float | None]:
    planner.stages = list(stages)
    return estimates(planner, SETTINGS, [EARLIER])


def there() -> StagePlan:
    return StagePlan(INGEST, [shard(INGEST, 0)], [record("ingest", "i", 100, 1.0)])


def test_rows_to_make_take_what_rows_took_and_rows_taken_over_took_nothing(planner: Planner) -> None:
    images = StagePlan(IMAGES, [shard(IMAGES, 30), shard(IMAGES, 20)], [None, None], reasons=["x", "x"])
    assert predicted(planner, there(), images) == {"ingest": 0.0, "images": pytest.approx(50 * 8.0 / 80)}


def test_a_shard_that_is_there_takes_no_time(planner: Planner) -> None:
    images = StagePlan(
        IMAGES, [shard(IMAGES, 30), shard(IMAGES, 20)], [None, record("images", "c", 20, 9.0)], reasons=["x"]
    )
    assert predicted(planner, there(), images)["images"] == pytest.approx(3.0)


def test_a_stage_of_which_nothing_is_known_yet_is_as_large_as_last_time(planner: Planner) -> None:
    images = StagePlan(IMAGES, [None], [None], reasons=["x"])
    assert predicted(planner, there(), images)["images"] == pytest.approx(10.0)


def test_a_data_set_twice_as_large_takes_twice_as_long(planner: Planner) -> None:
    ingest = StagePlan(INGEST, [shard(INGEST, 0)], [record("ingest", "j", 200, 2.5)], reasons=["x"])
    fusion = StagePlan(FUSION, [None], [None], reasons=["x"])
    # 20 s for 10 passes, now 5 passes over twice as much; ingest was made aside, so its time is known
    assert predicted(planner, ingest, fusion) == {"ingest": 2.5, "fusion": pytest.approx(20.0)}


def test_training_takes_time_a_pass(planner: Planner) -> None:
    fusion = StagePlan(FUSION, [shard(FUSION, 5 * 80)], [None], reasons=["x"])
    assert predicted(planner, there(), fusion)["fusion"] == pytest.approx(10.0)


def test_a_training_is_foretold_by_all_that_it_goes_over(planner: Planner) -> None:
    """Fusion reads captions alone first, which its row of the table of stages does not count."""
    made = record("fusion", "g", 80, 20.0, epochs=1, text_epochs=3).model_copy(update={"gone_over": 2_000})
    planner.workspace.write_record(made)
    run = EARLIER.model_copy(update={"shards": EARLIER.shards | {"fusion": ["g"]}})
    planner.stages = [there(), StagePlan(FUSION, [shard(FUSION, 4_000)], [None], reasons=["x"])]
    assert estimates(planner, SETTINGS, [run])["fusion"] == pytest.approx(40.0)


def test_the_run_that_computed_most_tells_the_rate_and_the_newest_the_size(planner: Planner) -> None:
    """Of two new rows among a hundred that were taken over, starting up takes nearly all the time."""
    planner.workspace.write_record(record("images", "c", 102, 9.0, reused=100))
    newest = EARLIER.model_copy(update={"shards": EARLIER.shards | {"images": ["c"]}})
    planner.stages = [there(), StagePlan(IMAGES, [None], [None], reasons=["x"])]
    assert estimates(planner, SETTINGS, [newest, EARLIER])["images"] == pytest.approx(102 * 8.0 / 80)


def test_without_an_earlier_run_nothing_is_foretold(planner: Planner) -> None:
    planner.stages = [StagePlan(IMAGES, [shard(IMAGES, 30)], [None], reasons=["x"])]
    assert estimates(planner, SETTINGS, []) == {"images": None}
