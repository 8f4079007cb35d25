"""Beam search for many photographs at once, compiled into one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cutline.schemas.errors import UsageError
from cutline.tasks.decoding.expected_cider import ExpectedCider
from cutline.tasks.decoding.relevance import Relevance
from cutline.tasks.models.fusion import Memory
from cutline.tasks.text.vocabulary import END, PAD, START, UNK

if TYPE_CHECKING:
    import tensorflow as tf

    from cutline.tasks.decoding.expected_cider import NGrams
    from cutline.tasks.models.content_neighbours import ContentNeighbours
    from cutline.tasks.models.fusion import Fusion
    from cutline.tasks.models.language_model import LanguageModel, Step


# A caption that ends in one of these has been cut off. Two of them in a row ("in a") may come twice in a
# caption; any other pair of words that comes twice is a repeated phrase, and any other word that comes
# twice agrees no better with what is to be expected.
NEEDS_MORE = frozenset(
    [
        "a",
        "an",
        "the",
        "this",
        "that",
        "these",
        "those",
        "his",
        "their",
        "its",
        "my",
        "your",
        "our",
        "'s",
        "of",
        "and",
        "or",
        "but",
        "with",
        "without",
        "at",
        "to",
        "from",
        "by",
        "for",
        "in",
        "on",
        "into",
        "onto",
        "inside",
        "over",
        "under",
        "near",
        "behind",
        "between",
        "beside",
        "through",
        "during",
        "against",
        "toward",
        "towards",
        "above",
        "below",
        "across",
        "around",
        "along",
        "as",
        "while",
        "who",
        "which",
        "whose",
        "where",
        "is",
        "are",
        "was",
        "were",
        "be",
        "being",
    ]
)
RULE_BROKEN = 1_000.0  # nats: more than any caption's probability can make up for
IMPOSSIBLE = -1e30
MOST_REPEATS = 2  # times that a caption holds a word, if there is another way; for words not of NEEDS_MORE
BLOCK = 64  # tokens, of which the largest is found at once
MOST = 512  # photographs of one search, which keeps some 240 kB of each
ENCODED = 24  # photographs that are encoded at once (tasks/models/lstm.py tells why as many)
PREDICTED, VECTOR = "foretold", "vector"  # their names beside what the fusion keeps
RELEVANCE_WEIGHT = 1.0  # CIDEr that a cosine of 1 with the photograph stands for in the last choice
FREE = 4  # slots that are filled at once, as each time costs as much as some slots' steps


@dataclass(frozen=True)
class Words:
    """What the search knows of each token: may it be written, must another follow; (V,) bool each."""

    written: np.ndarray
    needs_more: np.ndarray

    @staticmethod
    def of(tokens: Sequence[str]) -> Words:
        """From the vocabulary's tokens by id. Raises UsageError where it holds no word."""
        if len(tokens) <= UNK + 1:
            raise UsageError(
                "the vocabulary holds no word, so no caption can be written; lower vocabulary.min_count"
            )
        written = np.arange(len(tokens)) > UNK
        return Words(written, np.array([token in NEEDS_MORE for token in tokens]) & written)


@dataclass(frozen=True)
class Hypotheses:
    """Captions found for each photograph, best first.

    tokens (B, K, max_tokens + 1) int32, filled up with <pad> after <end>; log_probability (B, K)
    float32, of all tokens and the <end>; length (B, K) float32, counting the <end>. Where there
    are fewer than K captions, the rest has a log_probability below -1e29.
    """

    tokens: np.ndarray
    log_probability: np.ndarray
    length: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """Log-probability a token, (B, K)."""
        return self.log_probability / self.length


class Slots(NamedTuple):
    """B photographs whose captions grow, K each; another takes the place of one whose captions have ended."""

    photo: tf.Tensor  # (B,) int32, the number of each; that of no photograph is their count
    step: tf.Tensor  # (B,) int32, tokens written so far
    tokens: tf.Tensor  # (B, K, max_tokens + 1) int32
    last: tf.Tensor  # (B, K) int32, the latest token
    states: tf.Tensor  # (B, K, state_size), of the language model
    cells: tf.Tensor
    log_probability: tf.Tensor  # (B, K)
    broken: tf.Tensor  # (B, K), by how much rules were broken
    length: tf.Tensor  # (B, K), tokens with the <end>
    ngrams: NGrams | tuple[()]  # (B, K); of nobody's where there is no agreement to count
    selection: (
        tf.Tensor | tuple[()]
    )  # (B, K, state_size), the states at content words, summed; where fit counts

    def ended(self) -> tf.Tensor:
        """Which captions grow no more, (B, K)."""
        return (self.last == END) | (self.last == PAD)

    def free(self) -> tf.Tensor:
        """Where no caption grows, (B,)."""
        import tensorflow as tf

        return tf.reduce_all(self.ended(), 1)


