"""Content vectors: expected CIDEr by its definition, photographs predicted honestly, a fusion that learns
from text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cutline.schemas.errors import StaleModel
from cutline.schemas.settings import ContentEmbeddingSettings, VocabularySettings
from cutline.schemas.tables import check
from cutline.tasks.models.content_embedding import CONTENT_EMBEDDING, ContentEmbedding, GaussianKernel
from cutline.tasks.models.fusion import WEIGHTS, load_fusion
from cutline.tasks.models.language_model import load_language_model
from cutline.tasks.models.novelty import unit_pooled
from cutline.tasks.storage.tables import tensor
from cutline.tasks.text.vocabulary import PAD, make_vocabulary
from cutline.tasks.training.caption_groups import Subjects, TrainedContent, pairs_of
from cutline.tasks.training.content_embedding import _predict_from_text, _regress, train_content_embedding
from tests.support.datasets import an_id
from tests.support.toys import (
    CHANNELS,
    DEV_PHOTOS,
    GIST_SETTINGS,
    LM_SETTINGS,
    PHOTOS,
    PHOTOS_WITH_CAPTIONS,
    UNSEEN,
    WITH_TEXT,
    expected_cider,
    ids,
    scene,
    toy_captions,
    toy_familiar_photos,
    toy_image_features,
    toy_pairs,
    toy_vocabulary,
    train_toy_fusion,
)


def test_the_tables_hold_what_their_schemas_say_and_each_photograph_and_text_once(
    learned: TrainedContent,
) -> None:
    size = learned.content_embedding.size
    assert size == 12
    content_vectors, content_from_text = (
        check(learned.content_vectors, "content_vectors", size=size),
        check(learned.content_from_text, "content_from_text", size=size),
    )
    assert set(content_vectors["photo_id"]) == {
        an_id(f"photo {photo}") for photo in range(DEV_PHOTOS, PHOTOS_WITH_CAPTIONS)
    }
    assert set(content_from_text["caption_id"]) == set(toy_captions()[5 * DEV_PHOTOS :]["caption_id"])
    values = tensor(content_vectors["content_vector"]).astype(np.float64)
    assert values.mean(0) == pytest.approx(np.zeros(size), abs=0.01)
    # Photographs vary alike in all directions but those in which only phrasing differs.
    assert np.linalg.eigvalsh(np.cov(values.T))[-3:] == pytest.approx(np.ones(3), abs=0.02)


def test_an_imagined_gist_is_like_that_of_a_photograph_of_the_same(learned: TrainedContent) -> None:
    predicted = dict(
        zip(
            learned.content_vectors["photo_id"],
            tensor(learned.content_vectors["content_vector"]),
            strict=True,
        )
    )
    known = {scene(photo): an_id(f"photo {photo}") for photo in range(DEV_PHOTOS, PHOTOS_WITH_CAPTIONS)}
    same = {an_id(f"photo {photo}"): known[scene(photo)] for photo in range(PHOTOS_WITH_CAPTIONS, PHOTOS)}
    alone = pl.col("photo_id").is_in(list(same)) & (pl.col("tokens").list.len() == 7)
    texts = learned.content_from_text.join(toy_pairs(), on="caption_id").filter(alone)
    content_vectors = np.stack([predicted[same[photo_id]] for photo_id in texts["photo_id"]])
    kernel = np.corrcoef(tensor(texts["content_vector"]).ravel(), content_vectors.ravel())[0, 1]
    assert kernel > 0.7


@pytest.mark.parametrize("shares", [{1: 1.0}, {4: 1.0}, {2: 0.7, 5: 0.3}])
def test_imagined_gists_and_their_scatter_are_those_of_the_normal_distribution(
    shares: dict[int, float],
) -> None:
    """Of photographs with one caption, with four, or some with two and some with five."""
    # What captions mean varies by `spread`; a photograph and a caption tell it with an error of 1 each.
    rng, spread = np.random.default_rng(6), np.array([4.0, 2.0, 1.0])
    selection = rng.normal(size=(20_000, 3)) * np.sqrt(spread)
    captions = np.repeat(list(shares), [round(share * len(selection)) for share in shares.values()])
    rng.shuffle(captions)
    subjects = Subjects(np.repeat(np.arange(len(selection)), captions), captions)
    places = selection[subjects.of] + rng.normal(size=(len(subjects.of), 3))
    photographed = selection + rng.normal(size=selection.shape)
    predicted = photographed * spread / (spread + 1)
    means = subjects.means(places)
    content_from_text, noise = _predict_from_text(places, means, subjects, predicted, np.eye(3))
    # The regression of two normal variables: what they share by the variance of the one that is known.
    shared, known = spread**2 / (spread + 1), spread + 1 / captions[:, None]
    expected = means * shared / known
    assert np.abs(content_from_text - expected[subjects.of]).std(0) == pytest.approx(np.zeros(3), abs=0.1)
    variances = (shared - shared**2 / known)[subjects.of].mean(0)
    assert noise @ noise.T == pytest.approx(np.diag(variances), abs=0.1)


def test_which_photograph_a_caption_belongs_to_cannot_be_told_from_its_imagined_gist() -> None:
    # Photographs that tell nothing: what is predicted of them is chance, and so is every link to it.
    rng = np.random.default_rng(7)
    places, predicted = rng.normal(size=(2_000, 12)), 0.1 * rng.normal(size=(60, 12))
    subjects = Subjects(np.repeat(np.arange(400), 5), np.full(400, 5))
    content_from_text, _ = _predict_from_text(places, subjects.means(places), subjects, predicted, np.eye(12))
    own = np.repeat(predicted, 5, axis=0)  # captions 5 n to 5 n + 4 are of photograph n
    assert abs(np.corrcoef(content_from_text[:300].ravel(), own.ravel())[0, 1]) < 0.1


@pytest.fixture(scope="module")
def regression(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pl.DataFrame, np.ndarray, GaussianKernel, tuple]:
    """40 photographs with aims, all of them landmarks; what `_regress` makes of them, from two shards."""
    folder = tmp_path_factory.mktemp("regression")
    features = toy_image_features(range(40)).sort("photo_id")
    shards = [folder / "first", folder / "second"]
    features[:25].write_parquet(shards[0])
    features[25:].write_parquet(shards[1])
    aims = np.random.default_rng(3).normal(size=(40, 3))
    kernel = GaussianKernel(unit_pooled(features), 0.4)
    return features, aims, kernel, _regress(shards, features["photo_id"], aims, kernel, 0.5)


def kernel_ridge(alike: np.ndarray, aims: np.ndarray, asked: np.ndarray, penalty: float) -> np.ndarray:
    """The textbook's: centred in the space of the kernel, (K + n λ I)⁻¹."""
    n = len(alike)
    centre = np.eye(n) - 1 / n
    weights = np.linalg.solve(centre @ alike @ centre + penalty * np.eye(n), aims - aims.mean(0))
    return aims.mean(0) + (asked - alike.mean(0)) @ centre @ weights


