"""The stage that writes the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from cutline.schemas.tables import UNLABELLED
from cutline.tasks.decoding.stage import load_captioner
from cutline.tasks.engine.stage import Stage, StageContext, StageResult
from cutline.tasks.ingest.stage import EVERY_NAME
from cutline.tasks.runtime.spreadsheets import write_csv
from cutline.tasks.storage.tables import read_table, read_tables, squares, tensor, write_table

if TYPE_CHECKING:
    import numpy as np

    from cutline.tasks.report.report import GalleryItem, ReportInput


MAX_THUMBNAIL_BYTES = 64 * 2**20
SEARCHES_SHOWN, HITS_SHOWN, LINES_SHOWN = 4, 6, 12  # in the report
REPORT = Stage(
    "report",
    "cutline.tasks.report.stage:make_report",
    ("tasks/report/report.html.j2",),
    folder="reports",
    tensorflow=True,
)


def make_report(context: StageContext) -> StageResult:
    """The page of a run, with its captions, rejects and scores in files beside."""
    from cutline.tasks.report.report import write_report

    captioned, files = _write_captioned(context)
    rejects = read_tables(context.paths("rejects"), "rejects")
    scores = read_table(context.path("scores"), "scores")
    write_table(rejects, context.out / "rejects.parquet", "rejects")
    write_csv(rejects, context.out / "rejects.csv")
    write_csv(scores, context.out / "scores.csv")
    write_report(_report_input(context, captioned, rejects, scores), context.out / "report.html")
    context.advance(captioned)
    return StageResult(captioned, files)


def _write_captioned(context: StageContext) -> tuple[int, int]:
    """Write the captions for people and programs; how many photographs have one, and how many files.

    All that the report needs of these tables besides are a few rows, read when they are needed.
    """
    from cutline.tasks.report.caption_export import captioned, write_captions

    photos = read_table(context.path("photos"), "photos")
    predictions = read_table(context.paths("predictions"), "predictions")
    found = captioned(photos, predictions)
    write_captions(found, context.out / "captions.parquet")
    write_captions(found, context.out / "captions.csv")
    return predictions.height, found.height


def _report_input(
    context: StageContext, captioned: int, rejects: pl.DataFrame, scores: pl.DataFrame
) -> ReportInput:
    from cutline.tasks.report.report import Counts, ReportInput

    photos = _by_split(pl.scan_parquet(context.path("photos")))
    captions = pl.scan_parquet(context.path("captions"))
    paired = captions.drop_nulls("photo_id")
    text_only = captions.select(pl.col("photo_id").null_count()).collect().item()
    return ReportInput(
        dataset=Path(context.shard.sources["dataset"]).name,
        settings=context.settings,
        counts=Counts(
            photos=photos,
            captions=_by_split(paired),
            captioned=captioned,
            text_only_captions=text_only,
            unlabelled_photos=photos.get(UNLABELLED, 0),
            duplicates=rejects.filter(pl.col("reason") == "duplicate").height,
            leaks=_named(context, rejects.filter(pl.col("reason") == "leak")["name"]),
        ),
        scores=scores,
        curves={
            name: read_table(context.path(f"curve {name}"), "curve") for name in ("language_model", "fusion")
        },
        stages=context.shard.sources["stages"],
        rejects=rejects,
        gallery=_gallery(context, paired),
        thumbnails=_reject_thumbnails(context, rejects),
        near_duplicates=_rows_of_kind(context.path("leaks"), "photo"),
        retrieval=read_table(context.path("retrieval"), "retrieval"),
        lines=_drawn_lines(context),
        **_searches(context, paired),
    )


def _searches(context: StageContext, paired: pl.LazyFrame) -> dict[str, Any]:
    """A few captions of the gallery's split and the photographs of its shards nearest to them."""
    from cutline.tasks.report.report import SearchExample

    split, vectors = _gallery_shards(context, "vectors")
    _, images = _gallery_shards(context, "images")
    texts = [path for place, path in _places(context, "caption_vectors") if place.partition("/")[0] == split]
    if not texts:
        return {}
    ours = paired.join(vectors.lazy().select("photo_id"), on="photo_id", how="semi")
    captions = pl.scan_parquet(context.workspace.file(texts[0])).join(ours, on="caption_id").collect()
    captions = captions.sort("caption_id").unique("photo_id", keep="first", maintain_order=True)
    captions = captions.head(SEARCHES_SHOWN)
    found = tensor(captions["vector"]) @ tensor(vectors["vector"]).T
    pictures = dict(zip(images["photo_id"], squares(images["square"]), strict=True))
    examples = []
    for text, own, similarity in zip(captions["text"], captions["photo_id"], found, strict=True):
        hits = [
            (vectors["photo_id"][int(i)], float(similarity[i])) for i in (-similarity).argsort()[:HITS_SHOWN]
        ]
        shown = [(pictures[id], score, id == own) for id, score in hits]
        examples.append(SearchExample(text, shown))
    return {"searches": examples, "searched": vectors.height}


