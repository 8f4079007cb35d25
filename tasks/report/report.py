"""The report of a run: one HTML page that holds its pictures and asks the network for nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
from markupsafe import Markup

from cutline.schemas.settings import Settings
from cutline.schemas.tables import NOTICES, REASONS, SPLITS, UNLABELLED
from cutline.tasks.report.curves import draw_curve
from cutline.tasks.report.html import environment, small_jpeg
from cutline.tasks.runtime.formatting import COLLAPSE, QUALITY, Metric, decimal, in_form, metric_of

# What keeps the page small, whatever comes in.
EXAMPLES_PER_REASON = 10
MOST_REFERENCES = 8
MOST_WORDS = 24  # words of a caption with a picture of their own
MOST_EPOCHS = 100  # rows of a curve's table
WORD_PX = 96

HEADLINE_METRICS = ("Bleu_4", "ROUGE_L", "CIDEr")


@dataclass(frozen=True)
class Counts:
    """What a data set holds; `photos` and `captions` by split."""

    photos: Mapping[str, int]
    captions: Mapping[str, int]
    captioned: int = 0  # photographs that the model wrote a caption for
    text_only_captions: int = 0
    unlabelled_photos: int = 0
    duplicates: int = 0
    leaks: int = 0


@dataclass(frozen=True)
class GalleryItem:
    """A photograph with what was written under it.

    `square` is (H, W, 3) RGB uint8. `distance` and `alternatives` (mappings with `caption` and `score`)
    are those of `predictions`. `attention` pairs each word with the weights of the regions, (rows, columns).
    """

    path: str
    split: str
    square: np.ndarray
    caption: str
    score: float
    distance: float | None = None
    alternatives: Sequence[Mapping[str, Any]] = ()
    references: Sequence[str] = ()
    attention: Sequence[tuple[str, np.ndarray]] | None = None


@dataclass(frozen=True)
class SearchExample:
    """A caption of a person as a query, with the photographs nearest to it, nearest first.

    Each photograph is its square, (H, W, 3) RGB uint8, its cosine, and whether it is the caption's own.
    """

    text: str
    found: Sequence[tuple[np.ndarray, float, bool]]


@dataclass(frozen=True)
class ReportInput:
    """All that a report shows.

    `scores` and `rejects` are the tables of those names, `curves` tables of the kind `curve` by the
    name of what was trained. A row of `stages` has name, made, reused, rows_in, rows_out, rejected,
    took_s and why. `retrieval` is the table of that name. `near_duplicates` are pairs of photographs of
    different splits that are all but the same, None where nobody looked.
    `thumbnails` are RGB uint8 pictures of rejected files by their name in `rejects`.
    """

    dataset: str
    settings: Settings
    counts: Counts
    scores: pl.DataFrame
    curves: Mapping[str, pl.DataFrame]
    stages: Sequence[Mapping[str, Any]]
    rejects: pl.DataFrame
    gallery: Sequence[GalleryItem]
    thumbnails: Mapping[str, np.ndarray] = field(default_factory=dict)
    near_duplicates: int | None = None
    retrieval: pl.DataFrame | None = None
    searches: Sequence[SearchExample] = ()
    searched: int = 0  # photographs that the examples were found among
    lines: Sequence[str] = ()  # drawn from the language model


def write_report(report: ReportInput, path: Path) -> None:
    """Write `report` to `path` as one HTML page; the same report gives the same bytes.

    Everything in it is escaped, pictures are inlined, and a content security policy forbids scripts
    and requests. At most `report.gallery` photographs and ten examples a reject reason are shown.
    """
    thumbnail_px = report.settings.report.thumbnail_px
    shown = report.gallery[: report.settings.report.gallery]
    page = (
        environment(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            dataset=report.dataset,
            counts=report.counts,
            near_duplicates=report.near_duplicates,
            network=report.settings.image_features.network,
            attention=report.settings.fusion.kind == "attention",
            splits=_splits(report.counts),
            headline=_headline(report.scores),
            scores=_score_tables(report.scores),
            curves=[_curve(name, curve) for name, curve in report.curves.items()],
            stages=report.stages,
            rejects=_reject_groups(report.rejects, report.thumbnails, thumbnail_px),
            gallery=[_gallery_entry(item, thumbnail_px) for item in shown],
            gallery_total=report.counts.photos.get(shown[0].split, 0) if shown else 0,
            retrieval=_retrieval_rows(report.retrieval),
            searches=[_search_entry(example, thumbnail_px) for example in report.searches],
            searched=report.searched,
            lines=report.lines,
            settings=_settings_rows(report.settings),
        )
    )
    # A name that is not UTF-8 holds lone surrogates, which `for_page` has written out already.
    path.write_bytes(page.encode())


def heat_map(square: np.ndarray, weights: np.ndarray, side_px: int) -> np.ndarray:
    """Show where the model looked: (H, W, 3) uint8 and (rows, columns) → (side_px, side_px, 3) uint8, RGB.

    The weights are brought to the picture's size bilinearly; where they are high the photograph keeps
    its light under a warm tint, elsewhere it is grey and dim. Weights that are nearly even stay pale
    everywhere: full tint needs three times the mean.
    """
    photo = cv2.resize(square, (side_px, side_px), interpolation=cv2.INTER_AREA).astype(np.float32)
    finite = np.clip(np.nan_to_num(np.asarray(weights, np.float32), posinf=0.0), 0.0, None)
    full = max(float(finite.max(initial=0.0)), 3.0 * float(finite.mean()) if finite.size else 0.0, 1e-12)
    heat = cv2.resize(finite / full, (side_px, side_px), interpolation=cv2.INTER_LINEAR)[..., None]
    grey = photo.mean(axis=2, keepdims=True)
    dim = 0.45 * grey + 30.0
    warm = 0.70 * photo + 0.36 * np.array([255.0, 150.0, 20.0], np.float32)
    return np.clip(np.rint((1.0 - heat) * dim + heat * warm), 0, 255).astype(np.uint8)


def thumbnail(picture: np.ndarray, longest_px: int, quality: int = 82) -> Markup:
    """A JPEG of (H, W, 3) RGB uint8, its longer side at most `longest_px`, as a data URI.

    `quality` is JPEG's, 0 to 100.
    """
    return _data_uri("image/jpeg", small_jpeg(picture, longest_px, quality))


def _data_uri(media_type: str, data: bytes) -> Markup:
    return Markup(f"data:{media_type};base64,{base64.b64encode(data).decode()}")  # noqa: S704 base64 holds no markup


# ── what the template shows ─────────────────────────────────────────────────────────────────────────


def _splits(counts: Counts) -> list[dict[str, Any]]:
    known = [*SPLITS, UNLABELLED]
    names = [*known, *sorted((set(counts.photos) | set(counts.captions)) - set(known))]
    rows = [
        {"name": name, "photos": counts.photos.get(name, 0), "captions": counts.captions.get(name, 0)}
        for name in names
    ]
    return [row for row in rows if row["photos"] or row["captions"]]


def _by_metric(scores: pl.DataFrame) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, float]] = {}
    for split, metric, value in scores.select("split", "metric", "value").iter_rows():
        values.setdefault(metric, {})[split] = value
    return values


def _headline(scores: pl.DataFrame) -> dict[str, Any]:
    """The scores to print large: those of test, or of dev where there are none of test."""
    values = _by_metric(scores)
    for split in ("test", "dev"):
        large = [
            {"label": QUALITY[metric].label, "value": decimal(values[metric][split], 3)}
            for metric in HEADLINE_METRICS
            if split in values.get(metric, {})
        ]
        if large:
            return {"split": split, "scores": large}
    return {"split": None, "scores": []}


def _score_tables(scores: pl.DataFrame) -> dict[str, Any]:
    values = _by_metric(scores)
    held = {split for by_split in values.values() for split in by_split}
    splits = [split for split in reversed(SPLITS) if split in held]
    other = {name: metric_of(name) for name in values if name not in QUALITY and name not in COLLAPSE}

    def rows(metrics: Mapping[str, Metric]) -> list[dict[str, Any]]:
        return [
            {
                "label": metric.label,
                "reading": metric.reading,
                "values": [in_form(values[name].get(split), metric.form) for split in splits],
            }
            for name, metric in metrics.items()
            if name in values
        ]

    return {"splits": splits, "quality": rows(QUALITY), "collapse": rows(COLLAPSE | other)}


def _curve(name: str, curve: pl.DataFrame) -> dict[str, Any]:
    title = name.replace("_", " ")
    kept = curve.filter("best")["epoch"].to_list()
    return {
        "title": title,
        "picture": _data_uri("image/svg+xml", draw_curve(curve, title).encode()),
        "epochs": curve.height,
        "kept": kept[0] if kept else None,
        "rows": curve.head(MOST_EPOCHS).to_dicts(),
    }


def _reject_groups(
    rejects: pl.DataFrame, thumbnails: Mapping[str, np.ndarray], thumbnail_px: int
) -> dict[str, Any]:
    counts = rejects.group_by("reason").len().sort(["len", "reason"], descending=[True, False])
    groups = [
        {
            "reason": reason,
            "meaning": _sentence(REASONS.get(reason, reason)),
            "count": count,
            "notice": reason in NOTICES,
            "examples": _examples(rejects.filter(pl.col("reason") == reason), thumbnails, thumbnail_px),
        }
        for reason, count in counts.iter_rows()
    ]
    groups.sort(key=lambda group: group["notice"])  # stable: losses first, then what describes the data set
    losses = sum(group["count"] for group in groups if not group["notice"])
    return {"groups": groups, "losses": losses, "notices": rejects.height - losses}


def _examples(
    rejects: pl.DataFrame, thumbnails: Mapping[str, np.ndarray], thumbnail_px: int
) -> list[dict[str, Any]]:
    """The first few of `rejects`, those with a picture before the others."""
    with_picture = pl.col("name").is_in([name for name in thumbnails if _is_unicode(name)])
    first = rejects.sort(with_picture, descending=True, maintain_order=True).head(EXAMPLES_PER_REASON)
    examples = []
    for row in first.iter_rows(named=True):
        picture = thumbnails.get(row["name"])
        examples.append(row | {"picture": None if picture is None else thumbnail(picture, thumbnail_px)})
    return examples


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _gallery_entry(item: GalleryItem, thumbnail_px: int) -> dict[str, Any]:
    words = item.attention or ()
    return {
        "path": item.path,
        "split": item.split,
        "picture": thumbnail(item.square, thumbnail_px),
        "caption": item.caption,
        "score": item.score,
        "distance": item.distance,
        "alternatives": [row for row in item.alternatives if row["caption"] != item.caption],
        "references": item.references[:MOST_REFERENCES],
        "more_references": max(0, len(item.references) - MOST_REFERENCES),
        "words": list(_word_pictures(item.square, words[:MOST_WORDS], min(WORD_PX, thumbnail_px))),
        "more_words": max(0, len(words) - MOST_WORDS),
    }


def _retrieval_rows(retrieval: pl.DataFrame | None) -> list[dict[str, Any]]:
    """A row for each split and direction, its metrics by name."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for split, direction, metric, value in retrieval.iter_rows() if retrieval is not None else ():
        row = rows.setdefault((split, direction), {"split": split, "direction": direction})
        row[metric] = value
    return list(rows.values())


def _search_entry(example: SearchExample, thumbnail_px: int) -> dict[str, Any]:
    found = [
        {"picture": thumbnail(square, thumbnail_px), "score": score, "own": own}
        for square, score, own in example.found
    ]
    return {"text": example.text, "found": found}


def _word_pictures(
    square: np.ndarray, words: Iterable[tuple[str, np.ndarray]], side_px: int
) -> Iterable[dict[str, Any]]:
    for word, weights in words:
        yield {"word": word, "picture": thumbnail(heat_map(square, weights, side_px), side_px, quality=75)}


def _settings_rows(settings: Settings) -> list[dict[str, Any]]:
    rows = []
    for stage, model in settings:
        for name, info in type(model).model_fields.items():
            value = getattr(model, name)
            rows.append(
                {
                    "stage": stage,
                    "name": name,
                    "value": str(value),
                    "default": str(info.default),
                    "changed": value != info.default,
                    "description": info.description or "",
                }
            )
    return rows