def test_with_all_photographs_as_landmarks_it_is_kernel_ridge_regression(regression) -> None:
    _, aims, kernel, (weights, offset, _) = regression
    alike = kernel.of(kernel.landmarks)
    penalty = 0.5 * np.trace(alike - alike.mean(0)) / 40
    found = alike @ weights + offset
    assert found == pytest.approx(kernel_ridge(alike, aims, alike, penalty), abs=0.05)
    assert np.abs(found - aims.mean(0)).max() > 0.3, "it should have learned something"


def test_a_photograph_is_foretold_as_by_a_regression_that_never_saw_it(regression) -> None:
    _, aims, kernel, (_, _, predicted) = regression
    alike = kernel.of(kernel.landmarks)
    held = 0.5 * np.mean(alike.diagonal() - alike.mean(0)) * alike  # the penalty, as that of all 40
    for left in (0, 7, 39):
        others = np.delete(np.arange(40), left)
        middle, aim = alike[others].mean(0), aims[others].mean(0)
        seen = alike[others] - middle
        weights = np.linalg.solve(seen.T @ seen + held, seen.T @ (aims[others] - aim))
        assert predicted[left] == pytest.approx(aim + (alike[left] - middle) @ weights, abs=1e-3)


def test_what_is_foretold_of_a_photograph_does_not_depend_on_its_own_captions(
    regression, tmp_path: Path
) -> None:
    features, aims, kernel, (_, _, predicted) = regression
    features.write_parquet(tmp_path / "all")
    changed = aims.copy()
    changed[7] += 100
    again = _regress([tmp_path / "all"], features["photo_id"], changed, kernel, 0.5)[2]
    others = np.arange(40) != 7
    assert again[7] == pytest.approx(predicted[7], abs=1e-9)
    assert (np.abs(again[others] - predicted[others]).max(1) > 1e-4).all()


