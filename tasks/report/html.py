"""What our pages have in common: templates that escape, and small pictures."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import cv2
import jinja2
import numpy as np

from cutline.schemas.safe_text import for_page
from cutline.tasks.runtime.formatting import clip, count_of, decimal, is_a_guess, number

ABOUT_SCORES = (
    "A score is the mean log-probability of a token, likelier the nearer to zero; a caption is what people "
    "are expected to agree with most, so what was also considered may have a higher score."
)
ABOUT_DISTANCES = (
    "A photograph at a distance above 1 is unlike all that the model learned from: its caption is a guess."
)


def environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder: all that they print is escaped, and a name that is not there is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=for_page,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {"clip": clip, "number": number, "count_of": count_of}
    found.filters |= {"decimal": decimal, "sha256": sha256}
    found.tests |= {"a_guess": is_a_guess}
    found.globals |= {"about_scores": ABOUT_SCORES, "about_distances": ABOUT_DISTANCES}
    return found


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
