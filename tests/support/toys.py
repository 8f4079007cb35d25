"""A world of 80 photographs that small models learn in seconds: an animal, its colour, a place.

Run as a script it trains, printing the captions done, for tests that kill it:
`python -m tests.support.toys language_model|fusion FOLDER`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from cutline.schemas.settings import (
    ContentEmbeddingSettings,
    FusionSettings,
    LanguageModelSettings,
    TextFeaturesSettings,
    VocabularySettings,
)
from cutline.tasks.decoding.captioner import Captioner
from cutline.tasks.decoding.expected_cider import ExpectedCider
from cutline.tasks.features.text_features import make_text_features
from cutline.tasks.models.content_embedding import (
    LONGEST_CAPTION,
    ContentEmbedding,
    GaussianKernel,
    landmarks_of,
)
from cutline.tasks.models.fusion import load_fusion
from cutline.tasks.models.language_model import load_language_model
from cutline.tasks.models.novelty import Novelty
from cutline.tasks.storage.tables import read_table, tensor_column, write_table
from cutline.tasks.text.vocabulary import make_vocabulary
from cutline.tasks.training.caption_groups import TrainedContent
from cutline.tasks.training.content_embedding import train_content_embedding
from cutline.tasks.training.fusion import train_fusion
from cutline.tasks.training.language_model import train_language_model
from tests.support.datasets import an_id

ANIMALS, COLOURS, PLACES = (
    ("dog", "cat", "bird", "horse"),
    ("red", "black", "white"),
    ("grass", "sand", "snow"),
)
REGIONS, CHANNELS = 4, 12
PHOTOS, DEV_PHOTOS = 80, 8
UNSEEN = range(80, 104)  # photographs that no split holds
PHOTOS_WITH_CAPTIONS = 44  # where content vectors are learned; the captions of the others are text alone
GIST_SETTINGS = ContentEmbeddingSettings(size=12, min_count=5)
LM_SETTINGS = LanguageModelSettings(
    embedding_size=16, state_size=24, dropout=0.1, batch_size=16, learning_rate=0.02, epochs=3, max_tokens=12
)
FUSION_SETTINGS = FusionSettings(
    hidden_size=32,
    heads=2,
    dropout=0.1,
    feature_dropout=0.0,
    averaging=0.9,
    batch_size=20,
    learning_rate=0.03,
    epochs=6,
)
WITH_TEXT = FUSION_SETTINGS.model_copy(update={"text_epochs": 2, "epochs": 2})


def scene(photo: int) -> tuple[str, str, str]:
    """The animal, colour and place of a photograph; every combination comes early."""
    return ANIMALS[photo % 4], COLOURS[photo % 3], PLACES[photo // 12 % 3]


@cache
def toy_pairs() -> pl.DataFrame:
    """caption_id, photo_id, split, tokens, content_tokens: five captions a photograph, dev first."""
    rows = []
    for photo in range(PHOTOS):
        animal, colour, place = scene(photo)
        sentences = (
            f"a {colour} {animal} runs on the {place}",
            f"a {colour} {animal} is on the {place}",
            f"the {animal} runs",
            f"there is a {animal} on the {place}",
            f"a {colour} {animal} and the {place}",
        )
        for number, sentence in enumerate(sentences):
            tokens = sentence.split()
            content = [token for token in tokens if token in (*ANIMALS, *COLOURS, *PLACES, "runs")]
            split = "dev" if photo < DEV_PHOTOS else "train"
            rows.append((an_id(f"{photo}.{number}"), an_id(f"photo {photo}"), split, tokens, content))
    strings = pl.List(pl.String)
    schema = {"caption_id": pl.String, "photo_id": pl.String, "split": pl.String}
    return pl.DataFrame(rows, {**schema, "tokens": strings, "content_tokens": strings}, orient="row")


def toy_captions() -> pl.DataFrame:
    """The `tokens` table; the first 40 rows are the dev captions."""
    return toy_pairs().select("caption_id", "tokens", "content_tokens")


def as_tokens(captions: Sequence[Sequence[str]]) -> pl.DataFrame:
    """A `tokens` table of these captions, without content tokens."""
    strings = pl.List(pl.String)
    return pl.DataFrame(
        {
            "caption_id": [an_id(f"{i} {caption}") for i, caption in enumerate(captions)],
            "tokens": captions,
            "content_tokens": [[] for _ in captions],
        },
        {"caption_id": pl.String, "tokens": strings, "content_tokens": strings},
    )


@cache
def toy_vocabulary() -> pl.DataFrame:
    return make_vocabulary(toy_captions()[5 * DEV_PHOTOS :], VocabularySettings(min_count=1))


def toy_familiar(folder: Path) -> Path:
    """The file of a `reference_photos` table in `folder`."""
    path = folder / "reference_photos.parquet"
    reference_photos = toy_image_features(range(30)).select("photo_id", "pooled")
    write_table(reference_photos, path, "reference_photos", channels=CHANNELS)
    return path


def toy_image_features(photos: Sequence[int] = range(PHOTOS)) -> pl.DataFrame:
    """One region shows the animal and its colour, another the place, wherever; the others are noise."""
    regions = np.zeros((len(photos), REGIONS, CHANNELS), np.float16)
    for i, photo in enumerate(photos):
        rng = np.random.default_rng(photo)
        animal, colour, place = scene(photo)
        regions[i] = rng.random((REGIONS, CHANNELS)) * 0.1
        first, second = rng.choice(REGIONS, 2, replace=False)
        regions[i, first, ANIMALS.index(animal)] = 1
        regions[i, first, 4 + COLOURS.index(colour)] = 1
        regions[i, second, 7 + PLACES.index(place)] = 1
    return pl.DataFrame(
        [
            pl.Series("photo_id", [an_id(f"photo {photo}") for photo in photos]),
            tensor_column("regions", regions),
            tensor_column("pooled", regions.astype(np.float32).mean(1).astype(np.float16)),
        ]
    )


def references() -> dict[str, list[str]]:
    """The captions of each photograph."""
    grouped = toy_pairs().group_by("photo_id", maintain_order=True).agg("tokens")
    return {
        photo_id: [" ".join(caption) for caption in captions] for photo_id, captions in grouped.iter_rows()
    }


def share_of_words(captions: Mapping[str, str], expected: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Stands in for CIDEr: the share of a caption's words that any of its references has."""
    shares = []
    for photo_id, caption in captions.items():
        known = {word for reference in expected[photo_id] for word in reference.split()}
        shares.append(np.mean([word in known for word in caption.split()]))
    return {"CIDEr": float(np.mean(shares))}