def test_a_training_photograph_is_predicted_as_if_it_were_unknown_also_later(
    learned: TrainedContent, toy_features: Path
) -> None:
    """Else its content vector would be unlike all that the fusion saw in training."""
    features = pl.concat(pl.read_parquet(path) for path in sorted(toy_features.glob("images.*")))
    trained = features.join(learned.content_vectors, on="photo_id")
    expected = tensor(trained["content_vector"]).astype(np.float32)
    found = learned.content_embedding.of_photos(trained.select(features.columns))
    assert found == pytest.approx(expected, abs=2e-3)
    in_sample = replace(learned.content_embedding, corrections=0 * learned.content_embedding.corrections)
    others = in_sample.of_photos(trained.select(features.columns))
    assert np.abs(others - expected).max() > 0.1


def test_captions_of_a_photograph_that_is_missing_or_could_not_be_read_belong_together(
    toy_features: Path,
) -> None:
    """It has no features and so no content embedding; but what its captions have in common is what it
    showed."""
    captions = toy_captions()[5 * DEV_PHOTOS :].select("caption_id", "tokens")
    train = toy_pairs().filter(pl.col("split") == "train").select("caption_id", "photo_id")
    missing = train[:60].with_columns(photo_id=pl.lit("missing ") + pl.col("photo_id"))
    shards = sorted(toy_features.glob("images.*"))
    world = toy_familiar_photos(), toy_vocabulary(), GIST_SETTINGS
    found = train_content_embedding(captions, pl.concat([missing, train[60:]]), shards, *world)
    assert set(found.content_vectors["photo_id"]) == set(train[60:]["photo_id"])
    together = (
        missing.join(found.content_from_text, on="caption_id")
        .group_by("photo_id")
        .agg(pl.col("content_vector").n_unique())
    )
    assert together["content_vector"].to_list() == [1] * 12
    apart = train_content_embedding(captions, train[60:], shards, *world).content_from_text
    assert missing.join(apart, on="caption_id").n_unique("content_vector") > 12


def test_captions_belong_to_their_photograph_or_to_a_missing_one_but_not_to_a_name_of_thousands() -> None:
    rows = [("a", an_id("photo"), None), ("b", None, "gone.jpg"), ("c", None, None)]
    rows += [(f"text {row}", None, "none.jpg") for row in range(1_001)]
    captions = pl.DataFrame(rows, ["caption_id", "photo_id", "missing_photo"], orient="row")
    assert pairs_of(captions).rows() == [("a", an_id("photo")), ("b", "missing: gone.jpg")]


