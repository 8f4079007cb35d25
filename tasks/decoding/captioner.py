"""Captions for photographs: the trained model, searched; and where it looks while it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from cutline.schemas.errors import SchemaMismatch, StaleModel, UsageError
from cutline.schemas.settings import FusionSettings, LanguageModelSettings, PredictionsSettings
from cutline.schemas.tables import dtypes_of
from cutline.tasks.decoding.beam_search import IMPOSSIBLE, MOST, BeamSearch, Hypotheses, Words
from cutline.tasks.decoding.relevance import Relevance
from cutline.tasks.models.content_embedding import CONTENT_EMBEDDING, ContentEmbedding
from cutline.tasks.models.content_neighbours import CONTENT_NEIGHBOURS, ContentNeighbours
from cutline.tasks.models.fusion import WEIGHTS as FUSION
from cutline.tasks.models.fusion import Fusion, load_fusion, photo_tensor
from cutline.tasks.models.joint_embedding import JOINT_EMBEDDING, JointEmbedding
from cutline.tasks.models.language_model import WEIGHTS as LANGUAGE_MODEL
from cutline.tasks.models.language_model import LanguageModel, load_language_model
from cutline.tasks.models.lstm import rows_alike
from cutline.tasks.models.novelty import Novelty
from cutline.tasks.storage.tables import list_column, read_table
from cutline.tasks.text.encoding import encode
from cutline.tasks.text.tokenizer import as_text, tokenize
from cutline.tasks.text.vocabulary import START, UNK

MODEL_FILES = {
    "language_model": LANGUAGE_MODEL,
    "fusion": FUSION,
    "reference_photos": "reference_photos.parquet",
    "content_embedding": CONTENT_EMBEDDING,
    "vocabulary": "vocabulary.parquet",
    "joint_embedding": JOINT_EMBEDDING,
    "content_neighbours": CONTENT_NEIGHBOURS,
}
# A pass takes its time however few of its rows are photographs, so that few are searched in small passes.
FEW = 8


class ModelFiles(NamedTuple):
    """Where the files of a trained model lie; MODEL_FILES are their names in a bundle."""

    language_model: Path
    fusion: Path
    reference_photos: Path
    content_embedding: Path
    vocabulary: Path
    joint_embedding: Path
    content_neighbours: Path

    @staticmethod
    def within(folder: Path) -> ModelFiles:
        """Those of a bundle."""
        return ModelFiles(**{name: folder / file for name, file in MODEL_FILES.items()})


@dataclass
class Captioner:
    """A trained model that writes captions; the search is compiled once and kept."""

    language_model: LanguageModel
    fusion: Fusion
    vocabulary: list[str]
    novelty: Novelty
    joint_embedding: JointEmbedding | None = None  # by which captions are held against their photograph
    content_neighbours: ContentNeighbours | None = (
        None  # those of a photograph have a say in its content embedding
    )
    _searches: dict[tuple[int, PredictionsSettings], Any] = field(default_factory=dict)

    @staticmethod
    def load(
        files: ModelFiles, lm_settings: LanguageModelSettings, fusion_settings: FusionSettings, channels: int
    ) -> Captioner:
        """For features of `channels` numbers a region (512 for VGG-16).

        Raises StaleModel where a file does not fit.
        """
        try:
            known = read_table(files.reference_photos, "reference_photos", channels=channels)
        except (SchemaMismatch, OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise StaleModel(
                f"'{files.reference_photos}' does not hold pooled features: {error}; train again"
            ) from None
        tokens = read_table(files.vocabulary, "vocabulary").sort("id")["token"].to_list()
        words = load_language_model(files.language_model, len(tokens), lm_settings)
        content_embedding, joint_embedding = (
            ContentEmbedding.load(files.content_embedding, known),
            JointEmbedding.load(files.joint_embedding),
        )
        shape = len(joint_embedding.photo), len(joint_embedding.state)
        if shape != (channels, lm_settings.state_size):
            raise StaleModel(
                f"'{files.joint_embedding}' is for features of {shape[0]:,} channels and states of "
                f"{shape[1]:,} numbers, expected {channels:,} and {lm_settings.state_size:,}; train again"
            )
        content_neighbours = ContentNeighbours.load(
            files.content_neighbours, len(joint_embedding.text_bias), content_embedding.size
        )
        return Captioner(
            words,
            load_fusion(files.fusion, words, channels, fusion_settings, lm_settings, content_embedding),
            tokens,
            Novelty.of(known),
            joint_embedding,
            content_neighbours or None,
        )

    def caption_photos(
        self, features: pl.DataFrame, settings: PredictionsSettings, advance: Callable[[int], None]
    ) -> pl.DataFrame:
        """The `predictions` of the photographs in the `image_features` table, in its order.

        `score` is the log-probability a token, <end> counted; `distance` is told in
        tasks/models/novelty.py; `alternatives` are the best captions with their scores, best first, itself
        among them. Best of what the search has found is that of which the highest CIDEr is to be expected
        (`expected_cider`) and which fits the photograph (`relevance`), or else what has the highest score.
        A row does not depend on the others. `advance` is told of photographs. Raises UsageError where the
        vocabulary holds no word, StaleModel where the content embedding is of another one.
        """
        photos = photo_tensor(features, self.fusion.settings.kind)
        found: list[list[dict[str, Any]]] = []
        for place in range(0, len(photos), MOST):
            batch = photos[place : place + MOST]
            found += self._alternatives(self.search(batch, settings), len(batch), settings.alternatives)
            advance(len(batch))
        return pl.DataFrame(
            {
                "photo_id": features["photo_id"],
                "caption": [captions[0]["caption"] for captions in found],
                "score": [captions[0]["score"] for captions in found],
                "distance": self.novelty.distances(features),
                "alternatives": found,
            },
            schema=dtypes_of("predictions"),
        )

    def search(self, photos: np.ndarray, settings: PredictionsSettings) -> Hypotheses:
        """The best captions of at most MOST photographs, (N, R, C) float16. Raises as `caption_photos`."""
        few = len(photos) <= settings.batch_size // 2
        slots = rows_alike(min(FEW, settings.batch_size) if few else settings.batch_size, settings.beam)
        key = (slots, settings)
        if key not in self._searches:
            self._searches[key] = BeamSearch(
                self.language_model,
                self.fusion,
                Words.of(self.vocabulary),
                settings.beam,
                settings.max_tokens,
                slots,
                settings.cider_weight,
                settings.word_penalty,
                Relevance.of(self.joint_embedding, self.vocabulary) if self.joint_embedding else None,
                self.content_neighbours if settings.neighbour_weight else None,
                settings.neighbour_weight,
            ).compiled()
        return Hypotheses(*(values.numpy() for values in self._searches[key](photos)))

    def attention(self, features: pl.DataFrame, captions: pl.DataFrame) -> pl.DataFrame:
        """The `attention` table of the photographs in `features` that have a row in `captions`.

        `features` has photo_id and regions, `captions` photo_id and caption. Raises as `attention_maps`.
        """
        content_targets = captions.unique("photo_id").select("photo_id", "caption")
        rows = features.join(content_targets, on="photo_id", how="inner", maintain_order="left")
        words = [tokenize(text) for text in rows["caption"]]
        maps = self.attention_maps(rows, words)
        ends = np.cumsum([len(some) for some in words], dtype=np.int64)
        values = np.concatenate(maps) if maps else np.zeros((0, rows["regions"].dtype.shape[0]))  # type: ignore[attr-defined]
        return pl.DataFrame(
            [
                rows["photo_id"],
                pl.Series("words", words, pl.List(pl.String)),
                list_column("weights", values.astype(np.float32), ends),
            ]
        )

    def attention_maps(self, features: pl.DataFrame, captions: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Where the model looks while it writes these captions, one a row of `features`.

        For each caption (T, R) float32: the share of attention on each region (row by row from
        the top left) just before each of its T tokens, the mean of all heads; each row sums to 1.
        Raises UsageError for a model without attention.
        """
        if self.fusion.settings.kind != "attention":
            raise UsageError(
                "a model of the kind 'concat' does not look at regions: train with fusion.kind=attention"
            )
        photos = photo_tensor(features, "attention")
        tokens = pl.Series(captions, dtype=pl.List(pl.String))
        words = encode(tokens, pl.DataFrame({"token": self.vocabulary, "id": range(len(self.vocabulary))}))
        return [
            self._attention_map(photos[i : i + 1], words.ids[words.starts[i] : words.starts[i + 1]])
            for i in range(len(photos))
        ]

    def _attention_map(self, photo: np.ndarray, words: np.ndarray) -> np.ndarray:
        if not len(words):
            return np.zeros((0, photo.shape[1]), np.float32)
        read = np.concatenate([[START], words[:-1]]).astype(np.int32)[None]
        states = self.language_model.lstm(self.language_model.embedding(read))
        memory = self.fusion.encode(photo.astype(np.float32))
        return np.asarray(self.fusion.attend(memory.keys, states))[0].mean(0)

    def _alternatives(self, found: Hypotheses, photos: int, count: int) -> list[list[dict[str, Any]]]:
        return [
            self._distinct(found.tokens[i], found.score[i], found.log_probability[i] > IMPOSSIBLE / 10, count)
            for i in range(photos)
        ]

    def _distinct(
        self, tokens: np.ndarray, scores: np.ndarray, real: np.ndarray, count: int
    ) -> list[dict[str, Any]]:
        captions: dict[str, float] = {}
        for ids, score in zip(tokens[real], scores[real], strict=True):
            captions.setdefault(self.text(ids), min(float(score), 0.0))
        return [{"caption": caption, "score": score} for caption, score in list(captions.items())[:count]]

    def text(self, ids: np.ndarray) -> str:
        """A caption's words, without the special tokens: (T,) token ids -> text."""
        return as_text(self.vocabulary[i] for i in ids if i > UNK)
