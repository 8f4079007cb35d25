"""How well captions agree with what the content embedding of a photograph predicts of them, while they
still grow.

The CIDEr to be expected of a caption is the mean of four cosines, one for each length of n-grams: between
what it holds and what people's captions of the photograph are expected to hold. Each token that is written
completes up to four n-grams, which add to a product and to a square; so a search can count, among all tokens
that could follow, what each would bring, and need not hope that what is likely also agrees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cutline.schemas.errors import StaleModel
from cutline.tasks.models.content_embedding import LONGEST, LONGEST_CAPTION
from cutline.tasks.runtime.memory import by_reference
from cutline.tasks.text.vocabulary import PAD, UNK

if TYPE_CHECKING:
    import tensorflow as tf

    from cutline.tasks.models.content_embedding import ContentEmbedding


class NGrams(NamedTuple):
    """What the n-grams of captions, (…), come to.

    A word that comes again adds to the squares alone: CIDEr-D counts it no more often than people do, who
    seldom write it twice. Pairs of words and more count each time that they come, which is seldom twice.
    """

    latest: tf.Tensor  # (…, LONGEST - 1) int32, the numbers of those of 1, 2, 3 tokens that end each caption
    shared: tf.Tensor  # (…, LONGEST) float32, their worth times what is predicted of them, summed
    squares: tf.Tensor  # (…, LONGEST) float32, their worth squared, summed

    def expected_cider(self) -> tf.Tensor:
        """The CIDEr to be expected of captions that end here, (…), about 0 to 10; lengths do not matter."""
        import tensorflow as tf

        cosines = tf.math.divide_no_nan(self.shared, tf.sqrt(self.squares))
        return 10 / LONGEST * tf.reduce_sum(cosines, -1)


@dataclass(frozen=True)
class ExpectedCider:
    """A content embedding's n-grams, laid out to be found from the one before and the token that follows it.

    They are numbered as in the content embedding; those that it does not know share the number G. Whoever
    holds an n-gram holds the one without its last token, so that all known ones are found in this way.
    """

    single: np.ndarray  # (V,) int32, the number of each token alone
    keys: np.ndarray  # (M,) int64, rising: V times the number of the n-gram before, plus the token
    numbers: np.ndarray  # (M,) int32, of the n-grams of two tokens and more
    idf: np.ndarray  # (G + 1,) float32
    mean: np.ndarray  # (G + 1,) float32
    directions: np.ndarray  # (K, G + 1) float32
    length_weight: np.ndarray  # (LONGEST_CAPTION + 1,) float32

    @staticmethod
    def of(content_embedding: ContentEmbedding, vocabulary_size: int) -> ExpectedCider:
        """From what has been learned, for a vocabulary of so many tokens.

        Raises StaleModel where the n-grams hold others.
        """
        unknown = len(content_embedding.grams)
        if (
            unknown
            and not 0 <= content_embedding.grams.min() <= content_embedding.grams.max() < vocabulary_size
        ):
            raise StaleModel(
                f"the content embedding's n-grams hold tokens from {content_embedding.grams.min()} to "
                f"{content_embedding.grams.max()}, the vocabulary has {vocabulary_size:,}; train again"
            )
        numbers = {
            tuple(i for i in gram if i != PAD): n for n, gram in enumerate(content_embedding.grams.tolist())
        }
        single = np.full(vocabulary_size, unknown, np.int32)
        longer = {np.iinfo(np.int64).max: unknown}  # so that there is a key after every other
        for gram, number in numbers.items():
            if len(gram) == 1:
                single[gram[0]] = number
            elif gram[:-1] in numbers:
                longer[numbers[gram[:-1]] * vocabulary_size + gram[-1]] = number
        keys = sorted(longer)
        return ExpectedCider(
            single=single,
            keys=np.array(keys, np.int64),
            numbers=np.array([longer[key] for key in keys], np.int32),
            idf=np.append(content_embedding.idf, content_embedding.unknown_idf).astype(np.float32),
            mean=np.append(content_embedding.mean, 0).astype(np.float32),
            directions=np.pad(content_embedding.directions.T, [(0, 0), (0, 1)]).astype(np.float32),
            length_weight=content_embedding.length_weight,
        )

    def predicted(self, content_vectors: tf.Tensor) -> tf.Tensor:
        """What captions of photographs of these content vectors are expected to hold: (N, K) -> (N, G + 1)
        float32."""
        import tensorflow as tf

        return self.mean + tf.matmul(content_vectors, by_reference(self.directions))

    def begun(self, *shape: int) -> NGrams:
        """Those of captions without a token, of so many in each dimension."""
        import tensorflow as tf

        unknown = len(self.idf) - 1
        none = tf.zeros((*shape, LONGEST))
        return NGrams(tf.fill((*shape, LONGEST - 1), unknown), none, none)

    def extended(
        self, ngrams: NGrams, tokens: tf.Tensor, written: tf.Tensor, predicted: tf.Tensor, again: tf.Tensor
    ) -> NGrams:
        """Those of each caption, (B, K), followed by each of `tokens`, (B, K, N), as (B, K, N).

        `written`, (B,), is how many tokens the captions had; what is no word changes nothing. `predicted` is
        (B, G + 1); `again`, (B, K, N) int32, how often each caption holds the token already.
        """
        import tensorflow as tf

        is_word = (tokens > UNK)[..., None]
        before = tf.cast(ngrams.latest, tf.int64)[:, :, None] * len(self.single)
        keys = before + tf.cast(tokens, tf.int64)[..., None]  # (B, K, N, LONGEST - 1)
        place = tf.reshape(tf.searchsorted(self.keys, tf.reshape(keys, (-1,))), tf.shape(keys))
        unknown = len(self.idf) - 1
        longer = tf.where(tf.gather(self.keys, place) == keys, tf.gather(self.numbers, place), unknown)
        found = tf.concat([tf.gather(self.single, tokens)[..., None], longer], -1)  # (B, K, N, LONGEST)
        is_there = is_word & (written[:, None, None, None] >= np.arange(LONGEST, dtype=np.int32))
        idf = tf.where(is_there, tf.gather(self.idf, found), 0.0)
        share = tf.gather(predicted, tf.reshape(found, (found.shape[0], -1)), batch_dims=1)
        share = tf.reshape(share, tf.shape(found))
        alone = tf.cast(again, tf.float32)[..., None] * ([1.0] + [0.0] * (LONGEST - 1))
        return NGrams(
            tf.where(is_word, found[..., :-1], ngrams.latest[:, :, None]),
            ngrams.shared[:, :, None] + tf.where(alone > 0, 0.0, idf * share),
            ngrams.squares[:, :, None] + idf**2 * (2 * alone + 1),  # from (n w)² to ((n + 1) w)²
        )

    def weight_of_length(self, tokens: tf.Tensor) -> tf.Tensor:
        """What CIDEr-D leaves of captions of so many tokens, on average beside a training caption.

        (...) int32 -> (...) float32, 0 to 1.
        """
        import tensorflow as tf

        return tf.gather(self.length_weight, tf.minimum(tokens, LONGEST_CAPTION))
