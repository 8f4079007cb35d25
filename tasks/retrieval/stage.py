"""The stages that search needs: vectors, indexes, retrieval scores, near-duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from cutline.schemas.tables import SPLITS
from cutline.tasks.engine.executor import make_rows
from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.runtime.spreadsheets import write_csv
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


def load_text_encoder(context: StageContext) -> TextEncoder:
    from cutline.tasks.retrieval.text_encoder import TextEncoder

    return TextEncoder.load(
        context.path("joint_embedding"),
        context.path("language_model"),
        read_table(context.path("vocabulary"), "vocabulary"),
        context.settings.language_model,
    )


def make_index_shard(context: StageContext) -> StageResult:
    """Vectors of a shard's photographs, and the index of them."""
    from cutline.tasks.models.joint_embedding import JointEmbedding

    joint_embedding = JointEmbedding.load(context.path("joint_embedding"))
    ids = pl.read_parquet(context.path("image_features"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        features = read_checked_rows(context.path("image_features"), "image_features", missing)
        context.advance(features.height)
        vectors = joint_embedding.photo_vectors(tensor(features["pooled"]))
        return pl.DataFrame([features["photo_id"], tensor_column("vector", vectors)]), None

    return _indexed(context, make_rows(context, "vectors", ids, compute), "vectors")


def make_caption_index_shard(context: StageContext) -> StageResult:
    """Vectors of a shard's captions, and the index of them."""
    from cutline.tasks.models.joint_embedding import JointEmbedding

    joint_embedding = JointEmbedding.load(context.path("joint_embedding"))
    ids = pl.read_parquet(context.path("text_features"), columns=["caption_id"])["caption_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        features = pl.read_parquet(context.path("text_features"), columns=["caption_id", "vector"])
        tokens = pl.read_parquet(context.path("tokens"), columns=["caption_id", "content_tokens"])
        rows = missing.to_frame().join(features, on="caption_id", maintain_order="left")
        rows = rows.join(tokens, on="caption_id", maintain_order="left")
        context.advance(rows.height)
        vectors = joint_embedding.text_vectors(tensor(rows["vector"]), rows["content_tokens"])
        return pl.DataFrame([rows["caption_id"], tensor_column("vector", vectors)]), None

    return _indexed(context, make_rows(context, "caption_vectors", ids, compute), "caption_vectors")


def make_written_index_shard(context: StageContext) -> StageResult:
    """Vectors of the captions that the model wrote, known by their photographs, and the index of them."""
    encoder = load_text_encoder(context)
    ids = pl.read_parquet(context.path("predictions"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        written = read_checked_rows(context.path("predictions"), "predictions", missing.alias("photo_id"))
        vectors = encoder.vectors(written["caption"])
        context.advance(written.height)
        return pl.DataFrame([written["photo_id"].alias("caption_id"), tensor_column("vector", vectors)]), None

    return _indexed(
        context, make_rows(context, "caption_vectors", ids.alias("caption_id"), compute), "caption_vectors"
    )


def _indexed(context: StageContext, made: StageResult, table: str) -> StageResult:
    """Write the index beside a table of vectors."""
    from cutline.tasks.retrieval.index import write_index

    vectors = pl.read_parquet(context.out / f"{table}.parquet", columns=["vector"])["vector"]
    write_index(tensor(vectors), context.out / "index.usearch")
    return made


def make_retrieval(context: StageContext) -> StageResult:
    """How well captions and photographs of the dev and test splits find each other."""
    from cutline.tasks.evaluation.retrieval_metrics import cosine_similarity, ranks, retrieval_table

    captions = read_table(context.path("captions"), "captions").drop_nulls("photo_id")
    found = {}
    for split in ("dev", "test"):
        photo_files, caption_files = context.paths(f"photos {split}"), context.paths(f"captions {split}")
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
        kernel = cosine_similarity(tensor(photos["vector"]), tensor(texts["vector"]))
        found[split] = ranks(kernel, texts["photo"].to_numpy().astype(int), photos.height)
        context.advance(photos.height)
    table = retrieval_table(found)
    write_table(table, context.out / "retrieval.parquet", "retrieval")
    write_csv(table, context.out / "retrieval.csv")
    return StageResult(sum(map(len, [some for pair in found.values() for some in pair])), table.height)


def make_leaks(context: StageContext) -> StageResult:
    """Photographs and captions that are in two splits, by their vectors."""
    from cutline.tasks.retrieval.near_duplicates import find_near_duplicates

    photos = {split: context.paths(f"photos {split}") for split in SPLITS}
    captions = {split: context.paths(f"captions {split}") for split in SPLITS}
    found = find_near_duplicates(
        photos,
        captions,
        read_table(context.path("photos"), "photos"),
        read_table(context.path("captions"), "captions"),
        context.settings.leaks,
    )
    write_table(found, context.out / "leaks.parquet", "leaks")
    write_csv(found, context.out / "leaks.csv")
    context.advance(context.shard.rows)
    return StageResult(context.shard.rows, found.height)
