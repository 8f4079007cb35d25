"""Wiring only: which stage after which, and the command line."""

import tasks  # noqa: F401  before NumPy, for what it sets
