"""The kept corpus and some mutants of it hold to the oracle; `make fuzz` looks for more."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import TARGETS, check
from tests.support.limits import within_limits

MUTANTS = 60  # of each target


def replay(name: str, mutants: int) -> int:
    """Run a target on its corpus and on mutants of it; run in a child. Returns the number of inputs."""
    inputs = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    for data in inputs:
        check(name, data)
    rng = np.random.default_rng(11)
    for number in range(mutants):
        mutant = bytearray(inputs[number % len(inputs)])
        for at in rng.integers(0, len(mutant), rng.integers(1, 6)):
            mutant[at] = rng.integers(0, 256)
        check(name, bytes(mutant))
    return len(inputs) + mutants


@pytest.mark.parametrize("name", TARGETS)
def test_kept_and_mutated_inputs_are_read_or_refused(name: str) -> None:
    assert any((CORPUS / name).iterdir())
    assert within_limits("tests.fuzz.test_corpus", "replay", name, MUTANTS).result > MUTANTS
