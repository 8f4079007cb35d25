"""What this computer's processor has instructions for; none of it imports TensorFlow."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

# Instructions that multiply 8-bit integers and add up in 32 bits. Without them oneDNN adds up in 16
# bits, where large sums are cut off.
INT8_INSTRUCTIONS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
# Instructions that multiply bfloat16 numbers and add up in float32, twice as many at a time.
BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})
CPU_INFO = Path("/proc/cpuinfo")


@lru_cache(maxsize=1)
def has_int8() -> bool:
    """Whether int8 is exact and fast here: the processor's instructions, and TensorFlow's oneDNN is on."""
    return _has(INT8_INSTRUCTIONS)


@lru_cache(maxsize=1)
def has_bfloat16() -> bool:
    """Whether products of bfloat16 are fast here: the processor's instructions, and oneDNN is on."""
    return _has(BFLOAT16_INSTRUCTIONS)


def _has(instructions: frozenset[str]) -> bool:
    """False where there is no /proc/cpuinfo."""
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0":
        return False
    try:
        text = CPU_INFO.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not instructions.isdisjoint(flags.split())
