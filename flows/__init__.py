"""Wiring only: which stage after which, and the command line."""
