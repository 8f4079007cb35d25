"""Times Cutline beside what people use, by turns, in one process tree.

    python -m tests.benchmarks [features] [decoding] [tokens] [--rounds 5] [--out FOLDER]

Writes bench.md, bench.csv and bench.svg to FOLDER (data/workspace/bench). Takes Flickr8k from the
folder that CUTLINE_REAL_DATA names, else the sample that is drawn. CPU time is what to compare where
others use the machine too.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path


def main() -> None:
    from tests.benchmarks.contests import CONTESTS, Place
    from tests.benchmarks.harness import Results, markdown, run, write

    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(CONTESTS)}; all without any")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side has its turn (5)")
    parser.add_argument("--out", type=Path, default=Path("data/workspace/bench"))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CONTESTS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; choose from {', '.join(CONTESTS)}")
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")

    command = shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]])
    results: Results = []
    for name in arguments.names or CONTESTS:
        with tempfile.TemporaryDirectory() as scratch:
            contest = CONTESTS[name](Place.of_environment(Path(scratch)))
            timings = run(contest, arguments.rounds)
            results.append((contest, timings, contest.note()))
        print(f"{name}: done", file=sys.stderr, flush=True)
        write(results, arguments.out, command)  # after each, so that a run that is cut short leaves some
    print(markdown(results, "this machine", command))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
