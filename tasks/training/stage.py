"""The stages that train models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.models.novelty import choose_reference_photos
from cutline.tasks.retrieval.stage import load_text_encoder
from cutline.tasks.storage.tables import (
    read_id_column,
    read_table,
    read_tensor_table,
    tensor_sizes,
    write_table,
)

if TYPE_CHECKING:
    from cutline.tasks.training.caption_groups import TrainedContent


CONTENT_TABLES = (
    "content_vectors",
    "content_from_text",
    "content_targets",
)  # tables of the content embedding's stage
LANGUAGE_MODEL = Stage("language_model", "cutline.tasks.training.stage:make_language_model", tensorflow=True)
CONTENT_EMBEDDING = Stage("content_embedding", "cutline.tasks.training.stage:make_content_embedding")
FUSION = Stage("fusion", "cutline.tasks.training.stage:make_fusion", tensorflow=True)
JOINT_EMBEDDING = Stage(
    "joint_embedding", "cutline.tasks.training.stage:make_joint_embedding", tensorflow=True
)
CONTENT_NEIGHBOURS = Stage(
    "content_neighbours",
    "cutline.tasks.training.stage:make_content_neighbours",
    tensorflow=True,
    settings="language_model",
)


def make_language_model(context: StageContext) -> StageResult:
    """LSTM weights, trained on all training captions."""
    from cutline.tasks.training.language_model import train_language_model

    train = read_table(context.paths("train"), "tokens")
    dev = read_table(context.paths("dev"), "tokens") if context.paths("dev") else train.clear()
    vocabulary = read_table(context.path("vocabulary"), "vocabulary")
    curve = train_language_model(
        train, dev, vocabulary, context.settings.language_model, context.out, context.partial, context.advance
    )
    write_table(curve, context.out / "curve.parquet", "curve")
    return StageResult(train.height + dev.height, curve.height)


def make_content_embedding(context: StageContext) -> StageResult:
    """What predicts the content vectors of photographs, from all training captions."""
    from cutline.tasks.models.content_embedding import CONTENT_EMBEDDING
    from cutline.tasks.training import content_embedding
    from cutline.tasks.training.caption_groups import pairs_of

    captions = read_table(context.path("captions"), "captions").filter(pl.col("split") == "train")
    tokens = read_table(context.paths("tokens"), "tokens").select("caption_id", "tokens")
    shards = context.paths("image_features")
    reference_photos = choose_reference_photos(shards, captions["photo_id"].drop_nulls())
    vocabulary = read_table(context.path("vocabulary"), "vocabulary")
    pairs = pairs_of(captions)
    learned = content_embedding.train_content_embedding(
        tokens, pairs, shards, reference_photos, vocabulary, context.settings.content_embedding
    )
    learned.content_embedding.save(context.out / CONTENT_EMBEDDING)
    write_table(
        reference_photos,
        context.out / "reference_photos.parquet",
        "reference_photos",
        **tensor_sizes(reference_photos),
    )
    for name in CONTENT_TABLES:
        table = getattr(learned, name)
        write_table(table, context.out / f"{name}.parquet", name, **tensor_sizes(table))
    context.advance(tokens.height)
    return StageResult(tokens.height, learned.content_vectors.height)


def _trained_content(context: StageContext) -> TrainedContent:
    """What `make_gist` wrote."""
    from cutline.tasks.models.content_embedding import ContentEmbedding
    from cutline.tasks.training.caption_groups import TrainedContent

    reference_photos = read_tensor_table(context.path("reference_photos"), "reference_photos")
    tables = (read_tensor_table(context.path(name), name) for name in CONTENT_TABLES)
    return TrainedContent(ContentEmbedding.load(context.path("content_embedding"), reference_photos), *tables)


def _learnable(context: StageContext, captions: pl.DataFrame) -> pl.DataFrame:
    """Captions whose photograph has features: those of one that was rejected teach nothing about any."""
    return captions.join(
        read_id_column(context.paths("image_features"), "photo_id"),
        on="photo_id",
        how="semi",
        maintain_order="left",
    )


def make_fusion(context: StageContext) -> StageResult:
    """The fusion's weights, trained from the Parquet features alone."""
    from cutline.tasks.evaluation.caption_metrics import score
    from cutline.tasks.training.fusion import train_fusion

    settings = context.settings
    captions = read_table(context.path("captions"), "captions")
    tokens = read_table(context.paths("tokens"), "tokens").select("caption_id", "tokens")
    pairs = _learnable(context, captions).join(tokens, on="caption_id").sort("split", "caption_id")
    dev = pairs.filter(pl.col("split") == "dev").group_by("photo_id", maintain_order=True).agg("text")
    curve = train_fusion(
        pairs.select("caption_id", "photo_id", "split", "tokens"),
        context.paths("image_features"),
        context.paths("text_features"),
        read_table(context.path("vocabulary"), "vocabulary"),
        context.path("language_model"),
        settings.language_model,
        settings.fusion,
        dict(dev.iter_rows()),
        score,
        context.out,
        context.partial,
        context.advance,
        _trained_content(context),
        tokens,
    )
    write_table(curve, context.out / "curve.parquet", "curve")
    return StageResult(pairs.height, curve.height)


def make_joint_embedding(context: StageContext) -> StageResult:
    """The projections of photographs and texts into one space, stopped by the dev split's recall."""
    from cutline.tasks.text.stopwords import load_stopwords
    from cutline.tasks.training.joint_embedding import train_joint_embedding

    settings = context.settings
    captions = read_table(context.path("captions"), "captions").select("caption_id", "photo_id", "split")
    tokens = read_table(context.paths("tokens"), "tokens").select("caption_id", "content_tokens")
    pairs = _learnable(context, captions).join(tokens, on="caption_id")
    curve = train_joint_embedding(
        pairs,
        context.paths("image_features"),
        context.paths("text_features"),
        sorted(load_stopwords(settings.tokens.stopwords)),
        settings.joint_embedding,
        context.out,
        context.partial,
        context.advance,
    )
    write_table(curve, context.out / "joint_embedding_curve.parquet", "joint_embedding_curve")
    return StageResult(pairs.height, curve.height)


def make_content_neighbours(context: StageContext) -> StageResult:
    """What is said of photographs, there or missing, by where their captions lie in the common space."""
    from cutline.tasks.models.content_neighbours import CONTENT_NEIGHBOURS
    from cutline.tasks.training.caption_groups import of_whole_subjects, pairs_of
    from cutline.tasks.training.content_neighbours import find_content_neighbours

    captions = read_table(context.path("captions"), "captions").filter(pl.col("split") == "train")
    tokens = read_table(context.paths("tokens"), "tokens")
    encoder = load_text_encoder(context)
    content_neighbours = find_content_neighbours(
        of_whole_subjects(tokens, pairs_of(captions)),
        read_tensor_table(context.path("content_from_text"), "content_from_text"),
        read_tensor_table(context.path("content_targets"), "content_targets"),
        lambda rows: encoder.vectors_of(rows, context.settings.text_features, context.advance),
    )
    content_neighbours.save(context.out / CONTENT_NEIGHBOURS)
    return StageResult(tokens.height, len(content_neighbours))
