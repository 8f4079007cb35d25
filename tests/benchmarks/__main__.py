"""Times Cutline beside what people use, by turns, in one process tree.

    python -m tests.benchmarks [features] [decoding] [tokens] … [--rounds 5] [--out FOLDER]

Writes bench.md, bench.csv, figures.csv and bench.svg to FOLDER (data/workspace/bench). Takes Flickr8k
from the folder that CUTLINE_REAL_DATA names, else the sample that is drawn. Benchmarks that need a
trained model take that of the newest run in --workspace; without one they begin with `cutline run`.
CPU time is what to compare where others use the machine too. `whole` takes hours and is run when named.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path


def main() -> None:
    import cutline.tasks  # noqa: F401  before NumPy, as the command line does, for what it sets
    from tests.benchmarks.contests import CONTESTS, LONG
    from tests.benchmarks.harness import Contest, Figures, Measured, Results, Skipped, markdown, run, write
    from tests.benchmarks.places import Place

    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    every = f"{', '.join(CONTESTS)}; without any all but {', '.join(LONG)}"
    parser.add_argument("names", nargs="*", metavar="name", help=every)
    parser.add_argument("--rounds", type=int, default=5, help="how often each side has its turn (5)")
    parser.add_argument("--out", type=Path, default=Path("data/workspace/bench"))
    parser.add_argument("--workspace", type=Path, help="with a finished run; made in --out where not given")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CONTESTS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; choose from {', '.join(CONTESTS)}")
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")

    command = shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]])
    results = Results()
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or [name for name in CONTESTS if name not in LONG]:
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            try:
                found = CONTESTS[name](Place.of_environment(Path(scratch), out, arguments.workspace))
                if isinstance(found, Contest):
                    results.contests.append((found, run(found, arguments.rounds), found.note()))
                else:
                    results.figures.append(found)
            except Skipped as reason:
                results.figures.append(Figures(name, name, [Measured("skipped", str(reason))]))
        print(f"{name}: done", file=sys.stderr, flush=True)
        write(results, out, command)  # after each, so that a run that is cut short leaves some
    print(markdown(results, "this machine", command))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
