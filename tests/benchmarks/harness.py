"""Runs contests: ours and its rivals by turns, timed, and written as Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import ctypes
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

OURS = "cutline"


class Skipped(Exception):
    """A benchmark cannot be run here; the message says why."""


@dataclass
class Contest:
    """Sides that do the same work on `count` things; `sides` holds OURS and the rivals by name.

    `targets` are the ratios to reach, by rival. A side that would take hours does a share of the work
    only, by `shares`, and its times are divided by that. `note` is called when all is timed, and tells
    how alike the results are.
    """

    name: str
    title: str
    count: int
    thing: str
    sides: dict[str, Callable[[], object]]
    targets: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    note: Callable[[], str] = lambda: ""


class Measured(NamedTuple):
    """One number that was measured, in words: what, how much, and how much it ought to be."""

    what: str
    found: str
    target: str = ""


@dataclass(frozen=True)
class Figures:
    """What is measured without a rival; the note says how."""

    name: str
    title: str
    rows: list[Measured]
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """One side in one round: wall time, and CPU time (user and system) of this process and its children."""

    contest: str
    side: str
    round: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Ratio:
    """How many times the time of ours a rival takes, over the rounds: median, least, most."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def run(contest: Contest, rounds: int) -> list[Timing]:
    """Once each to warm up, then by turns; the order is reversed every other round."""
    names = list(contest.sides)
    for name in names:
        contest.sides[name]()
    timings = []
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            _undo_malloc_settings()
            cpu_s, wall_s = _cpu_s(), time.perf_counter()
            contest.sides[name]()
            wall_s, cpu_s = time.perf_counter() - wall_s, _cpu_s() - cpu_s
            share = contest.shares.get(name, 1.0)
            wall_s, cpu_s = wall_s / share, cpu_s / share
            timings.append(Timing(contest.name, name, turn, wall_s, cpu_s))
            print(
                f"{contest.name} {turn + 1}/{rounds} {name}: {cpu_s:.2f} s CPU", file=sys.stderr, flush=True
            )
    return timings


def _undo_malloc_settings() -> None:
    """Keep one side from slowing those after it.

    TensorFlow's datasets, which `fit` and `predict` make, tell glibc to give memory back to the system at
    once, for as long as the process lives: ours then took a fifth more time, for 28,000 page faults a pass.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold, most = -1, -3, 32 << 20  # malloc.h; as high as glibc goes by itself
        libc.mallopt(mmap_threshold, most)
        libc.mallopt(trim_threshold, 2 * most)


def children_cpu_s() -> float:
    """CPU time of all processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_s() -> float:
    whole = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in whole)


def ratio(timings: list[Timing], rival: str, clock: str) -> Ratio:
    """A rival's time over ours, round by round, by the clock `wall_s` or `cpu_s`."""
    seconds = {(timing.side, timing.round): getattr(timing, clock) for timing in timings}
    found = [s / seconds[OURS, turn] for (side, turn), s in seconds.items() if side == rival]
    return Ratio(statistics.median(found), min(found), max(found))


def rate(timings: list[Timing], side: str, clock: str, count: int) -> float:
    """Things a second, the median over the rounds."""
    return count / statistics.median(getattr(timing, clock) for timing in timings if timing.side == side)


@dataclass
class Results:
    """All that was timed and measured."""

    contests: list[tuple[Contest, list[Timing], str]] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)


def markdown(results: Results, machine: str, command: str) -> str:
    """The tables: a row a rival, then a row a figure."""
    lines = [
        f"`{command}`, on {machine}. Ratios: the rival's time over ours in the same round, median "
        "(least to most).",
        "",
        "| what | beside | CPU time | wall time | to reach | ours, a CPU second | alike |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for contest, timings, note in results.contests:
        speed = f"{rate(timings, OURS, 'cpu_s', contest.count):,.1f} {contest.thing}" if contest.thing else ""
        for rival in contest.sides:
            if rival != OURS:
                cells = [ratio(timings, rival, clock) for clock in ("cpu_s", "wall_s")]
                target = f"{contest.targets[rival]:g}" if rival in contest.targets else ""
                row = [contest.title, rival, *map(str, cells), target, speed, note]
                lines.append("| " + " | ".join(row) + " |")
    if results.figures:
        lines += ["", "| what | | found | to reach | how |", "| --- | --- | --- | --- | --- |"]
    for figures in results.figures:
        notes = [figures.note, *[""] * len(figures.rows)]
        for (what, found, target), note in zip(figures.rows, notes, strict=False):
            lines.append(f"| {figures.title} | {what} | {found} | {target} | {note} |")
    return "\n".join(lines) + "\n"


def write(results: Results, folder: Path, command: str) -> None:
    """bench.md, bench.csv (every timing), figures.csv and bench.svg in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(markdown(results, machine(), command), encoding="utf-8")
    with (folder / "bench.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["contest", "side", "round", "count", "wall_s", "cpu_s"])
        for contest, timings, _ in results.contests:
            for one in timings:
                seconds = [f"{one.wall_s:.6f}", f"{one.cpu_s:.6f}"]
                writer.writerow([one.contest, one.side, one.round, contest.count, *seconds])
    with (folder / "figures.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *Measured._fields])
        for figures in results.figures:
            writer.writerows([figures.name, *row] for row in figures.rows)
    if results.contests:
        draw(results, folder / "bench.svg")


def draw(results: Results, path: Path) -> None:
    """A bar a rival: the median ratio of CPU time, its spread, and a mark where it ought to be."""
    from matplotlib.figure import Figure

    bars = [
        (f"{contest.title}\n{rival}", ratio(timings, rival, "cpu_s"), contest.targets.get(rival))
        for contest, timings, _ in results.contests
        for rival in contest.sides
        if rival != OURS
    ]
    figure = Figure(figsize=(8, 1 + 0.6 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for row, (_, found, target) in enumerate(bars):
        spread = [[found.median - found.least], [found.most - found.median]]
        axes.barh(row, found.median, xerr=spread, color="#4c78a8", ecolor="#333333", capsize=3)
        if target:
            axes.plot([target, target], [row - 0.45, row + 0.45], color="#e45756", linewidth=2)
    axes.set_xscale("log")
    axes.axvline(1, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(bars)), [label for label, _, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("CPU time of the rival, ours being 1; red: to reach")
    axes.set_title(machine(), fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def machine() -> str:
    """The processor, how many cores this process may use, and the versions of what computes."""
    from cutline.tasks.storage.workspace import library_versions

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return f"{model}, {cores} cores, Python {platform.python_version()}, {versions}"
