"""The stage that writes the report of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from cutline.schemas.tables import UNLABELLED
from cutline.tasks.decoding.stage import load_captioner
from cutline.tasks.engine.stage import Made, Stage, Work
from cutline.tasks.ingest.stage import EVERY_NAME
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


def make_report(work: Work) -> Made:
    """The page of a run, with its captions, rejects and scores in files beside."""
    from cutline.tasks.report.report import write_report

    captioned, files = _write_captioned(work)
    rejects = read_tables(work.paths("rejects"), "rejects")
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
    from cutline.tasks.report.caption_export import captioned, write_captions

    photos = read_table(work.path("photos"), "photos")
    predictions = read_table(work.paths("predictions"), "predictions")
    found = captioned(photos, predictions)
    write_captions(found, work.out / "captions.parquet")
    write_captions(found, work.out / "captions.csv")
    return predictions.height, found.height


def _report_input(work: Work, captioned: int, rejects: pl.DataFrame, scores: pl.DataFrame) -> ReportInput:
    from cutline.tasks.report.report import Counts, ReportInput

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
    from cutline.tasks.report.report import SearchExample

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
    from cutline.tasks.decoding.sampling import Sampler, Sampling
    from cutline.tasks.models.language_model import load_language_model

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
    named = pl.scan_parquet(work.path("photos")).select("photo_id", EVERY_NAME).explode("name")
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

    from cutline.tasks.report.report import GalleryItem
    from cutline.tasks.text.tokenizer import tokenize

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
        maps = list(load_captioner(work, features).attention_maps(features, words))
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
    from cutline.tasks.report.samples import BEST_FIRST

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
    from cutline.schemas.errors import BadPhoto
    from cutline.tasks.images.decode import decode
    from cutline.tasks.images.files import read_bytes, read_file

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
    places = photos.select(EVERY_NAME, "container", "offset", "size").explode("name")
    wanted = pl.col("name").is_in(names.implode()) & (pl.col("size") <= MAX_THUMBNAIL_BYTES)
    rows = work.located(places.filter(wanted).collect())
    return {name: tuple(place) for name, *place in rows.iter_rows()}
