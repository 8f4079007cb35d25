"""The content embedding of a photograph: a few numbers that predict which n-grams the captions of it hold.

Captions are compared as CIDEr compares them, by the weights of their n-grams. Latent semantic analysis
(Deerwester et al. 1990) of all training captions, photographed or not, finds the directions in which what is
said of photographs differs most. How captions of the same photograph differ does not count: that is up to
who writes, and no photograph tells it. Where a photograph's captions lie along these directions is predicted
from its pooled features by kernel ridge regression. That gives the CIDEr to be expected of any caption,
against captions which nobody has written yet (decoding/expected_cider.py), and so the one that agrees best
with them (minimum Bayes risk: Kumar and Byrne 2004).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from cutline.schemas.settings import ContentEmbeddingSettings
from cutline.tasks.models.content_embedding import (
    LONGEST,
    LONGEST_CAPTION,
    ContentEmbedding,
    GaussianKernel,
    landmarks_of,
)
from cutline.tasks.models.novelty import FEWEST, unit_pooled
from cutline.tasks.storage.tables import read_table, tensor_column
from cutline.tasks.text.encoding import Ragged, encode
from cutline.tasks.text.vocabulary import PAD, UNK
from cutline.tasks.training.caption_groups import Subjects, TrainedContent, of_whole_subjects

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


SIGMA = 6.0  # CIDEr-D: tokens of difference in length that cost a share 1 - 1/√e of the score
ROWS_AT_ONCE = 4096  # captions or photographs
ITERATIONS = 12  # of the analysis
LEAST_VARIANCE = 1e-8  # of what is predicted; that of captions is some hundred thousand times as much
LEAST_RIDGE = 1e-12  # where nothing varies
MOST_LEVERAGE = 0.999  # so that what is divided by is not nothing
BANDWIDTH = 0.35  # of the median squared distance between photographs
MIN_BANDWIDTH = 1e-4  # a squared distance that is more than what float16 does to features


def train_content_embedding(
    tokens: pl.DataFrame,
    pairs: pl.DataFrame,
    image_features: Sequence[Path],
    reference_photos: pl.DataFrame,
    vocabulary: pl.DataFrame,
    settings: ContentEmbeddingSettings,
) -> TrainedContent:
    """From the training captions, the photographs that they belong to, and the features of those.

    `tokens` has caption_id and tokens, `pairs` caption_id and photo_id, which may name a photograph without
    features too: its captions belong together. `reference_photos` are those that others are compared with.
    Where these are fewer than FEWEST, every photograph has the same content embedding.
    """
    rows = of_whole_subjects(tokens, pairs)
    captions = encode(rows["tokens"], vocabulary)
    subjects = Subjects.of_names(rows["subject"])
    grams, idf, held = _weigh(captions, settings.min_count)
    mean, found, places = _analyse(held, subjects, settings.size)
    photos = _first_captions(rows, image_features)
    means = subjects.means(places)
    aims = means[subjects.of[photos["row"].to_numpy()]]
    landmarks = landmarks_of(reference_photos)
    kernel = GaussianKernel(landmarks, _bandwidth(landmarks))
    weights, offset, predicted = _regress(image_features, photos["photo_id"], aims, kernel, settings.penalty)
    # From here on content vectors count from their mean, in steps as large as they vary.
    middle, whiten, colour = _whitening(predicted)
    content_vectors = _turned(predicted, middle, whiten)
    weights, offset = weights @ whiten, (offset - middle) @ whiten
    in_sample = kernel.of(landmarks) @ weights + offset
    content_from_text, noise = _predict_from_text(places, means, subjects, predicted, whiten)
    content_embedding = ContentEmbedding(
        grams=grams,
        idf=idf.astype(np.float32),
        unknown_idf=float(np.log(max(1, len(captions)) / settings.min_count)),
        length_weight=_length_weight(captions.lengths),
        mean=(mean + found @ middle).astype(np.float32),
        directions=(found @ colour).astype(np.float32),
        kernel=kernel,
        weights=weights.astype(np.float32),
        corrections=_corrections(
            reference_photos["photo_id"], photos["photo_id"], content_vectors, in_sample
        ),
        offset=offset.astype(np.float32),
        noise=noise.astype(np.float32),
    )
    if not content_embedding.size:
        nothing = np.zeros((0, 1), np.float16)
        return TrainedContent(
            content_embedding, *(_table(name, [], nothing) for name in ("photo_id", "caption_id", "subject"))
        )
    return TrainedContent(
        content_embedding,
        _table("photo_id", photos["photo_id"], content_vectors),
        _table("caption_id", rows["caption_id"], content_from_text),
        _table("subject", rows["subject"].unique().sort(), _turned(means, middle, whiten)),
    )


def _first_captions(rows: pl.DataFrame, image_features: Sequence[Path]) -> pl.DataFrame:
    """One of the captions `rows` for each photograph with features, with its number as `row`; by photo_id."""
    none = pl.DataFrame(schema={"photo_id": pl.String})
    seen = pl.concat([none, *(read_table(shard, "image_features", ["photo_id"]) for shard in image_features)])
    return (
        rows.with_row_index("row")
        .join(seen, on="photo_id", how="semi", maintain_order="left")
        .unique("photo_id", keep="first")
        .sort("photo_id")
    )


def _table(name: str, ids: Sequence[str] | pl.Series, content_vectors: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame([pl.Series(name, ids, pl.String), tensor_column("content_vector", content_vectors)])


# ---- captions as weighed n-grams ----


class _NGrams(NamedTuple):
    """The n-grams of one length: which there are, (G, LONGEST) int32, and where each of them is found."""

    grams: np.ndarray
    captions: np.ndarray  # (N,) a caption, for each time that one of its n-grams comes
    numbers: np.ndarray  # (N,) and which of `grams` that is


def _ngrams(captions: Ragged) -> Iterator[_NGrams]:
    """Those of one token, of two, … but those with an <unk>, in the order of their tokens.

    Each is known by the number of the one without its last token, and that token: two numbers, whatever the
    length.
    """
    begins = np.flatnonzero(captions.ids > UNK)
    caption = np.repeat(np.arange(len(captions)), captions.lengths)[begins]
    tokens, number = np.unique(captions.ids[begins], return_inverse=True)
    grams = np.full((len(tokens), LONGEST), PAD, np.int32)
    grams[:, 0] = tokens
    yield _NGrams(grams, caption, number)
    many = int(tokens[-1]) + 1 if len(tokens) else 1
    for n in range(1, LONGEST):
        goes_on = begins + n < captions.starts[caption + 1]
        goes_on[goes_on] = captions.ids[begins[goes_on] + n] > UNK
        begins, caption = begins[goes_on], caption[goes_on]
        pairs = number[goes_on] * many + captions.ids[begins + n]
        pairs, number = np.unique(pairs, return_inverse=True)
        grams = grams[pairs // many]
        grams[:, n] = pairs % many
        yield _NGrams(grams, caption, number)


def _weigh(captions: Ragged, min_count: int) -> tuple[np.ndarray, np.ndarray, csr_matrix]:
    """The n-grams that at least `min_count` captions hold, (G, LONGEST); what each is worth, (G,); and how
    much of each there is in each caption, (captions, G).

    What a caption holds of one length, rarer n-grams too, makes a vector of length 1.
    """
    from scipy.sparse import csr_matrix, hstack

    kept, idfs, held = [], [], []
    for grams, caption, number in _ngrams(captions):
        many = max(len(grams), 1)
        cells, counts = np.unique(caption * many + number, return_counts=True)
        caption, number = cells // many, cells % many
        holding = np.bincount(number, minlength=len(grams))
        idf = np.log(len(captions) / holding)
        value = counts * idf[number]
        length = np.sqrt(np.bincount(caption, value**2, minlength=len(captions)))[caption]
        value = np.divide(value, length, out=np.zeros_like(value), where=length > 0)
        here = csr_matrix((value, (caption, number)), shape=(len(captions), len(grams)))
        often = np.flatnonzero(holding >= min_count)
        kept.append(grams[often])
        idfs.append(idf[often])
        held.append(here[:, often])
    return np.concatenate(kept), np.concatenate(idfs), hstack(held, format="csr")


def _analyse(held: csr_matrix, subjects: Subjects, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean caption (G,), at most `size` directions (G, K), and the captions' places along these, counted
    from the mean, (captions, K) float32."""
    captions, grams = held.shape
    size = max(0, min(size, captions - 1, grams - 1))
    mean = np.asarray(held.mean(0)).ravel() if captions else np.zeros(grams)
    found = _principal(held, subjects, size) if size else np.zeros((grams, 0))
    places = np.empty((captions, size), np.float32)
    for place, part in zip(_in_parts(places), _in_parts(held), strict=True):
        place[:] = part @ found - mean @ found
    return mean, found, places


