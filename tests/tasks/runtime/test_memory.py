"""Memory: what is needed no more is given back after a stage."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import weakref

import pytest

from cutline.tasks.runtime.memory import give_back

RESIDENT = """
import re
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
"""  # MB of the process, for scripts


def test_what_only_refers_to_itself_is_let_go_after_a_training() -> None:
    class Trainer:
        pass

    gc.disable()
    try:
        trainer = Trainer()
        trainer.itself = trainer  # type: ignore[attr-defined]
        is_there = weakref.ref(trainer)
        del trainer
        give_back(tensorflow=False)
        assert is_there()
        give_back(tensorflow=True)
        assert not is_there()
    finally:
        gc.enable()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_memory_that_the_c_library_keeps_goes_back_to_the_system() -> None:
    # 200 MB in small pieces, which it would keep: one piece after them all holds their place.
    script = """
import ctypes
from cutline.tasks.runtime.memory import give_back
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
pieces = [library.malloc(50_000) for _ in range(4_000)]
for piece in pieces:
    ctypes.memset(piece, 1, 50_000)
last = library.malloc(50_000)
for piece in pieces:
    library.free(piece)
before = resident()
give_back(tensorflow=False)
print(before - resident())
"""
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + script], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) > 150


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Polars has another allocator")
def test_memory_of_tables_goes_back_to_the_system_at_once() -> None:
    script = """
import tasks
import polars as pl
tables = [pl.zeros(100_000, eager=True) + number for number in range(200)]
before = resident()
del tables
print(before - resident())
"""
    # Polars leaves its own defaults there.
    fresh = {name: value for name, value in os.environ.items() if name != "_RJEM_MALLOC_CONF"}
    command = [sys.executable, "-c", RESIDENT + script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=fresh)
    assert float(done.stdout) > 130  # of 160 MB
