"""Photographs and texts in one space: what is projected, how it is trained, and what is kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.errors import StaleModel, UsageError
from cutline.schemas.settings import JointEmbeddingSettings
from cutline.tasks.evaluation.retrieval_metrics import cosine_similarity, mean_recall, ranks
from cutline.tasks.models.joint_embedding import ARRAYS, JointEmbedding
from cutline.tasks.storage.tables import tensor
from cutline.tasks.training.joint_embedding import inverse_document_frequencies, train_joint_embedding
from tests.support.datasets import an_id
from tests.support.toys import toy_image_features, toy_pairs, write_toy_features

SETTINGS = JointEmbeddingSettings(size=8, epochs=3, batch_size=20, learning_rate=1e-3)


def a_joint_embedding(channels: int, states: int, size: int = 4) -> JointEmbedding:
    """Projections with random numbers."""
    rng = np.random.default_rng(0)
    shapes = ((channels, size), (size,), (states, size), (2, size), (size,))
    numbers = {
        name: rng.normal(size=shape).astype(np.float32) for name, shape in zip(ARRAYS, shapes, strict=True)
    }
    return JointEmbedding(
        words=("dog", "beach"), weights=np.array([1.0, 2.0], np.float32), stopwords=("a",), **numbers
    )


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    write_toy_features(folder)
    return folder


def train(features: Path, out: Path, pairs: pl.DataFrame | None = None, **changes: object) -> pl.DataFrame:
    out.mkdir(exist_ok=True)
    return train_joint_embedding(
        toy_pairs() if pairs is None else pairs,
        sorted(features.glob("images.*")),
        sorted(features.glob("texts.*")),
        ["a", "the"],
        SETTINGS.model_copy(update=changes),
        out,
        out / "scratch",
        lambda _: None,
    )


def vectors_of_dev(
    joint_embedding: JointEmbedding, features: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images = toy_image_features(range(8))
    texts = pl.concat(pl.read_parquet(path) for path in sorted(features.glob("texts.*")))
    pairs = toy_pairs().filter(pl.col("split") == "dev").join(texts, on="caption_id", maintain_order="left")
    photos = joint_embedding.photo_vectors(tensor(images["pooled"]))
    captions = joint_embedding.text_vectors(tensor(pairs["vector"]), pairs["content_tokens"])
    numbers = {an_id(f"photo {photo}"): photo for photo in range(8)}
    return photos, captions, np.array([numbers[id] for id in pairs["photo_id"]])


def test_captions_find_their_photographs_and_the_curve_says_how_well(features: Path, tmp_path: Path) -> None:
    curve = train(features, tmp_path)
    photos, captions, photo_of = vectors_of_dev(
        JointEmbedding.load(tmp_path / "joint_embedding.npz"), features
    )
    found = mean_recall(ranks(cosine_similarity(photos, captions), photo_of, 8))
    kept = curve.filter("best")
    assert kept.height == 1
    assert found == pytest.approx(kept["dev_recall"][0], abs=0.05)  # the file is rounded to float16
    assert found > 0.75  # chance is (1 + 5 + 8) / 8 / 3 = .58
    assert np.linalg.norm(photos, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(captions, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(features: Path, tmp_path: Path) -> None:
    # Without a dev split the last epoch is kept, so that the seed cannot fail to show.
    pairs = toy_pairs().filter(pl.col("split") == "train")
    digests = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        curve = train(features, tmp_path / name, pairs, seed=seed)
        assert curve["dev_recall"].null_count() == curve.height == 4
        assert curve["best"].to_list() == [False, False, False, True]
        digests.append(hashlib.sha256((tmp_path / name / "joint_embedding.npz").read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_a_test_caption_is_never_learned_from(features: Path, tmp_path: Path) -> None:
    pairs = toy_pairs()
    some = pl.col("photo_id").is_in([an_id(f"photo {photo}") for photo in range(20, 40)])
    held_out = pairs.with_columns(split=pl.when(some).then(pl.lit("test")).otherwise("split"))
    train(features, tmp_path / "with", held_out)
    train(features, tmp_path / "without", held_out.filter(pl.col("split") != "test"))
    assert (tmp_path / "with" / "joint_embedding.npz").read_bytes() == (
        tmp_path / "without" / "joint_embedding.npz"
    ).read_bytes()


def test_without_a_training_caption_that_has_features_it_says_so(features: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to match photographs and texts by"):
        train(features, tmp_path, toy_pairs().filter(pl.col("split") == "dev"))


def test_words_are_weighted_by_how_few_captions_have_them() -> None:
    captions = pl.Series([["dog", "dog", "beach"], ["dog"], ["dog", "beach"], ["once"]])
    words, weights = inverse_document_frequencies(captions, 10)
    assert words == ("dog", "beach")
    assert weights == pytest.approx([np.log(5 / 4) + 1, np.log(5 / 3) + 1])
    assert inverse_document_frequencies(captions, 1)[0] == ("dog",)


def test_a_text_is_its_state_and_its_bag_of_words() -> None:
    joint_embedding = a_joint_embedding(3, 5)
    state = np.arange(5, dtype=np.float32)[None]
    # Two dogs, one beach that counts twice: (2, 2) of length 1; what is unknown adds nothing.
    bag = np.array([2, 2]) / np.sqrt(8)
    expected = state[0] @ joint_embedding.state + bag @ joint_embedding.word + joint_embedding.text_bias
    found = joint_embedding.text_vectors(state, pl.Series([["dog", "beach", "dog", "zebra"]]))
    assert found[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    no_words = joint_embedding.text_vectors(state, pl.Series([[]], dtype=pl.List(pl.String)))
    expected = state[0] @ joint_embedding.state + joint_embedding.text_bias
    assert no_words[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    joint_embedding = a_joint_embedding(3, 5)
    joint_embedding.save(tmp_path / "joint_embedding.npz")
    loaded = JointEmbedding.load(tmp_path / "joint_embedding.npz")
    assert (loaded.words, loaded.stopwords) == (joint_embedding.words, joint_embedding.stopwords)
    for name in ARRAYS:
        assert getattr(loaded, name) == pytest.approx(getattr(joint_embedding, name), abs=2e-3)


@pytest.mark.parametrize("damage", ["empty", "cut", "another", "nan", "numbers"])
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "joint_embedding.npz"
    joint_embedding = a_joint_embedding(3, 5)
    joint_embedding.save(path)
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:200])
        case "another":
            np.savez(path, photo=np.zeros((2, 2)))
        case "numbers":  # in place of arrays
            np.savez(path, **{name: np.float32(1) for name in (*ARRAYS, "weights", "words", "stopwords")})
        case "nan":
            joint_embedding.photo[0, 0] = np.nan
            joint_embedding.save(path)
    with pytest.raises(StaleModel, match="train them again"):
        JointEmbedding.load(path)
