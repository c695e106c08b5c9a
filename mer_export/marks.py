"""Which names were seen, however many there are."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from hashlib import blake2b

FIRST = 64


def mark_of(*parts: str) -> int:
    """Eight bytes that stand for a name of several parts; never 0."""
    name = "\0".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest()) or 1


class Marks:
    """A set of marks, at twelve to twenty-four bytes each: a `set` of as many takes six times that."""

    def __init__(self) -> None:
        self._slots, self._count = array("Q", bytes(8 * FIRST)), 0

    def new(self, mark: int) -> bool:
        """Whether a mark was not there; it is now."""
        place = self._place(mark)
        if self._slots[place] == mark:
            return False
        self._slots[place] = mark
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        return True

    def __contains__(self, mark: int) -> bool:
        return self._slots[self._place(mark)] == mark

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return filter(None, self._slots)

    def _place(self, mark: int) -> int:
        """Where a mark is, or would be."""
        last = len(self._slots) - 1
        place = mark & last
        while self._slots[place] not in (0, mark):
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for mark in filter(None, old):
            self._slots[self._place(mark)] = mark
