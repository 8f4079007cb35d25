"""The gist of a photograph: a few numbers that foretell which n-grams the captions of it hold.

Captions are compared as CIDEr compares them, by the weights of their n-grams. Latent semantic analysis
(Deerwester et al. 1990) of all training captions, photographed or not, finds the directions in which they
differ most; where a photograph's captions lie along these is foretold from its pooled features by kernel
ridge regression. That gives the CIDEr to be expected of any caption, against captions which nobody has
written yet (tasks/agreement.py), and so the one that agrees best with them (minimum Bayes risk: Kumar and
Byrne 2004).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from schemas.errors import StaleModel
from schemas.settings import GistSettings
from tasks.familiarity import FEWEST, unit_pooled
from tasks.tables import read_table, tensor_column
from tasks.training import Ragged, encode
from tasks.vocabulary import PAD, UNK

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

GIST = "gist.npz"
MOST_CAPTIONS = 200_000  # that are analysed; of more, any
LONGEST = 4  # n-grams of one to four tokens count, as in CIDEr
SIGMA = 6.0  # CIDEr-D: tokens of difference in length that cost a share 1 - 1/√e of the score
GRAM = ["first", "second", "third", "fourth"]  # its tokens, filled up with <pad>
ITERATIONS = 12  # of the analysis
FOLDS = 5  # parts of the training photographs, each foretold from the others
REACH = 0.35  # of the median squared distance between photographs
LONGEST_CAPTION = 60  # tokens; a longer one counts as one of so many where lengths are compared
HALVED = ("worth", "mean", "directions", "weights", "offset", "noise")  # float16 in the file
ARRAYS = ("grams", *HALVED, "length_worth", "reach", "unknown_worth")


@dataclass(frozen=True)
class Likeness:
    """How alike photographs are to some landmarks, from 0 to 1."""

    landmarks: np.ndarray  # (M, C) float64, pooled features of length 1
    reach: float  # the squared distance at which likeness has fallen to 1 / e

    def of(self, photos: np.ndarray) -> np.ndarray:
        """(n, C) pooled features of length 1 -> (n, M)."""
        return np.exp((photos @ self.landmarks.T - 1) * (2 / self.reach))


@dataclass(frozen=True)
class Gist:
    """What foretells a photograph's captions; float32 where nothing else is said."""

    grams: np.ndarray  # (G, LONGEST) int32
    worth: np.ndarray  # (G,) how telling each n-gram is: -ln of the share of captions that hold it
    unknown_worth: float  # of an n-gram that is too rare to be among them
    length_worth: np.ndarray  # (LONGEST_CAPTION + 1,) what CIDEr-D leaves of a caption of so many tokens
    mean: np.ndarray  # (G,) the mean caption
    directions: np.ndarray  # (G, K) in which captions differ
    likeness: Likeness  # to photographs that it has learned from
    weights: np.ndarray  # (M, K) what being like each says of the gist
    offset: np.ndarray  # (K,) the gist of a photograph that is like none
    noise: np.ndarray  # (K, K) times standard normal numbers: how gists scatter about what a caption says

    @property
    def size(self) -> int:
        """Numbers a gist; 0 where too little was there to learn from."""
        return len(self.offset) if len(self.likeness.landmarks) else 0

    def of_photos(self, features: pl.DataFrame) -> np.ndarray:
        """The gists of the photographs in an `image_features` or `familiar` table, (n, K) float32."""
        return (self.likeness.of(unit_pooled(features)) @ self.weights + self.offset).astype(np.float32)

    def save(self, path: Path) -> None:
        """Write all but the landmarks, which are the `familiar` table's; real numbers as float16."""
        told = {name: getattr(self, name) for name in ARRAYS if name != "reach"}
        arrays = {name: np.asarray(values) for name, values in told.items()}
        arrays["reach"] = np.asarray(self.likeness.reach)
        half = {name: arrays[name].astype(np.float16) for name in HALVED}
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays | half)

    @staticmethod
    def load(path: Path, familiar: pl.DataFrame) -> Gist:
        """What `save` wrote. Raises StaleModel where the file is damaged or does not fit `familiar`."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in ARRAYS}
            grams = found.pop("grams").astype(np.int32)
            numbers = {name: values.astype(np.float32) for name, values in found.items()}
            size = numbers["offset"].shape[0]
            shapes = {name: values.shape for name, values in numbers.items()}
            landmarks = landmarks_of(familiar)
            expected = {
                "worth": (len(grams),),
                "length_worth": (LONGEST_CAPTION + 1,),
                "mean": (len(grams),),
                "directions": (len(grams), size),
                "weights": (len(landmarks), size),
                "offset": (size,),
                "noise": (size, size),
                "reach": (),
                "unknown_worth": (),
            }
            if shapes != expected or grams.shape[1:] != (LONGEST,):
                raise ValueError(f"expected arrays of the shapes {expected}, found {shapes}")
            if not all(np.isfinite(values).all() for values in numbers.values()):
                raise ValueError("expected finite numbers")
        except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile, EOFError) as error:
            raise StaleModel(f"'{path}' does not hold what foretells gists: {error}; train again") from None
        likeness = Likeness(landmarks, float(numbers.pop("reach")))
        unknown = float(numbers.pop("unknown_worth"))
        return Gist(grams=grams, likeness=likeness, unknown_worth=unknown, **numbers)


class Learned(NamedTuple):
    """What the training captions and their photographs teach: `gists` and `imagined` are tables.

    `gists` has the gists of the training photographs, each foretold as if it were unknown; `imagined` the
    gist to be expected of a photograph with this caption, whether it has one or not. These scatter by
    `Gist.noise`.
    """

    gist: Gist
    gists: pl.DataFrame
    imagined: pl.DataFrame


def learn_gist(
    tokens: pl.DataFrame,
    pairs: pl.DataFrame,
    image_features: Sequence[Path],
    familiar: pl.DataFrame,
    vocabulary: pl.DataFrame,
    settings: GistSettings,
) -> Learned:
    """From the training captions, the photographs that some of them belong to, and their features.

    `tokens` has caption_id and tokens, `pairs` caption_id and photo_id; `familiar` are the photographs that
    others are compared with. Where these are fewer than FEWEST, every photograph has the same gist.
    """
    tokens = tokens.sort("caption_id").head(MOST_CAPTIONS)
    captions = encode(tokens["tokens"], vocabulary)
    grams, held = _weigh(_count_ngrams(captions), len(captions), settings.min_count)
    mean, found, places = _analyse(held, len(captions), grams.height, settings.size)
    rows = (
        tokens.select("caption_id")
        .with_row_index("row")
        .join(pairs, on="caption_id", how="left", maintain_order="left")
    )
    photos = rows.drop_nulls("photo_id").group_by("photo_id", maintain_order=True).agg("row").sort("photo_id")
    aims = np.array([places[some].mean(0) for some in photos["row"].to_list()]).reshape(-1, places.shape[1])
    landmarks = landmarks_of(familiar)
    likeness = Likeness(landmarks, _reach(landmarks))
    weights, offset, foretold = _regress(image_features, photos["photo_id"], aims, likeness, settings.penalty)
    # From here on gists count from their mean, in steps as large as they vary.
    middle, whiten, colour = _whitening(foretold)
    gists = (foretold - middle) @ whiten
    imagined, noise = _imagine(places, foretold, whiten)
    gist = Gist(
        grams=grams.select(GRAM).to_numpy().astype(np.int32),
        worth=grams["worth"].to_numpy().astype(np.float32),
        unknown_worth=float(np.log(max(1, len(captions)) / settings.min_count)),
        length_worth=_length_worth(captions.lengths),
        mean=(mean + found @ middle).astype(np.float32),
        directions=(found @ colour).astype(np.float32),
        likeness=likeness,
        weights=(weights @ whiten).astype(np.float32),
        offset=((offset - middle) @ whiten).astype(np.float32),
        noise=noise.astype(np.float32),
    )
    if not gist.size:
        return Learned(
            gist, _table("photo_id", [], np.zeros((0, 1))), _table("caption_id", [], np.zeros((0, 1)))
        )
    return Learned(
        gist,
        _table("photo_id", photos["photo_id"], gists),
        _table("caption_id", rows["caption_id"], imagined[rows["row"].to_numpy()]),
    )


def _table(name: str, ids: Sequence[str] | pl.Series, gists: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame([pl.Series(name, ids, pl.String), tensor_column("gist", gists.astype(np.float16))])


def landmarks_of(familiar: pl.DataFrame) -> np.ndarray:
    """Pooled features of length 1, (M, C) float64, of the photographs in the `familiar` table.

    None where they are fewer than FEWEST: nothing can be told from so few.
    """
    found = unit_pooled(familiar)
    return found if len(found) >= FEWEST else found[:0]


# ---- captions as weighed n-grams ----


def _count_ngrams(captions: Ragged) -> pl.DataFrame:
    """caption, the tokens of an n-gram, count: all n-grams of all captions but those with an <unk>.

    Sorted, as sums of real numbers depend on their order, and the same captions are to give the same bits.
    """
    of_caption = np.repeat(np.arange(len(captions)), captions.lengths)
    left = captions.starts[1:][of_caption] - np.arange(len(captions.ids))  # tokens to the caption's end
    frames = []
    for n in range(1, LONGEST + 1):
        begins = np.flatnonzero(left >= n)
        tokens = np.full((len(begins), LONGEST), PAD, np.int32)
        for i in range(n):
            tokens[:, i] = captions.ids[begins + i]
        known = (tokens[:, :n] > UNK).all(1)
        columns = dict(zip(GRAM, tokens[known].T, strict=True))
        frames.append(pl.DataFrame({"caption": of_caption[begins[known]], **columns, "n": np.int32(n)}))
    return pl.concat(frames).group_by("caption", *GRAM, "n").len("count").sort("caption", *GRAM)


def _weigh(counts: pl.DataFrame, captions: int, min_count: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The n-grams that at least `min_count` captions hold, by number, and which caption holds which.

    Returns GRAM and `worth`, a row an n-gram; and caption, gram, value. The values of a caption's n-grams
    of one length, rarer ones too, make a vector of length 1.
    """
    worth = (captions / pl.len()).log().alias("worth")
    grams = counts.group_by(GRAM).agg(worth, pl.len().alias("captions"))
    weighed = counts.join(grams, on=GRAM, maintain_order="left").with_columns(
        value=pl.col("count") * pl.col("worth")
    )
    length = pl.col("value").pow(2).sum().over("caption", "n").sqrt()
    weighed = weighed.with_columns(value=pl.when(length > 0).then(pl.col("value") / length).otherwise(0.0))
    kept = grams.filter(pl.col("captions") >= min_count).sort(GRAM).with_row_index("gram")
    held = weighed.join(kept.select("gram", *GRAM), on=GRAM, maintain_order="left").select(
        "caption", "gram", "value"
    )
    return kept, held.sort("caption", "gram")


