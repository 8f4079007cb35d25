"""What our pages have in common: templates that escape, numbers as people read them, small pictures."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

LONGEST_TEXT = 400  # letters; keeps a page small, whatever comes in
A_GUESS = 1.0  # a photograph that is farther away is unlike all that the model has learned from
ABOUT_SCORES = (
    "A score is the mean log-probability of a token, likelier the nearer to zero; a caption is what people "
    "are expected to agree with most, so what was also considered may have a higher score."
)
ABOUT_DISTANCES = (
    "A photograph at a distance above 1 is unlike all that the model learned from: its caption is a guess."
)
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202d\u202e\ud800-\udfff\ufffe\uffff]")


def environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder: all that they print is escaped, and a name that is not there is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"clip": clip, "number": number, "count_of": count_of}
    found.filters |= {"decimal": decimal, "sha256": sha256}
    found.tests |= {"a_guess": is_a_guess}
    found.globals |= {"about_scores": ABOUT_SCORES, "about_distances": ABOUT_DISTANCES}
    return found


def is_a_guess(distance: float | None) -> bool:
    """Whether a caption is a guess, by the distance of its photograph; not where that cannot be told."""
    return distance is not None and distance > A_GUESS


def visible(value: Any) -> Any:
    """Write out what a text may hide: control characters, overrides of direction, lone surrogates."""
    if type(value) is not str:
        return value
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), value)


def clip(text: str, longest: int = LONGEST_TEXT) -> str:
    """The first letters of a text that is too long for a page, and how long it is."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} letters in all)"


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


def sha256(text: str) -> str:
    """The digest of a text as a content security policy wants it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def small_jpeg(picture: np.ndarray, longest_px: int, quality: int = 82) -> bytes:
    """A JPEG of (H, W, 3) RGB uint8, its longer side at most `longest_px`."""
    height, width = picture.shape[:2]
    scale = min(1.0, longest_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if scale < 1.0 else picture
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), options)
    return data.tobytes()
