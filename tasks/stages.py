"""Every stage as a function from the files it reads to the files it writes.

Each takes a `Work`: what is to be made, from what, and where to. What a stage computes lies in the
module of its noun; here it is read, checked, handed over, and written.
"""

from __future__ import annotations

import importlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from schemas.records import Record
from schemas.settings import Settings
from schemas.tables import PASSING, REJECTS_DTYPES
from tasks.code import code_digest
from tasks.shards import Advance, Shard, Stage
from tasks.tables import read_table, write_table
from tasks.workspace import Workspace, library_versions

INGEST = Stage("ingest", "tasks.stages:make_ingest")
IMAGES = Stage("images", "tasks.stages:make_images_shard")
CAPTIONS = Stage("captions", "tasks.stages:make_tokens_shard")
VOCABULARY = Stage("vocabulary", "tasks.stages:make_vocabulary_table")
IMAGE_FEATURES = Stage("image_features", "tasks.stages:make_image_features_shard")
LANGUAGE_MODEL = Stage("language_model", "tasks.stages:make_language_model")
TEXT_FEATURES = Stage("text_features", "tasks.stages:make_text_features_shard")
FUSION = Stage("fusion", "tasks.stages:make_fusion")
CAPTION = Stage("caption", "tasks.stages:make_predictions_shard")
EVALUATE = Stage("evaluate", "tasks.stages:make_scores")
BUNDLE = Stage("bundle", "tasks.stages:make_bundle", folder="bundles")
REPORT = Stage("report", "tasks.stages:make_report", ("tasks/report.html.j2",), folder="reports")


@dataclass(frozen=True)
class Made:
    """How many rows a shard took and gave."""

    rows_in: int
    rows_out: int
    rejects: pl.DataFrame | None = None
    reused_rows: int = 0


@dataclass(frozen=True)
class Work:
    """One shard in the making: outputs go to `out`, checkpoints to `partial`."""

    shard: Shard
    workspace: Workspace
    out: Path
    advance: Advance

    @property
    def settings(self) -> Settings:
        """All settings of the run; only those in the key may change what is computed."""
        return Settings.model_validate(self.shard.sources["settings"])

    @property
    def partial(self) -> Path:
        """Survives a kill; gone once the shard is there."""
        return self.workspace.partial(self.shard.stage.name, self.shard.key)

    def path(self, source: str) -> Path:
        """The file that a source names."""
        return self.workspace.root / self.shard.sources[source]

    def paths(self, source: str) -> list[Path]:
        """The files that a source names."""
        return [self.workspace.root / path for path in self.shard.sources[source]]


def make_shard(shard: Shard, workspace: Workspace, advance: Advance) -> Record:
    """Make one shard, publish its files, then its record, and return the record."""
    module, _, name = shard.stage.function.partition(":")
    function: Callable[[Work], Made] = getattr(importlib.import_module(module), name)
    started = time.monotonic()
    with workspace.scratch() as out:
        made = function(Work(shard, workspace, out, advance))
        rejects = made.rejects
        if rejects is not None and rejects.height:
            write_table(rejects, out / "rejects.parquet", "rejects")
        outputs = workspace.publish(out, shard.prefix)
    code = shard.stage.code
    workspace.write_code(code_digest(code), code)
    record = Record(
        stage=shard.stage.name,
        key=shard.key,
        place=shard.place,
        inputs=shard.inputs,
        settings=shard.settings,
        code=code_digest(code),
        lineage=shard.lineage,
        outputs=outputs,
        rows_in=made.rows_in,
        rows_out=made.rows_out,
        rejected=0 if rejects is None else rejects.height,
        passing=0 if rejects is None else rejects.filter(pl.col("reason").is_in(list(PASSING))).height,
        reused_rows=made.reused_rows,
        took_s=round(time.monotonic() - started, 3),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(),
    )
    workspace.write_record(record)
    shutil.rmtree(workspace.root / "partial" / f"{shard.stage.name}-{shard.key}", ignore_errors=True)
    return record


# -- rows that stay the same are taken over ----------------------------------------------------


def _make_rows(
    work: Work,
    table: str,
    ids: pl.Series,
    compute: Callable[[pl.Series], tuple[pl.DataFrame, pl.DataFrame | None]],
) -> Made:
    """Make a table with a row for each of `ids`, in their order.

    Rows that a shard of the same lineage holds are copied from it; `compute` gets the other ids.
    """
    file = f"{table}.parquet"
    taken = _taken_over(work, file, ids)
    reused_rows = sum(frame.height for frame in taken)
    work.advance(reused_rows)
    missing = (
        ids.filter(~ids.is_in(pl.concat([frame[ids.name] for frame in taken]).implode())) if taken else ids
    )
    frame, rejects = compute(missing)
    if taken:
        order = pl.DataFrame([ids])
        frame = order.join(pl.concat([*taken, frame]), on=ids.name, how="inner", maintain_order="left")
    write_table(frame, work.out / file, table, **_sizes(frame))
    return Made(ids.len(), frame.height, rejects, reused_rows)


def _taken_over(work: Work, file: str, ids: pl.Series) -> list[pl.DataFrame]:
    """Rows of `ids` that earlier shards of the same lineage hold, no row twice."""
    taken: list[pl.DataFrame] = []
    wanted = ids
    for key in work.shard.sources.get("donors", []):
        record, _ = work.workspace.lookup(work.shard.stage.name, key)
        if record is None or not wanted.len():
            continue
        path = work.workspace.root / record.output(file).path
        held = pl.read_parquet(path, columns=[ids.name])[ids.name]
        if held.is_in(wanted.implode()).any():
            taken.append(pl.read_parquet(path).filter(pl.col(ids.name).is_in(wanted.implode())))
            wanted = wanted.filter(~wanted.is_in(held.implode()))
    return taken


