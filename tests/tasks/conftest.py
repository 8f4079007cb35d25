"""Fixtures of the tests of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty data set."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    return folder
