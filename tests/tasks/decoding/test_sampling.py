"""Generated lines: as likely as the model says, greedy at temperature 0; perplexity; what is copied."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nltk.metrics.distance import edit_distance

from cutline.schemas.errors import StaleModel, UsageError
from cutline.schemas.settings import LanguageModelSettings
from cutline.tasks.decoding.captioner import Captioner
from cutline.tasks.decoding.nearest_captions import RealCaptions, edit_distances
from cutline.tasks.decoding.perplexity import perplexity_of, text_lines, unknown_words
from cutline.tasks.decoding.sampling import Line, Sampler, Sampling, draw, probabilities
from cutline.tasks.models.fusion import build_fusion, photo_tensor
from cutline.tasks.models.language_model import LanguageModel, build_language_model
from cutline.tasks.text.tokenizer import tokenize
from cutline.tasks.text.vocabulary import END, UNK
from cutline.tasks.training.language_model import perplexity
from tests.support.toys import (
    CHANNELS,
    FUSION_SETTINGS,
    LM_SETTINGS,
    as_tokens,
    scene,
    toy_captions,
    toy_image_features,
    toy_vocabulary,
)

VOCABULARY = toy_vocabulary()["token"].to_list()
DRAWS = 10_000
# What chi-square exceeds with a probability of 0.001, for 1 to 20 degrees of freedom: NIST/SEMATECH
# e-Handbook of Statistical Methods, 1.3.6.7.4.
CRITICAL = (
    *(10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322, 26.124, 27.877, 29.588),
    *(31.264, 32.910, 34.528, 36.123, 37.697, 39.252, 40.790, 42.312, 43.820, 45.315),
)


@pytest.fixture(scope="module")
def sampler(captioner: Captioner) -> Sampler:
    return Sampler(captioner.language_model, VOCABULARY)


class InNumpy:
    """The language model as its equations, one token at a time, in float64."""

    def __init__(self, model: LanguageModel) -> None:
        def weights(layer) -> list[np.ndarray]:
            return [w.astype(np.float64) for w in layer.get_weights()]

        (self.embeddings,) = weights(model.embedding)
        self.kernel, self.recurrent, self.bias = weights(model.lstm)
        self.projection, self.offset = weights(model.projection)

    def log_probabilities(self, tokens: Sequence[str]) -> np.ndarray:
        """ln p of each next token after <start> and `tokens`."""
        state = cell = np.zeros(len(self.recurrent))
        for token in ["<start>", *tokens]:
            read = self.embeddings[VOCABULARY.index(token) if token in VOCABULARY else UNK]
            gates = read @ self.kernel + state @ self.recurrent + self.bias
            into, keep, new, out = np.split(gates, 4)
            cell = cell / (1 + np.exp(-keep)) + np.tanh(new) / (1 + np.exp(-into))
            state = np.tanh(cell) / (1 + np.exp(-out))
        logits = (state @ self.projection + self.offset) @ self.embeddings.T
        return logits - np.log(np.exp(logits).sum())

    def next_words(self, tokens: Sequence[str], ends: bool = True) -> dict[str, float]:
        """What may be written next, and how likely: no special token, an <end> only if `ends`."""
        shares = dict(zip(VOCABULARY, np.exp(self.log_probabilities(tokens)), strict=True))
        for token in ("<pad>", "<start>", "<unk>", *(() if ends else ("<end>",))):
            del shares[token]
        return {token: share / sum(shares.values()) for token, share in shares.items()}


def chi_square(seen: Counter[str], expected: dict[str, float]) -> tuple[float, float]:
    """Pearson's statistic, rare words pooled, and what it exceeds once in 1,000 times where all is right."""
    assert set(seen) <= {token for token, share in expected.items() if share}
    total = sum(seen.values())
    cells = {token: share for token, share in expected.items() if share * total >= 5}
    observed = [seen[token] for token in cells]
    hoped = [share * total for share in cells.values()]
    if (rest := total - sum(hoped)) > 1e-6 * total:
        observed.append(total - sum(observed))
        hoped.append(rest)
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, hoped, strict=True))
    return statistic, CRITICAL[len(hoped) - 2]


