"""One page of a run's captions at a time, sorted by score, filtered by words and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from cutline.tasks.storage.runs import Captions, reading

SORTS = {
    "best": "surest first",
    "worst": "least sure first",
    "far": "most similar a guess first",
    "path": "by file name",
}


@dataclass(frozen=True)
class Wish:
    """Which captions to show: those that hold every one of `words`, of files whose path holds `file`, of
    `split`; of all if empty."""

    words: str = ""
    file: str = ""
    sort: str = "best"  # of SORTS
    split: str = ""
    page: int = 1


@dataclass(frozen=True)
class Page:
    """A page of a frame, and of how many rows in all."""

    frame: pl.DataFrame
    total: int
    page: int
    pages: int

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The page's rows as mappings."""
        return self.frame.to_dicts()


def captions_page(captions: Captions, wish: Wish, size: int) -> Page:
    """The captions of a wish: photo_id, path, split, caption, score, distance. Raises DamagedFile.

    A page behind the last one is the last one. Words and paths are compared without case, words as whole
    ones. Runs of older versions told no distance: it is null there.
    """
    by_name = bool(wish.split or wish.file) or wish.sort == "path"
    found = captions.named() if by_name else captions.rows
    if wish.split:
        found = found.filter(pl.col("split") == wish.split)
    if wish.file:
        found = found.filter(pl.col("path").str.contains(f"(?i){pl.escape_regex(wish.file)}"))
    for word in wish.words.split():
        found = found.filter(pl.col("caption").str.contains(whole_word(word)))
    with reading():
        if "distance" not in found.collect_schema():
            found = found.with_columns(distance=pl.lit(None, pl.Float32))
    orders = {"path": {"path": False}, "far": {"distance": True, "photo_id": False}}
    order = orders.get(wish.sort, {"score": wish.sort == "best", "photo_id": False})
    wanted = pl.col("photo_id", "caption", "score", "distance", "^path$", "^split$")
    page = page_of(found.select(wanted), wish.page, size, order)
    if by_name or captions.photos is None:
        return page
    with reading():
        return replace(page, frame=captions.named(page.frame.lazy()).collect())


def page_of(frame: pl.LazyFrame, page: int, size: int, order: Mapping[str, bool] | None = None) -> Page:
    """One page of a frame, sorted by columns (True: descending). Raises DamagedFile."""
    with reading():
        total = frame.select(pl.len()).collect().item()
        pages = max(1, -(-total // size))
        page = min(page, pages)
        if order:
            frame = frame.sort(list(order), descending=list(order.values()), nulls_last=True)
        return Page(frame.slice((page - 1) * size, size).collect(), total, page, pages)


def whole_word(word: str) -> str:
    """A regular expression (of Rust's) that finds a word on its own, whatever its case."""
    escaped = pl.escape_regex(word)
    before = r"\b" if word[:1].isalnum() else ""
    after = r"\b" if word[-1:].isalnum() else ""
    return f"(?i){before}{escaped}{after}"
