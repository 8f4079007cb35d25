"""How rows are cut into shards by content, and which shards can hold the same rows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Partition:
    """Rows start:stop of a table, as one shard."""

    partition: str
    start: int
    stop: int


def partition(ids: Sequence[str], group: str, most: int, offset: int = 0) -> list[Partition]:
    """Cut sorted hexadecimal ids into shards of at most `most` rows, by content.

    The ids are split in two at their first bit, each half at its next, until a part is small
    enough. A row added or removed touches the one part that its id falls into, wherever it
    stands; a full part splits in two. Ids are digests, so parts are even in size.
    """
    if not ids:
        return []

    cuts: list[Partition] = []

    def split(bits: str, start: int, stop: int) -> None:
        if stop == start:
            return
        if stop - start <= most or len(bits) == 128:
            cuts.append(Partition(f"{group}/{bits}", offset + start, offset + stop))
            return
        middle = bisect_left(ids, f"{int((bits + '1').ljust(128, '0'), 2):032x}", start, stop)
        split(bits + "0", start, middle)
        split(bits + "1", middle, stop)

    split("", 0, len(ids))
    return cuts


def partition_of_row(group: str, row_id: str) -> str:
    """The place of one row of a family: that of its shard, with all further bits of its id.

    >>> place_of_row("train", "f0" * 16)[:14]
    'train/11110000'
    """
    return f"{group}/{int(row_id, 16):0128b}"


def partition_that_holds(place: str, places: Container[str]) -> str | None:
    """The one of `places` that is `place`, or that all its rows fall into; None where there is none.

    >>> place_that_holds("train/0110", {"train/00", "train/01"})
    'train/01'
    """
    group, slash, bits = place.rpartition("/")
    ends = range(len(bits), -1, -1) if slash else [len(bits)]
    return next((held for end in ends if (held := f"{group}{slash}{bits[:end]}") in places), None)


class Overlaps:
    """Finds the places whose ids can be the same as those of another, whatever their split.

    Looks at the few that matter, not at all: a stage may have hundreds of thousands.
    """

    def __init__(self, places: Iterable[str]) -> None:
        self._by_bits: dict[str, list[str]] = {}
        for place in places:
            self._by_bits.setdefault(_bits(place), []).append(place)
        self._sorted = sorted(self._by_bits)
        self._lengths = sorted({len(bits) for bits in self._by_bits})

    def of(self, place: str) -> list[str]:
        """The places that hold `place`, are it, or are within it."""
        bits = _bits(place)
        found = [bits[:length] for length in self._lengths if length < len(bits)]
        first, end = bisect_left(self._sorted, bits), bisect_left(self._sorted, bits + "2")
        return [other for key in [*found, *self._sorted[first:end]] for other in self._by_bits.get(key, [])]


def _bits(place: str) -> str:
    return place.rpartition("/")[2]