@pytest.mark.parametrize("freedom", range(2, 21, 2))
def test_the_table_of_critical_values_is_right(freedom: int) -> None:
    half = CRITICAL[freedom - 1] / 2  # the upper tail has a closed form for an even number of degrees
    tail = math.exp(-half) * sum(half**k / math.factorial(k) for k in range(freedom // 2))
    assert tail == pytest.approx(0.001, rel=1e-3)


# ---- greedy ----


@pytest.mark.parametrize("prompt", [[], ["a"], ["the", "dog"], ["a", "zeppelin"]])
@pytest.mark.parametrize("temperature", [0.0, 1e-5])
def test_at_temperature_0_it_writes_the_likeliest_word_again_and_again(
    sampler: Sampler, prompt: list[str], temperature: float
) -> None:
    model, words = InNumpy(sampler.language_model), list(prompt)
    total = 0.0
    while len(words) < len(prompt) + 12:
        shares = model.next_words(words, ends=len(words) > len(prompt))
        best = max(shares, key=lambda token: shares[token])
        total += model.log_probabilities(words)[VOCABULARY.index(best)]
        if best == "<end>":
            break
        words.append(best)
    (line,) = sampler.lines(prompt, 1, Sampling(temperature=temperature, max_tokens=12))
    assert line.tokens == words
    assert line.ended == (len(words) < len(prompt) + 12)
    assert line.log_probability == pytest.approx(total, abs=1e-3)
    assert line.score == pytest.approx(total / (len(words) - len(prompt) + line.ended), abs=1e-3)


# ---- as often as the model says ----


def first_words(lines: Sequence[Line]) -> Counter[str]:
    return Counter(line.written[0] for line in lines)


def test_first_words_come_as_often_as_the_model_says(sampler: Sampler) -> None:
    lines = list(sampler.lines(["a"], DRAWS, Sampling(max_tokens=1)))
    statistic, limit = chi_square(
        first_words(lines), InNumpy(sampler.language_model).next_words(["a"], False)
    )
    assert statistic < limit


def test_later_words_and_ends_come_as_often_as_the_model_says(sampler: Sampler) -> None:
    lines = list(sampler.lines(["the", "dog"], DRAWS, Sampling(max_tokens=2)))
    first, count = first_words(lines).most_common(1)[0]
    second = Counter(
        line.written[1] if line.written[1:] else "<end>" for line in lines if line.written[0] == first
    )
    statistic, limit = chi_square(second, InNumpy(sampler.language_model).next_words(["the", "dog", first]))
    assert count > 1_000
    assert statistic < limit


def test_temperature_and_nucleus_change_how_often_as_they_should(sampler: Sampler) -> None:
    lines = list(sampler.lines(["a"], DRAWS, Sampling(temperature=0.7, top_p=0.9, max_tokens=1)))
    plain = InNumpy(sampler.language_model).next_words(["a"], False)
    cold = {token: share ** (1 / 0.7) for token, share in plain.items()}
    cold = {token: share / sum(cold.values()) for token, share in cold.items()}
    kept, held = {}, 0.0
    for token in sorted(cold, key=lambda token: -cold[token]):
        if held < 0.9:
            kept[token] = cold[token]
        held += cold[token]
    expected = {token: share / sum(kept.values()) for token, share in kept.items()}
    statistic, limit = chi_square(first_words(lines), expected)
    assert 1 < len(kept) < len(cold)
    assert statistic < limit
    warm, limit = chi_square(first_words(lines), plain)
    assert warm > 2 * limit, "the test would not see a temperature or a nucleus that does nothing"


def test_captions_of_a_photograph_come_as_often_as_the_fusion_says(captioner: Captioner) -> None:
    photo = toy_image_features([85])["regions"].to_numpy()[0]
    lines = list(
        Sampler(captioner.language_model, VOCABULARY, captioner.fusion, photo).lines(
            ["a"], DRAWS, Sampling(max_tokens=1)
        )
    )
    reading = np.array([[VOCABULARY.index("<start>"), VOCABULARY.index("a")]])
    states = captioner.language_model.lstm(captioner.language_model.embedding(reading))[:, -1:]
    memory = captioner.fusion.encode(photo[None].astype(np.float32))
    shares = np.exp(np.asarray(captioner.fusion.logits(memory, states), np.float64)[0, 0])
    shares[: UNK + 1] = 0
    statistic, limit = chi_square(
        first_words(lines), dict(zip(VOCABULARY, shares / shares.sum(), strict=True))
    )
    assert statistic < limit


@pytest.mark.parametrize("kind", ["attention", "concat"])
def test_either_kind_of_fusion_is_asked_with_the_whole_text_so_far(captioner: Captioner, kind: str) -> None:
    settings = FUSION_SETTINGS.model_copy(update={"kind": kind})
    fusion = build_fusion(len(VOCABULARY), CHANNELS, settings, LM_SETTINGS)
    rng = np.random.default_rng(7)
    fusion.model.set_weights([rng.normal(size=w.shape) for w in fusion.model.get_weights()])
    photo = photo_tensor(toy_image_features([85]), kind)[0]
    drawn = Sampler(captioner.language_model, VOCABULARY, fusion, photo)
    for line in drawn.lines(["a"], 5, Sampling(temperature=3.0, max_tokens=6)):
        words = ["<start>", *line.tokens, *["<end>"] * line.ended]
        ids = np.array([[VOCABULARY.index(word) for word in words]])
        states = captioner.language_model.lstm(captioner.language_model.embedding(ids[:, :-1]))
        memory = fusion.encode(photo[None].astype(np.float32))
        logits = np.asarray(fusion.logits(memory, states), np.float64)[0]
        gained = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = gained[np.arange(len(gained)), ids[0, 1:]][1:].sum()  # not the prompt's own
        assert line.log_probability == pytest.approx(expected, rel=1e-4)


def test_captions_of_a_photograph_differ_and_tell_of_it(captioner: Captioner) -> None:
    for photo in (81, 86):
        features = toy_image_features([photo])["regions"].to_numpy()[0]
        drawn = Sampler(captioner.language_model, VOCABULARY, captioner.fusion, features)
        lines = [line.text for line in drawn.lines([], 40, Sampling(temperature=0.7))]
        assert len(set(lines)) > 3
        assert np.mean([scene(photo)[0] in line for line in lines]) > 0.5


# ---- the nucleus ----

LOGITS = arrays(np.float32, st.tuples(st.just(3), st.integers(2, 30)), elements=st.floats(-30, 30, width=32))


@given(LOGITS, st.data(), st.sampled_from([0.05, 0.5, 1.0, 3.0]), st.floats(1e-6, 1))
def test_nothing_is_drawn_outside_the_nucleus(
    logits: np.ndarray, data: st.DataObject, temperature: float, top_p: float
) -> None:
    size = logits.shape[1]
    allowed = data.draw(arrays(np.bool_, size).filter(np.any))
    uniforms = data.draw(arrays(np.float64, 3, elements=st.floats(0, 1, exclude_max=True)))
    shares = probabilities(logits, allowed, temperature, top_p)
    everything = probabilities(logits, allowed, temperature, 1.0)
    assert shares.sum(-1) == pytest.approx(np.ones(3))
    for row, whole in zip(shares, everything, strict=True):
        kept = row > 0
        assert not (kept & ~allowed).any()
        assert whole[kept].sum() >= top_p - 1e-9, "too few"
        assert whole[kept].sum() - whole[kept].min() < top_p + 1e-9, "fewer would do"
        assert whole[kept].min() >= whole[~kept].max(initial=0.0), "not the most likely ones"
        assert row[kept] == pytest.approx(whole[kept] / whole[kept].sum())
    for edge in (uniforms, np.zeros(3), np.full(3, 1 - 2**-53)):
        drawn = draw(shares, edge)
        assert (shares[np.arange(3), drawn] > 0).all()


def test_of_equally_likely_words_the_first_ones_fill_the_nucleus() -> None:
    shares = probabilities(np.zeros((1, 8)), np.arange(8) > 3, 1.0, 0.5)
    assert shares.tolist() == [[0, 0, 0, 0, 0.5, 0.5, 0, 0]]


def test_a_temperature_next_to_nothing_does_no_harm() -> None:
    shares = probabilities(np.array([[1.0, 3.0, 2.0]]), np.array([True, True, True]), 5e-324, 1.0)
    assert shares.tolist() == [[0, 1, 0]]


# ---- which line is which ----


def test_a_line_follows_from_the_seed_and_its_number_alone(sampler: Sampler) -> None:
    many = list(sampler.lines(["a"], 70, Sampling(seed=4)))
    assert many[:3] == list(sampler.lines(["a"], 3, Sampling(seed=4)))
    assert many[:34] == list(Sampler(sampler.language_model, VOCABULARY).lines(["a"], 34, Sampling(seed=4)))
    assert many != list(sampler.lines(["a"], 70, Sampling(seed=5)))
    assert len({line.text for line in many}) > 20


def test_more_tokens_only_make_lines_longer(sampler: Sampler) -> None:
    short = list(sampler.lines([], 40, Sampling(max_tokens=4)))
    long = list(sampler.lines([], 40, Sampling(max_tokens=9)))
    assert [line.written[:4] for line in long] == [line.written for line in short]
    assert any(len(line.written) == 4 and not line.ended for line in short)
    assert max(len(line.written) for line in long) > 4


@pytest.mark.parametrize("favourite", [END, UNK, 0, 1])
def test_no_line_is_empty_or_holds_a_special_token(favourite: int) -> None:
    model = build_language_model(len(VOCABULARY), LanguageModelSettings(embedding_size=12, state_size=16))
    (embeddings,) = model.embedding.get_weights()
    embeddings[favourite] *= 10  # no other is as long in its direction
    model.embedding.set_weights([embeddings])
    kernel, _ = model.projection.get_weights()
    wanted = 40 * embeddings[favourite] / (embeddings[favourite] ** 2).sum()
    model.projection.set_weights([kernel, wanted])  # this token has nearly all the probability
    for line in Sampler(model, VOCABULARY).lines([], 50, Sampling(max_tokens=5)):
        assert set(line.written) <= set(VOCABULARY[UNK + 1 :])
        assert len(line.written) == 1 if favourite == END else line.ended or len(line.written) == 5
        assert line.log_probability < (0 if favourite == END else -20)


def test_damaged_weights_are_refused_not_drawn_from() -> None:
    model = build_language_model(len(VOCABULARY), LanguageModelSettings(embedding_size=4, state_size=4))
    kernel, bias = model.projection.get_weights()
    model.projection.set_weights([kernel, bias * np.nan])
    with pytest.raises(StaleModel, match="damaged"):
        list(Sampler(model, VOCABULARY).lines([], 1, Sampling()))
    with pytest.raises(StaleModel, match="damaged"):
        perplexity_of(model, VOCABULARY, ["a dog"])


def test_clitics_join_the_word_before() -> None:
    prompt, written = ["the", "man", "'s"], ["dog", "does", "n't", "run", "'80s", "they", "'re"]
    assert Line(prompt, written, True, -1.0).text == "the man's dog doesn't run '80s they're"


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_p": 0.0},
     {"top_p": 1.1}, {"top_p": math.nan}, {"max_tokens": 0}, {"max_tokens": 10**9}, {"seed": -1}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("_", "-")):
        replace(Sampling(), **wrong)


def test_words_that_the_vocabulary_lacks_are_told() -> None:
    assert unknown_words(tokenize("A zeppelin and a Zeppelin, <unk> dog"), VOCABULARY) == ["zeppelin", "unk"]
    assert unknown_words(["<unk>"], VOCABULARY) == ["<unk>"]


# ---- perplexity ----

TEXT = [
    "A red dog runs on the grass.\n",
    "The cat runs\n",
    "...\n",
    "\n",
    "a zeppelin is on the sand\n",
    "bird",
]


def test_perplexity_is_that_of_each_word_and_end_worked_out_one_by_one(sampler: Sampler) -> None:
    found = perplexity_of(sampler.language_model, VOCABULARY, TEXT)
    model, total, count = InNumpy(sampler.language_model), 0.0, 0
    for line in TEXT:
        tokens = tokenize(line)
        for place, token in enumerate([*tokens, "<end>"] if tokens else []):
            known = token if token in VOCABULARY else "<unk>"
            total += model.log_probabilities(tokens[:place])[VOCABULARY.index(known)]
            count += 1
    assert (found.tokens, found.captions, found.without_words) == (count, 4, 2)
    assert (found.unknown, found.examples) == (1, ("zeppelin",))
    assert found.log_probability == pytest.approx(total, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(-total / count), rel=1e-5)


def test_perplexity_is_that_of_the_training_curve(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [*toy_captions()["tokens"].to_list()[:150], ["a", "dog"] * 90]
    expected = perplexity(sampler.language_model, as_tokens(captions)["tokens"], toy_vocabulary())
    lines = [" ".join(caption) for caption in captions]
    assert perplexity_of(sampler.language_model, VOCABULARY, lines).perplexity == pytest.approx(
        expected, rel=1e-5
    )
    monkeypatch.setattr("cutline.tasks.decoding.perplexity.LINES_PER_BATCH", 40)
    in_lots = perplexity_of(sampler.language_model, VOCABULARY, lines)
    assert in_lots.perplexity == pytest.approx(expected, rel=1e-5)
    assert in_lots.captions == 151


def test_a_text_without_words_has_no_perplexity(sampler: Sampler) -> None:
    with pytest.raises(UsageError, match="no line with a word"):
        perplexity_of(sampler.language_model, VOCABULARY, ["...", ""])


def test_lines_are_read_as_utf8_and_anything_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeffa dog\r\nein Hündchen".encode())
    assert [line.strip() for line in text_lines(file)] == ["a dog", "ein Hündchen"]
    file.write_bytes(b"\xff\xfe\x00 no text")
    with pytest.raises(UsageError, match="UTF-8"):
        list(text_lines(file))
    file.write_text("a" * 2**20 + "\n" + "b" * 2**20)
    assert [len(line.strip()) for line in text_lines(file)] == [2**20, 2**20]
    file.write_text("a" * 2**20 + "b")
    with pytest.raises(UsageError, match="a line of more than 1,048,576 characters"):
        list(text_lines(file))


# ---- the nearest real captions ----

WORDS = st.lists(st.sampled_from(["a", "dog", "cat", "runs", "on"]), max_size=6)


@given(WORDS, st.lists(WORDS.map(tuple), min_size=1, max_size=20), st.integers(1, 5))
def test_the_nearest_captions_are_those_of_the_fewest_changed_words(
    line: list[str], captions: list[tuple[str, ...]], count: int
) -> None:
    texts = [" ".join(caption) for caption in captions]
    if not any(texts):
        with pytest.raises(UsageError, match="none with a word"):
            RealCaptions(texts)
        return
    distinct = [text for text in dict.fromkeys(texts) if text]
    distances = {text: edit_distance(line, text.split()) for text in distinct}
    expected = sorted(distinct, key=lambda text: distances[text])[:count]
    found = RealCaptions(texts).nearest(line, count)
    assert [near.caption for near in found] == expected
    assert [near.distance for near in found] == [distances[text] for text in expected]


@given(
    arrays(np.int32, st.integers(0, 7), elements=st.integers(0, 3)),
    arrays(np.int32, (4, 5), elements=st.integers(0, 3)),
)
def test_distances_are_levenshteins(line: np.ndarray, captions: np.ndarray) -> None:
    assert edit_distances(line, captions).tolist() == [
        edit_distance(line.tolist(), row) for row in captions.tolist()
    ]


def test_a_copy_is_one_whatever_its_case_and_punctuation() -> None:
    real = RealCaptions(["Two cats .", "A dog runs !", "a dog runs", "A dog's run"])
    assert [(near.caption, near.is_copy) for near in real.nearest(["a", "dog", "runs"], 2)] == [
        ("A dog runs !", True),
        ("A dog's run", False),
    ]
