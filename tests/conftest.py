"""Fixtures that all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds `data/flickr8k`, `data/coco-mini` and `weights`; skips where there is none."""
    folder = os.environ.get("CUTLINE_REAL_DATA")
    if not folder:
        pytest.skip("CUTLINE_REAL_DATA is not set: this test needs real photographs, which are not shipped")
    assert Path(folder, "data/flickr8k/images").is_dir(), f"CUTLINE_REAL_DATA={folder} holds no data/flickr8k"
    return Path(folder)
