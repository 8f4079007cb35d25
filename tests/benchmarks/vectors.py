"""A search in 100,000 vectors beside one product of a matrix with the query."""

from __future__ import annotations

import numpy as np
import polars as pl

from cutline.tasks.retrieval.index import Part, VectorIndex, write_index
from cutline.tasks.storage.tables import tensor_column
from tests.benchmarks.harness import OURS, Contest
from tests.benchmarks.places import Place

VECTORS, SIZE, ROWS_PER_SHARD, GROUPS = 100_000, 128, 256, 200


def vectors(place: Place) -> Contest:
    """How many times a matrix product a query takes, of an index in shards as a run has them."""
    rng = np.random.default_rng(0)
    heaps = rng.normal(size=(GROUPS, SIZE))
    drawn = heaps[rng.integers(GROUPS, size=VECTORS)] + rng.normal(size=(VECTORS, SIZE))
    drawn = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    query = drawn[0]
    parts = []
    for first in range(0, VECTORS, ROWS_PER_SHARD):
        some = drawn[first : first + ROWS_PER_SHARD]
        part = Part(place.scratch / f"{first}.parquet", place.scratch / f"{first}.usearch")
        ids = pl.Series("photo_id", [f"{first + row:032x}" for row in range(len(some))])
        pl.DataFrame([ids, tensor_column("vector", some)]).write_parquet(part.table)
        write_index(some, part.index)
        parts.append(part)
    index = VectorIndex(parts)

    def note() -> str:
        queries = drawn[:: VECTORS // 50]
        hits = [
            {int(one.id, 16) for one in index.nearest(query, 10)}
            & {*np.argsort(-(drawn @ query))[:10].tolist()}
            for query in queries
        ]
        return f"recall of the ten nearest {np.mean([len(found) for found in hits]) / 10:.4f}"

    return Contest(
        name="vectors",
        title=f"a product of the matrix of {VECTORS:,} vectors with a query, beside a search in them",
        count=1,
        thing="queries",
        sides={
            OURS: lambda: drawn @ query,
            "along the graphs": lambda: index.nearest(query, 10),
            "exact": lambda: index.nearest(query, 10, exact=True),
        },
        note=note,
    )
