"""Fuzzing of the parsers of foreign bytes: one target each, a small kept corpus of generated inputs.

`make fuzz` runs a coverage-guided fuzzer (atheris) for hours; test_corpus.py replays the corpus in CI. The
oracle of every target: nothing but a CutlineError or what the parser documents may be raised, memory stays
below a gigabyte, an input takes less than 20 s, and the same input gives the same result twice. An input
that broke it is kept in the corpus, with its fix.
"""
