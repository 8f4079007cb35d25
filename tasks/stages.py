"""Every stage as a function from the files it reads to the files it writes.

Each takes a `Work`: what is to be made, from what, and where to. What a stage computes lies in the
module of its noun; here it is read, checked, handed over, and written.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from schemas.errors import StaleModel, StoreFailed
from schemas.records import Record
from schemas.settings import FusionSettings, LanguageModelSettings, Settings
from schemas.tables import NOTICES, PASSING, SPLITS, UNLABELLED, check
from tasks.code import code_digest
from tasks.familiarity import familiar_photos
from tasks.quiet import load_tensorflow
from tasks.shards import Advance, Shard, Stage
from tasks.tables import empty_table, read_rows, read_table, squares, tensor, tensor_column, write_table
from tasks.workspace import Workspace, digest_of_file, library_versions

if TYPE_CHECKING:
    import numpy as np

    from tasks.caption import Captioner, ModelFiles
    from tasks.gist import Learned
    from tasks.report import GalleryItem, ReportInput
    from tasks.search import TextEncoder

TAUGHT = ("gists", "imagined", "said")  # tables of the gist's stage
MAX_THUMBNAIL_BYTES = 64 * 2**20
SEARCHES_SHOWN, HITS_SHOWN, LINES_SHOWN = 4, 6, 12  # in the report

INGEST = Stage("ingest", "tasks.stages:make_ingest")
IMAGES = Stage("images", "tasks.stages:make_images_shard", reads_photos=True)
CAPTIONS = Stage("captions", "tasks.stages:make_tokens_shard")
VOCABULARY = Stage("vocabulary", "tasks.stages:make_vocabulary_table")
IMAGE_FEATURES = Stage("image_features", "tasks.stages:make_image_features_shard", tensorflow=True)
LANGUAGE_MODEL = Stage("language_model", "tasks.stages:make_language_model", tensorflow=True)
TEXT_FEATURES = Stage("text_features", "tasks.stages:make_text_features_shard", tensorflow=True)
GIST = Stage("gist", "tasks.stages:make_gist")
FUSION = Stage("fusion", "tasks.stages:make_fusion", tensorflow=True)
MATCHING = Stage("matching", "tasks.stages:make_matching", tensorflow=True)
NEIGHBOURS = Stage("neighbours", "tasks.stages:make_neighbours", tensorflow=True, settings="language_model")
INDEX = Stage("index", "tasks.stages:make_index_shard")
CAPTION_INDEX = Stage("caption_index", "tasks.stages:make_caption_index_shard")
# Where nobody wrote captions, those that the model wrote are what fits a photograph.
WRITTEN_INDEX = Stage(
    "caption_index", "tasks.stages:make_written_index_shard", tensorflow=True, settings="language_model"
)
RETRIEVAL = Stage("retrieval", "tasks.stages:make_retrieval")
LEAKS = Stage("leaks", "tasks.stages:make_leaks")
CAPTION = Stage("caption", "tasks.stages:make_predictions_shard", tensorflow=True)
EVALUATE = Stage("evaluate", "tasks.stages:make_scores")
BUNDLE = Stage("bundle", "tasks.stages:make_bundle", folder="bundles", settings="caption")
REPORT = Stage(
    "report", "tasks.stages:make_report", ("tasks/report.html.j2",), folder="reports", tensorflow=True
)


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

    @property
    def packs(self) -> Path:
        """Where the copies of image bytes lie that photographs in Parquet files are read from."""
        return self.workspace.root / "packs"

    def located(self, photos: pl.DataFrame) -> pl.DataFrame:
        """The same photographs with the paths of their packs, which are here then if they are anywhere."""
        from tasks.packs import files_of, located

        for container in photos["container"].drop_nulls().unique():
            for file in files_of(container, Path("packs"))[:1]:
                with suppress(StoreFailed):  # then the photograph is a reject, with a reason
                    self.workspace.file(file.as_posix())
        return located(photos, self.packs)

    def path(self, source: str) -> Path:
        """The file that a source names."""
        return self.workspace.file(self.shard.sources[source])

    def paths(self, source: str) -> list[Path]:
        """The files that a source names."""
        return self.workspace.files(self.shard.sources[source])


def make_shard(shard: Shard, workspace: Workspace, advance: Advance) -> Record:
    """Make one shard, publish its files, then its record, and return the record.

    Where another run has ended the same shard meanwhile, its files may be in use: they stay, as does its
    record, which is then returned.
    """
    module, _, name = shard.stage.function.partition(":")
    function: Callable[[Work], Made] = getattr(importlib.import_module(module), name)
    if shard.stage.tensorflow:
        load_tensorflow()
    started = time.monotonic()
    before, _ = workspace.lookup(shard.stage.name, shard.key)
    with workspace.scratch() as out:
        made = function(Work(shard, workspace, out, advance))
        meanwhile, _ = workspace.lookup(shard.stage.name, shard.key)
        if meanwhile is not None and meanwhile != before:
            workspace.forget_partial(shard.stage.name, shard.key)
            return meanwhile
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
        rejected=0 if rejects is None else _lost(rejects),
        passing=0 if rejects is None else rejects.filter(pl.col("reason").is_in(list(PASSING))).height,
        reused_rows=made.reused_rows,
        gone_over=shard.rows,
        took_s=round(time.monotonic() - started, 3),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(),
    )
    workspace.write_record(record)
    workspace.forget_partial(shard.stage.name, shard.key)
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
    frame, rejects = compute(missing) if missing.len() or not taken else (taken[0].clear(), None)
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
        path = work.workspace.file(record.output(file).path)
        held = pl.read_parquet(path, columns=[ids.name])[ids.name]
        if held.is_in(wanted.implode()).any():
            taken.append(pl.read_parquet(path).filter(pl.col(ids.name).is_in(wanted.implode())))
            wanted = wanted.filter(~wanted.is_in(held.implode()))
    return taken


def _sizes(frame: pl.DataFrame) -> dict[str, int]:
    """The tensor sizes that the schema of a frame needs, from its dtypes and its first square."""
    sizes: dict[str, int] = {}
    for name, dtype in frame.schema.items():
        if name == "square":
            sizes["side_px"] = squares(frame[name][:1]).shape[1]
        elif name == "regions":
            sizes["regions"] = dtype.shape[0]  # type: ignore[attr-defined]
        elif name == "pooled":
            sizes["channels"] = dtype.shape[0]  # type: ignore[attr-defined]
        elif name == "gist":
            sizes["size"] = dtype.shape[0]  # type: ignore[attr-defined]
        elif name == "vector":  # of a text the mean state, or a place in the common space
            sizes["state_size" if "states" in frame.columns else "size"] = dtype.shape[0]  # type: ignore[attr-defined]
    return sizes


def _sized(path: Path, table: str) -> pl.DataFrame:
    """A table with tensors, checked."""
    frame = pl.read_parquet(path)
    return check(frame, table, **_sizes(frame))


def _rows_by_id(path: Path, table: str, ids: pl.Series) -> pl.DataFrame:
    """The rows of a shard that `ids` name, checked."""
    frame = read_rows(path, ids)
    return check(frame, table, **_sizes(frame))


_EVERY_NAME = pl.concat_list(pl.concat_list("path"), "other_paths").alias("name")  # of a photograph


# -- the stages --------------------------------------------------------------------------------


def make_ingest(work: Work) -> Made:
    """Photographs, captions and rejects of a data set; reads only files that are new or changed."""
    from tasks.ingest import ingest

    sources = work.shard.sources
    known = read_table(work.path("known"), "files") if sources.get("known") else None
    if known is not None and sources.get("again"):
        known = known.filter(pl.col("reason").is_null())
    found = ingest(
        Path(sources["dataset"]),
        work.settings.ingest,
        work.packs,
        known,
        work.advance,
        sources["only"],
    )
    work.workspace.share("packs")
    rejects = found.rejects
    if found.listing != work.shard.inputs["files"]:
        detail = "the folder changed while it was looked through; the next run looks again"
        changed = ("ingest", "file", ".", "changed", detail)
        rejects = pl.concat([rejects, pl.DataFrame([changed], rejects.schema, orient="row")])
    for table in ("photos", "captions", "files"):
        write_table(getattr(found, table), work.out / f"{table}.parquet", table)
    rows_out = found.photos.height + found.captions.height
    read = found.files.filter(pl.col("reason").is_null()).height + found.captions.height
    return Made(read + _lost(rejects), rows_out, rejects)


def _lost(rejects: pl.DataFrame) -> int:
    """Rows that could not be used; a notice is no loss."""
    return rejects.filter(~pl.col("reason").is_in(list(NOTICES))).height


def make_images_shard(work: Work) -> Made:
    """Cropped squares of a shard's photographs."""
    from tasks.images import make_images

    photos = work.located(_slice(work, "photos"))

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
    write_table(curve, work.out / "curve.parquet", "curve")
    return Made(train.height + dev.height, curve.height)


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


