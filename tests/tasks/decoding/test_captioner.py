"""Captions: the same words as a slow beam search in NumPy, good manners, and where the model looks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from cutline.schemas.errors import UsageError
from cutline.schemas.settings import FusionSettings, LanguageModelSettings, PredictionsSettings
from cutline.schemas.tables import check
from cutline.tasks.decoding.beam_search import NEEDS_MORE, BeamSearch, Words
from cutline.tasks.decoding.captioner import Captioner
from cutline.tasks.models.fusion import build_fusion, photo_tensor
from cutline.tasks.models.language_model import build_language_model
from cutline.tasks.models.novelty import Novelty
from cutline.tasks.text.vocabulary import END
from tests.support.datasets import an_id
from tests.support.slow_captions import SlowCaptioner
from tests.support.toys import CHANNELS, REGIONS, scene, toy_image_features

UNSEEN = range(80, 100)  # photographs of the toy world that no split holds


def a_random_captioner(
    tokens: list[str], kind: str = "attention", sharpness: float = 6.0, stops: float = 4.0
) -> Captioner:
    """An untrained model with decided opinions: it babbles, repeats itself and stops anywhere."""
    lm_settings = LanguageModelSettings(embedding_size=12, state_size=16)
    settings = FusionSettings(kind=kind, hidden_size=16, heads=2)
    fusion = build_fusion(len(tokens), CHANNELS, settings, lm_settings)
    language_model = build_language_model(len(tokens), lm_settings)
    rng = np.random.default_rng(5)
    for layer in (*fusion.layers.values(), language_model.embedding, language_model.lstm):
        layer.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in layer.get_weights()])
    (kernel,) = fusion.layers["output"].get_weights()
    kernel *= sharpness / np.abs(kernel).sum(0).mean()
    # It may stop anywhere: the first of the numbers compared with tokens is always 1, and says how likely.
    kernel[0] = np.where(np.arange(len(tokens)) == END, stops * sharpness, kernel[0])
    fusion.layers["output"].set_weights([kernel])
    for name, always in (("projection", 1.0), ("change", 0.0)):
        weights, bias = fusion.layers[name].get_weights()
        weights[:, 0], bias[0] = 0.0, always
        fusion.layers[name].set_weights([weights, bias])
    reference_photos = toy_image_features(range(30)).select("photo_id", "pooled")
    return Captioner(language_model, fusion, tokens, Novelty.of(reference_photos))


SPECIAL = ["<pad>", "<start>", "<end>", "<unk>"]
BABBLE = [*SPECIAL, "a", "the", "on", "dog", "runs", "red", "and", "man", "'s"]


def caption(captioner: Captioner, photos: range, **settings: int) -> pl.DataFrame:
    return captioner.caption_photos(
        toy_image_features(photos), PredictionsSettings(**settings), lambda _: None
    )


@pytest.mark.parametrize(
    ("kind", "beam", "words"),
    [("attention", 1, 9), ("attention", 3, 9), ("concat", 7, 9), ("attention", 4, 200)],
)
def test_it_writes_what_a_slow_beam_search_writes(kind: str, beam: int, words: int) -> None:
    babbler = a_random_captioner([*BABBLE, *(f"word{i}" for i in range(9, words))], kind)
    slow = SlowCaptioner(babbler)
    photos = toy_image_features(range(12))
    table = babbler.caption_photos(
        photos, PredictionsSettings(beam=beam, alternatives=beam, max_tokens=7, batch_size=5), lambda _: None
    )
    regions = photos["regions" if kind == "attention" else "pooled"].to_numpy().reshape(12, -1, CHANNELS)
    lengths = set()
    for row, photo in zip(table.iter_rows(named=True), regions, strict=True):
        expected = slow.captions(photo, beam, 7)
        assert [a["caption"] for a in row["alternatives"]] == [
            " ".join(t).replace(" 's", "'s") for t, _ in expected
        ]
        assert [a["score"] for a in row["alternatives"]] == pytest.approx([s for _, s in expected], abs=1e-4)
        lengths |= {len(t) for t, _ in expected}
    assert len(lengths) > 1, "captions of one length would not show how lengths compete"


def test_a_trained_model_writes_what_a_slow_beam_search_writes(captioner: Captioner) -> None:
    table = caption(captioner, UNSEEN, beam=3, max_tokens=10, batch_size=8)
    regions = toy_image_features(UNSEEN)["regions"].to_numpy()
    slow = SlowCaptioner(captioner)
    for content_targets, photo in zip(table["caption"], regions, strict=True):
        assert content_targets == " ".join(slow.captions(photo, 3, 10)[0][0])


def test_photographs_never_seen_are_described(captioner: Captioner) -> None:
    table = caption(captioner, UNSEEN)
    check(table, "predictions")
    right = [
        scene(photo)[0] in content_targets
        for photo, content_targets in zip(UNSEEN, table["caption"], strict=True)
    ]
    assert np.mean(right) >= 0.8


def test_a_caption_does_not_depend_on_the_other_photographs(captioner: Captioner) -> None:
    together = caption(captioner, UNSEEN, batch_size=8)
    backwards = caption(captioner, UNSEEN[::-1], batch_size=8)
    assert together.equals(backwards.reverse())
    assert caption(captioner, UNSEEN[3:4], batch_size=8).equals(together[3])


def test_a_caption_is_the_same_bits_whoever_takes_the_places_beside_it() -> None:
    babbler = a_random_captioner([*BABBLE, *(f"word{i}" for i in range(60))], stops=20.0)
    photos = photo_tensor(toy_image_features(range(40)), "attention")
    settings = PredictionsSettings(beam=4, max_tokens=9, batch_size=8)
    together = babbler.search(photos, settings)
    assert len(np.unique(together.length.max(1))) > 2, "places that all end at once would show little"
    shuffled = np.random.default_rng(1).permutation(40)
    for some in (shuffled, shuffled[:9], np.array([17]), np.arange(40)[::-1]):
        found = babbler.search(photos[some], settings)
        assert np.array_equal(found.tokens, together.tokens[some])
        assert np.array_equal(found.log_probability, together.log_probability[some])
        assert np.array_equal(found.length, together.length[some])


def test_a_place_is_taken_by_the_next_photograph_once_its_captions_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    babbler = a_random_captioner([*BABBLE, *(f"word{i}" for i in range(60))], stops=20.0)
    photos = photo_tensor(toy_image_features(range(60)), "attention")
    steps = []
    monkeypatch.setattr(
        BeamSearch,
        "_extended",
        lambda search, *state, extended=BeamSearch._extended: steps.append(1) or extended(search, *state),
    )
    tf.config.run_functions_eagerly(True)
    try:
        found = babbler.search(photos, PredictionsSettings(beam=2, max_tokens=20, batch_size=12))
    finally:
        tf.config.run_functions_eagerly(False)
    needed = found.length.max(1)
    together = sum(needed[place : place + 12].max() for place in range(0, 60, 12))
    assert needed.sum() / 12 <= len(steps) < 0.9 * together


def test_a_shard_of_many_photographs_is_searched_part_by_part(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, done = caption(captioner, UNSEEN), []
    monkeypatch.setattr("cutline.tasks.decoding.captioner.MOST", 9)
    in_parts = captioner.caption_photos(toy_image_features(UNSEEN), PredictionsSettings(), done.append)
    assert in_parts.equals(at_once)
    assert done == [9, 9, 2]


@pytest.mark.parametrize("count", [1, 8, 9, 40])
def test_few_photographs_have_the_captions_that_many_have(captioner: Captioner, count: int) -> None:
    many = caption(captioner, range(100, 140), batch_size=40)
    assert caption(captioner, range(100, 100 + count), batch_size=64).equals(many.head(count))


def test_alternatives_are_distinct_best_first_and_hold_the_caption(captioner: Captioner) -> None:
    for row in caption(captioner, UNSEEN, beam=5, alternatives=4).iter_rows(named=True):
        captions = [a["caption"] for a in row["alternatives"]]
        scores = [a["score"] for a in row["alternatives"]]
        assert len(set(captions)) == len(captions) == 4
        assert scores == sorted(scores, reverse=True)
        assert (row["caption"], row["score"]) == (captions[0], scores[0])
    more = caption(captioner, UNSEEN, beam=2, alternatives=9)
    assert more["alternatives"].list.len().to_list() == [2] * len(UNSEEN)


@pytest.mark.parametrize("max_tokens", [1, 2, 5, 12])
def test_captions_have_manners(max_tokens: int) -> None:
    babbler = a_random_captioner(BABBLE, sharpness=12)
    table = caption(babbler, range(60), beam=4, alternatives=4, max_tokens=max_tokens)
    for captions in table["alternatives"]:
        for content_targets in (a["caption"].replace("'s", " 's").split() for a in captions):
            assert 1 <= len(content_targets) <= max_tokens
            assert not set(content_targets) & set(SPECIAL)
    for text in table["caption"]:
        content_targets = text.replace("'s", " 's").split()
        assert content_targets[-1] not in NEEDS_MORE
        pairs = [pair for pair in pairwise(content_targets) if not set(pair) <= NEEDS_MORE]
        assert len(pairs) == len(set(pairs)), f"'{text}' repeats a phrase"
        assert all(one != other for one, other in pairwise(content_targets))


def test_where_manners_are_impossible_there_is_a_caption_all_the_same() -> None:
    table = caption(a_random_captioner([*SPECIAL, "a"]), range(3), beam=3, max_tokens=3)
    assert set(table["caption"]) <= {"a", "a a", "a a a"}
    check(table, "predictions")


def test_a_vocabulary_without_words_is_refused() -> None:
    with pytest.raises(UsageError, match="holds no word"):
        Words.of(SPECIAL)


def test_no_photographs_give_an_empty_table(captioner: Captioner) -> None:
    table = captioner.caption_photos(toy_image_features([]), PredictionsSettings(), lambda _: None)
    check(table, "predictions")
    assert table.height == 0


def test_clitics_join_the_word_before() -> None:
    words = a_random_captioner([*SPECIAL, "man", "'s", "hat", "does", "n't"])
    assert words.text(np.array([4, 5, 6, 2, 0])) == "man's hat"
    assert words.text(np.array([7, 8])) == "doesn't"


def test_where_the_model_looked_comes_word_by_word_for_each_captioned_photograph(
    captioner: Captioner,
) -> None:
    photos = toy_image_features(range(4))
    content_targets = captioner.caption_photos(photos, PredictionsSettings(beam=2), lambda _: None).tail(3)
    table = check(captioner.attention(photos, content_targets), "attention", regions=REGIONS)
    assert table["photo_id"].to_list() == photos["photo_id"][1:].to_list()
    for words, weights, caption in zip(
        table["words"], table["weights"], content_targets["caption"], strict=True
    ):
        assert " ".join(words) == caption
        assert np.asarray(weights.to_numpy()).shape == (len(words), REGIONS)
        assert weights.to_numpy().sum(1) == pytest.approx(1, abs=1e-5)


def test_attention_maps_are_the_shares_of_the_teacher_forced_caption(captioner: Captioner) -> None:
    photos = toy_image_features(UNSEEN[:3])
    content_targets = [["a", "red", "dog"], ["the", "zyx"], []]
    maps = captioner.attention_maps(photos, content_targets)
    assert [m.shape for m in maps] == [(3, REGIONS), (2, REGIONS), (0, REGIONS)]
    for rows in maps[:2]:
        assert rows.sum(1) == pytest.approx(np.ones(len(rows)), abs=1e-5)
    longer = captioner.attention_maps(photos[:1], [["a", "red", "cat"]])[0]
    assert longer == pytest.approx(maps[0], abs=1e-6), (
        "a word is not yet written where the model looks for it"
    )


def test_it_looks_at_the_animal_when_it_names_the_animal(captioner: Captioner) -> None:
    photos = toy_image_features(UNSEEN)
    right = 0
    for photo, regions in zip(UNSEEN, photos["regions"].to_numpy(), strict=True):
        animal, colour, _ = scene(photo)
        one = photos.filter(photo_id=an_id(f"photo {photo}"))
        looks = captioner.attention_maps(one, [["a", colour, animal]])[0]
        right += regions[looks[2].argmax(), :4].max() > 0.5
    assert right >= 0.7 * len(UNSEEN)


def test_concat_has_no_attention_to_show() -> None:
    with pytest.raises(UsageError, match="attention"):
        a_random_captioner(BABBLE, "concat").attention_maps(toy_image_features([1]), [["a"]])