def write_toy_features(folder: Path) -> None:
    """In `folder`: a trained language model and the features of everything, in two shards each."""
    captions, vocabulary = toy_captions(), toy_vocabulary()
    train_language_model(
        captions[40:], captions[:40], vocabulary, LM_SETTINGS, folder, folder / "lm", _quietly
    )
    for shard, photos in enumerate((range(50), range(50, PHOTOS))):
        images = toy_image_features(photos)
        write_table(images, folder / f"images.{shard}", "image_features", regions=REGIONS, channels=CHANNELS)
        some = captions[5 * photos.start : 5 * photos.stop]
        weights = folder / "language_model.weights.h5"
        texts = make_text_features(some, vocabulary, weights, LM_SETTINGS, TextFeaturesSettings(), _quietly)
        write_table(texts, folder / f"texts.{shard}", "text_features", state_size=LM_SETTINGS.state_size)


def train_toy_fusion(
    features: Path,
    out: Path,
    settings: FusionSettings = FUSION_SETTINGS,
    pairs: pl.DataFrame | None = None,
    advance=lambda _: None,
    learned: TrainedContent | None = None,
) -> pl.DataFrame:
    """`train_fusion` on what `write_toy_features` left in `features`."""
    return train_fusion(
        toy_pairs() if pairs is None else pairs,
        sorted(features.glob("images.*")),
        sorted(features.glob("texts.*")),
        toy_vocabulary(),
        features / "language_model.weights.h5",
        LM_SETTINGS,
        settings,
        references(),
        share_of_words,
        out,
        out / "scratch",
        advance,
        learned,
        toy_captions().select("caption_id", "tokens"),
    )


