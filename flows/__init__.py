"""Wiring only: which stage after which, and the command line."""

from cutline.tasks import DEFAULT_WORKSPACE

__all__ = ["DEFAULT_WORKSPACE"]