def _principal(held: csr_matrix, subjects: Subjects, size: int) -> np.ndarray:
    """The first `size` directions (G, size) of what captions of one subject have in common: of how captions
    vary, less how those of one subject do (analysis of variance, one way, with moments about 0).

    By subspace iteration from fixed random numbers (Halko et al. 2011): ARPACK's restarts are random where
    eigenvalues are equal.
    """
    found = np.random.default_rng(0).standard_normal((held.shape[1], min(size + 10, held.shape[1])))
    shared = subjects.sums(held, 1 / np.sqrt(subjects.captions))

    def common(directions: np.ndarray) -> np.ndarray:
        all_, mean = (
            sum(part.T @ (part @ directions) for part in _in_parts(rows)) for rows in (held, shared)
        )
        return all_ / held.shape[0] - (all_ - mean) / subjects.freedom

    for _ in range(ITERATIONS):
        found = np.linalg.qr(common(found))[0]
    axes = np.linalg.eigh(found.T @ common(found))[1]
    return found @ axes[:, ::-1][:, :size]


def _in_parts(rows: Any) -> Iterator[Any]:
    """Some rows at a time, of an array or a sparse matrix: what is made of them takes little memory."""
    for first in range(0, rows.shape[0], ROWS_AT_ONCE):
        yield rows[first : first + ROWS_AT_ONCE]


