"""How texts, numbers and scores are shown to people, on a page and in a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cutline.schemas.safe_text import for_terminal

LONGEST_TEXT = 400  # letters; keeps a page small, whatever comes in
A_GUESS = 1.0  # a photograph that is farther away is unlike all that the model has learned from


def is_a_guess(distance: float | None) -> bool:
    """Whether a caption is a guess, by the distance of its photograph; not where that cannot be told."""
    return distance is not None and distance > A_GUESS


def clip(text: str, longest: int = LONGEST_TEXT) -> str:
    """The first letters of a text that is too long for a page, and how long it is."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} letters in all)"


def quoted(words: Sequence[str]) -> str:
    """The first words of a list, each in quotation marks."""
    return ", ".join(f"'{for_terminal(word[:40])}'" for word in words[:10])


def number(value: int) -> str:
    """1234 → 1,234."""
    return f"{value:,}"


def count_of(count: int, noun: str) -> str:
    """1234, "photograph" → 1,234 photographs."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def decimal(value: float | None, places: int = 2) -> str:
    """-1.234 → −1.23; a dash where there is no number."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{places}f}".replace("-", "−")


# ---- scores ----


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: `form` is score (0.123), mean (1.2), share (of 1, in percent) or count."""

    label: str
    reading: str
    form: str = "score"


QUALITY: dict[str, Metric] = {
    "photos": Metric("photographs scored", "Those of the split that have references and a caption.", "count"),
    "unpredicted": Metric("left out", "Photographs with references that were rejected before.", "count"),
    "Bleu_1": Metric("BLEU-1", "Words that a reference has too, as a share of the words written."),
    "Bleu_2": Metric("BLEU-2", "The same for words and pairs of words."),
    "Bleu_3": Metric("BLEU-3", "The same for up to three words in a row."),
    "Bleu_4": Metric("BLEU-4", "The same for up to four in a row: 0 is no such run, 1 a reference itself."),
    "METEOR": Metric("METEOR", "Words matched by form, stem and synonym, in order."),
    "ROUGE_L": Metric("ROUGE-L", "The longest run of words in common with a reference, gaps allowed."),
    "CIDEr": Metric("CIDEr", "Agreement in telling words, from 0 to 10; common words count little."),
}
COLLAPSE: dict[str, Metric] = {
    "distinct": Metric("distinct captions", "Near 0 % a model says the same few things to all.", "share"),
    "vocabulary_used": Metric(
        "vocabulary used", "Different words written; a few dozen mean that it plays safe.", "count"
    ),
    "copied": Metric("copied", "Word for word from the training captions; near 100 % it recalls.", "share"),
    "shared": Metric(
        "shared", "Photographs whose caption another has too; if most, it hardly looks.", "count"
    ),
    "mean_length": Metric("words a caption", "Much shorter than the references is a way out.", "mean"),
}


def metric_of(name: str) -> Metric:
    """How a metric is shown; one that nobody knows by its own name."""
    return (QUALITY | COLLAPSE).get(name, Metric(name, ""))


def in_form(value: float | None, form: str) -> str:
    """A value of a metric as its `Metric.form` wants it; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if form == "share":
        return f"{value:.1%}".replace("%", " %").replace("-", "−")
    return decimal(value, {"count": 0, "mean": 1, "score": 3}[form])


def change_in_form(change: float, form: str) -> str:
    """How much a metric moved, with the sign of what is shown: that of a share in points of a hundred.

    0.2, "share" → +20.0 points; -0.0001, "score" → 0.000.
    """
    shown = f"{decimal(100 * change, 1)} points" if form == "share" else in_form(change, form)
    if not re.search("[1-9]", shown):
        return shown.removeprefix("−")
    return f"+{shown}" if change > 0 else shown
