"""The split of each photograph: given by the data set, or drawn by the photograph's digest."""

from __future__ import annotations

import numpy as np
import polars as pl

from cutline.schemas.settings import IngestSettings
from cutline.schemas.tables import SPLITS, UNLABELLED
from cutline.tasks.ingest.collector import NO_SPLIT, SPLIT_CODES, Collector


def given_splits(collected: Collector) -> set[int]:
    """The splits that the data set gives, as codes; none if all captions have the same one.

    A single split is no information: not everything in a data set with the one folder "train2017" is for
    training.
    """
    if len(collected.splits) > 1:
        return collected.splits
    rows, given = np.frombuffer(collected.text_rows, np.int64), np.frombuffer(collected.text_given, np.int8)
    of_photo = np.append(np.frombuffer(collected.given, np.int8), np.int8(NO_SPLIT))  # row -1: no photograph
    return set() if (np.maximum(given, of_photo[rows]) != NO_SPLIT).all() else collected.splits


def assign_splits(photos: pl.DataFrame, given: set[int], settings: IngestSettings) -> pl.DataFrame:
    """The usable photographs, one row per file, sorted by path, with the split of each.

    `code` is the split of the file, null without captions and a given split. `kept` is the split of the
    photograph: of the splits of its files the one furthest from training, null if none has captions.
    """
    copies = photos.filter(pl.col("photo_id").is_not_null()).sort("path")
    # Nothing is added to a split that the data set gives: its test split stays the published one.
    dev_share = settings.dev_share if settings.held_out and SPLIT_CODES["dev"] not in given else 0.0
    test_share = settings.test_share if settings.held_out and SPLIT_CODES["test"] not in given else 0.0
    drawn = [SPLIT_CODES[draw_split(id_, dev_share, test_share)] for id_ in copies["photo_id"]]
    is_given = pl.col("given").is_in(sorted(given))
    code = pl.when(is_given).then("given").when("captioned").then(pl.Series("drawn", drawn, pl.Int8))
    held_out = pl.col("code").max().over("photo_id")
    return copies.with_columns(code.alias("code")).with_columns(
        pl.when(pl.col("captioned").any().over("photo_id")).then(held_out).alias("kept"),
        pl.col("path").first().over("photo_id").alias("first_path"),
        (pl.col("code").min().over("photo_id") != held_out).fill_null(value=False).alias("is_leak"),
    )


def draw_split(id_: str, dev_share: float, test_share: float) -> str:
    """The split of a photograph in a data set without splits: by its digest alone.

    >>> draw_split("0" * 32, 0.1, 0.1), draw_split("f" * 32, 0.1, 0.1)
    ('test', 'train')
    """
    fraction = int(id_[:16], 16) / 2**64
    return "test" if fraction < test_share else "dev" if fraction < test_share + dev_share else "train"


def split_name(column: str) -> pl.Expr:
    """The name of the split whose code is in `column`; null is unlabelled."""
    return pl.col(column).replace_strict(dict(enumerate(SPLITS)), default=UNLABELLED, return_dtype=pl.String)