def _turned(rows: np.ndarray, middle: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`rows` (n, K), counted from the `middle`, times a `matrix`: (n, L) float16, as tables hold them."""
    turned = np.empty((len(rows), matrix.shape[1]), np.float16)
    for some, part in zip(_in_parts(turned), _in_parts(rows), strict=True):
        some[:] = (part - middle) @ matrix
    return turned


def _covariance(rows: np.ndarray) -> np.ndarray:
    """(n, K) -> (K, K) float64."""
    mean = rows.mean(0, dtype=np.float64)
    return sum((part - mean).T @ (part - mean) for part in _in_parts(rows)) / (len(rows) - 1)


# ---- photographs to places ----


def _bandwidth(landmarks: np.ndarray) -> float:
    """A share REACH of the median squared distance of two landmarks."""
    from scipy.spatial.distance import pdist

    return (
        max(BANDWIDTH * float(np.median(pdist(landmarks, "sqeuclidean"))), MIN_BANDWIDTH)
        if len(landmarks)
        else 1.0
    )


def _regress(
    shards: Sequence[Path], photo_ids: pl.Series, aims: np.ndarray, kernel: GaussianKernel, penalty: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge regression from similarity to `aims` (n, K): weights (M, K), offset (K,), and what it would
    predict of each photograph (n, K) had it learned from all others only.

    Sums over shards, so that memory does not grow with the photographs (subset of regressors: Smola and
    Schölkopf 2000); with all of them landmarks it is kernel ridge regression. A photograph is left out by its
    leverage, without another regression (Allen 1974): exactly, at the same penalty.
    """
    from scipy.linalg import cho_factor, cho_solve, solve_triangular

    many, size = len(kernel.landmarks), aims.shape[1]
    rows = pl.DataFrame({"photo_id": photo_ids}).with_row_index("row")
    sums = _Sums(np.zeros((many, many)), np.zeros((many, size)), np.zeros(many), np.zeros(size), 0)
    if many and size:
        for alike, row in _kernel_blocks(shards, rows, kernel):
            sums.add(alike, aims[row])
    if not sums.count:
        return np.zeros((many, size)), np.zeros(size), np.zeros_like(aims)
    middle, aim = sums.alike / sums.count, sums.aim / sums.count
    factor = cho_factor(sums.held(kernel.of(kernel.landmarks), penalty).T, lower=True, overwrite_a=True)
    weights = cho_solve(factor, sums.products - sums.count * np.outer(middle, aim))
    offset = aim - middle @ weights
    predicted = np.zeros_like(aims)
    for alike, row in _kernel_blocks(shards, rows, kernel):
        leverage = 1 / sums.count + (solve_triangular(factor[0], (alike - middle).T, lower=True) ** 2).sum(0)
        left_out = np.minimum(leverage, MOST_LEVERAGE)[:, None]
        predicted[row] = (alike @ weights + offset - left_out * aims[row]) / (1 - left_out)
    return weights, offset, predicted


def _corrections(
    landmarks: pl.Series, photo_ids: pl.Series, left_out: np.ndarray, in_sample: np.ndarray
) -> np.ndarray:
    """For each landmark, what leads from its content vector predicted by a regression that knows it,
    `in_sample` (M, K), to that predicted by one that does not, `left_out` (n, K): (M, K) float32.
    """
    row_of = {photo_id: row for row, photo_id in enumerate(photo_ids)}
    found = np.zeros(in_sample.shape, np.float32)
    for place, photo_id in enumerate(landmarks[: len(in_sample)]):
        if photo_id in row_of:
            found[place] = left_out[row_of[photo_id]] - in_sample[place]
    return found


def _kernel_blocks(
    shards: Sequence[Path], rows: pl.DataFrame, kernel: GaussianKernel
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shard by shard how alike its photographs in `rows` are to the landmarks, and their rows there."""
    for shard in shards:
        features = read_table(shard, "image_features", ["photo_id", "pooled"])
        features = features.join(rows, on="photo_id", maintain_order="left")
        if features.height:
            yield kernel.of(unit_pooled(features)), features["row"].to_numpy()


@dataclass
class _Sums:
    """What a regression needs to know of its examples."""

    squares: np.ndarray  # (M, M)
    products: np.ndarray  # (M, K)
    alike: np.ndarray  # (M,)
    aim: np.ndarray  # (K,)
    count: int

    def add(self, alike: np.ndarray, aims: np.ndarray) -> None:
        self.squares += alike.T @ alike
        self.products += alike.T @ aims
        self.alike += alike.sum(0)
        self.aim += aims.sum(0, dtype=np.float64)
        self.count += len(alike)

    def held(self, kernel: np.ndarray, penalty: float) -> np.ndarray:
        """The squares about their means and the penalty, (M, M), from the similarity of the landmarks to each
        other; takes the place of `squares`."""
        alike, many = self.alike / self.count, len(self.alike)
        # As much penalty as the similarity itself varies, so that one strength fits any kind of features.
        varies = np.mean(kernel.diagonal() - kernel.mean(0))
        held = self.squares
        held -= np.outer(self.alike, alike)
        held += penalty * varies * self.count / many * kernel
        # Where photographs do not vary, what is left of the sums is rounding errors.
        held.ravel()[:: many + 1] += 1e-8 * (held.diagonal().mean() + self.count)
        return held


def _whitening(content_vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of `content_vectors` (n, K) and the matrices to and from content vectors that vary alike in
    all directions."""
    size = content_vectors.shape[1]
    if len(content_vectors) < FEWEST or not size:
        return np.zeros(size), np.eye(size), np.eye(size)
    middle = content_vectors.mean(0, dtype=np.float64)
    variances, axes = np.linalg.eigh(_covariance(content_vectors))
    spread = np.sqrt(np.maximum(variances, max(1e-3 * variances.mean(), LEAST_VARIANCE)))
    return middle, axes / spread @ axes.T, axes * spread @ axes.T


def _predict_from_text(
    places: np.ndarray, means: np.ndarray, subjects: Subjects, predicted: np.ndarray, whiten: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The content embedding to be expected of each caption's photograph (captions, K), and how such content
    vectors scatter (K, K).

    What a regression predicts is uncorrelated with what it misses, so the mean place of a photograph's
    captions varies together with what is predicted of it as that varies by itself. So all that has to be
    known is how such means vary (of which there are many), by how many captions they are of, and how what is
    predicted does. Fitted to the captions that have a photograph instead, this link remembers which
    photograph each belongs to, and says nothing of new ones.
    """
    size = predicted.shape[1]
    content_from_text, scatter = np.zeros(places.shape, np.float16), np.zeros((size, size))
    if len(predicted) < FEWEST or not size:
        return content_from_text, scatter
    middle, together, spread = places.mean(0, dtype=np.float64), _covariance(predicted), _covariance(places)
    least = max(1e-6 * np.trace(spread) / size, LEAST_RIDGE)  # captions may be all the same
    differ = np.zeros((size, size))
    for part, of in zip(_in_parts(places), _in_parts(subjects.of), strict=True):
        apart = part - means[of]
        differ += apart.T @ apart
    differ /= subjects.freedom
    variances, axes = np.linalg.eigh(spread - differ)
    shared = axes * np.maximum(variances, least) @ axes.T
    captions = subjects.captions[subjects.of]
    for many in np.unique(captions):
        link = np.linalg.solve(shared + differ / many, together)
        here = captions == many
        content_from_text[here] = _turned(means[subjects.of[here]], middle, link @ whiten)
        scatter += np.mean(here) * (together - together @ link)
    variances, axes = np.linalg.eigh(whiten.T @ (scatter + scatter.T) @ whiten / 2)
    return content_from_text, axes * np.sqrt(np.maximum(variances, 1e-6)) @ axes.T


def _length_weight(lengths: np.ndarray) -> np.ndarray:
    """The share of its CIDEr-D that a caption of 0, 1, … tokens keeps beside captions of these lengths."""
    shares = np.bincount(np.minimum(lengths, LONGEST_CAPTION), minlength=LONGEST_CAPTION + 1)
    tokens = np.arange(LONGEST_CAPTION + 1)
    kept = np.exp(-((tokens[:, None] - tokens) ** 2) / (2 * SIGMA**2))
    return (kept @ shares / max(1, len(lengths))).astype(np.float32)
