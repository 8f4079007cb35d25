"""Small pictures of a run's photographs, made when they are asked for and kept in memory up to a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from cutline.schemas.errors import BadPhoto, DamagedFile
from cutline.schemas.records import Record, RunRecord
from cutline.schemas.tables import ID_PATTERN
from cutline.tasks.engine.partition import partition_of_row, partition_that_holds
from cutline.tasks.images.decode import decode
from cutline.tasks.images.files import photo_id as id_of
from cutline.tasks.images.files import read_bytes, read_file
from cutline.tasks.report.html import small_jpeg
from cutline.tasks.storage.packs import located
from cutline.tasks.storage.runs import History, reading
from cutline.tasks.storage.tables import squares

MAX_FILE_BYTES = 64 * 2**20  # a larger file is not read for a thumbnail
MAX_AT_ONCE = 2  # photographs being decoded: each may take hundreds of megabytes
MAX_PLACES = 16  # runs whose shards of squares are remembered


class Kept:
    """The newest values of a cache, of at most so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        self._values: OrderedDict[Any, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> bytes | None:
        """The value of a key, which becomes the newest; None where it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Any, value: bytes) -> None:
        """Keep a value, and let the oldest go."""
        with self._lock:
            self.bytes += len(value) - len(self._values.pop(key, b""))
            self._values[key] = value
            while self.bytes > self.most_bytes:
                self.bytes -= len(self._values.popitem(last=False)[1])


class Pictures:
    """JPEGs of photographs and rejects, by their run and their id or row; no path comes from outside."""

    def __init__(self, history: History, kept_bytes: int = 64 * 2**20) -> None:
        self.history = history
        self.kept = Kept(kept_bytes)
        self._places: OrderedDict[str, dict[str, Record]] = OrderedDict()
        self._decoding = threading.BoundedSemaphore(MAX_AT_ONCE)

    def photo(self, run: RunRecord, photo_id: str, side_px: int) -> bytes:
        """A photograph as it lies in its data set, else its square in the workspace.

        Raises KeyError where the run has no such photograph, BadPhoto where neither can be had,
        DamagedFile.
        """
        row = self.row_of(run, photo_id)
        key = photo_id, side_px
        return self.kept.get(key) or self._make(key, side_px, lambda: self._pixels(run, row, side_px))

    def row_of(self, run: RunRecord, photo_id: str) -> dict[str, Any]:
        """The row of `photos` of a photograph. Raises KeyError, DamagedFile."""
        with reading():
            photos = self.history.table(run, "ingest", "photos")
            found = photos.filter(pl.col("photo_id") == photo_id).collect()
        if not found.height:
            raise KeyError(photo_id)
        return located(found, self._packs).row(0, named=True)

    def reject(self, run: RunRecord, row: int, side_px: int) -> bytes:
        """The picture of a rejected file that can be decoded all the same. Raises as `photo`."""
        with reading():
            found = self.history.rejects(run).filter(pl.col("row") == row, pl.col("kind") != "caption")
            rejected = found.collect()
        if not rejected.height:
            raise KeyError(row)
        name = rejected["name"][0]
        key = run.run, name, side_px
        return self.kept.get(key) or self._make(
            key, side_px, lambda: decode(self._rejected_bytes(run, name), side_px)
        )

    def why_not_the_file(self, run: RunRecord, row: dict[str, Any]) -> str:
        """Why a photograph is not read from its data set; empty where it is."""
        try:
            self._bytes(run, row)
        except BadPhoto as error:
            return f"{error.reason}: {error.detail}"
        return ""

    @property
    def _packs(self) -> Path:
        return self.history.workspace.root / "packs"

    def _make(self, key: Any, side_px: int, pixels: Callable[[], Any]) -> bytes:
        with self._decoding:
            jpeg = small_jpeg(pixels(), side_px)
        self.kept.put(key, jpeg)
        return jpeg

    def _pixels(self, run: RunRecord, row: dict[str, Any], side_px: int) -> Any:
        try:
            return decode(self._bytes(run, row), side_px)
        except BadPhoto:
            square = self._square(run, row)
            if square is None:
                raise
            return square

    def _bytes(self, run: RunRecord, row: dict[str, Any]) -> bytes:
        """The photograph's bytes, which are those that its id was made of. Raises BadPhoto."""
        if row["size"] > MAX_FILE_BYTES:
            raise BadPhoto("too_many_bytes", f"{row['size']:,} bytes is over {MAX_FILE_BYTES:,}")
        data = read_bytes(Path(run.dataset), row["path"], row["container"], row["offset"], row["size"])
        if id_of(data) != row["photo_id"]:
            raise BadPhoto("changed", "the file's bytes are not those that were captioned")
        return data

    def _square(self, run: RunRecord, row: dict[str, Any]) -> Any:
        """The square that the network saw, (side, side, 3) RGB; None where there is none."""
        try:
            record = self._images_record(run, row["split"], row["photo_id"])
            with reading():
                images = pl.scan_parquet(self.history.file(record, "images.parquet"), glob=False)
                found = images.filter(pl.col("photo_id") == row["photo_id"]).collect()
        except (KeyError, DamagedFile):
            return None
        if not found.height or found.schema.get("square") not in (pl.Binary, pl.Array):
            return None
        return squares(found["square"])[0]

    def _images_record(self, run: RunRecord, split: str, photo_id: str) -> Record:
        """The record of the shard that a photograph falls into. Raises KeyError where there is none."""
        places = self._places.get(run.run)
        if places is None:
            records = self.history.workspace.records_of(run, "images")
            places = {record.partition: record for record in records}
            self._places[run.run] = places
            while len(self._places) > MAX_PLACES:
                self._places.popitem(last=False)
        place = partition_that_holds(partition_of_row(split, photo_id), places)
        if place is None:
            raise KeyError(photo_id)
        return places[place]

    def _rejected_bytes(self, run: RunRecord, name: str) -> bytes:
        """The bytes of a rejected file: a plain one, or one in a container that holds it by that name."""
        with reading():
            photos = self.history.table(run, "ingest", "photos").drop_nulls("container")
            named = (pl.col("path") == name) | pl.col("other_paths").list.contains(name)
            held = located(photos.filter(named).head(1).collect(), self._packs)
        for row in held.iter_rows(named=True):
            return self._bytes(run, row)
        return read_file(Path(run.dataset), name, MAX_FILE_BYTES)


def is_photo_id(text: str) -> bool:
    """Whether a text can be the id of a photograph."""
    return pl.Series([text]).str.contains(ID_PATTERN)[0]
