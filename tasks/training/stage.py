"""The stages that train models."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from cutline.tasks.engine.stage import Made, Stage, Work
from cutline.tasks.models.novelty import familiar_photos
from cutline.tasks.retrieval.stage import load_text_encoder
from cutline.tasks.storage.tables import (
    read_id_column,
    read_table,
    read_tensor_table,
    tensor_sizes,
    write_table,
)

if TYPE_CHECKING:
    from cutline.tasks.training.caption_groups import Learned


TAUGHT = ("gists", "imagined", "said")  # tables of the gist's stage
LANGUAGE_MODEL = Stage("language_model", "cutline.tasks.training.stage:make_language_model", tensorflow=True)
GIST = Stage("gist", "cutline.tasks.training.stage:make_gist")
FUSION = Stage("fusion", "cutline.tasks.training.stage:make_fusion", tensorflow=True)
MATCHING = Stage("matching", "cutline.tasks.training.stage:make_matching", tensorflow=True)
NEIGHBOURS = Stage(
    "neighbours", "cutline.tasks.training.stage:make_neighbours", tensorflow=True, settings="language_model"
)


def make_language_model(work: Work) -> Made:
    """LSTM weights, trained on all training captions."""
    from cutline.tasks.training.language_model import train_language_model

    train = read_table(work.paths("train"), "tokens")
    dev = read_table(work.paths("dev"), "tokens") if work.paths("dev") else train.clear()
    vocabulary = read_table(work.path("vocabulary"), "vocabulary")
    curve = train_language_model(
        train, dev, vocabulary, work.settings.language_model, work.out, work.partial, work.advance
    )
    write_table(curve, work.out / "curve.parquet", "curve")
    return Made(train.height + dev.height, curve.height)


def make_gist(work: Work) -> Made:
    """What foretells the gists of photographs, from all training captions."""
    from cutline.tasks.models.content_embedding import GIST
    from cutline.tasks.training import content_embedding
    from cutline.tasks.training.caption_groups import pairs_of

    captions = read_table(work.path("captions"), "captions").filter(pl.col("split") == "train")
    tokens = read_table(work.paths("tokens"), "tokens").select("caption_id", "tokens")
    shards = work.paths("image_features")
    familiar = familiar_photos(shards, captions["photo_id"].drop_nulls())
    vocabulary = read_table(work.path("vocabulary"), "vocabulary")
    pairs = pairs_of(captions)
    learned = content_embedding.learn_gist(tokens, pairs, shards, familiar, vocabulary, work.settings.gist)
    learned.gist.save(work.out / GIST)
    write_table(familiar, work.out / "familiar.parquet", "familiar", **tensor_sizes(familiar))
    for name in TAUGHT:
        table = getattr(learned, name)
        write_table(table, work.out / f"{name}.parquet", name, **tensor_sizes(table))
    work.advance(tokens.height)
    return Made(tokens.height, learned.gists.height)


def _learned(work: Work) -> Learned:
    """What `make_gist` wrote."""
    from cutline.tasks.models.content_embedding import Gist
    from cutline.tasks.training.caption_groups import Learned

    familiar = read_tensor_table(work.path("familiar"), "familiar")
    tables = (read_tensor_table(work.path(name), name) for name in TAUGHT)
    return Learned(Gist.load(work.path("gist"), familiar), *tables)


def _learnable(work: Work, captions: pl.DataFrame) -> pl.DataFrame:
    """Captions whose photograph has features: those of one that was rejected teach nothing about any."""
    return captions.join(
        read_id_column(work.paths("image_features"), "photo_id"),
        on="photo_id",
        how="semi",
        maintain_order="left",
    )


def make_fusion(work: Work) -> Made:
    """The fusion's weights, trained from the Parquet features alone."""
    from cutline.tasks.evaluation.caption_metrics import score
    from cutline.tasks.training.fusion import train_fusion

    settings = work.settings
    captions = read_table(work.path("captions"), "captions")
    tokens = read_table(work.paths("tokens"), "tokens").select("caption_id", "tokens")
    pairs = _learnable(work, captions).join(tokens, on="caption_id").sort("split", "caption_id")
    dev = pairs.filter(pl.col("split") == "dev").group_by("photo_id", maintain_order=True).agg("text")
    curve = train_fusion(
        pairs.select("caption_id", "photo_id", "split", "tokens"),
        work.paths("image_features"),
        work.paths("text_features"),
        read_table(work.path("vocabulary"), "vocabulary"),
        work.path("language_model"),
        settings.language_model,
        settings.fusion,
        dict(dev.iter_rows()),
        score,
        work.out,
        work.partial,
        work.advance,
        _learned(work),
        tokens,
    )
    write_table(curve, work.out / "curve.parquet", "curve")
    return Made(pairs.height, curve.height)


def make_matching(work: Work) -> Made:
    """The projections of photographs and texts into one space, stopped by the dev split's recall."""
    from cutline.tasks.text.stopwords import load_stopwords
    from cutline.tasks.training.joint_embedding import train_matching

    settings = work.settings
    captions = read_table(work.path("captions"), "captions").select("caption_id", "photo_id", "split")
    tokens = read_table(work.paths("tokens"), "tokens").select("caption_id", "content_tokens")
    pairs = _learnable(work, captions).join(tokens, on="caption_id")
    curve = train_matching(
        pairs,
        work.paths("image_features"),
        work.paths("text_features"),
        sorted(load_stopwords(settings.captions.stopwords)),
        settings.matching,
        work.out,
        work.partial,
        work.advance,
    )
    write_table(curve, work.out / "matching_curve.parquet", "matching_curve")
    return Made(pairs.height, curve.height)


def make_neighbours(work: Work) -> Made:
    """What is said of photographs, there or missing, by where their captions lie in the common space."""
    from cutline.tasks.models.content_neighbours import NEIGHBOURS
    from cutline.tasks.training.caption_groups import of_whole_subjects, pairs_of
    from cutline.tasks.training.content_neighbours import find_neighbours

    captions = read_table(work.path("captions"), "captions").filter(pl.col("split") == "train")
    tokens = read_table(work.paths("tokens"), "tokens")
    encoder = load_text_encoder(work)
    neighbours = find_neighbours(
        of_whole_subjects(tokens, pairs_of(captions)),
        read_tensor_table(work.path("imagined"), "imagined"),
        read_tensor_table(work.path("said"), "said"),
        lambda rows: encoder.vectors_of(rows, work.settings.text_features, work.advance),
    )
    neighbours.save(work.out / NEIGHBOURS)
    return Made(tokens.height, len(neighbours))