@dataclass(frozen=True)
class BeamSearch:
    """Searches the captions of `batch_size` photographs at a time; beam 1 is greedy.

    Partial captions are compared by their log-probability a token and `cider_weight` times the CIDEr to be
    expected of them, less `word_penalty` for each token, ended ones beside those still growing. No special
    token is written; a caption has at least one word; where there is another way it ends in none of
    NEEDS_MORE, repeats no word at once, no pair of words unless both are of NEEDS_MORE, and holds no other
    word more than MOST_REPEATS times. With a `cider_weight`, the captions found are sorted by the expected
    CIDEr, less what CIDEr-D and `word_penalty` take off for their length, and by their relevance to the
    photograph (`relevance`), if given. `share` is the weight of the captions of the photograph's
    `content_neighbours` in what is expected, times how far these are trusted.

    Of a batch that begins together one caption is nearly always still growing at the last step, so each
    photograph has a slot, and another takes it once all its captions have ended. There are as many slots at
    every step: products of matrices of one shape give a row the same bits, whatever the others hold.
    """

    language_model: LanguageModel
    fusion: Fusion
    words: Words
    beam: int
    max_tokens: int
    batch_size: int
    cider_weight: float = 0.0
    word_penalty: float = 0.0
    relevance: Relevance | None = None
    content_neighbours: ContentNeighbours | None = None
    share: float = 0.0

    def compiled(self) -> Any:
        """The search as one graph: at most MOST photographs, (N, R, C) float16 -> what Hypotheses hold."""
        import tensorflow as tf

        read = self.language_model.stepper()
        return tf.function(
            lambda photos: self._search(photos, read),
            input_signature=[tf.TensorSpec((None, None, None), tf.float16)],
            autograph=False,
        )

    def _search(self, photos: tf.Tensor, read: Step) -> tuple[tf.Tensor, ...]:
        import tensorflow as tf

        count, known = tf.shape(photos)[0], self._encoded(photos)
        predicted, vectors = known.pop(PREDICTED, None), known.pop(VECTOR, tf.zeros((1, 0)))

        def fill_then_extend(waiting: tf.Tensor, slots: Slots, found: Any) -> tuple[Any, ...]:
            found = self._with_those_of(slots, vectors, found)
            waiting, slots = self._filled(waiting, count, slots)
            place = tf.minimum(slots.photo, count - 1)
            memory = {name: tf.gather(values, place) for name, values in known.items()}
            expected = None if predicted is None else tf.gather(predicted, place)
            enough = tf.where(waiting < count, min(FREE, self.batch_size), self.batch_size)
            slots = tf.while_loop(
                lambda *slots: tf.math.count_nonzero(Slots(*slots).free(), dtype=tf.int32) < enough,
                lambda *slots: self._extended(Slots(*slots), memory, expected, read),
                slots,
            )
            return waiting, Slots(*slots), found

        nobody = self._begun(tf.fill((self.batch_size,), count), count)
        _, slots, found = tf.while_loop(
            lambda waiting, *_: waiting < count,
            fill_then_extend,
            (tf.constant(0), nobody, self._nothing(count + 1, nobody, vectors)),
        )
        return tuple(values[:count] for values in self._with_those_of(slots, vectors, found))

    def _encoded(self, photos: tf.Tensor) -> dict[str, tf.Tensor]:
        """What the fusion keeps of each photograph, by name, with what is predicted of its captions and its
        vector; the last batch is filled up."""
        import tensorflow as tf

        batches = -(-tf.shape(photos)[0] // ENCODED)
        photos = tf.pad(photos, [[0, batches * ENCODED - tf.shape(photos)[0]], [0, 0], [0, 0]])

        def encode(some: tf.Tensor) -> dict[str, tf.Tensor]:
            some = tf.cast(some, tf.float32)
            content_vectors = self.fusion.content_vectors(some)
            more = {VECTOR: self._relevance.photo_vectors(some)} if self._relevance else {}
            if self._expected_cider:
                told = self._told_by_neighbours(content_vectors, more.get(VECTOR))
                more[PREDICTED] = self._expected_cider.predicted(told)
            return self.fusion.encode(some, content_vectors=content_vectors).kept() | more

        one = encode(photos[:1])
        signature = {name: tf.TensorSpec((ENCODED, *x.shape[1:]), x.dtype) for name, x in one.items()}
        known = tf.map_fn(
            lambda i: encode(photos[i * ENCODED : (i + 1) * ENCODED]),
            tf.range(batches),
            fn_output_signature=signature,
            parallel_iterations=1,
        )
        return {
            name: tf.reshape(x, tf.concat([[batches * ENCODED], tf.shape(x)[2:]], 0))
            for name, x in known.items()
        }

    def _told_by_neighbours(self, content_vectors: tf.Tensor, vectors: tf.Tensor | None) -> tf.Tensor:
        """The content vectors (N, K) of photographs with these vectors (N, size), after their neighbours
        had a say."""
        if vectors is None or not self.content_neighbours:
            return content_vectors
        share = self.share * self.content_neighbours.trust
        return (1 - share) * content_vectors + share * self.content_neighbours.told(vectors, content_vectors)

    def _filled(self, waiting: tf.Tensor, count: tf.Tensor, slots: Slots) -> tuple[tf.Tensor, Slots]:
        """The next photographs, from the number `waiting` on, in all free slots."""
        import tensorflow as tf

        free = slots.free()
        upto = waiting + tf.cumsum(tf.cast(free, tf.int32))
        photo = tf.where(free, tf.minimum(upto - 1, count), slots.photo)

        def put(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
            return tf.where(tf.reshape(free, (-1, *[1] * (len(old.shape) - 1))), new, old)

        return upto[-1], tf.nest.map_structure(put, self._begun(photo, count), slots)

    def _begun(self, photo: tf.Tensor, count: tf.Tensor) -> Slots:
        """Slots of these photographs before the first step; the captions of none have ended."""
        import tensorflow as tf

        rows, beam, size = self.batch_size, self.beam, self.language_model.lstm.units
        is_photo = photo[:, None] < count
        return Slots(
            photo=photo,
            step=tf.zeros((rows,), tf.int32),
            tokens=tf.fill((rows, beam, self.max_tokens + 1), PAD),
            last=tf.tile(tf.where(is_photo, START, END), (1, beam)),
            states=tf.zeros((rows, beam, size)),
            cells=tf.zeros((rows, beam, size)),
            # All beams begin as the same caption.
            log_probability=tf.tile([[0.0] + [IMPOSSIBLE] * (beam - 1)], (rows, 1)),
            broken=tf.zeros((rows, beam)),
            length=tf.tile(tf.where(is_photo, 0.0, 1.0), (1, beam)),
            ngrams=self._expected_cider.begun(rows, beam) if self._expected_cider else (),
            selection=tf.zeros((rows, beam, size)) if self._relevance else (),
        )

    def _extended(
        self, slots: Slots, memory: dict[str, tf.Tensor], predicted: tf.Tensor | None, read: Step
    ) -> Slots:
        """Each caption by one token, and of all these the best; those of a photograph compete."""
        import tensorflow as tf

        rows, beam, size = slots.states.shape
        states, cells = read(
            tf.reshape(slots.last, (-1,)),
            tf.reshape(slots.states, (rows * beam, size)),
            tf.reshape(slots.cells, (rows * beam, size)),
        )
        states, cells = tf.reshape(states, (rows, beam, size)), tf.reshape(cells, (rows, beam, size))
        logits = self.fusion.logits(Memory(**memory), states)  # (B, K, V)
        following, gained, rules = self._candidates(slots, logits)  # (B, K, N)
        ended = slots.ended()
        only_pad = tf.one_hot(0, following.shape[-1], on_value=0.0, off_value=IMPOSSIBLE)
        following = tf.where(ended[..., None], PAD, following)
        gained = tf.where(ended[..., None], only_pad, gained)
        rules = tf.where(ended[..., None], 0.0, rules)
        total = slots.log_probability[..., None] + gained
        broken = slots.broken[..., None] + RULE_BROKEN * rules
        length = slots.length + tf.where(ended, 0.0, 1.0)
        rank = total / length[..., None] - broken
        ngrams = slots.ngrams
        if self._expected_cider and ngrams:
            again = self._said_before(following, slots.tokens)
            ngrams = self._expected_cider.extended(ngrams, following, slots.step, predicted, again)
            idf = ngrams.expected_cider() - self.word_penalty * length[..., None]
            rank += self.cider_weight * idf
        _, chosen = tf.math.top_k(tf.reshape(rank, (rows, -1)), beam)  # (B, K) of beam * N
        parent = chosen // following.shape[-1] + beam * np.arange(rows, dtype=np.int32)[:, None]

        def of_candidate(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(tf.reshape(values, (rows, -1, *values.shape[3:])), chosen, batch_dims=1)

        def of_parent(values: tf.Tensor) -> tf.Tensor:
            return tf.gather(tf.reshape(values, (rows * beam, *values.shape[2:])), parent)

        token = of_candidate(following)
        here = tf.one_hot(slots.step, self.max_tokens + 1, on_value=True, off_value=False, dtype=tf.bool)
        return Slots(
            photo=slots.photo,
            step=slots.step + 1,
            tokens=tf.where(here[:, None], token[..., None], of_parent(slots.tokens)),
            last=tf.where(slots.step[:, None] < self.max_tokens, token, END),
            states=of_parent(states),
            cells=of_parent(cells),
            log_probability=of_candidate(total),
            broken=of_candidate(broken),
            length=of_parent(length),
            ngrams=tf.nest.map_structure(of_candidate, ngrams),
            selection=of_parent(self._relevance.selection(slots.selection, slots.last, states))
            if self._relevance
            else (),
        )

    def _candidates(self, slots: Slots, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The most likely N = min(K, V) tokens to follow each caption, of which agreement has its choice.

        logits (B, K, V) -> tokens, their log-probability, how many rules each breaks, (B, K, N) each.
        """
        import tensorflow as tf

        forbidden, at_the_end = self._by_step()
        step = tf.minimum(slots.step, self.max_tokens)
        # The few tokens that break another rule are taken down where they stand: a table of all
        # tokens for each rule would cost as much as the output layer.
        ranked = logits + tf.gather(forbidden - RULE_BROKEN * at_the_end, step)[:, None]
        repeated = [self._repeating(slots.tokens, slots.last, slots.step), self._overused(slots.tokens)]
        repeating = self._places(tf.concat(repeated, -1))
        ranked = tf.tensor_scatter_nd_update(ranked, repeating, tf.gather_nd(ranked, repeating) - RULE_BROKEN)
        dangling = tf.where(tf.gather(tf.constant(self.words.needs_more), slots.last), END, PAD)
        # The same word again, or an <end> too early.
        both = self._places(tf.stack([slots.last, dangling], -1))
        ranked = tf.tensor_scatter_nd_sub(ranked, both, tf.fill(both.shape[:-1], RULE_BROKEN))
        best, chosen = _largest(ranked, min(self.beam, logits.shape[-1]))
        found = tf.gather_nd(logits, self._places(chosen))
        found += tf.gather(forbidden.ravel(), step[:, None, None] * forbidden.shape[1] + chosen)
        rules = tf.round((found - best) / RULE_BROKEN)
        return chosen, found - tf.reduce_logsumexp(logits, -1, keepdims=True), rules

    def _by_step(self) -> tuple[np.ndarray, np.ndarray]:
        """What each token loses at each step for being impossible there; and whether, as the last but <end>,
        it would need another to follow. (max_tokens + 1, V) float32 each."""
        step = np.arange(self.max_tokens + 1)[:, None]
        is_end = np.arange(len(self.words.written)) == END
        allowed = (self.words.written & (step < self.max_tokens)) | (is_end & (step > 0))
        at_the_end = self.words.needs_more & (step == self.max_tokens - 1)
        return np.where(allowed, 0.0, IMPOSSIBLE).astype(np.float32), at_the_end.astype(np.float32)

    def _repeating(self, tokens: tf.Tensor, last: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """The tokens that followed `last` before and must not follow it again, (B, K, T - 1), else <pad>.

        A pair of words of NEEDS_MORE, such as "in the", may come again, but not at once ("in the in the").
        """
        import tensorflow as tf

        needs_more = tf.constant(self.words.needs_more)
        before, after = tokens[:, :, :-1], tokens[:, :, 1:]
        at_once = tf.range(tokens.shape[-1] - 1) >= step[:, None] - 3
        may_repeat = tf.gather(needs_more, before) & tf.gather(needs_more, after) & ~at_once[:, None]
        return tf.where((before == last[..., None]) & ~may_repeat, after, PAD)

    def _overused(self, tokens: tf.Tensor) -> tf.Tensor:
        """The words that a caption holds MOST_REPEATS times, none of NEEDS_MORE, (B, K, T); else <pad>."""
        import tensorflow as tf

        return tf.where(self._said_before(tokens, tokens) >= MOST_REPEATS, tokens, PAD)

    def _said_before(self, following: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """How often the captions `tokens`, (B, K, T), hold each token of `following`, (B, K, N); of words
        that need another, which people repeat too, never."""
        import tensorflow as tf

        times = tf.math.count_nonzero(following[..., None] == tokens[:, :, None], -1, dtype=tf.int32)
        return tf.where(tf.gather(tf.constant(self.words.needs_more), following), 0, times)

    @cached_property
    def _expected_cider(self) -> ExpectedCider | None:
        content_embedding = self.fusion.content_embedding
        return (
            ExpectedCider.of(content_embedding, len(self.words.written))
            if content_embedding and self.cider_weight
            else None
        )

    @property
    def _relevance(self) -> Relevance | None:
        return self.relevance if self._expected_cider else None

    def _found(self, slots: Slots, vectors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """What Hypotheses hold of the photographs in the slots, of which the `vectors` are those of all."""
        import tensorflow as tf

        found = slots.tokens, slots.log_probability, slots.length  # best first, as a step leaves them
        if not self._expected_cider or not slots.ngrams:
            return found
        words = tf.math.count_nonzero(slots.tokens > UNK, -1, dtype=tf.int32)
        idf = slots.ngrams.expected_cider() * self._expected_cider.weight_of_length(words)
        idf -= self.word_penalty * tf.cast(words, tf.float32)
        if self._relevance:
            own = tf.gather(vectors, tf.minimum(slots.photo, tf.shape(vectors)[0] - 1))
            idf += RELEVANCE_WEIGHT * self._relevance.of_captions(slots.tokens, slots.selection, own)
        is_there = slots.log_probability > IMPOSSIBLE / 10
        rank = tf.where(is_there, idf - slots.broken, IMPOSSIBLE)
        best = tf.argsort(rank, direction="DESCENDING", stable=True)
        return tuple(tf.gather(values, best, batch_dims=1) for values in found)

    def _nothing(self, rows: tf.Tensor, slots: Slots, vectors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Room for what is found of so many photographs."""
        import tensorflow as tf

        found = self._found(slots, vectors)
        return tuple(tf.zeros((rows, *values.shape[1:]), values.dtype) for values in found)

    def _with_those_of(
        self, slots: Slots, vectors: tf.Tensor, found: tuple[tf.Tensor, ...]
    ) -> tuple[tf.Tensor, ...]:
        """`found` with what the slots hold, each photograph's at its number."""
        import tensorflow as tf

        return tuple(
            tf.tensor_scatter_nd_update(table, slots.photo[:, None], values)
            for table, values in zip(found, self._found(slots, vectors), strict=True)
        )

    def _places(self, tokens: tf.Tensor) -> tf.Tensor:
        """Where tokens (B, K, N) stand in a table (B, K, V), (B, K, N, 3)."""
        import tensorflow as tf

        row, beam, _ = np.indices(tokens.shape, np.int32)
        return tf.stack([row, beam, tokens], -1)


def _largest(values: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """As `tf.math.top_k` of (B, K, V) in half the time: the largest lie in the blocks with the largest."""
    import tensorflow as tf

    rows, beam, size = values.shape
    blocks = -(-size // BLOCK)
    filled = tf.pad(values, [[0, 0], [0, 0], [0, blocks * BLOCK - size]], constant_values=-np.inf)
    filled = tf.reshape(filled, (rows, beam, blocks, BLOCK))
    _, nearest = tf.math.top_k(tf.reduce_max(filled, -1), min(count, blocks))
    nearest = tf.sort(nearest)  # of equal values the first is meant
    some = tf.reshape(tf.gather(filled, nearest, batch_dims=2), (rows, beam, -1))
    best, place = tf.math.top_k(some, count)
    return best, tf.gather(nearest, place // BLOCK, batch_dims=2) * BLOCK + place % BLOCK
