"""Captions against references: the scores of the COCO caption challenge, and signs of collapse.

BLEU (Papineni et al. 2002), ROUGE-L (Lin 2004), CIDEr (Vedantam et al. 2015) and METEOR (Denkowski
and Lavie 2014) as pycocoevalcap computes them, so that they compare with published tables. Only its
tokenizer, a Java program, is replaced.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import polars as pl

from cutline.schemas.errors import CutlineError, UsageError
from cutline.schemas.settings import EvaluateSettings
from cutline.schemas.tables import dtypes_of
from cutline.tasks.text.tokenizer import is_word, split, tokenize

HELD_OUT = ("dev", "test")  # the splits that are scored
Missing = Literal["refuse", "empty", "skip"]

# What pycocoevalcap removes from tokens. It does so after lower-casing, so that "-LRB-" has become
# "-lrb-" and brackets stay; they stay here too.
_PUNCTUATION = frozenset([".", "?", "!", ",", ":", "-", "--", "...", ";", "'", "''", "`", "``"])
_SPELT = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"€": "$", "£": "#", "¢": "cents"},
}
_KEPT_SYMBOLS = frozenset("°×§©®™·•¿¡")
# What Java's tokenizer keeps whole and `split` takes apart: "?!", 'n', '80s, names on networks,
# addresses, AT&T.
_WHOLE = re.compile(
    r"([?!]{2,}|(?<!\w)'(?:n'(?!\w)|(?:em|til|cause|\d0s)\b)|(?<!\S)(?:[#@][A-Za-z]\w+|ol'|https?://\S+"
    r"|[\w.]+@\w[\w.]+\w)(?!\S)|(?<!\w)[A-Z]+&[A-Z]+(?!\w))"
)


# ---- scores ----


def ptb_tokens(texts: Iterable[str]) -> list[str]:
    """Each text as Penn Treebank tokens joined with single spaces: lower case, no punctuation.

    Agrees with pycocoevalcap's Java PTBTokenizer on all but about one token in 100,000 of English
    captions. It differs on purpose where Java's tokens would make no sense of other scripts: accents
    are composed, Chinese and Japanese characters are tokens, their punctuation is dropped.
    """
    return [" ".join(_scored_tokens(text)) for text in texts]


def _scored_tokens(text: str) -> Iterator[str]:
    for place, part in enumerate(_WHOLE.split(text)):
        for token in (part.lower(),) if place % 2 else split(part):
            spelt = _SPELT.get(token, token)
            if spelt not in _PUNCTUATION and (spelt.isascii() or is_word(spelt) or spelt in _KEPT_SYMBOLS):
                yield spelt


def score(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    meteor: bool = False,
    missing: Missing = "refuse",
) -> dict[str, float]:
    """Bleu_1 to Bleu_4, ROUGE_L and CIDEr of captions (0 to 1; CIDEr 0 to 10), METEOR if asked for.

    Both mappings are by photograph. A prediction without a reference is not scored, nor is a
    reference without words one. `missing` says what becomes of a photograph that has references but
    no prediction: `refuse` raises, `empty` scores it as a caption of no words, `skip` leaves it out.
    CIDEr weighs words by how many of the scored photographs have them in their references, so that
    scores of different sets of photographs do not compare.

    Raises UsageError if predictions are missing and `missing` is `refuse`, if nothing can be scored,
    or if METEOR is asked for and there is no Java.
    """
    said = _said(references)
    chosen = _chosen(predictions, said, missing)
    tokens = ptb_tokens(predictions.get(photo, "") for photo in chosen)
    results = {photo: [text] for photo, text in zip(chosen, tokens, strict=True)}
    return _pycoco_scores({photo: said[photo] for photo in chosen}, results, meteor)


def _said(references: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """References as tokens, without those that hold none."""
    tokens = {photo: [text for text in ptb_tokens(texts) if text] for photo, texts in references.items()}
    return {photo: texts for photo, texts in tokens.items() if texts}


def _chosen(predictions: Mapping[str, str], references: Mapping[str, object], missing: Missing) -> list[str]:
    """The photographs to score, in the order of the references."""
    absent = [photo for photo in references if photo not in predictions]
    if len(absent) == len(references):
        raise UsageError(
            f"nothing to score: none of {len(predictions):,} predictions ({_some(predictions)}) is of one "
            f"of the {len(references):,} photographs that have references ({_some(references)})"
        )
    if absent and missing == "refuse":
        raise UsageError(
            f"{len(absent):,} of {len(references):,} photographs that have references have no prediction "
            f"({_some(absent)}); caption them, or say that they shall be skipped or scored as empty captions"
        )
    return [photo for photo in references if missing == "empty" or photo in predictions]


def _some(names: Iterable[str], count: int = 3) -> str:
    """The first few names, for a message."""
    shown = [f"'{name[:80]}'" for _, name in zip(range(count + 1), names, strict=False)]
    return ", ".join(shown[:count]) + (", …" if len(shown) > count else "")


def _pycoco_scores(
    references: dict[str, list[str]], results: dict[str, list[str]], meteor: bool
) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, results, verbose=0)
    scores = {f"Bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)}
    scores["ROUGE_L"] = float(Rouge().compute_score(references, results)[0])
    scores["CIDEr"] = float(Cider().compute_score(references, results)[0])
    if meteor:
        scores["METEOR"] = _meteor(references, results)
    return scores


def _meteor(references: dict[str, list[str]], results: dict[str, list[str]]) -> float:
    if shutil.which("java") is None:
        raise UsageError(
            "METEOR needs Java, and there is no 'java' on the PATH; install one or leave METEOR out"
        )
    from pycocoevalcap.meteor.meteor import Meteor

    try:
        return float(Meteor().compute_score(references, results)[0])
    except (OSError, ValueError) as error:
        raise CutlineError(
            f"METEOR's Java program ended without a score ({error}); "
            "it needs Java 8 or later and 2 GB of memory"
        ) from error


# ---- signs of collapse ----


def collapse(predictions: Mapping[str, str], training_captions: Iterable[Sequence[str]]) -> dict[str, float]:
    """Signs that a model says the same of everything; `training_captions` are lists of tokens.

    distinct          share of captions that are left when each is counted once
    vocabulary_used   number of different tokens
    copied            share of captions that stand word for word among the training captions
    shared            number of photographs whose caption another photograph has too
    mean_length       tokens a caption

    Captions are compared by their tokens. All values are 0 where there is no prediction.
    """
    captions = Counter(tuple(tokenize(text)) for text in predictions.values())
    total = max(1, len(predictions))
    learned = {seen for seen in map(tuple, training_captions) if seen in captions}
    return {
        "distinct": len(captions) / total,
        "vocabulary_used": float(len({token for caption in captions for token in caption})),
        "copied": sum(captions[caption] for caption in learned) / total,
        "shared": float(sum(count for count in captions.values() if count > 1)),
        "mean_length": sum(len(caption) * count for caption, count in captions.items()) / total,
    }


def evaluate(
    predictions: pl.DataFrame,
    captions: pl.DataFrame,
    training: Iterable[pl.DataFrame],
    settings: EvaluateSettings,
) -> pl.DataFrame:
    """The `scores` table of the dev and test splits, where photographs there have references.

    `predictions` has photo_id, split and caption; `captions` is the captions table; `training` are the
    tokens of the training captions, a table at a time. Besides the scores and the signs of collapse,
    `photos` counts the photographs scored and `unpredicted` those that have references but no
    prediction, as they were rejected; they are left out of the scores.
    """
    held_out = predictions.filter(pl.col("split").is_in(HELD_OUT))
    if held_out.is_empty():
        return pl.DataFrame(schema=dtypes_of("scores"))
    rows: list[tuple[str, str, float]] = []
    written = {tuple(tokenize(text)) for text in held_out["caption"]}
    tokens = (tuple(caption) for some in training for caption in some["tokens"].to_list())
    known = {caption for caption in tokens if caption in written}
    for name in HELD_OUT:
        predicted = _by_photo(held_out.filter(pl.col("split") == name))
        references = _references_of(captions.filter(pl.col("split") == name))
        scored = {photo: predicted[photo] for photo in references if photo in predicted}
        if not scored:
            continue
        values = score(scored, references, settings.meteor, missing="skip")
        values |= collapse(scored, known)
        values |= {"photos": float(len(scored)), "unpredicted": float(len(references) - len(scored))}
        rows += [(name, metric, value) for metric, value in values.items()]
    return pl.DataFrame(rows, schema=dtypes_of("scores"), orient="row")


def cider_of_each(predictions: pl.DataFrame, captions: pl.DataFrame) -> pl.DataFrame:
    """photo_id and cider: what each caption of a photograph of the dev and test splits has.

    `predictions` has photo_id and caption; `captions` is the captions table. The splits are weighed each
    by itself, so that the mean of one is its score. A photograph without references has no row.
    """
    from pycocoevalcap.cider.cider import Cider

    predicted = _by_photo(predictions)
    found: dict[str, float] = {}
    for name in HELD_OUT:
        said = _said(_references_of(captions.filter(pl.col("split") == name)))
        known = {photo: texts for photo, texts in said.items() if photo in predicted}
        if known:
            tokens = ptb_tokens(predicted[photo] for photo in known)
            results = {photo: [text] for photo, text in zip(known, tokens, strict=True)}
            found |= dict(zip(known, map(float, Cider().compute_score(known, results)[1]), strict=True))
    return pl.DataFrame(
        {"photo_id": list(found), "cider": list(found.values())},
        schema={"photo_id": pl.String, "cider": pl.Float64},
    )


def _by_photo(predictions: pl.DataFrame) -> dict[str, str]:
    return dict(predictions.select("photo_id", "caption").iter_rows())


def _references_of(captions: pl.DataFrame) -> dict[str, list[str]]:
    references: dict[str, list[str]] = {}
    for photo, text in captions.drop_nulls("photo_id").select("photo_id", "text").iter_rows():
        if any(map(is_word, split(text))):
            references.setdefault(photo, []).append(text)
    return references
