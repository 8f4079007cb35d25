"""Photographs and their captions side by side: features from Parquet as batches for the fusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from cutline.schemas.errors import UsageError
from cutline.tasks.models.content_embedding import ContentEmbedding
from cutline.tasks.models.fusion import photo_tensor
from cutline.tasks.storage.tables import tensor
from cutline.tasks.text.encoding import Ragged, alike_in_length, encode
from cutline.tasks.text.vocabulary import END, PAD
from cutline.tasks.training.caption_groups import TrainedContent
from cutline.tasks.training.common import fingerprint
from cutline.tasks.training.scratch import ScratchRows

CAPTIONS_PER_ROW = 5
WINDOW = 20  # batches whose captions are sorted by length; over all of them, order would follow length


class Batch(NamedTuple):
    """What one step learns from; missing rows and positions are zeros, with the target <pad>.

    photos (P, R, C) float16; content vectors (P, K) float32; states (P, Q, state_size) float16, those of all
    captions of a row end to end; targets (P, Q) int32, the token that each state is to predict.
    """

    photos: np.ndarray
    content_vectors: np.ndarray
    states: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """Training and dev captions with their features: tensors in scratch files, slim tables of their places.

    A caption is its number here. A row is up to CAPTIONS_A_ROW captions of one photograph, so that
    the photograph is projected once for all of them, and no position but the last is padding.
    """

    photos: ScratchRows  # (R, C)
    states: ScratchRows  # (state_size,), those of all captions end to end
    photo_ids: list[str]
    content_vectors: np.ndarray  # (photos, K) float32; K is 0 where photographs have none
    captions: Ragged  # their tokens
    first_state: np.ndarray  # (captions,) int64
    photo_of: np.ndarray  # (captions,) int64
    is_dev: np.ndarray  # (captions,) bool
    digest: str  # of which captions, photographs and shards these are

    @staticmethod
    def read(
        pairs: pl.DataFrame,
        image_features: Sequence[Path],
        text_features: Sequence[Path],
        vocabulary: pl.DataFrame,
        kind: str,
        scratch: Path,
        learned: TrainedContent | None = None,
    ) -> Pairs:
        """Copy what `pairs` needs, shard by shard. Raises UsageError where no training caption is left."""
        pairs = pairs.filter(pl.col("split").is_in(["train", "dev"]))
        content_embedding = learned.content_embedding if learned and learned.content_embedding.size else None
        photos, photo_ids, content_vectors = _copy_photos(
            pairs, image_features, kind, scratch, content_embedding
        )
        if (
            learned and content_embedding
        ):  # the content embedding of a photograph that it has learned from is too good to be true
            places = {photo_id: place for place, photo_id in enumerate(photo_ids)}
            known = learned.content_vectors.filter(pl.col("photo_id").is_in(photo_ids))
            content_vectors[[places[photo_id] for photo_id in known["photo_id"]]] = tensor(
                known["content_vector"]
            )
        states, first_states = _copy_states(pairs, text_features, scratch)
        numbers = pl.Series("photo_id", photo_ids, pl.String).to_frame().with_row_index("photo")
        pairs = pairs.join(numbers, on="photo_id", maintain_order="left")
        pairs = pairs.join(first_states, on="caption_id", maintain_order="left")
        if photos is None or states is None or not (pairs["split"] == "train").any():
            raise UsageError(
                "no caption of the train split has both its photograph's features and its own: "
                "nothing to learn captions from"
            )
        shards = [f"{path.name} {path.stat().st_size}" for path in [*image_features, *text_features]]
        return Pairs(
            photos,
            states,
            photo_ids,
            content_vectors,
            encode(pairs["tokens"], vocabulary),
            pairs["first_state"].to_numpy(),
            pairs["photo"].to_numpy().astype(np.int64),
            (pairs["split"] == "dev").to_numpy(),
            fingerprint(kind, *pairs["caption_id"], *photo_ids, *shards, content_vectors.data),
        )

    @property
    def dev_photos(self) -> np.ndarray:
        """The numbers of the photographs that have a dev caption."""
        return np.unique(self.photo_of[self.is_dev])

    def rows(self, *, dev: bool) -> list[np.ndarray]:
        """The numbers of the captions of one split, row by row."""
        captions = np.flatnonzero(self.is_dev == dev)
        captions = captions[np.argsort(self.photo_of[captions], kind="stable")]
        next_photo = np.flatnonzero(np.diff(self.photo_of[captions])) + 1
        of_photo = np.split(captions, next_photo) if len(captions) else []
        return [
            some[i : i + CAPTIONS_PER_ROW] for some in of_photo for i in range(0, len(some), CAPTIONS_PER_ROW)
        ]

    def batches(self, rows: Sequence[np.ndarray], size: int) -> Iterator[tuple[Batch, int]]:
        """`rows`, in their order, `size` at a time: each batch with its number of captions."""
        for place in range(0, len(rows), size):
            some = rows[place : place + size]
            yield self._batch(some, size), sum(map(len, some))

    def _batch(self, rows: Sequence[np.ndarray], size: int) -> Batch:
        lengths = self.captions.lengths + 1  # the <end> is predicted too
        width = max(int(lengths[row].sum()) for row in rows)
        photos = np.zeros((size, *self.photos.shape), np.float16)
        content_vectors = np.zeros((size, self.content_vectors.shape[1]), np.float32)
        states = np.zeros((size, width, *self.states.shape), np.float16)
        targets = np.full((size, width), PAD, np.int32)
        for i, row in enumerate(rows):
            photos[i] = self.photos.read(int(self.photo_of[row[0]]), 1)[0]
            content_vectors[i] = self.content_vectors[self.photo_of[row[0]]]
            ends = np.cumsum(lengths[row])
            for caption, end in zip(row, ends, strict=True):
                begin = end - lengths[caption]
                states[i, begin:end] = self.states.read(int(self.first_state[caption]), int(end - begin))
                targets[i, begin : end - 1] = self.captions[caption]
                targets[i, end - 1] = END
        return Batch(photos, content_vectors, states, targets)


class TextBatch(NamedTuple):
    """Captions with no photograph shown; missing rows and positions have the target <pad>.

    inputs and targets (B, T) int32, what is read and what each token is to predict; content vectors (B, K)
    float32.
    """

    inputs: np.ndarray
    targets: np.ndarray
    content_vectors: np.ndarray


@dataclass(frozen=True)
class Texts:
    """Training captions, each with the content embedding that a photograph of it would be expected to
    have."""

    captions: Ragged
    content_vectors: np.ndarray  # (captions, K) float16
    noise: (
        np.ndarray
    )  # (K, K) times standard normal numbers: how content vectors scatter about the expected ones

    def batches(
        self, size: int, max_tokens: int, rng: np.random.Generator
    ) -> Iterator[tuple[TextBatch, int]]:
        """All captions once, in random order; some of about one length together, each with its number."""
        for rows in alike_in_length(self.captions.lengths, size, WINDOW, rng):
            yield self._batch(rows, size, max_tokens, rng), len(rows)

    def _batch(self, rows: np.ndarray, size: int, max_tokens: int, rng: np.random.Generator) -> TextBatch:
        inputs, targets = self.captions.inputs_and_targets(rows, size, max_tokens)
        content_vectors = np.zeros((size, self.content_vectors.shape[1]), np.float32)
        scatter = rng.standard_normal((len(rows), self.content_vectors.shape[1])) @ self.noise.T
        content_vectors[: len(rows)] = self.content_vectors[rows] + scatter
        return TextBatch(inputs, targets, content_vectors)


def _copy_photos(
    pairs: pl.DataFrame,
    shards: Sequence[Path],
    kind: str,
    scratch: Path,
    content_embedding: ContentEmbedding | None,
) -> tuple[ScratchRows | None, list[str], np.ndarray]:
    wanted, rows, photo_ids = pairs.select("photo_id").unique(), None, []
    content_vectors = [np.zeros((0, content_embedding.size if content_embedding else 0), np.float32)]
    columns = ["photo_id", "pooled", "regions"] if kind == "attention" else ["photo_id", "pooled"]
    for shard in shards:
        frame = pl.read_parquet(shard, columns=columns)
        frame = frame.join(wanted, on="photo_id", how="semi", maintain_order="left")
        if frame.is_empty():
            continue
        values = photo_tensor(frame, kind)
        rows = rows or ScratchRows(scratch, values.shape[1:])
        rows.append(values)
        photo_ids += frame["photo_id"].to_list()
        content_vectors.append(
            content_embedding.of_photos(frame)
            if content_embedding
            else np.zeros((frame.height, 0), np.float32)
        )
    return rows, photo_ids, np.concatenate(content_vectors)


def _copy_states(
    pairs: pl.DataFrame, shards: Sequence[Path], scratch: Path
) -> tuple[ScratchRows | None, pl.DataFrame]:
    wanted, rows = pairs.select("caption_id"), None
    places = [pl.DataFrame(schema={"caption_id": pl.String, "first_state": pl.Int64})]
    for shard in shards:
        frame = pl.read_parquet(shard, columns=["caption_id", "states"])
        frame = frame.join(wanted, on="caption_id", how="semi", maintain_order="left")
        if frame.is_empty():
            continue
        values = tensor(frame["states"].explode(empty_as_null=False))
        rows = rows or ScratchRows(scratch, values.shape[1:])
        firsts = rows.rows + np.cumsum(frame["states"].list.len().to_numpy().astype(np.int64))
        firsts -= frame["states"].list.len().to_numpy()
        places.append(frame.select("caption_id", first_state=pl.Series(firsts, dtype=pl.Int64)))
        rows.append(values)
    return rows, pl.concat(places)