def make_gist(work: Work) -> Made:
    """What foretells the gists of photographs, from all training captions."""
    from tasks import gist

    captions = read_table(work.path("captions"), "captions").filter(pl.col("split") == "train")
    tokens = read_table(work.paths("tokens"), "tokens").select("caption_id", "tokens")
    shards = work.paths("image_features")
    familiar = familiar_photos(shards, captions["photo_id"].drop_nulls())
    vocabulary = read_table(work.path("vocabulary"), "vocabulary")
    pairs = gist.pairs_of(captions)
    learned = gist.learn_gist(tokens, pairs, shards, familiar, vocabulary, work.settings.gist)
    learned.gist.save(work.out / gist.GIST)
    write_table(familiar, work.out / "familiar.parquet", "familiar", **_sizes(familiar))
    for name in TAUGHT:
        table = getattr(learned, name)
        write_table(table, work.out / f"{name}.parquet", name, **_sizes(table))
    work.advance(tokens.height)
    return Made(tokens.height, learned.gists.height)


def _learned(work: Work) -> Learned:
    """What `make_gist` wrote."""
    from tasks.gist import Gist, Learned

    familiar = _sized(work.path("familiar"), "familiar")
    tables = (_sized(work.path(name), name) for name in TAUGHT)
    return Learned(Gist.load(work.path("gist"), familiar), *tables)