def _places(context: StageContext, source: str) -> list[tuple[str, str]]:
    by_place: dict[str, str] = context.shard.sources[source]
    return sorted(by_place.items())


def _drawn_lines(context: StageContext) -> list[str]:
    """Lines of the language model alone, for the eye."""
    from cutline.tasks.decoding.sampling import Sampler, Sampling
    from cutline.tasks.models.language_model import load_language_model

    vocabulary = read_table(context.path("vocabulary"), "vocabulary").sort("id")
    settings = context.settings.language_model
    language_model = load_language_model(context.path("language_model"), vocabulary.height, settings)
    sampler = Sampler(language_model, vocabulary["token"].to_list())
    drawn = sampler.lines([], LINES_SHOWN, Sampling(temperature=0.8, top_p=0.9))
    return [line.text for line in drawn]


def _rows_of_kind(leaks: Path, kind: str) -> int:
    return int(pl.scan_parquet(leaks).filter(pl.col("kind") == kind).select(pl.len()).collect().item())


def _named(context: StageContext, names: pl.Series) -> int:
    """How many photographs `names` name, by any of their files."""
    named = pl.scan_parquet(context.path("photos")).select("photo_id", EVERY_NAME).explode("name")
    return int(
        named.filter(pl.col("name").is_in(names.implode()))
        .select(pl.col("photo_id").n_unique())
        .collect()
        .item()
    )


def _by_split(frame: pl.LazyFrame) -> dict[str, int]:
    return dict(frame.group_by("split").len().collect().iter_rows())


def _gallery(context: StageContext, paired: pl.LazyFrame) -> list[GalleryItem]:
    """Photographs of the held-out split with what was written and, for attention, where it looked."""

    from cutline.tasks.report.report import GalleryItem
    from cutline.tasks.text.tokenizer import tokenize

    settings = context.settings
    split, images = _gallery_shards(context, "images")
    _, features = _gallery_shards(context, "image_features")
    images = images.head(settings.report.gallery)
    features = images.select("photo_id").join(features, on="photo_id", how="inner", maintain_order="left")
    is_shown = pl.col("photo_id").is_in(images["photo_id"].implode())
    rows = images
    for files in ([context.path("photos")], context.paths("predictions")):
        some = pl.scan_parquet(files).filter(is_shown).collect()
        rows = rows.join(some, on="photo_id", maintain_order="left")
    shown = paired.filter(is_shown).collect()
    references = dict(shown.group_by("photo_id", maintain_order=True).agg("text").iter_rows())
    words = [tokenize(caption) for caption in rows["caption"]]
    maps: list[np.ndarray | None] = [None] * rows.height
    if settings.fusion.kind == "attention" and rows.height:
        maps = list(load_captioner(context, features).attention_maps(features, words))
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


def _gallery_shards(context: StageContext, source: str) -> tuple[str, pl.DataFrame]:
    """The first shards of the best held-out split that there is, enough of them for the gallery."""
    from cutline.tasks.report.samples import BEST_FIRST

    wanted = context.settings.report.gallery
    by_place: dict[str, str] = context.shard.sources[source]
    for split in BEST_FIRST:
        frames: list[pl.DataFrame] = []
        for place, path in sorted(by_place.items()):
            if place.partition("/")[0] == split and sum(frame.height for frame in frames) < wanted:
                frames.append(pl.read_parquet(context.workspace.file(path)))
        if sum(frame.height for frame in frames):
            return split, pl.concat(frames)
    return "train", pl.read_parquet(context.workspace.file(next(iter(by_place.values()))))


def _reject_thumbnails(context: StageContext, rejects: pl.DataFrame) -> dict[str, np.ndarray]:
    """Pictures of rejected files that can be shown all the same, a few a reason."""
    from cutline.schemas.errors import BadPhoto
    from cutline.tasks.images.decode import decode
    from cutline.tasks.images.files import read_bytes, read_file

    thumbnails = {}
    dataset = Path(context.shard.sources["dataset"])
    shown = rejects.filter(pl.col("kind") == "photo").group_by("reason", maintain_order=True).head(10)
    held = _in_containers(context, shown["name"])
    for name in shown["name"]:
        try:
            data = (
                read_bytes(dataset, name, *held[name])
                if name in held
                else read_file(dataset, name, MAX_THUMBNAIL_BYTES)
            )
            thumbnails[name] = decode(data, context.settings.report.thumbnail_px)
        except BadPhoto:
            continue
    return thumbnails


def _in_containers(context: StageContext, names: pl.Series) -> dict[str, tuple[str, int, int]]:
    """Container, offset and size of the photographs that `names` name, themselves or a copy of theirs."""
    photos = pl.scan_parquet(context.path("photos")).drop_nulls("container")
    places = photos.select(EVERY_NAME, "container", "offset", "size").explode("name")
    wanted = pl.col("name").is_in(names.implode()) & (pl.col("size") <= MAX_THUMBNAIL_BYTES)
    rows = context.located(places.filter(wanted).collect())
    return {name: tuple(place) for name, *place in rows.iter_rows()}
