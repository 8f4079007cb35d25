"""A toy third modality, added as tasks/README.md describes: a table, a stage, a fusion input."""

from __future__ import annotations

import numpy as np
import pandera.polars as pa
import polars as pl

from cutline.schemas.tables import ID_PATTERN, check
from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.storage.tables import tensor, tensor_column, write_table

RATE_HZ, FRAME = 8_000, 256

SOUNDS = Stage("sounds", "tests.support.sound:make_sounds_shard")
HEARD = Stage("heard_features", "tests.support.sound:make_heard_shard")


def sounds_schema(bands: int) -> pa.DataFrameSchema:
    """The table `sounds`: a vector a photograph."""
    columns = {
        "photo_id": pa.Column(pl.String, pa.Check.str_matches(ID_PATTERN), unique=True),
        "vector": pa.Column(pl.Array(pl.Float16, bands)),
    }
    return pa.DataFrameSchema(columns, strict=True, name="sounds")


def spectrum(wave: np.ndarray, bands: int) -> np.ndarray:
    """The mean log-spectrogram of a wave (samples,) in so many bands, (bands,) float16."""
    frames = wave[: len(wave) // FRAME * FRAME].reshape(-1, FRAME) * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames)) ** 2  # (frames, FRAME // 2 + 1)
    parts = np.array_split(power.mean(0), bands)
    return np.log1p([part.sum() for part in parts]).astype(np.float16)


def make_sounds_shard(context: StageContext) -> StageResult:
    """Waves → vectors, a row a photograph."""
    waves = pl.read_parquet(context.path("waves"))
    bands = context.shard.settings["bands"]
    vectors = np.stack([spectrum(np.array(wave), bands) for wave in waves["wave"]])
    sounds = sounds_schema(bands).validate(
        pl.DataFrame([waves["photo_id"], tensor_column("vector", vectors)])
    )
    sounds.write_parquet(context.out / "sounds.parquet")
    context.advance(sounds.height)
    return StageResult(waves.height, sounds.height)


def make_heard_shard(context: StageContext) -> StageResult:
    """Image features with one region more, which is heard: the fusion asks it as it asks the others."""
    features = pl.read_parquet(context.path("image_features"))
    sounds = pl.read_parquet(context.path("sounds"))
    rows = features.join(sounds, on="photo_id", how="left", maintain_order="left")
    regions = tensor(features["regions"])
    silence = [0.0] * regions.shape[-1]
    heard = np.array([silence if row is None else row for row in rows["vector"].to_list()], np.float16)
    joined = np.concatenate([regions, heard[:, None]], 1)
    pooled = joined.mean(1, dtype=np.float32).astype(np.float16)
    table = features.with_columns(tensor_column("regions", joined), tensor_column("pooled", pooled))
    sizes = {"regions": joined.shape[1], "channels": joined.shape[2]}
    write_table(
        check(table, "image_features", **sizes),
        context.out / "image_features.parquet",
        "image_features",
        **sizes,
    )
    return StageResult(features.height, table.height)
