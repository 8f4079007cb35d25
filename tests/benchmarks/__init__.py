"""Ours beside what people use: `python -m tests.benchmarks`; see `__main__.py`."""
