"""How much disk each kind of file holds, and how much of it `cutline prune` would free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cutline.flows.commands.prune import find_made, find_unused
from cutline.schemas.errors import UsageError


@dataclass(frozen=True)
class Held:
    """Files of one kind, and how many of their bytes no run refers to."""

    kind: str
    files: int
    size: int  # bytes
    free: int  # bytes


@dataclass(frozen=True)
class Disk:
    """What a workspace holds, largest first; `busy` says why it is not known what may go."""

    kinds: list[Held]
    busy: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(kind.size for kind in self.kinds)

    @property
    def files(self) -> int:
        return sum(kind.files for kind in self.kinds)

    @property
    def free(self) -> int:
        """Bytes that no run refers to; 0 where that is not known."""
        return sum(kind.free for kind in self.kinds)


def held_by_kind(where: Path) -> Disk:
    """What a workspace holds by stage and kind, and what of it may go."""
    busy, free = "", {}
    try:
        free = find_unused(where).by_kind()
    except UsageError as error:
        busy = str(error)
    kinds = [
        Held(kind, files, size, free.get(kind, (0, 0))[1])
        for kind, (files, size) in find_made(where).by_kind().items()
    ]
    return Disk(kinds, busy)
