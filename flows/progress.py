"""Progress in the terminal: a line a stage, with rows, rate and time left; quiet elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def display() -> Iterator[Callable[[str, int], Advance]]:
    """Yield a function that starts the line of a stage and returns what counts its rows."""
    if not sys.stderr.isatty():
        yield lambda _name, _rows: lambda _done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.1f} a second" if task.speed else "")

    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(24),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def start(name: str, rows: int) -> Advance:
            line = progress.add_task(name, total=rows or None)
            return lambda done: progress.advance(line, done)

        yield start