def _learnable(work: Work, captions: pl.DataFrame) -> pl.DataFrame:
    """Captions whose photograph has features: those of one that was rejected teach nothing about any."""
    return captions.join(
        _ids(work.paths("image_features"), "photo_id"), on="photo_id", how="semi", maintain_order="left"
    )


def _ids(paths: Sequence[Path], name: str) -> pl.DataFrame:
    """The column of that name, of the tables of several shards."""
    none = pl.DataFrame(schema={name: pl.String})
    return pl.concat([none, *(pl.read_parquet(path, columns=[name]) for path in paths)])


def make_fusion(work: Work) -> Made:
    """The fusion's weights, trained from the Parquet features alone."""
    from tasks.evaluate import score
    from tasks.fusion_training import train_fusion

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
    from tasks.captions import load_stopwords
    from tasks.matching import train_matching

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
    from tasks.gist import of_whole_subjects, pairs_of
    from tasks.neighbours import NEIGHBOURS, find_neighbours

    captions = read_table(work.path("captions"), "captions").filter(pl.col("split") == "train")
    tokens = read_table(work.paths("tokens"), "tokens")
    encoder = _text_encoder(work)
    neighbours = find_neighbours(
        of_whole_subjects(tokens, pairs_of(captions)),
        _sized(work.path("imagined"), "imagined"),
        _sized(work.path("said"), "said"),
        lambda rows: encoder.vectors_of(rows, work.settings.text_features, work.advance),
    )
    neighbours.save(work.out / NEIGHBOURS)
    return Made(tokens.height, len(neighbours))


