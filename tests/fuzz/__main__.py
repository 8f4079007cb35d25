"""Fuzz each target in a process of its own: `python -m tests.fuzz --seconds 600 [TARGET …]`.

New inputs go to .fuzz/TARGET; one that breaks the oracle to .fuzz/TARGET-crash-…, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PARSERS = ["tasks", "flows", "yaml", "json", "tarfile", "zipfile", "csv"]  # Python code whose branches guide
CORPUS = Path(__file__).parent / "corpus"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--only", help="run this target here, without a process of its own")
    parser.add_argument("targets", nargs="*", default=sorted(path.name for path in CORPUS.iterdir()))
    told = parser.parse_args()
    if told.only:
        return fuzz(told.only, told.seconds)
    failed = []
    for name in told.targets:
        command = [sys.executable, "-m", "tests.fuzz", "--only", name, "--seconds", str(told.seconds)]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def fuzz(name: str, seconds: int) -> int:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    found = Path(".fuzz", name)
    found.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=PARSERS):
        from tests.fuzz.targets import check
    arguments = [
        *(sys.argv[0], str(found), str(CORPUS / name), f"-max_total_time={seconds}", "-print_final_stats=1"),
        *("-rss_limit_mb=2048", "-timeout=20", "-max_len=65536", f"-artifact_prefix={found}-"),
    ]
    atheris.Setup(arguments, lambda data: check(name, data))
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
