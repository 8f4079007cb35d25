"""Photographs and captions of one split that are in another too, by their vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from cutline.schemas.settings import LeaksSettings
from cutline.schemas.tables import SPLITS
from cutline.tasks.models.joint_embedding import photo_input
from cutline.tasks.storage.tables import tensor

COLUMNS = ("kind", "split", "name", "other_split", "other_name", "similarity")
DTYPES = dict.fromkeys(COLUMNS, pl.String) | {"similarity": pl.Float32}
HELD_OUT_A_BLOCK = 4_096

Shards = Mapping[str, Sequence[Path]]  # by split


def find_near_duplicates(
    image_features: Shards,
    text_features: Shards,
    photos: pl.DataFrame,
    captions: pl.DataFrame,
    settings: LeaksSettings,
) -> pl.DataFrame:
    """The `leaks` table: pairs of different splits, the later split (train, dev, test) first.

    Photographs are held to be one whose pooled features (rooted, as they are matched) have a cosine
    of `settings.similarity` or more, captions whose vectors are the same to the last bit. Each has at most
    one row for each split before its own: a photograph with the most similar there, a caption with the first.
    For the frames of a film are all alike, and pairs would be as many as both splits multiplied. `photos`
    and `captions` give the names. Compares each held-out photograph with all of the splits before its
    own, a block at a time.
    """
    found = [
        *(("photo", *pair) for pair in _photo_pairs(image_features, settings.similarity)),
        *(("caption", *pair, 1.0) for pair in _caption_pairs(text_features)),
    ]
    told = pl.DataFrame(
        {"id": [id for _, _, one, _, other, _ in found for id in (one, other)]}, {"id": pl.String}
    )
    tables = (photos.select(id="photo_id", name="path"), captions.select(id="caption_id", name="text"))
    names = {id: name for table in tables for id, name in table.join(told, on="id", how="semi").iter_rows()}
    rows = [
        (kind, split, names[one], other_split, names[other], similarity)
        for kind, split, one, other_split, other, similarity in found
    ]
    return pl.DataFrame(rows, DTYPES, orient="row").sort(
        "kind", "similarity", "name", descending=[True, True, False]
    )


def _photo_pairs(shards: Shards, similarity: float) -> Iterator[tuple[str, str, str, str, float]]:
    """Each photograph with the most similar one of each split before its own, where that is like enough."""
    for split, other in _split_pairs():
        for ids, vectors in _blocks(shards.get(split, [])):
            most_similar = [""] * len(ids)
            most = np.full(len(ids), -np.inf, np.float32)
            for path in shards.get(other, []):
                other_ids, other_vectors = _photo_vectors([path])
                if not other_ids:  # all its photographs were rejected
                    continue
                likenesses = vectors @ other_vectors.T  # (held out, other)
                columns = likenesses.argmax(axis=1)
                found = likenesses[np.arange(len(ids)), columns]
                for row in np.flatnonzero(found > most):
                    most_similar[row] = other_ids[columns[row]]
                most = np.maximum(most, found)
            for row in np.flatnonzero(most >= similarity):
                yield split, ids[row], other, most_similar[row], float(most[row])


def _split_pairs() -> list[tuple[str, str]]:
    return [(SPLITS[i], SPLITS[j]) for i in range(len(SPLITS)) for j in range(i)]


def _blocks(paths: Sequence[Path]) -> Iterator[tuple[list[str], np.ndarray]]:
    """Shards put together until a block is full, so that the others are read once a block."""
    waiting: list[Path] = []
    rows = 0
    for path in paths:
        waiting.append(path)
        rows += pl.scan_parquet(path).select(pl.len()).collect().item()
        if rows >= HELD_OUT_A_BLOCK:
            yield _photo_vectors(waiting)
            waiting, rows = [], 0
    if waiting:
        yield _photo_vectors(waiting)


def _photo_vectors(paths: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    ids: list[str] = []
    vectors = []
    for path in paths:  # one by one: rooting and scaling take several times the memory of what comes out
        frame = pl.read_parquet(path, columns=["photo_id", "pooled"])
        ids += frame["photo_id"].to_list()
        vectors.append(photo_input(tensor(frame["pooled"])))
    return ids, np.concatenate(vectors)


def _caption_pairs(shards: Shards) -> Iterator[tuple[str, str, str, str]]:
    """Captions with the same vector, by a digest of it; a held-out one with the first of each other split."""
    hashed = {split: _hashed(paths) for split, paths in shards.items()}
    for split, other in _split_pairs():
        if split not in hashed or other not in hashed:
            continue
        first = hashed[other].unique("vector", keep="first", maintain_order=True)
        pairs = hashed[split].join(first, on="vector", suffix="_other", maintain_order="left")
        for one, another in pairs.select("caption_id", "caption_id_other").iter_rows():
            yield split, one, other, another


def _hashed(paths: Sequence[Path]) -> pl.DataFrame:
    """caption_id and the digest of its vector: slim, whatever the number of captions."""
    import hashlib

    frames = [pl.DataFrame(schema={"caption_id": pl.String, "vector": pl.Binary})]
    for path in paths:
        frame = pl.read_parquet(path, columns=["caption_id", "vector"])
        digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in tensor(frame["vector"])]
        frames.append(frame.select("caption_id", vector=pl.Series(digests, dtype=pl.Binary)))
    return pl.concat(frames)