def _text_encoder(work: Work) -> TextEncoder:
    from tasks.search import TextEncoder

    return TextEncoder.load(
        work.path("matching"),
        work.path("language_model"),
        read_table(work.path("vocabulary"), "vocabulary"),
        work.settings.language_model,
    )


def make_index_shard(work: Work) -> Made:
    """Vectors of a shard's photographs, and the index of them."""
    from tasks.matching import Matching

    matching = Matching.load(work.path("matching"))
    ids = pl.read_parquet(work.path("image_features"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        features = _rows_by_id(work.path("image_features"), "image_features", missing)
        work.advance(features.height)
        vectors = matching.photo_vectors(tensor(features["pooled"]))
        return pl.DataFrame([features["photo_id"], tensor_column("vector", vectors)]), None

    return _indexed(work, _make_rows(work, "vectors", ids, compute), "vectors")


def make_caption_index_shard(work: Work) -> Made:
    """Vectors of a shard's captions, and the index of them."""
    from tasks.matching import Matching

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

    return _indexed(work, _make_rows(work, "caption_vectors", ids, compute), "caption_vectors")


def make_written_index_shard(work: Work) -> Made:
    """Vectors of the captions that the model wrote, known by their photographs, and the index of them."""
    encoder = _text_encoder(work)
    ids = pl.read_parquet(work.path("predictions"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        written = _rows_by_id(work.path("predictions"), "predictions", missing.alias("photo_id"))
        vectors = encoder.vectors(written["caption"])
        work.advance(written.height)
        return pl.DataFrame([written["photo_id"].alias("caption_id"), tensor_column("vector", vectors)]), None

    return _indexed(
        work, _make_rows(work, "caption_vectors", ids.alias("caption_id"), compute), "caption_vectors"
    )


def _indexed(work: Work, made: Made, table: str) -> Made:
    """Write the index beside a table of vectors."""
    from tasks.index import write_index

    vectors = pl.read_parquet(work.out / f"{table}.parquet", columns=["vector"])["vector"]
    write_index(tensor(vectors), work.out / "index.usearch")
    return made


def make_retrieval(work: Work) -> Made:
    """How well captions and photographs of the dev and test splits find each other."""
    from tasks.retrieval import ranks, retrieval_table, vector_likeness

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
    from tasks.leaks import find_leaks

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


def make_predictions_shard(work: Work) -> Made:
    """Captions of a shard's photographs."""
    settings = work.settings
    ids = pl.read_parquet(work.path("image_features"), columns=["photo_id"])["photo_id"]

    def compute(missing: pl.Series) -> tuple[pl.DataFrame, None]:
        features = _rows_by_id(work.path("image_features"), "image_features", missing)
        captioner = _captioner(work, features)
        return captioner.caption_photos(features, settings.caption, work.advance), None

    return _make_rows(work, "predictions", ids, compute)


def _model_files(work: Work) -> ModelFiles:
    from tasks.caption import MODEL_FILES, ModelFiles

    return ModelFiles(**{name: work.path(name) for name in MODEL_FILES})


def _captioner(work: Work, features: pl.DataFrame) -> Captioner:
    files, settings = _model_files(work), work.settings
    digests = tuple(work.shard.inputs[name] for name in files._fields)
    channels = _sizes(features)["channels"]
    return _load_captioner(files, digests, settings.language_model, settings.fusion, channels)


@lru_cache(maxsize=1)
def _load_captioner(
    files: ModelFiles,
    digests: tuple[str, ...],  # of these files: a bundle may have been replaced since, in the same place
    lm_settings: LanguageModelSettings,
    fusion_settings: FusionSettings,
    channels: int,
) -> Captioner:
    """Loaded once, so that the search is compiled once for all shards. Raises StaleModel."""
    from tasks.caption import Captioner

    captioner = Captioner.load(files, lm_settings, fusion_settings, channels)
    if tuple(map(digest_of_file, files)) != digests:
        raise StaleModel("the model's files were replaced while it was used; run this again")
    return captioner


def make_scores(work: Work) -> Made:
    """Scores of the dev and test splits, with the signs of collapse."""
    from tasks.evaluate import evaluate

    predictions = _all_rows(work.paths("predictions"), "predictions", ["photo_id", "caption"])
    photos = read_table(work.path("photos"), "photos", ["photo_id", "split"])
    captions = read_table(work.path("captions"), "captions", ["photo_id", "text", "split"])
    train = (read_table(path, "tokens", ["tokens"]) for path in work.paths("train"))
    scores = evaluate(predictions.join(photos, on="photo_id"), captions, train, work.settings.evaluate)
    write_table(scores, work.out / "scores.parquet", "scores")
    work.advance(predictions.height)
    return Made(predictions.height, scores.height)


def _all_rows(paths: Sequence[Path], table: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """The rows of several shards; of none, an empty table of the right columns."""
    return read_table(paths, table, columns) if paths else empty_table(table)


def make_bundle(work: Work) -> Made:
    """The trained model with all that captioning needs, in a folder that can be carried away."""
    from tasks.bundle import FeatureOrigin, write_bundle
    from tasks.networks import weights_digest

    settings = work.settings
    captions = read_table(work.path("captions"), "captions", ["caption_id", "photo_id"])
    photos = _ids(work.paths("image_features"), "photo_id")
    learned = captions.join(_ids(work.paths("tokens"), "caption_id"), on="caption_id", how="semi")
    paired = learned.join(photos, on="photo_id", how="semi")
    features = pl.scan_parquet(work.paths("any_features")).head(0).collect()
    channels = _sizes(features)["channels"]
    scores = read_table(work.path("scores"), "scores")
    by_split: dict[str, dict[str, float]] = {}
    for split, metric, value in scores.iter_rows():
        by_split.setdefault(split, {})[metric] = value
    write_bundle(
        work.out,
        _model_files(work),
        features=FeatureOrigin.of(
            settings.images, settings.image_features, weights_digest(settings.image_features), channels
        ),
        lm_settings=settings.language_model,
        fusion_settings=settings.fusion,
        caption_settings=settings.caption,
        scores=by_split,
        sizes={
            "training photographs": paired["photo_id"].n_unique(),
            "training captions": paired.height,
            "text-only captions": learned.height - paired.height,
        },
        versions=library_versions(),
        about=f"Trained on the data set `{Path(work.shard.sources['dataset']).name}`.",
    )
    return Made(scores.height, 1)


def make_report(work: Work) -> Made:
    """The page of a run, with its captions, rejects and scores in files beside."""
    from tasks.report import write_report

    captioned, files = _write_captioned(work)
    rejects = _all_rows(work.paths("rejects"), "rejects")
    scores = read_table(work.path("scores"), "scores")
    write_table(rejects, work.out / "rejects.parquet", "rejects")
    rejects.write_csv(work.out / "rejects.csv")
    scores.write_csv(work.out / "scores.csv")
    write_report(_report_input(work, captioned, rejects, scores), work.out / "report.html")
    work.advance(captioned)
    return Made(captioned, files)


def _write_captioned(work: Work) -> tuple[int, int]:
    """Write the captions for people and programs; how many photographs have one, and how many files.

    All that the report needs of these tables besides are a few rows, read when they are needed.
    """
    from tasks.export import captioned, write_captions

    photos = read_table(work.path("photos"), "photos")
    predictions = read_table(work.paths("predictions"), "predictions")
    found = captioned(photos, predictions)
    write_captions(found, work.out / "captions.parquet")
    write_captions(found, work.out / "captions.csv")
    return predictions.height, found.height


def _report_input(work: Work, captioned: int, rejects: pl.DataFrame, scores: pl.DataFrame) -> ReportInput:
    from tasks.report import Counts, ReportInput

    photos = _by_split(pl.scan_parquet(work.path("photos")))
    captions = pl.scan_parquet(work.path("captions"))
    paired = captions.drop_nulls("photo_id")
    text_only = captions.select(pl.col("photo_id").null_count()).collect().item()
    return ReportInput(
        dataset=Path(work.shard.sources["dataset"]).name,
        settings=work.settings,
        counts=Counts(
            photos=photos,
            captions=_by_split(paired),
            captioned=captioned,
            text_only_captions=text_only,
            unlabelled_photos=photos.get(UNLABELLED, 0),
            duplicates=rejects.filter(pl.col("reason") == "duplicate").height,
            leaks=_named(work, rejects.filter(pl.col("reason") == "leak")["name"]),
        ),
        scores=scores,
        curves={
            name: read_table(work.path(f"curve {name}"), "curve") for name in ("language_model", "fusion")
        },
        stages=work.shard.sources["stages"],
        rejects=rejects,
        gallery=_gallery(work, paired),
        thumbnails=_reject_thumbnails(work, rejects),
        near_duplicates=_rows_of_kind(work.path("leaks"), "photo"),
        retrieval=read_table(work.path("retrieval"), "retrieval"),
        lines=_drawn_lines(work),
        **_searches(work, paired),
    )


def _searches(work: Work, paired: pl.LazyFrame) -> dict[str, Any]:
    """A few captions of the gallery's split and the photographs of its shards nearest to them."""
    from tasks.report import SearchExample

    split, vectors = _gallery_shards(work, "vectors")
    _, images = _gallery_shards(work, "images")
    texts = [path for place, path in _places(work, "caption_vectors") if place.partition("/")[0] == split]
    if not texts:
        return {}
    ours = paired.join(vectors.lazy().select("photo_id"), on="photo_id", how="semi")
    captions = pl.scan_parquet(work.workspace.file(texts[0])).join(ours, on="caption_id").collect()
    captions = captions.sort("caption_id").unique("photo_id", keep="first", maintain_order=True)
    captions = captions.head(SEARCHES_SHOWN)
    found = tensor(captions["vector"]) @ tensor(vectors["vector"]).T
    pictures = dict(zip(images["photo_id"], squares(images["square"]), strict=True))
    examples = []
    for text, own, likeness in zip(captions["text"], captions["photo_id"], found, strict=True):
        hits = [(vectors["photo_id"][int(i)], float(likeness[i])) for i in (-likeness).argsort()[:HITS_SHOWN]]
        shown = [(pictures[id], score, id == own) for id, score in hits]
        examples.append(SearchExample(text, shown))
    return {"searches": examples, "searched": vectors.height}


def _places(work: Work, source: str) -> list[tuple[str, str]]:
    by_place: dict[str, str] = work.shard.sources[source]
    return sorted(by_place.items())


def _drawn_lines(work: Work) -> list[str]:
    """Lines of the language model alone, for the eye."""
    from tasks.generate import Sampler, Sampling
    from tasks.language_model import load_language_model

    vocabulary = read_table(work.path("vocabulary"), "vocabulary").sort("id")
    settings = work.settings.language_model
    language_model = load_language_model(work.path("language_model"), vocabulary.height, settings)
    sampler = Sampler(language_model, vocabulary["token"].to_list())
    drawn = sampler.lines([], LINES_SHOWN, Sampling(temperature=0.8, top_p=0.9))
    return [line.text for line in drawn]


def _rows_of_kind(leaks: Path, kind: str) -> int:
    return int(pl.scan_parquet(leaks).filter(pl.col("kind") == kind).select(pl.len()).collect().item())


def _named(work: Work, names: pl.Series) -> int:
    """How many photographs `names` name, by any of their files."""
    named = pl.scan_parquet(work.path("photos")).select("photo_id", _EVERY_NAME).explode("name")
    return int(
        named.filter(pl.col("name").is_in(names.implode()))
        .select(pl.col("photo_id").n_unique())
        .collect()
        .item()
    )


def _by_split(frame: pl.LazyFrame) -> dict[str, int]:
    return dict(frame.group_by("split").len().collect().iter_rows())


def _gallery(work: Work, paired: pl.LazyFrame) -> list[GalleryItem]:
    """Photographs of the held-out split with what was written and, for attention, where it looked."""

    from tasks.captions import tokenize
    from tasks.report import GalleryItem

    settings = work.settings
    split, images = _gallery_shards(work, "images")
    _, features = _gallery_shards(work, "image_features")
    images = images.head(settings.report.gallery)
    features = images.select("photo_id").join(features, on="photo_id", how="inner", maintain_order="left")
    is_shown = pl.col("photo_id").is_in(images["photo_id"].implode())
    rows = images
    for files in ([work.path("photos")], work.paths("predictions")):
        some = pl.scan_parquet(files).filter(is_shown).collect()
        rows = rows.join(some, on="photo_id", maintain_order="left")
    shown = paired.filter(is_shown).collect()
    references = dict(shown.group_by("photo_id", maintain_order=True).agg("text").iter_rows())
    words = [tokenize(caption) for caption in rows["caption"]]
    maps: list[np.ndarray | None] = [None] * rows.height
    if settings.fusion.kind == "attention" and rows.height:
        maps = list(_captioner(work, features).attention_maps(features, words))
    items = []
    for row, square, tokens, weights in zip(
        rows.drop("square").iter_rows(named=True), squares(rows["square"]), words, maps, strict=True
    ):
        grid = round(weights.shape[1] ** 0.5) if weights is not None else 0
        items.append(
            GalleryItem(
                path=row["path"],
                split=split,
                square=square,
                caption=row["caption"],
                score=row["score"],
                distance=row["distance"],
                alternatives=row["alternatives"],
                references=references.get(row["photo_id"], []),
                attention=None
                if weights is None
                else [(token, one.reshape(grid, grid)) for token, one in zip(tokens, weights, strict=True)],
            )
        )
    return items


def _gallery_shards(work: Work, source: str) -> tuple[str, pl.DataFrame]:
    """The first shards of the best held-out split that there is, enough of them for the gallery."""
    from tasks.samples import BEST_FIRST

    wanted = work.settings.report.gallery
    by_place: dict[str, str] = work.shard.sources[source]
    for split in BEST_FIRST:
        frames: list[pl.DataFrame] = []
        for place, path in sorted(by_place.items()):
            if place.partition("/")[0] == split and sum(frame.height for frame in frames) < wanted:
                frames.append(pl.read_parquet(work.workspace.file(path)))
        if sum(frame.height for frame in frames):
            return split, pl.concat(frames)
    return "train", pl.read_parquet(work.workspace.file(next(iter(by_place.values()))))


def _reject_thumbnails(work: Work, rejects: pl.DataFrame) -> dict[str, np.ndarray]:
    """Pictures of rejected files that can be shown all the same, a few a reason."""
    from schemas.errors import BadPhoto
    from tasks.images import decode
    from tasks.photos import read_bytes, read_file

    thumbnails = {}
    dataset = Path(work.shard.sources["dataset"])
    shown = rejects.filter(pl.col("kind") == "photo").group_by("reason", maintain_order=True).head(10)
    held = _in_containers(work, shown["name"])
    for name in shown["name"]:
        try:
            data = (
                read_bytes(dataset, name, *held[name])
                if name in held
                else read_file(dataset, name, MAX_THUMBNAIL_BYTES)
            )
            thumbnails[name] = decode(data, work.settings.report.thumbnail_px)
        except BadPhoto:
            continue
    return thumbnails


def _in_containers(work: Work, names: pl.Series) -> dict[str, tuple[str, int, int]]:
    """Container, offset and size of the photographs that `names` name, themselves or a copy of theirs."""
    photos = pl.scan_parquet(work.path("photos")).drop_nulls("container")
    places = photos.select(_EVERY_NAME, "container", "offset", "size").explode("name")
    wanted = pl.col("name").is_in(names.implode()) & (pl.col("size") <= MAX_THUMBNAIL_BYTES)
    rows = work.located(places.filter(wanted).collect())
    return {name: tuple(place) for name, *place in rows.iter_rows()}
