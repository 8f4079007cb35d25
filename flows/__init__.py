"""Wiring only: which stage after which, and the command line."""

from pathlib import Path

import tasks  # noqa: F401  before NumPy, for what it sets

DEFAULT_WORKSPACE = Path(__file__).resolve().parents[1] / "data" / "workspace"
