"""Progress in the terminal: a line a stage, with rows, rate and time left; quiet elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task


Advance = Callable[[int], None]


@contextmanager
def display() -> Iterator[Callable[[str, int], Advance]]:
    """Yield a function that starts the line of a stage and returns what counts its rows."""
    if not sys.stderr.isatty():
        yield lambda _name, _rows: lambda _done: None
        return
    from rich.console import Console

    with lines_on(Console(stderr=True)) as start:
        yield start


@contextmanager
def lines_on(console: Console) -> Iterator[Callable[[str, int], Advance]]:
    """As `display`, on a terminal."""
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Told(ProgressColumn):
        """Rows, rate and times of a line."""

        def render(self, task: Task) -> Text:
            return Text(told(task))

    # A line of thousands of rows fits a terminal of 80 columns, and is cut in a narrower one.
    columns = (TextColumn("{task.description:<15}"), BarColumn(12), Told(Column(no_wrap=True)))
    with Progress(*columns, console=console) as progress:

        def start(name: str, rows: int) -> Advance:
            # Stages come one after the other: where one starts, the one before has ended.
            for task in progress.tasks:
                progress.update(task.id, total=task.completed)
            line = progress.add_task(name, total=rows or None)
            return lambda done: progress.advance(line, done)

        yield start


def told(task: Task) -> str:
    """What a line says of its stage: `80/100  20.0 a second  0:00:04, 0:00:01 left`.

    The rate is that of all rows since the stage began, its start-up included.
    """
    seconds = (task.finished_time if task.finished else task.elapsed) or 0.0
    parts = []
    if task.completed:
        parts.append(f"{task.completed:,.0f}" + (f"/{task.total:,.0f}" if task.total else ""))
        if seconds:
            parts.append(f"{task.completed / seconds:,.1f} a second")
    elif task.total:
        parts.append(f"0/{task.total:,.0f}")
    parts.append(_clock(seconds))
    if task.completed and task.total and not task.finished:
        parts[-1] += f", {_clock(seconds * (task.total - task.completed) / task.completed)} left"
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=int(seconds)))
