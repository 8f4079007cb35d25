"""Agreement: expected CIDEr by its definition, counted token by token, and a search that is led by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from cutline.schemas.errors import StaleModel
from cutline.schemas.settings import ContentEmbeddingSettings, PredictionsSettings
from cutline.tasks.decoding.captioner import Captioner
from cutline.tasks.decoding.expected_cider import ExpectedCider
from cutline.tasks.models.content_embedding import ContentEmbedding
from cutline.tasks.training.caption_groups import TrainedContent
from cutline.tasks.training.content_embedding import train_content_embedding
from tests.support.slow_captions import SlowCaptioner
from tests.support.toys import (
    UNSEEN,
    expected_cider,
    ids,
    scene,
    toy_captions,
    toy_familiar_photos,
    toy_image_features,
    toy_vocabulary,
)


def cider(one: tuple[int, ...], other: tuple[int, ...], weights: Callable[[tuple[int, ...]], float]) -> float:
    """CIDEr as Vedantam et al. 2015 define it: the mean over n of the cosines of two vectors of n-grams."""
    cosines = []
    for n in range(1, 5):
        vectors = [
            {
                gram: count * weights(gram)
                for gram, count in Counter(text[i : i + n] for i in range(len(text) - n + 1)).items()
            }
            for text in (one, other)
        ]
        lengths = [sum(value**2 for value in vector.values()) ** 0.5 for vector in vectors]
        dot = sum(value * vectors[1].get(gram, 0) for gram, value in vectors[0].items())
        cosines.append(dot / lengths[0] / lengths[1] if all(lengths) else 0.0)
    return 10 * sum(cosines) / 4


def test_for_a_photograph_like_none_the_expected_cider_is_the_mean_over_all_captions(
    toy_features: Path,
) -> None:
    tokens = toy_captions()[40:90].select("caption_id", "tokens")
    nobody = pl.DataFrame(schema={"caption_id": pl.String, "photo_id": pl.String})
    settings = ContentEmbeddingSettings(size=4, min_count=1)
    content_embedding = train_content_embedding(
        tokens, nobody, [], toy_familiar_photos(), toy_vocabulary(), settings
    ).content_embedding
    captions = [ids(" ".join(words)) for words in tokens["tokens"]]
    held = Counter(
        gram
        for caption in captions
        for gram in {caption[i : i + n] for n in range(1, 5) for i in range(len(caption) - n + 1)}
    )
    asked = [captions[0], ids("a red dog runs on the sand"), ids("the dog")]

    def expected(one: tuple[int, ...]) -> float:
        alike = [cider(one, known, lambda gram: log(50 / held.get(gram, 1))) for known in captions]
        # CIDEr-D's penalty of another length, as its authors' program has it: a Gaussian of 6 words.
        kept = [exp(-((len(one) - len(known)) ** 2) / (2 * 6**2)) for known in captions]
        return float(np.mean(alike) * np.mean(kept))

    assert expected_cider(content_embedding, np.zeros(4), asked) == pytest.approx(
        list(map(expected, asked)), rel=1e-4
    )


def test_a_gist_tells_the_right_caption_of_a_photograph_never_seen(learned: TrainedContent) -> None:
    features = toy_image_features(UNSEEN)
    right = 0
    for photo, content_embedding in zip(UNSEEN, learned.content_embedding.of_photos(features), strict=True):
        animal, colour, place = scene(photo)
        others = [scene(other) for other in range(36) if scene(other) != scene(photo)]
        captions = [ids(f"a {c} {a} is on the {p}") for a, c, p in [(animal, colour, place), *others]]
        right += expected_cider(learned.content_embedding, content_embedding, captions).argmax() == 0
    assert right > 0.5 * len(UNSEEN), "by chance it would be one in 36"


def test_what_a_word_that_comes_again_adds_by_hand() -> None:
    two = np.array([[4, 0, 0, 0], [5, 0, 0, 0], [4, 5, 0, 0]], np.int32)
    content_embedding = ContentEmbedding(
        grams=two,
        idf=np.array([3.0, 4.0, 2.0]),
        unknown_idf=2.0,
        length_weight=np.ones(61, np.float32),
        mean=np.array([0.5, 0.25, 0.1]),
        directions=np.zeros((3, 0)),
        kernel=None,  # type: ignore[arg-type]
        weights=np.zeros((0, 0)),
        corrections=np.zeros((0, 0)),
        offset=np.zeros(0),
        noise=np.zeros((0, 0)),
    )
    # The words 4, 5, 4: single 3·½ + 4·¼ = 2.5 of √((2·3)² + 4²), as CIDEr-D clips the second 4; pairs 2·.1
    # of √(4 + 4), and one of three words that is not known. Once more 4: √((3·3)² + 4²).
    expected = 10 / 4 * (2.5 / np.sqrt(52) + 0.2 / np.sqrt(8) + 0 + 0)
    more = 10 / 4 * (2.5 / np.sqrt(97) + 0.2 / np.sqrt(12) + 0 + 0)
    found = expected_cider(content_embedding, np.zeros(0), [(4, 5, 4), (4, 5, 4, 4)])
    assert found == pytest.approx([expected, more], rel=1e-6)


def test_what_is_no_word_changes_nothing(learned: TrainedContent) -> None:
    expected_cider = ExpectedCider.of(learned.content_embedding, toy_vocabulary().height)
    predicted = expected_cider.predicted(np.zeros((1, learned.content_embedding.size), np.float32))
    ngrams = expected_cider.begun(1, 1)
    (dog,) = ids("dog")
    for written, token in enumerate([dog, 2, 0]):  # then <end> and <pad>
        grown = expected_cider.extended(
            ngrams, tf.constant([[[token]]]), tf.constant([written]), predicted, tf.constant([[[0]]])
        )
        before, ngrams = ngrams, tf.nest.map_structure(lambda of_all: of_all[:, :, 0], grown)
        same = [bool(tf.reduce_all(a == b)) for a, b in zip(before, ngrams, strict=True)]
        assert same == [token != dog] * 3


# A wide beam of very short captions holds such as break rules: they come last, whatever is expected of them.
@pytest.mark.parametrize(("beam", "words"), [(3, 9), (5, 9), (60, 1)])
def test_a_search_led_by_agreement_writes_what_a_slow_one_writes(
    gist_captioner: Captioner, beam: int, words: int
) -> None:
    photos = toy_image_features(UNSEEN)
    settings = PredictionsSettings(
        beam=beam, alternatives=beam, cider_weight=2.0, word_penalty=0.2, max_tokens=words, batch_size=8
    )
    table = gist_captioner.caption_photos(photos, settings, lambda _: None)
    slow, moved = SlowCaptioner(gist_captioner), 0
    for row, photo in zip(table.iter_rows(named=True), photos["regions"].to_numpy(), strict=True):
        expected = slow.captions(photo, beam, words, cider_weight=2.0, word_penalty=0.2)
        assert [a["caption"] for a in row["alternatives"]] == [
            " ".join(content_targets) for content_targets, _ in expected
        ]
        assert [a["score"] for a in row["alternatives"]] == pytest.approx([s for _, s in expected], abs=1e-3)
        moved += row["caption"] != " ".join(slow.captions(photo, beam, words)[0][0])
    assert moved, "agreement that changes no caption shows nothing"


def test_the_more_a_word_costs_the_shorter_captions_are(gist_captioner: Captioner) -> None:
    photos, mean = toy_image_features(UNSEEN), []
    for word_penalty in (0.0, 0.1, 0.2, 0.5, 10.0):
        settings = PredictionsSettings(beam=6, word_penalty=word_penalty, max_tokens=9)
        captions = gist_captioner.caption_photos(photos, settings, lambda _: None)["caption"]
        mean.append(captions.str.split(" ").list.len().mean())
    assert mean == sorted(mean, reverse=True)
    assert mean[0] > 2 * mean[-1] >= 2


def test_ngrams_of_tokens_that_the_vocabulary_lacks_are_refused(learned: TrainedContent) -> None:
    known = toy_vocabulary().height
    strange = learned.content_embedding.grams.copy()
    for token in (known, -1):
        strange[3, 0] = token
        with pytest.raises(StaleModel, match=f"{token} to|to {token}.*the vocabulary has {known}"):
            ExpectedCider.of(replace(learned.content_embedding, grams=strange), known)


def test_what_is_written_agrees_better_than_what_is_likely(gist_captioner: Captioner) -> None:
    photos = toy_image_features(UNSEEN)
    content_embedding = gist_captioner.fusion.content_embedding
    assert content_embedding
    settings = [PredictionsSettings(beam=5, cider_weight=weight) for weight in (0.0, 2.0)]
    found = [gist_captioner.caption_photos(photos, one, lambda _: None)["caption"] for one in settings]
    likely, agreeing = (
        np.mean(
            [
                expected_cider(content_embedding, about, [ids(caption)])
                for about, caption in zip(content_embedding.of_photos(photos), captions, strict=True)
            ]
        )
        for captions in found
    )
    assert agreeing > likely + 0.1
