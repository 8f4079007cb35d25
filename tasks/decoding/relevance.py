"""How well captions fit their photograph, by their vectors in the joint embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cutline.tasks.models.joint_embedding import JointEmbedding
from cutline.tasks.runtime.memory import by_reference
from cutline.tasks.text.vocabulary import UNK

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True)
class Relevance:
    """A matching, laid out by the numbers of the vocabulary's tokens."""

    joint_embedding: JointEmbedding
    is_content: np.ndarray  # (V,) float32, 1 for words that are no stop words
    weights: np.ndarray  # (V,) float32, how telling each token is; 0 of those that the matching does not know
    words: np.ndarray  # (V, size) float32, where each token alone moves a text

    @staticmethod
    def of(joint_embedding: JointEmbedding, tokens: Sequence[str]) -> Relevance:
        """For a vocabulary of these tokens, by their numbers."""
        rows = {word: row for row, word in enumerate(joint_embedding.words)}
        known = [token in rows and token not in joint_embedding.stopwords for token in tokens]
        row = [rows[token] if is_known else -1 for token, is_known in zip(tokens, known, strict=True)]
        weights = np.append(joint_embedding.weights, 0)[row].astype(np.float32)
        words = np.append(joint_embedding.word, np.zeros((1, joint_embedding.word.shape[1])), 0)[row].astype(
            np.float32
        )
        is_content = np.array(
            [i > UNK and token not in joint_embedding.stopwords for i, token in enumerate(tokens)], np.float32
        )
        return Relevance(joint_embedding, is_content, weights, weights[:, None] * words)

    def photo_vectors(self, photos: tf.Tensor) -> tf.Tensor:
        """As `Matching.photo_vectors`: (N, R, C) float32 -> (N, size), of length 1."""
        import tensorflow as tf

        roots = tf.sqrt(tf.maximum(tf.reduce_mean(photos, 1), 0))
        photo = tf.matmul(tf.math.l2_normalize(roots, -1), by_reference(self.joint_embedding.photo))
        return tf.math.l2_normalize(photo + self.joint_embedding.photo_bias, -1)

    def selection(self, before: tf.Tensor, tokens: tf.Tensor, states: tf.Tensor) -> tf.Tensor:
        """The states at captions' content words, summed, (B, K, S), once `tokens`, (B, K), have been read."""
        import tensorflow as tf

        return before + tf.gather(self.is_content, tokens)[..., None] * states

    def of_captions(self, tokens: tf.Tensor, selection: tf.Tensor, photos: tf.Tensor) -> tf.Tensor:
        """The cosines of captions and their photograph, (B, K).

        tokens (B, K, T) int32; `meant` as above, of all of them; photos (B, size).
        """
        import tensorflow as tf

        weights = tf.gather(self.weights, tokens)  # (B, K, T)
        times = tf.math.count_nonzero(tokens[..., None] == tokens[:, :, None], -1, dtype=tf.int32)
        length = tf.sqrt(tf.reduce_sum(weights**2 * tf.cast(times, tf.float32), -1, keepdims=True))
        bag = tf.reduce_sum(tf.gather(by_reference(self.words), tokens), 2)
        content = tf.reduce_sum(tf.gather(self.is_content, tokens), -1)
        state = tf.math.divide_no_nan(selection, content[..., None])
        text = tf.matmul(state, by_reference(self.joint_embedding.state)) + tf.math.divide_no_nan(bag, length)
        text = tf.math.l2_normalize(text + self.joint_embedding.text_bias, -1)
        return tf.reduce_sum(text * photos[:, None], -1)
