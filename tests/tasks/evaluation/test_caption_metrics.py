"""Scores are those of pycocoevalcap with its Java tokenizer, and a bad input never makes them better."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pytest

from cutline.schemas.errors import UsageError
from cutline.schemas.settings import EvaluateSettings
from cutline.schemas.tables import check
from cutline.tasks.evaluation.caption_metrics import cider_of_each, collapse, evaluate, ptb_tokens, score
from cutline.tasks.text.tokenizer import tokenize
from tests.support.datasets import an_id

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="there is no 'java' on the PATH")

# Typed the way people type.
TYPED = {
    "1": ["A man's dog isn't running .", "The dog can't run, it's tired!", "a black-and-white dog", "Dog..."],
    "2": ['A sign says "STOP" (in red)...', "Two signs & a bus; 10:30am", "A stop-sign.", "what?! a sign!!"],
    "3": [
        "Mr. Smith's at Main St.",
        "A street in the U.S.",
        "3/4 of a street, 50% dark",
        "Street with #23 on it",
    ],
    "4": [
        "A boy and/or girl w/ a T-shirt",
        "kids' toys -- lots",
        "It cost $5.00 or €5",
        "gonna play , cannot stop",
    ],
    "5": [
        "Bird's-eye view of a city",
        "“Curly” quotes’ city – far",
        "a café & naïve people…",
        "rock 'n' roll '80s city",
    ],
    "6": [
        "two dogs play.  one watches.",
        "Dogs,cats;birds:all",
        "a [big] dog {sic} <3",
        "AT&T dog @home 20°",
    ],
}


def java_tokens(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    entries = {name: [{"caption": text} for text in texts] for name, texts in captions.items()}
    return PTBTokenizer().tokenize(entries)


def java_scores(said: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    known, results = java_tokens(references), java_tokens({name: [text] for name, text in said.items()})
    bleu = Bleu(4).compute_score(known, results, verbose=0)[0]
    scores = {f"Bleu_{n}": value for n, value in enumerate(bleu, start=1)}
    scores["ROUGE_L"] = Rouge().compute_score(known, results)[0]
    scores["CIDEr"] = Cider().compute_score(known, results)[0]
    return scores


@needs_java
def test_tokens_of_typed_captions_are_javas() -> None:
    java = java_tokens(TYPED)
    assert {name: ptb_tokens(texts) for name, texts in TYPED.items()} == java


@needs_java
@pytest.mark.parametrize("chosen", range(4))
def test_scores_of_typed_captions_are_those_with_javas_tokens(chosen: int) -> None:
    said = {name: texts[chosen] for name, texts in TYPED.items()}
    known = {name: [text for text in texts if text != said[name]] for name, texts in TYPED.items()}
    assert score(said, known) == pytest.approx(java_scores(said, known), abs=1e-9)


def flickr_captions(real_data: Path) -> dict[str, list[str]]:
    lines = (real_data / "data/flickr8k/Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    captions: dict[str, list[str]] = {}
    for line in lines:
        name, _, text = line.partition("\t")
        captions.setdefault(name.partition("#")[0], []).append(text)
    return captions


def coco_captions(real_data: Path) -> dict[str, list[str]]:
    data = json.loads((real_data / "data/coco-captions/captions_val2017.json").read_text(encoding="utf-8"))
    captions: dict[str, list[str]] = {}
    for note in data["annotations"]:
        captions.setdefault(str(note["image_id"]), []).append(note["caption"])
    return captions


@needs_java
@pytest.mark.real_data
@pytest.mark.parametrize("captions_of", [flickr_captions, coco_captions])
def test_scores_of_real_captions_agree_with_javas_tokens(captions_of, real_data: Path) -> None:
    captions = {name: texts for name, texts in captions_of(real_data).items() if len(texts) > 1}
    java = java_tokens(captions)
    differ = sum(
        ours.split() != theirs.split()
        for name, texts in captions.items()
        for ours, theirs in zip(ptb_tokens(texts), java[name], strict=True)
    )
    assert differ <= 1e-3 * sum(map(len, captions.values()))

    some = dict(list(captions.items())[::6])
    said = {name: texts[0] for name, texts in some.items()}
    known = {name: texts[1:] for name, texts in some.items()}
    assert score(said, known) == pytest.approx(java_scores(said, known), abs=0.0005)


def test_chinese_and_japanese_are_scored_by_the_character() -> None:
    assert ptb_tokens(["一只狗。", "犬が走る", "ein Füller"]) == ["一 只 狗", "犬 が 走 る", "ein füller"]


def test_what_a_model_says_in_tokens_scores_like_the_text_that_it_learned_from() -> None:
    for texts in TYPED.values():
        for text in texts:
            words = tokenize(text)
            assert [token for token in ptb_tokens([" ".join(words)])[0].split(" ") if token] == words


# ---- scores against figures that can be worked out by hand, and other programs ----


def test_scores_of_two_short_captions_by_hand() -> None:
    said = {"1": "a dog runs", "2": "a red bus"}
    known = {"1": ["a dog runs fast"], "2": ["the red bus"]}
    scores = score(said, known)
    shorter = math.exp(1 - 7 / 6)  # 6 tokens said, 7 in the references
    assert scores["Bleu_1"] == pytest.approx(5 / 6 * shorter)
    assert scores["Bleu_2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 4) * shorter)
    assert scores["Bleu_3"] == pytest.approx((5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3) * shorter)
    # ROUGE-L with beta 1.2: precision 3/3 and recall 3/4, then 2/3 and 2/3.
    first = (1 + 1.44) * 1 * 0.75 / (0.75 + 1.44 * 1)
    assert scores["ROUGE_L"] == pytest.approx((first + 2 / 3) / 2)


def test_cider_by_hand() -> None:
    """Three photographs, one word each: n-grams of one word only, every weight is log 3."""
    said = {"1": "dog", "2": "cat", "3": "cow"}
    known = {"1": ["dog"], "2": ["bird"], "3": ["cow", "ox"]}
    # A cosine of 1 over one of four n, times 10: 2.5; none; 2.5 for one of two references.
    assert score(said, known)["CIDEr"] == pytest.approx((2.5 + 0 + 1.25) / 3)


def test_bleu_is_nltks_on_the_same_tokens() -> None:
    from nltk.translate.bleu_score import corpus_bleu

    said = {name: f"{texts[0]} and {texts[1]}" for name, texts in TYPED.items()}
    scores = score(said, TYPED)
    known = [[text.split() for text in ptb_tokens(texts)] for texts in TYPED.values()]
    results = [text.split() for text in ptb_tokens(said.values())]
    for n in (1, 2, 3, 4):
        assert scores[f"Bleu_{n}"] == pytest.approx(
            corpus_bleu(known, results, weights=[1 / n] * n), abs=1e-6
        )


def test_a_caption_equal_to_its_reference_has_the_highest_scores() -> None:
    known = {name: [texts[0] + " on a long road"] for name, texts in TYPED.items()}
    scores = score({name: texts[0] for name, texts in known.items()}, known)
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0) | {"CIDEr": 10.0}, abs=1e-6)


def test_scoring_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score({"1": "a dog"}, {"1": ["a dog runs"]})
    assert capfd.readouterr() == ("", "")


# ---- what is missing ----

KNOWN = {"1": ["a dog runs on grass"], "2": ["a red bus in town"], "3": ["two cows eat green grass"]}
SAID = {"1": "a dog runs on grass", "2": "a red bus in town"}


def test_a_missing_prediction_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"1 of 3 photographs that have references have no prediction \('3'\)"
    ):
        score(SAID, KNOWN)


def test_a_missing_prediction_counts_as_empty_or_is_left_out_on_request() -> None:
    skipped, empty = score(SAID, KNOWN, missing="skip"), score(SAID, KNOWN, missing="empty")
    assert skipped["Bleu_1"] == pytest.approx(1)
    assert empty["ROUGE_L"] == pytest.approx(2 / 3)
    assert empty == pytest.approx(score(SAID | {"3": ""}, KNOWN))
    assert empty["Bleu_4"] < skipped["Bleu_4"]


def test_photographs_and_references_that_cannot_be_scored_change_nothing() -> None:
    plain = score(SAID, KNOWN, missing="skip")
    assert score(SAID | {"9": "no reference"}, KNOWN | {"8": ["..."], "7": []}, missing="skip") == plain
    assert score(SAID, KNOWN | {"1": [*KNOWN["1"], " . "]}, missing="skip") == plain


def test_an_empty_prediction_never_scores() -> None:
    scores = score(dict.fromkeys(KNOWN, ""), KNOWN | {"1": [*KNOWN["1"], "!"]})
    assert scores == pytest.approx(dict.fromkeys(scores, 0.0), abs=1e-6)


def test_nothing_to_score_is_refused_with_names_of_both_sides() -> None:
    with pytest.raises(UsageError, match=r"1 predictions \('dog.jpg'\).*3 photographs.*'1', '2', '3'\)"):
        score({"dog.jpg": "a dog"}, KNOWN)


def test_meteor_without_java_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no 'java' on the PATH"):
        score(SAID, KNOWN, meteor=True, missing="skip")


@needs_java
@pytest.mark.real_data  # its table of paraphrases takes Java half a minute to read
def test_meteor_where_there_is_java(real_data: Path) -> None:
    plain = score(SAID, KNOWN, missing="empty")
    scores = score(SAID, KNOWN, meteor=True, missing="empty")  # two captions are right, one is missing
    assert 0.4 < scores.pop("METEOR") < 0.8
    assert scores == plain


# ---- signs of collapse ----


def test_signs_of_collapse_by_hand() -> None:
    said = {"1": "A dog runs.", "2": "a dog runs", "3": "a cat", "4": "a dog's bowl"}
    signs = collapse(said, [["a", "dog", "runs"], ["a", "dog", "runs"], ["a", "dog"]])
    assert signs == {
        "distinct": 3 / 4,
        "vocabulary_used": 6,  # a dog runs cat 's bowl
        "copied": 2 / 4,
        "shared": 2,
        "mean_length": (3 + 3 + 2 + 4) / 4,
    }


def test_no_prediction_shows_no_sign() -> None:
    assert set(collapse({}, [["a"]]).values()) == {0}


def test_the_scores_table_has_the_splits_that_hold_references() -> None:
    captions = pl.DataFrame(
        {
            "caption_id": [an_id(n) for n in range(6)],
            "photo_id": [an_id(1), an_id(1), an_id(2), an_id(3), None, an_id(4)],
            "text": ["A dog runs .", "The dog runs", "A cat", "A bus in town", "A cow on grass", "Two men"],
            "split": ["test", "test", "test", "train", "test", "test"],
        }
    )
    predictions = pl.DataFrame(
        {
            "photo_id": [an_id(1), an_id(2), an_id(3), an_id(5)],
            "split": ["test", "test", "dev", "test"],
            "caption": ["a dog runs", "a cat", "a bus", "no reference"],
        }
    )
    training = pl.DataFrame({"tokens": [["a", "cat"], ["a", "bus"]]})
    table = evaluate(predictions, captions, [training], EvaluateSettings())
    check(table, "scores")
    assert table["split"].unique().to_list() == ["test"]
    values = dict(table.select("metric", "value").iter_rows())
    assert values["photos"] == 2
    assert values["unpredicted"] == 1
    assert values["copied"] == 0.5
    assert values["Bleu_1"] == pytest.approx(1)
    assert {"Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr", "distinct", "shared"} < set(values)


def test_the_mean_of_the_cider_of_each_photograph_is_the_score_of_its_split() -> None:
    numbers = range(8)
    texts = [
        "A dog runs",
        "A cat sleeps",
        "Two men talk",
        "A bus stops",
        "A red ball",
        "A dog",
        "A boat",
        "!",
    ]
    splits = ["dev"] * 3 + ["test"] * 3 + ["train", "test"]
    ids = [an_id(number) for number in numbers]
    captions = pl.DataFrame({"photo_id": ids, "text": texts, "split": splits})
    said = ["a dog runs", "a cat", "a man", "a bus stops", "a ball", "a cat", "a boat", "nothing"]
    predictions = pl.DataFrame({"photo_id": ids, "split": splits, "caption": said})
    each = cider_of_each(predictions, captions).join(predictions, on="photo_id")
    scores = evaluate(predictions, captions, [], EvaluateSettings()).filter(pl.col("metric") == "CIDEr")
    means = dict(each.group_by("split").agg(pl.col("cider").mean()).iter_rows())
    assert means == pytest.approx(dict(scores.select("split", "value").iter_rows()))
    assert sorted(each["split"]) == ["dev"] * 3 + ["test"] * 3  # of the last nobody said a word


def test_without_references_the_scores_table_is_empty() -> None:
    nothing = pl.DataFrame(schema={"photo_id": pl.String, "split": pl.String, "caption": pl.String})
    captions = pl.DataFrame(schema={"photo_id": pl.String, "split": pl.String, "text": pl.String})
    tokens = pl.DataFrame(schema={"tokens": pl.List(pl.String)})
    table = evaluate(nothing, captions, [tokens], EvaluateSettings())
    check(table, "scores")
    assert table.is_empty()
