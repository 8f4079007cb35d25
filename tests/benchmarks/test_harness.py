"""What the benchmarks write is what was timed."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.benchmarks.harness import (
    OURS,
    Contest,
    Figures,
    Measured,
    Results,
    Timing,
    markdown,
    ratio,
    run,
    write,
)


def contest(calls: list[str]) -> Contest:
    return Contest(
        name="race",
        title="a race",
        count=10,
        thing="steps",
        sides={OURS: lambda: calls.append("ours"), "theirs": lambda: calls.append("theirs")},
        targets={"theirs": 3},
        shares={"theirs": 0.5},
    )


def timings(*seconds: tuple[str, float]) -> list[Timing]:
    return [Timing("race", side, number // 2, s, s) for number, (side, s) in enumerate(seconds)]


def test_sides_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    found = run(contest(calls), 2)
    assert calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]
    assert [timing.side for timing in found] == [OURS, "theirs", "theirs", OURS]


def test_a_side_that_does_a_share_of_the_work_is_told_by_the_whole() -> None:
    def work() -> int:
        return sum(range(2_000_000))

    race = contest([])
    race.sides.update({OURS: work, "theirs": work})
    assert 1.2 < ratio(run(race, 3), "theirs", "cpu_s").median < 3.5  # the same work, told as half of it


def test_a_ratio_is_taken_round_by_round() -> None:
    found = ratio(
        timings((OURS, 1), ("theirs", 2), (OURS, 2), ("theirs", 8), (OURS, 1), ("theirs", 3)),
        "theirs",
        "cpu_s",
    )
    assert (found.median, found.least, found.most) == (3, 2, 4)


def test_the_tables_hold_every_rival_and_every_figure(tmp_path: Path) -> None:
    timed = timings((OURS, 2), ("theirs", 5))
    figures = Figures("memory", "peak", [Measured("2,000 photographs", "900 MiB", "flat")], "by turns")
    results = Results([(contest([]), timed, "the same steps")], [figures])
    text = markdown(results, "a machine", "make bench")
    assert (
        "| a race | theirs | 2.50 (2.50 to 2.50) | 2.50 (2.50 to 2.50) | 3 | 5.0 steps | the same steps |"
        in text
    )
    assert "| peak | 2,000 photographs | 900 MiB | flat | by turns |" in text
    write(results, tmp_path, "make bench")
    with (tmp_path / "bench.csv").open() as file:
        assert [(row["side"], row["cpu_s"]) for row in csv.DictReader(file)] == [
            (OURS, "2.000000"),
            ("theirs", "5.000000"),
        ]
    assert "900 MiB" in (tmp_path / "figures.csv").read_text()
    assert (tmp_path / "bench.svg").stat().st_size > 1000
