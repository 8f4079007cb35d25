"""Texts as vectors, and a page of what a search found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from cutline.schemas.errors import UsageError
from cutline.schemas.settings import LanguageModelSettings, TextFeaturesSettings
from cutline.tasks.features.text_features import make_text_features
from cutline.tasks.models.joint_embedding import JointEmbedding
from cutline.tasks.runtime.formatting import quoted
from cutline.tasks.storage.tables import tensor
from cutline.tasks.text.tokenizer import tokenize

TEXTS_PER_BATCH = 32


@dataclass(frozen=True)
class TextEncoder:
    """Brings any text into the common space, as the stages bring captions there."""

    joint_embedding: JointEmbedding
    language_model: Path
    vocabulary: pl.DataFrame
    lm_settings: LanguageModelSettings

    @staticmethod
    def load(
        joint_embedding: Path,
        language_model: Path,
        vocabulary: pl.DataFrame,
        lm_settings: LanguageModelSettings,
    ) -> TextEncoder:
        """Raises StaleModel where the projections are damaged; the language model is read later."""
        return TextEncoder(JointEmbedding.load(joint_embedding), language_model, vocabulary, lm_settings)

    def vectors(self, texts: pl.Series) -> np.ndarray:
        """(n, size) float32 of length 1. Raises StaleModel where the language model does not fit."""
        tokens = [tokenize(text) for text in texts]
        stopwords = set(self.joint_embedding.stopwords)
        content = [[token for token in some if token not in stopwords] for some in tokens]
        strings = pl.List(pl.String)
        frame = pl.DataFrame(
            {"caption_id": list(map(str, range(len(tokens)))), "tokens": tokens, "content_tokens": content},
            {"caption_id": pl.String, "tokens": strings, "content_tokens": strings},
        )
        return self.vectors_of(frame, TextFeaturesSettings(batch_size=TEXTS_PER_BATCH), lambda _: None)

    def vectors_of(
        self, tokens: pl.DataFrame, settings: TextFeaturesSettings, advance: Callable[[int], None]
    ) -> np.ndarray:
        """The same for the rows of a `tokens` table. Raises as `vectors`."""
        features = make_text_features(
            tokens, self.vocabulary, self.language_model, self.lm_settings, settings, advance
        )
        return self.joint_embedding.text_vectors(tensor(features["vector"]), tokens["content_tokens"])

    def unknown_words(self, text: str) -> list[str]:
        """The content words of a text that the model never learned.

        Raises UsageError where the text holds no word, only stop words, or no word that is known.
        """
        tokens = list(dict.fromkeys(tokenize(text)))
        if not tokens:
            raise UsageError(f"text: expected a word to search by, found '{text.strip()[:80]}'")
        stopwords = set(self.joint_embedding.stopwords)
        content = [token for token in tokens if token not in stopwords]
        if not content:
            raise UsageError(
                f"text: '{text.strip()[:80]}' holds stop words only, which every caption has; "
                "add what the photograph shows"
            )
        known = {*self.joint_embedding.words, *self.vocabulary["token"]}
        unknown = [token for token in content if token not in known]
        if len(unknown) == len(content):
            raise UsageError(
                f"text: no training caption has {quoted(unknown)}, so nothing can be found by it"
            )
        return unknown