def test_of_more_captions_than_can_be_analysed_whole_photographs_are_taken(
    toy_features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutline.tasks.training.caption_groups.MOST_CAPTIONS", 102)
    captions = toy_captions()[5 * DEV_PHOTOS :].select("caption_id", "tokens")
    pairs = toy_pairs().select("caption_id", "photo_id")
    shards = sorted(toy_features.glob("images.*"))
    found = train_content_embedding(
        captions, pairs, shards, toy_familiar_photos(), toy_vocabulary(), GIST_SETTINGS
    )
    taken = found.content_from_text.join(pairs, on="caption_id").group_by("photo_id").len()["len"]
    assert sorted(taken) == [2] + [5] * 20


@pytest.mark.parametrize("told", [True, False])
def test_how_people_write_counts_for_nothing_where_it_is_told_which_captions_belong_together(
    told: bool,
) -> None:
    """Each photograph shows a dog or a cat; of its two captions one is in this manner, one in that."""
    manners = "{} seen right here now", "we can look at {}"
    written = [manner.format(animal).split() for animal in ("dog", "cat") * 50 for manner in manners]
    photos = [an_id(f"photo {row // 2}") for row in range(200)]
    tokens = pl.DataFrame({"caption_id": [an_id(f"caption {row}") for row in range(200)], "tokens": written})
    pairs = tokens.select("caption_id", pl.Series("photo_id", photos)).head(200 if told else 0)
    vocabulary = make_vocabulary(tokens, VocabularySettings())
    settings = ContentEmbeddingSettings(size=2, min_count=1)
    content_embedding = train_content_embedding(
        tokens, pairs, [], toy_familiar_photos()[:0], vocabulary, settings
    ).content_embedding
    number = dict(vocabulary.select("token", "id").iter_rows())
    words = {
        word: content_embedding.directions[content_embedding.grams[:, 0] == number[word]]
        for word in ("dog", "cat", "look", "seen")
    }
    animals, manner = (
        np.abs(words[one][0] - words[other][0]).max() for one, other in (("dog", "cat"), ("look", "seen"))
    )
    assert (animals > 0.1) == told
    assert (manner > 0.1) != told


def test_a_gist_read_back_says_the_same(learned: TrainedContent, tmp_path: Path) -> None:
    learned.content_embedding.save(tmp_path / CONTENT_EMBEDDING)
    again = ContentEmbedding.load(tmp_path / CONTENT_EMBEDDING, toy_familiar_photos())
    features, caption = toy_image_features(UNSEEN), [ids("a red dog runs on the sand")]
    for one, other in zip(
        again.of_photos(features), learned.content_embedding.of_photos(features), strict=True
    ):
        assert one == pytest.approx(other, abs=0.02)
        expected = expected_cider(learned.content_embedding, other, caption)
        assert expected_cider(again, one, caption) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("damage", ["cut", "other landmarks", "not finite", "missing", "numbers"])
def test_a_damaged_gist_is_refused(learned: TrainedContent, tmp_path: Path, damage: str) -> None:
    path, reference_photos = tmp_path / CONTENT_EMBEDDING, toy_familiar_photos()
    broken = replace(learned.content_embedding, offset=learned.content_embedding.offset * np.nan)
    (broken if damage == "not finite" else learned.content_embedding).save(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    if damage == "missing":
        path.unlink()
    if damage == "numbers":  # in place of arrays
        with np.load(path) as file:
            names = list(file)
        np.savez(path, **{name: np.float32(1) for name in names})
    with pytest.raises(StaleModel, match="does not hold what predicts content vectors"):
        ContentEmbedding.load(
            path, reference_photos[:30] if damage == "other landmarks" else reference_photos
        )


@pytest.mark.parametrize("photos", [0, 5])
def test_too_few_photographs_have_no_gist(toy_features: Path, photos: int, tmp_path: Path) -> None:
    train, pairs = toy_captions()[40:].select("caption_id", "tokens"), toy_pairs()[40 : 40 + 5 * photos]
    shards = sorted(toy_features.glob("images.*"))
    few = toy_image_features(range(8, 8 + photos)).select("photo_id", "pooled")
    found = train_content_embedding(
        train, pairs.select("caption_id", "photo_id"), shards, few, toy_vocabulary(), GIST_SETTINGS
    )
    assert found.content_embedding.size == 0
    found.content_embedding.save(tmp_path / CONTENT_EMBEDDING)
    assert ContentEmbedding.load(tmp_path / CONTENT_EMBEDDING, few).size == 0
    curve = train_toy_fusion(toy_features, tmp_path, WITH_TEXT, learned=found)
    assert curve.height == 2, "no epochs on text alone"


def test_photographs_that_all_look_the_same_have_one_gist(toy_features: Path, tmp_path: Path) -> None:
    train = toy_captions()[5 * DEV_PHOTOS :].select("caption_id", "tokens")
    pairs = toy_pairs().filter(split="train").select("caption_id", "photo_id")
    features = pl.read_parquet(sorted(toy_features.glob("images.*")))
    same = features.with_columns(pooled=features["pooled"].gather([0] * features.height))
    same.write_parquet(tmp_path / "same")
    reference_photos = same.filter(pl.col("photo_id").is_in(pairs["photo_id"].implode())).select(
        "photo_id", "pooled"
    )
    found = train_content_embedding(
        train, pairs, [tmp_path / "same"], reference_photos, toy_vocabulary(), GIST_SETTINGS
    )
    found.content_embedding.save(tmp_path / CONTENT_EMBEDDING)
    content_vectors = ContentEmbedding.load(tmp_path / CONTENT_EMBEDDING, reference_photos).of_photos(same)
    assert content_vectors == pytest.approx(np.zeros_like(content_vectors), abs=0.1)


# -- the fusion that learns from text -------------------------------------------------------------


def test_a_fusion_learns_what_photographs_show_from_text_alone(
    toy_features: Path, learned: TrainedContent, tmp_path: Path
) -> None:
    only_text = WITH_TEXT.model_copy(update={"text_epochs": 12, "epochs": 1, "learning_rate": 0.02})
    curve = train_toy_fusion(toy_features, tmp_path, only_text, learned=learned)
    # The dev photographs' captions are predicted ever better though no photograph has been shown.
    assert curve["dev_loss"][11] < curve["dev_loss"][0] - 0.1


def test_a_training_broken_off_among_texts_ends_with_the_same_bytes(
    toy_features: Path, learned: TrainedContent, tmp_path: Path
) -> None:
    whole = train_toy_fusion(toy_features, tmp_path / "whole", WITH_TEXT, learned=learned)
    texts = learned.content_from_text.height
    done: list[int] = []

    def break_off(captions: int) -> None:
        done.append(captions)
        if sum(done) > 1.5 * texts:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_toy_fusion(toy_features, tmp_path / "broken", WITH_TEXT, advance=break_off, learned=learned)
    done = []
    curve = train_toy_fusion(
        toy_features, tmp_path / "broken", WITH_TEXT, advance=done.append, learned=learned
    )
    assert done[0] == texts, "the first epoch was not trained again"
    assert curve.equals(whole)
    assert (tmp_path / "broken" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_the_network_makes_of_regions_the_gist_that_their_pooled_features_have(
    toy_features: Path, learned: TrainedContent, tmp_path: Path
) -> None:
    settings = WITH_TEXT.model_copy(update={"text_epochs": 0, "epochs": 1})
    train_toy_fusion(toy_features, tmp_path, settings, learned=learned)
    words = load_language_model(
        toy_features / "language_model.weights.h5", toy_vocabulary().height, LM_SETTINGS
    )
    fusion = load_fusion(
        tmp_path / WEIGHTS, words, CHANNELS, settings, LM_SETTINGS, learned.content_embedding
    )
    photos = toy_image_features(UNSEEN)
    regions = photos["regions"].to_numpy().astype(np.float32)
    found = fusion.encode(regions).about
    expected = fusion.encode(regions, content_vectors=learned.content_embedding.of_photos(photos)).about
    assert np.asarray(found) == pytest.approx(np.asarray(expected), abs=0.02)


def test_no_ngram_of_the_gist_holds_padding_between_tokens(learned: TrainedContent) -> None:
    for gram in learned.content_embedding.grams.tolist():
        length = sum(token != PAD for token in gram)
        assert length > 0
        assert gram[length:] == [PAD] * (4 - length)
