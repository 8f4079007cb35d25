"""Processes of this machine: which of them live, and locks that go with them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout


def is_alive(pid: int, start: str = "") -> bool:
    """Whether a process of this machine runs under that number, and is the one that `started` then."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # of another user
    return start in ("", started(pid))


def started(pid: int) -> str:
    """When a process of this machine began, in ticks since boot; empty where it is gone or the system
    does not tell."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else numbers[18]  # a killed process stays listed until its parent looks


def lock_on(file: Path, taken: Callable[[str], None]) -> FileLock:
    """The lock of a file, for this process alone: the system's, which goes with it, whatever ends it.

    `taken` is told which process has it first, and may raise; else that one's end is waited for. Raises
    OSError where the file system has no locks.
    """
    lock = FileLock(file, fallback_to_soft=False, on_acquired=_sign)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with suppress(FileNotFoundError):  # it has just ended
            taken(file.read_text(encoding="utf-8"))
        lock.acquire()
    return lock


def _sign(lock: int) -> None:
    """Write into the file of a lock whose it is."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} of {platform.node()}".encode(), 0)