def a_gist(folder: Path) -> ContentEmbedding:
    """Of random numbers, for the `reference_photos` table that `toy_familiar` writes to `folder`."""
    rng, grams, size = np.random.default_rng(8), 6, 3
    kernel = GaussianKernel(landmarks_of(pl.read_parquet(toy_familiar(folder))), 0.3)
    return ContentEmbedding(
        grams=np.array([[4 + i % 3, 5 + i // 3, 0, 0] for i in range(grams)], np.int32),
        idf=rng.random(grams).astype(np.float32),
        unknown_idf=4.0,
        length_weight=np.linspace(0.5, 1, LONGEST_CAPTION + 1, dtype=np.float32),
        mean=rng.random(grams).astype(np.float32),
        directions=rng.normal(size=(grams, size)).astype(np.float32),
        kernel=kernel,
        weights=rng.normal(size=(len(kernel.landmarks), size)).astype(np.float32),
        corrections=np.zeros((len(kernel.landmarks), size), np.float32),
        offset=rng.normal(size=size).astype(np.float32),
        noise=np.eye(size, dtype=np.float32),
    )


def no_gist(folder: Path) -> Path:
    """The file of a content embedding that predicts nothing, for a fusion that was trained without."""
    path, content_embedding = folder / "content_embedding.npz", a_gist(folder)
    none = np.zeros((len(content_embedding.kernel.landmarks), 0), np.float32)
    nothing = {"weights": none, "corrections": none, "offset": none[0], "noise": np.zeros((0, 0), np.float32)}
    replace(
        content_embedding, directions=np.zeros((len(content_embedding.grams), 0), np.float32), **nothing
    ).save(path)
    return path


def toy_familiar_photos() -> pl.DataFrame:
    """The `reference_photos` table of the toy world."""
    return toy_image_features(range(DEV_PHOTOS, PHOTOS_WITH_CAPTIONS)).select("photo_id", "pooled")


def learn_toy_gist(features: Path, settings: ContentEmbeddingSettings = GIST_SETTINGS) -> TrainedContent:
    """Of the toy world, as if the captions of its later photographs had none."""
    train = toy_captions()[5 * DEV_PHOTOS :].select("caption_id", "tokens")
    pairs = toy_pairs()[5 * DEV_PHOTOS : 5 * PHOTOS_WITH_CAPTIONS].select("caption_id", "photo_id")
    shards = sorted(features.glob("images.*"))
    return train_content_embedding(train, pairs, shards, toy_familiar_photos(), toy_vocabulary(), settings)


def ids(sentence: str) -> tuple[int, ...]:
    """The numbers of its words."""
    known = dict(toy_vocabulary().select("token", "id").iter_rows())
    return tuple(known[token] for token in sentence.split())


def expected_cider(
    content_embedding: ContentEmbedding, about: np.ndarray, captions: list[tuple[int, ...]]
) -> np.ndarray:
    """Of captions that are written token by token, those of one length side by side."""
    import tensorflow as tf

    expected_cider = ExpectedCider.of(content_embedding, toy_vocabulary().height)
    predicted = expected_cider.predicted(about.astype(np.float32)[None])
    values = np.zeros(len(captions))
    for length in set(map(len, captions)):
        rows = [row for row, caption in enumerate(captions) if len(caption) == length]
        ngrams = expected_cider.begun(1, len(rows))
        for written in range(length):
            token = [[captions[row][written]] for row in rows]
            again = [[captions[row][:written].count(captions[row][written])] for row in rows]
            grown = expected_cider.extended(
                ngrams, tf.constant([token]), tf.constant([written]), predicted, tf.constant([again])
            )
            ngrams = tf.nest.map_structure(lambda of_all: of_all[:, :, 0], grown)
        idf = expected_cider.weight_of_length(tf.constant(length))
        values[rows] = ngrams.expected_cider()[0] * idf
    return values


def toy_captioner(features: Path, folder: Path, settings: FusionSettings) -> Captioner:
    """Of the fusion, the `reference_photos` table and the content embedding in `folder`; no relevance."""
    known = read_table(folder / "reference_photos.parquet", "reference_photos", channels=CHANNELS)
    content_embedding = ContentEmbedding.load(folder / "content_embedding.npz", known)
    tokens = toy_vocabulary().sort("id")["token"].to_list()
    words = load_language_model(features / "language_model.weights.h5", len(tokens), LM_SETTINGS)
    fusion = load_fusion(
        folder / "fusion.weights.h5", words, CHANNELS, settings, LM_SETTINGS, content_embedding
    )
    return Captioner(words, fusion, tokens, Novelty.of(known))


def _quietly(_: int) -> None:
    pass


def _main(stage: str, folder: Path) -> None:
    done = 0

    def advance(captions: int) -> None:
        nonlocal done
        done += captions
        print(done, flush=True)

    if stage == "language_model":
        captions = toy_captions()
        vocabulary, scratch = toy_vocabulary(), folder / "scratch"
        train_language_model(captions[40:], captions[:40], vocabulary, LM_SETTINGS, folder, scratch, advance)
    else:
        train_toy_fusion(folder / "features", folder, advance=advance)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