def _analyse(
    held: pl.DataFrame, captions: int, grams: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean caption (G,), at most `size` directions (G, K), and the captions' places along these (n, K).

    The places are counted from the mean.
    """
    from scipy.sparse import csr_matrix

    cells = held["caption"].to_numpy(), held["gram"].to_numpy()
    matrix = csr_matrix((held["value"].to_numpy(), cells), shape=(captions, grams))
    size = min(size, captions - 1, grams - 1)
    if size < 1:
        return np.zeros(grams), np.zeros((grams, 0)), np.zeros((captions, 0))
    found = _principal(matrix, size)
    places = matrix @ found
    return np.asarray(matrix.mean(0)).ravel(), found, places - places.mean(0)


def _principal(matrix: csr_matrix, size: int) -> np.ndarray:
    """The first `size` right singular vectors (G, size), by subspace iteration from fixed random numbers
    (Halko et al. 2011): ARPACK's restarts are random where singular values are equal."""
    wide = min(size + 10, matrix.shape[1])
    found = np.random.default_rng(0).standard_normal((matrix.shape[1], wide))
    for _ in range(ITERATIONS):
        found = np.linalg.qr(matrix.T @ (matrix @ found))[0]
    turned = np.linalg.svd(matrix @ found, full_matrices=False)[2]
    return found @ turned[:size].T


# ---- photographs to places ----


def _reach(landmarks: np.ndarray) -> float:
    """A share REACH of the median squared distance of two landmarks."""
    distances = 2 - 2 * (landmarks @ landmarks.T)[np.triu_indices(len(landmarks), 1)]
    return max(REACH * float(np.median(distances)), 1e-6) if len(distances) else 1.0


def _regress(
    shards: Sequence[Path], photo_ids: pl.Series, aims: np.ndarray, likeness: Likeness, penalty: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ridge regression from likeness to `aims` (n, K): weights (M, K), offset (K,), and what it foretells
    of each photograph (n, K) when it has learned from the other FOLDS - 1 parts of them only.

    Sums over shards, so that memory does not grow with the photographs (subset of regressors: Smola and
    Schölkopf 2000); with all of them landmarks it is kernel ridge regression.
    """
    many, size = len(likeness.landmarks), aims.shape[1]
    if not many or not size:
        return np.zeros((many, size)), np.zeros(size), np.zeros_like(aims)
    rows = pl.DataFrame({"photo_id": photo_ids}).with_row_index("row")
    folds = [_Sums.nothing(many, size) for _ in range(FOLDS)]
    for alike, row in _likenesses(shards, rows, likeness):
        for i, sums in enumerate(folds):
            here = row % FOLDS == i
            sums.add(alike[here], aims[row[here]])
    everything = _Sums.of(folds)
    if not everything.count:
        return np.zeros((many, size)), np.zeros(size), np.zeros_like(aims)
    parts = [_Sums.of([sums for sums in folds if sums is not left]) for left in folds]
    solved = [sums.solve(likeness, penalty) if sums.count else None for sums in parts]
    foretold = np.zeros_like(aims)
    for alike, row in _likenesses(shards, rows, likeness):
        for i, found in enumerate(solved):
            here = row % FOLDS == i
            if found:
                foretold[row[here]] = alike[here] @ found[0] + found[1]
    return *everything.solve(likeness, penalty), foretold


def _likenesses(
    shards: Sequence[Path], rows: pl.DataFrame, likeness: Likeness
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Shard by shard how alike its photographs in `rows` are to the landmarks, and their rows there."""
    for shard in shards:
        features = read_table(shard, "image_features", ["photo_id", "pooled"])
        features = features.join(rows, on="photo_id", maintain_order="left")
        if features.height:
            yield likeness.of(unit_pooled(features)), features["row"].to_numpy()


@dataclass
class _Sums:
    """What a regression needs to know of its examples."""

    squares: np.ndarray  # (M, M)
    products: np.ndarray  # (M, K)
    alike: np.ndarray  # (M,)
    aim: np.ndarray  # (K,)
    count: int

    @staticmethod
    def nothing(many: int, size: int) -> _Sums:
        return _Sums(np.zeros((many, many)), np.zeros((many, size)), np.zeros(many), np.zeros(size), 0)

    @staticmethod
    def of(parts: Sequence[_Sums]) -> _Sums:
        names = [field.name for field in fields(_Sums)]
        return _Sums(*(sum(getattr(part, name) for part in parts) for name in names))

    def add(self, alike: np.ndarray, aims: np.ndarray) -> None:
        self.squares += alike.T @ alike
        self.products += alike.T @ aims
        self.alike += alike.sum(0)
        self.aim += aims.sum(0)
        self.count += len(alike)

    def solve(self, likeness: Likeness, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        alike, aim, many = self.alike / self.count, self.aim / self.count, len(self.alike)
        kernel = likeness.of(likeness.landmarks)
        # As much penalty as the likeness itself varies, so that one strength fits any kind of features.
        varies = np.trace(kernel - kernel.mean(0)) / many
        held = self.squares - self.count * np.outer(alike, alike)
        held += penalty * varies * self.count / many * kernel
        held += 1e-8 * np.trace(held) / many * np.eye(many)
        weights = np.linalg.solve(held, self.products - self.count * np.outer(alike, aim))
        return weights, aim - alike @ weights


def _whitening(gists: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of `gists` (n, K) and the matrices to and from gists that vary alike in all directions."""
    size = gists.shape[1]
    if len(gists) < FEWEST or not size:
        return np.zeros(size), np.eye(size), np.eye(size)
    middle = gists.mean(0)
    variances, axes = np.linalg.eigh(np.cov(gists.T).reshape(size, size))
    spread = np.sqrt(np.maximum(variances, max(1e-3 * variances.mean(), 1e-12)))
    return middle, axes / spread @ axes.T, axes * spread @ axes.T


def _imagine(places: np.ndarray, foretold: np.ndarray, whiten: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gist to be expected of each caption's photograph (captions, K), and how such gists scatter (K, K).

    What a regression foretells is uncorrelated with what it misses, so a caption's place varies together
    with what is foretold of it as that varies by itself. So all that has to be known is how captions vary
    (of which there are many) and how what is foretold does. Fitted to the captions that have a photograph
    instead, this link remembers which photograph each belongs to, and says nothing of new ones.
    """
    size = foretold.shape[1]
    if len(foretold) < FEWEST or not size:
        return np.zeros_like(places), np.zeros((size, size))
    together = np.cov(foretold.T).reshape(size, size)
    spread = np.cov(places.T).reshape(size, size)
    link = np.linalg.solve(spread + 1e-6 * np.trace(spread) / size * np.eye(size), together)
    scatter = whiten.T @ (together - together @ link) @ whiten
    variances, axes = np.linalg.eigh((scatter + scatter.T) / 2)
    return (places - places.mean(0)) @ link @ whiten, axes * np.sqrt(np.maximum(variances, 1e-6)) @ axes.T


def _length_worth(lengths: np.ndarray) -> np.ndarray:
    """The share of its CIDEr-D that a caption of 0, 1, … tokens keeps beside captions of these lengths."""
    shares = np.bincount(np.minimum(lengths, LONGEST_CAPTION), minlength=LONGEST_CAPTION + 1)
    tokens = np.arange(LONGEST_CAPTION + 1)
    kept = np.exp(-((tokens[:, None] - tokens) ** 2) / (2 * SIGMA**2))
    return (kept @ shares / max(1, len(lengths))).astype(np.float32)
