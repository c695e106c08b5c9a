"""Many short texts in little room: the cells of a column."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, overload

TOGETHER = 1024
"""Texts that are kept as one."""
MOST_DIGITS = 18
"""Of a number that counts something; Python itself refuses to read thousands of them."""


def whole_number(text: str) -> int | None:
    """The number that decimal digits say; None for anything else."""
    return int(text) if len(text) <= MOST_DIGITS and text.isdecimal() else None


class Cells(Sequence[str]):
    """Texts by their number. Each takes its characters and four bytes, where a list of them takes sixty more."""

    def __init__(self, texts: Iterable[str] = ()):
        self._packed: list[tuple[str, array[int]]] = []
        self._open: list[str] = []
        self.extend(texts)

    def extend(self, texts: Iterable[str]) -> None:
        """Some more."""
        self._open += texts
        whole = len(self._open) // TOGETHER * TOGETHER
        for first in range(0, whole, TOGETHER):
            own = self._open[first : first + TOGETHER]
            self._packed.append(("".join(own), array("I", accumulate(map(len, own), initial=0))))
        del self._open[:whole]

    def __len__(self) -> int:
        return len(self._packed) * TOGETHER + len(self._open)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        whole = len(self)
        if not -whole <= place < whole:
            raise IndexError(place)
        part, at = divmod(place % whole, TOGETHER)
        if part == len(self._packed):
            return self._open[at]
        text, ends = self._packed[part]
        return text[ends[at] : ends[at + 1]]

    def __iter__(self) -> Iterator[str]:
        for text, ends in self._packed:
            yield from (text[a:b] for a, b in pairwise(ends))
        yield from self._open
