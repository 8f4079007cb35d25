"""The HTML page of search results."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutline.tasks.report.html import environment, small_jpeg

THUMBNAIL_PX = 320


def write_search_page(found: Mapping[str, Any], pictures: Sequence[np.ndarray | None], path: Path) -> None:
    """Write what `cutline search` found as one HTML page: escaped, with its pictures, asking for nothing.

    `found` is what --json prints; `pictures` are RGB uint8 (H, W, 3), one a photograph found.
    """
    photos = [
        photo
        | {
            "picture": None
            if picture is None
            else base64.b64encode(small_jpeg(picture, THUMBNAIL_PX)).decode()
        }
        for photo, picture in zip(found["photos"], pictures, strict=True)
    ]
    page = (
        environment(Path(__file__).parent)
        .get_template("search.html.j2")
        .render(text=found["text"], photo=found["photo"], photos=photos, captions=found["captions"])
    )
    path.write_bytes(page.encode())
