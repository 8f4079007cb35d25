"""Wiring only: which stage after which, and the command line."""

from tasks import DEFAULT_WORKSPACE  # before NumPy, for what it sets

__all__ = ["DEFAULT_WORKSPACE"]
