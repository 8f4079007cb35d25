"""Rows are cut into shards by their content, and a shard says why it has to be made."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cutline.tasks.engine.executor import make_shard
from cutline.tasks.engine.partition import Overlaps, partition, partition_of_row, partition_that_holds
from cutline.tasks.engine.stage import Shard, Stage, StageContext, StageResult
from cutline.tasks.storage.workspace import Workspace
from tests.support.datasets import an_id

MOST = 64
OVERTAKEN = Stage("overtaken", "tests.tasks.engine.test_stage:make_overtaken")


def ids_of(numbers: list[int]) -> list[str]:
    return sorted(an_id(number) for number in numbers)


def shards_of(numbers: list[int]) -> set[tuple[str, ...]]:
    ids = ids_of(numbers)
    return {tuple(ids[one.start : one.stop]) for one in partition(ids, "train", MOST)}


@given(st.integers(0, 700))
def test_every_row_is_in_exactly_one_shard_and_in_order(count: int) -> None:
    ids = ids_of(list(range(count)))
    cuts = partition(ids, "train", MOST, offset=5)
    assert [row for one in cuts for row in range(one.start, one.stop)] == list(range(5, 5 + count))
    assert all(one.stop - one.start <= MOST for one in cuts)


@given(st.integers(0, 700), st.integers(1000, 100_000))
def test_one_row_more_touches_one_shard_wherever_it_falls(count: int, new: int) -> None:
    before, after = shards_of(list(range(count))), shards_of([*range(count), new])
    gone, made = before - after, after - before
    assert len(gone) <= 1
    rows_made = sum(len(shard) for shard in made)
    assert rows_made <= MOST + 1
    # A full shard splits in two; otherwise just the one that the row falls into is made.
    assert len(made) == 1 or (len(gone) == 1 and len(next(iter(gone))) == MOST)


def test_shards_are_even_in_size() -> None:
    sizes = [one.stop - one.start for one in partition(ids_of(list(range(20_000))), "train", 256)]
    assert min(sizes) > 256 / 4
    assert sum(sizes) / len(sizes) > 256 / 2


def test_ids_that_are_all_alike_at_the_front_are_still_cut() -> None:
    ids = [f"{'0' * 30}{number:02x}" for number in range(200)]
    cuts = partition(ids, "train", MOST)
    assert [one.stop - one.start for one in cuts] == [64, 64, 64, 8]


@given(st.integers(0, 700))
def test_a_row_is_found_in_the_shard_that_it_was_cut_into(count: int) -> None:
    ids = ids_of(list(range(count)))
    cuts = {one.partition: ids[one.start : one.stop] for one in partition(ids, "train", MOST)}
    for row_id in ids:
        place = partition_that_holds(partition_of_row("train", row_id), cuts)
        assert place is not None
        assert row_id in cuts[place]
        assert partition_that_holds(partition_of_row("dev", row_id), cuts) is None


def test_a_shard_is_held_by_the_place_that_it_was_split_from() -> None:
    held = {"train/01", "dev/", "a data set"}
    assert partition_that_holds("train/0110", held) == "train/01"
    assert partition_that_holds("train/0", held) is None  # its other half is nowhere
    assert partition_that_holds("dev/1", held) == "dev/"
    assert partition_that_holds("a data set", held) == "a data set"


def test_rows_can_be_taken_over_from_places_that_share_ids() -> None:
    held = Overlaps(["train/01", "unlabelled/0110", "test/", "train/00", "dev/01101"])
    assert held.of("train/0110") == ["test/", "train/01", "unlabelled/0110", "dev/01101"]
    assert held.of("train/1") == ["test/"]
    assert held.of("dev/") == ["test/", "train/00", "train/01", "unlabelled/0110", "dev/01101"]
    assert Overlaps(["train/00"]).of("train/01") == []


def test_finding_them_takes_no_longer_a_shard_where_there_are_many() -> None:
    """By turns, the least of several: what else the machine does lengthens one, seldom all."""

    def seconds(count: int) -> float:
        bits = max(1, (count - 1).bit_length())
        held = Overlaps(f"train/{number:0{bits}b}" for number in range(count))
        asked = [f"train/{number:0{bits}b}" for number in range(0, count, count // 500)]
        started = time.perf_counter()
        for place in asked:
            assert held.of(place) == [place]
        return time.perf_counter() - started

    few, many = (min(seconds(count) for _ in range(5)) for count in (1_000, 64_000))
    assert many < 8 * few


def make_overtaken(context: StageContext) -> StageResult:
    """A file that tells who made it; who is to be overtaken lets another run end the same shard first."""
    by = context.shard.sources["by"]
    if by == "who was overtaken":
        make_shard(replace(context.shard, sources={"by": "the other"}), context.workspace, context.advance)
    (context.out / "made").write_text(by)
    return StageResult(1, 1)


def test_a_shard_that_another_run_ended_meanwhile_stays_and_one_that_was_there_is_made_anew(
    tmp_path: Path,
) -> None:
    """What that run made may be in use by now, with its digest noted."""
    workspace = Workspace(tmp_path)
    shard = Shard(OVERTAKEN, "", {}, {}, "", {"by": "who was overtaken"})
    record = make_shard(shard, workspace, lambda _: None)
    (file,) = tmp_path.glob("shards/overtaken/*.made")
    assert file.read_text() == "the other"
    assert workspace.lookup("overtaken", shard.key) == (record, "")
    record = make_shard(replace(shard, sources={"by": "who was asked again"}), workspace, lambda _: None)
    assert file.read_text() == "who was asked again"
    assert workspace.lookup("overtaken", shard.key) == (record, "")
