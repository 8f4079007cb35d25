"""Which name each file of a data set is meant by."""

from __future__ import annotations

from typing import NamedTuple

from cutline.tasks.ingest.names import composed


class Claim(NamedTuple):
    """That a name means a file which it does not name exactly; the more parts agree, the closer it is."""

    name: str
    closeness: int


class Claims:
    """Which name each file is meant by, so that no file is taken for two photographs.

    Of several names the one that names the file exactly is right, else the closest one; where several
    are as close, none is.
    """

    def __init__(self, files: int) -> None:
        self.exact = bytearray(files)  # by row: whether a name names the file exactly
        self.loose: dict[int, Claim] = {}
        self.contested: set[int] = set()
        self.revised = False  # whether a name was believed that turned out to be wrong

    def take(self, row: int, path: str, claim: Claim) -> bool:
        """Whether the name of `claim` may mean the file, by the names so far."""
        if claim.name == path:
            held = self.loose.get(row)
            self.revised |= held is not None and not self.exact[row]
            self.exact[row] = True
            return True
        if self.exact[row] and claim.name != composed(path):
            return False
        held = self.loose.setdefault(row, claim)
        if claim.name != held.name and claim.closeness > held.closeness:
            self.loose[row], self.revised = claim, True
            self.contested.discard(row)
        elif claim.name != held.name and claim.closeness == held.closeness:
            self.contested.add(row)
            self.revised = True
        return self.holds(row, path, claim)

    def holds(self, row: int, path: str, claim: Claim) -> bool:
        """Whether the name of `claim` means the file, by all names."""
        if claim.name == path or (self.exact[row] and claim.name == composed(path)):
            return True
        return not self.exact[row] and row not in self.contested and self.loose[row].name == claim.name
