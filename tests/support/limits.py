"""Runs a function in a child process and measures what it costs, for tests of hostile input.

The limits are generous, since another process may have the machine: they tell a parser that is linear in
its input from one that hangs or fills the memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests import REPOSITORY

CPU_S = 20
MEMORY_BYTES = 2**30  # resident, above what the imports took
ADDRESS_SPACE_BYTES = 8 * 2**30  # Arrow and threads reserve much that they never use

_CHILD = """
import importlib, json, resource, sys
module, function, arguments, cpu_s, memory = json.loads(sys.argv[1])
function = getattr(importlib.import_module(module), function)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(cpu()) + cpu_s,) * 2)
before, begun = peak(), cpu()
result = function(*arguments)
print("RESULT " + json.dumps([result, cpu() - begun, peak() - before]))
"""


@dataclass(frozen=True)
class Cost:
    """What a function returned, as JSON has it, and what it took."""

    result: Any
    cpu_s: float
    memory_bytes: int


def within_limits(module: str, function: str, *arguments: Any) -> Cost:
    """Call `module.function(*arguments)`, all of it such as JSON can hold, in a child under the limits.

    Fails where the child dies, which it does at its limits, or takes more than MEMORY_BYTES.
    """
    told = json.dumps([module, function, arguments, CPU_S, ADDRESS_SPACE_BYTES])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, told],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0, f"the child ended with {done.returncode}: {done.stderr[-2000:]}"
    assert results, done.stdout[-2000:]
    cost = Cost(*json.loads(results[-1].removeprefix("RESULT ")))
    assert cost.memory_bytes < MEMORY_BYTES
    return cost