def _sizes(frame: pl.DataFrame) -> dict[str, int]:
    """The tensor sizes that the schema of a frame needs, from its dtypes."""
    sizes: dict[str, int] = {}
    for name, dtype in frame.schema.items():
        if name == "square":
            sizes["side_px"] = int((dtype.shape[0] // 3) ** 0.5)  # type: ignore[attr-defined]
        elif name == "regions":
            sizes["regions"], sizes["channels"] = dtype.shape  # type: ignore[attr-defined]
        elif name == "vector":
            sizes["state_size"] = dtype.shape[0]  # type: ignore[attr-defined]
    return sizes


def _no_rejects() -> pl.DataFrame:
    return pl.DataFrame(schema=REJECTS_DTYPES)


def _rows_by_id(path: Path, table: str, ids: pl.Series) -> pl.DataFrame:
    """The rows of a shard that `ids` name, checked."""
    frame = pl.read_parquet(path)
    if ids.len() < frame.height:
        frame = frame.filter(pl.col(ids.name).is_in(ids.implode()))
    from schemas.tables import check

    return check(frame, table, **_sizes(frame))


# -- the stages --------------------------------------------------------------------------------


def make_ingest(work: Work) -> Made:
    """Photographs, captions and rejects of a data set; reads only files that are new or changed."""
    from tasks.ingest import ingest

    sources = work.shard.sources
    known = read_table(work.path("known"), "files") if sources.get("known") else None
    if known is not None and sources.get("again"):
        known = known.filter(pl.col("reason").is_null())
    found = ingest(
        Path(sources["dataset"]), work.settings.ingest, work.workspace.root / "packs", known, work.advance
    )
    for table in ("photos", "captions", "files"):
        write_table(getattr(found, table), work.out / f"{table}.parquet", table)
    (work.out / "layout.txt").write_text(found.layout)
    rows_out = found.photos.height + found.captions.height
    return Made(found.files.height + found.captions.height, rows_out, found.rejects)


def make_images_shard(work: Work) -> Made:
    """Cropped squares of a shard's photographs."""
    from tasks.images import make_images

    photos = _slice(work, "photos")

    def compute(ids: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows = photos.filter(pl.col("photo_id").is_in(ids.implode()))
        return make_images(rows, Path(work.shard.sources["dataset"]), work.settings.images, work.advance)

    return _make_rows(work, "images", photos["photo_id"], compute)


def make_tokens_shard(work: Work) -> Made:
    """Tokens and content tokens of a shard's captions."""
    from tasks.captions import load_stopwords, tokenize_captions

    captions = _slice(work, "captions")
    stopwords = load_stopwords(work.settings.captions.stopwords)

    def compute(ids: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows = captions.filter(pl.col("caption_id").is_in(ids.implode()))
        return tokenize_captions(rows, stopwords, work.advance)

    return _make_rows(work, "tokens", captions["caption_id"], compute)


def _slice(work: Work, table: str) -> pl.DataFrame:
    """The rows of an ingest table that are the shard's; the table was checked when written."""
    rows = pl.scan_parquet(work.path("rows")).slice(work.shard.sources["start"], work.shard.rows).collect()
    from schemas.tables import check

    return check(rows, table)


def make_image_features_shard(work: Work) -> Made:
    """Regions and pooled features of a shard's squares."""
    from tasks.image_features import make_image_features

    settings = work.settings
    ids = pl.read_parquet(work.path("images"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        images = _rows_by_id(work.path("images"), "images", missing)
        return make_image_features(
            images, settings.image_features, settings.images.side_px, work.advance
        ), None

    return _make_rows(work, "image_features", ids, compute)


def make_vocabulary_table(work: Work) -> Made:
    """Tokens of the training captions, with ids and counts."""
    from tasks.vocabulary import make_vocabulary

    tokens = read_table(work.paths("tokens"), "tokens")
    vocabulary = make_vocabulary(tokens, work.settings.vocabulary)
    write_table(vocabulary, work.out / "vocabulary.parquet", "vocabulary")
    work.advance(tokens.height)
    return Made(tokens.height, vocabulary.height)


def make_language_model(work: Work) -> Made:
    """LSTM weights, trained on all training captions."""
    from tasks.language_model import train_language_model

    train = read_table(work.paths("train"), "tokens")
    dev = read_table(work.paths("dev"), "tokens") if work.paths("dev") else train.clear()
    vocabulary = read_table(work.path("vocabulary"), "vocabulary")
    curve = train_language_model(
        train, dev, vocabulary, work.settings.language_model, work.out, work.partial, work.advance
    )
    _write_curve(work, curve, "Language model")
    return Made(train.height + dev.height, curve.height)


def _write_curve(work: Work, curve: pl.DataFrame, title: str) -> None:
    """A training curve as a table, as CSV and as a picture."""
    from tasks.curves import curve_csv, draw_curve

    write_table(curve, work.out / "curve.parquet", "curve")
    (work.out / "curve.csv").write_text(curve_csv(curve), encoding="utf-8")
    (work.out / "curve.svg").write_text(draw_curve(curve, title), encoding="utf-8")


def make_text_features_shard(work: Work) -> Made:
    """States and vector of a shard's captions."""
    from tasks.text_features import make_text_features

    settings = work.settings
    ids = pl.read_parquet(work.path("tokens"), columns=["caption_id"])["caption_id"]
    vocabulary = read_table(work.path("vocabulary"), "vocabulary")

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        tokens = _rows_by_id(work.path("tokens"), "tokens", missing)
        features = make_text_features(
            tokens,
            vocabulary,
            work.path("language_model"),
            settings.language_model,
            settings.text_features,
            work.advance,
        )
        return features, None

    return _make_rows(work, "text_features", ids, compute)
