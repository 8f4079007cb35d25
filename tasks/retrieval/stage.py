"""The stages that search needs: vectors, indexes, retrieval scores, near-duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from cutline.schemas.tables import SPLITS
from cutline.tasks.engine.executor import make_rows
from cutline.tasks.engine.stage import Made, Stage, Work
from cutline.tasks.storage.tables import read_checked_rows, read_table, tensor, tensor_column, write_table

if TYPE_CHECKING:
    from cutline.tasks.retrieval.text_encoder import TextEncoder


INDEX = Stage("index", "cutline.tasks.retrieval.stage:make_index_shard")
CAPTION_INDEX = Stage("caption_index", "cutline.tasks.retrieval.stage:make_caption_index_shard")
# Where nobody wrote captions, those that the model wrote are what fits a photograph.
WRITTEN_INDEX = Stage(
    "caption_index",
    "cutline.tasks.retrieval.stage:make_written_index_shard",
    tensorflow=True,
    settings="language_model",
)
RETRIEVAL = Stage("retrieval", "cutline.tasks.retrieval.stage:make_retrieval")
LEAKS = Stage("leaks", "cutline.tasks.retrieval.stage:make_leaks")


def load_text_encoder(work: Work) -> TextEncoder:
    from cutline.tasks.retrieval.text_encoder import TextEncoder

    return TextEncoder.load(
        work.path("matching"),
        work.path("language_model"),
        read_table(work.path("vocabulary"), "vocabulary"),
        work.settings.language_model,
    )


def make_index_shard(work: Work) -> Made:
    """Vectors of a shard's photographs, and the index of them."""
    from cutline.tasks.models.joint_embedding import Matching

    matching = Matching.load(work.path("matching"))
    ids = pl.read_parquet(work.path("image_features"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        features = read_checked_rows(work.path("image_features"), "image_features", missing)
        work.advance(features.height)
        vectors = matching.photo_vectors(tensor(features["pooled"]))
        return pl.DataFrame([features["photo_id"], tensor_column("vector", vectors)]), None

    return _indexed(work, make_rows(work, "vectors", ids, compute), "vectors")


def make_caption_index_shard(work: Work) -> Made:
    """Vectors of a shard's captions, and the index of them."""
    from cutline.tasks.models.joint_embedding import Matching

    matching = Matching.load(work.path("matching"))
    ids = pl.read_parquet(work.path("text_features"), columns=["caption_id"])["caption_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        features = pl.read_parquet(work.path("text_features"), columns=["caption_id", "vector"])
        tokens = pl.read_parquet(work.path("tokens"), columns=["caption_id", "content_tokens"])
        rows = missing.to_frame().join(features, on="caption_id", maintain_order="left")
        rows = rows.join(tokens, on="caption_id", maintain_order="left")
        work.advance(rows.height)
        vectors = matching.text_vectors(tensor(rows["vector"]), rows["content_tokens"])
        return pl.DataFrame([rows["caption_id"], tensor_column("vector", vectors)]), None

    return _indexed(work, make_rows(work, "caption_vectors", ids, compute), "caption_vectors")


def make_written_index_shard(work: Work) -> Made:
    """Vectors of the captions that the model wrote, known by their photographs, and the index of them."""
    encoder = load_text_encoder(work)
    ids = pl.read_parquet(work.path("predictions"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        written = read_checked_rows(work.path("predictions"), "predictions", missing.alias("photo_id"))
        vectors = encoder.vectors(written["caption"])
        work.advance(written.height)
        return pl.DataFrame([written["photo_id"].alias("caption_id"), tensor_column("vector", vectors)]), None

    return _indexed(
        work, make_rows(work, "caption_vectors", ids.alias("caption_id"), compute), "caption_vectors"
    )


def _indexed(work: Work, made: Made, table: str) -> Made:
    """Write the index beside a table of vectors."""
    from cutline.tasks.retrieval.index import write_index

    vectors = pl.read_parquet(work.out / f"{table}.parquet", columns=["vector"])["vector"]
    write_index(tensor(vectors), work.out / "index.usearch")
    return made


def make_retrieval(work: Work) -> Made:
    """How well captions and photographs of the dev and test splits find each other."""
    from cutline.tasks.evaluation.retrieval_metrics import ranks, retrieval_table, vector_likeness

    captions = read_table(work.path("captions"), "captions").drop_nulls("photo_id")
    found = {}
    for split in ("dev", "test"):
        photo_files, caption_files = work.paths(f"photos {split}"), work.paths(f"captions {split}")
        if not photo_files or not caption_files:
            continue
        photos = pl.read_parquet(photo_files)
        texts = pl.read_parquet(caption_files).join(
            captions.select("caption_id", "photo_id"), on="caption_id"
        )
        numbers = photos.select("photo_id").with_row_index("photo")
        texts = texts.join(numbers, on="photo_id", maintain_order="left")
        if texts.is_empty():
            continue
        likeness = vector_likeness(tensor(photos["vector"]), tensor(texts["vector"]))
        found[split] = ranks(likeness, texts["photo"].to_numpy().astype(int), photos.height)
        work.advance(photos.height)
    table = retrieval_table(found)
    write_table(table, work.out / "retrieval.parquet", "retrieval")
    table.write_csv(work.out / "retrieval.csv")
    return Made(sum(map(len, [some for pair in found.values() for some in pair])), table.height)


def make_leaks(work: Work) -> Made:
    """Photographs and captions that are in two splits, by their vectors."""
    from cutline.tasks.retrieval.near_duplicates import find_leaks

    photos = {split: work.paths(f"photos {split}") for split in SPLITS}
    captions = {split: work.paths(f"captions {split}") for split in SPLITS}
    found = find_leaks(
        photos,
        captions,
        read_table(work.path("photos"), "photos"),
        read_table(work.path("captions"), "captions"),
        work.settings.leaks,
    )
    write_table(found, work.out / "leaks.parquet", "leaks")
    found.write_csv(work.out / "leaks.csv")
    work.advance(work.shard.rows)
    return Made(work.shard.rows, found.height)
