"""Which names were seen, and where they stand, however many there are."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import numpy as np

WIDTH = 64
"""Bits of a mark."""
PART = 512
"""Marks that are kept in a part, on average at most."""


def mark_of(*parts: str) -> int:
    """Eight bytes that stand for a name of several parts; never 0."""
    name = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest()) or 1


class Marks:
    """A set of marks, at nine bytes each: a `set` of as many takes ten times that.

    They are sorted in parts by their first bits. Marks are spread evenly, so are the parts; each is cut in two as they
    fill, so nothing is ever held twice.
    """

    def __init__(self) -> None:
        self._parts, self._shift, self._count = [array("Q")], WIDTH, 0

    def new(self, mark: int) -> bool:
        """Whether a mark was not there; it is now."""
        part = self._parts[mark >> self._shift]
        place = bisect_left(part, mark)
        if place < len(part) and part[place] == mark:
            return False
        part.insert(place, mark)
        self._count += 1
        if self._count > PART * len(self._parts):
            self._halve()
        return True

    def __contains__(self, mark: int) -> bool:
        part = self._parts[mark >> self._shift]
        place = bisect_left(part, mark)
        return place < len(part) and part[place] == mark

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for part in self._parts:
            yield from part

    def _halve(self) -> None:
        """Cuts each part where its next bit changes."""
        self._shift -= 1
        halves: list[array[int]] = []
        for number, part in enumerate(self._parts):
            middle = bisect_left(part, (2 * number + 1) << self._shift)
            halves += [part[:middle], part[middle:]]
            self._parts[number] = halves[-1]
        self._parts = halves


class Places:
    """Where names stand, by their marks, at sixteen bytes each; of equal names the last."""

    def __init__(self, names: Iterable[str]):
        marks = np.fromiter((mark_of(name) for name in names), np.uint64)
        self._order = np.argsort(marks, kind="stable")
        self._marks = marks[self._order]

    @property
    def distinct(self) -> bool:
        """Whether no name comes twice."""
        return bool((self._marks[1:] != self._marks[:-1]).all())

    def get(self, name: str) -> int | None:
        """The place of a name; None where it is none of them."""
        mark = np.uint64(mark_of(name))
        at = int(np.searchsorted(self._marks, mark, side="right")) - 1
        return int(self._order[at]) if at >= 0 and self._marks[at] == mark else None
