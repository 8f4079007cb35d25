"""The nearest vectors: exact as NumPy finds them, and along the graph nearly so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.errors import StaleModel
from cutline.tasks.retrieval.index import Part, VectorIndex, write_index
from cutline.tasks.storage.tables import tensor_column


def an_index(vectors: np.ndarray, folder: Path, rows_a_shard: int) -> VectorIndex:
    """`vectors` in shards, each row known by its number."""
    parts = []
    for first in range(0, len(vectors), rows_a_shard):
        some = vectors[first : first + rows_a_shard]
        part = Part(folder / f"{first}.parquet", folder / f"{first}.usearch")
        ids = pl.Series("photo_id", [str(first + row) for row in range(len(some))])
        pl.DataFrame([ids, tensor_column("vector", some)]).write_parquet(part.table)
        write_index(some, part.index)
        parts.append(part)
    return VectorIndex(parts)


def drawn(count: int, size: int = 32, groups: int = 20) -> np.ndarray:
    """Vectors of length 1 in heaps, as those of photographs are."""
    rng = np.random.default_rng(count)
    found = rng.normal(size=(groups, size))[rng.integers(groups, size=count)] + rng.normal(size=(count, size))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def by_numpy(vectors: np.ndarray, query: np.ndarray, count: int) -> list[str]:
    return [str(row) for row in np.argsort(-(vectors @ query), kind="stable")[:count]]


def ids(index: VectorIndex, query: np.ndarray, count: int, *, exact: bool) -> list[str]:
    return [one.id for one in index.nearest(query, count, exact=exact)]


@pytest.mark.parametrize("rows_a_shard", [7, 256, 5000])
def test_exact_search_finds_what_numpy_finds_in_its_order(tmp_path: Path, rows_a_shard: int) -> None:
    vectors = drawn(1000)
    index = an_index(vectors, tmp_path, rows_a_shard)
    for query in drawn(10):
        found = index.nearest(query, 12, exact=True)
        assert [one.id for one in found] == by_numpy(vectors, query, 12)
        expected = np.sort(vectors @ query)[::-1][:12]
        assert [one.score for one in found] == pytest.approx(expected, abs=1e-5)


def recall(vectors: np.ndarray, queries: np.ndarray, folder: Path, rows_a_shard: int) -> float:
    """The share of NumPy's ten nearest that the graphs find."""
    index = an_index(vectors, folder, rows_a_shard)
    hits = [len({*by_numpy(vectors, query, 10)} & {*ids(index, query, 10, exact=False)}) for query in queries]
    return float(np.mean(hits)) / 10


def test_approximate_search_finds_nearly_what_exact_search_finds(tmp_path: Path) -> None:
    vectors, queries = drawn(4096), drawn(40)
    assert recall(vectors, queries, tmp_path, 256) >= 0.999
    assert recall(vectors, queries, tmp_path, 4096) >= 0.9


def test_the_same_vectors_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_index(drawn(300), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_more_asked_for_than_there_are_gives_all(tmp_path: Path) -> None:
    vectors = drawn(5)
    assert sorted(ids(an_index(vectors, tmp_path, 2), vectors[0], 50, exact=False)) == list("01234")


def test_a_shard_without_rows_and_an_index_without_shards_find_nothing(tmp_path: Path) -> None:
    empty = Part(tmp_path / "a.parquet", tmp_path / "a.usearch")
    write_index(np.zeros((0, 32), np.float32), empty.index)
    assert VectorIndex([empty]).nearest(drawn(1)[0], 3) == []
    assert VectorIndex([]).nearest(drawn(1)[0], 3) == []


def test_a_shard_of_another_space_or_damaged_is_refused(tmp_path: Path) -> None:
    index = an_index(drawn(20), tmp_path, 20)
    with pytest.raises(StaleModel, match="holds vectors of 32 numbers, the model makes 16"):
        index.nearest(drawn(1, size=16)[0], 3)
    index.parts[0].index.write_bytes(b"no index")
    with pytest.raises(StaleModel, match="is no index of vectors"):
        VectorIndex([Part(index.parts[0].table, index.parts[0].index)]).nearest(drawn(1)[0], 3)
