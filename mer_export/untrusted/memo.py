"""The memo of a pickle: what it has put aside, by place.

Nearly all of that is never asked for: what stands around the contents of arrays. It is kept as one row for each array,
whose values are made when one of its places is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, Protocol


class Row(Protocol):
    """Values that were put into places one behind the other."""

    def values(self) -> Sequence[Any]:
        """As many as there are places."""
        ...


class Memo:
    """Values by place, as a dict has them; `replaced` counts what may have changed one that was there."""

    def __init__(self) -> None:
        self.replaced = 0
        self._values: dict[int, Any] = {}
        self._firsts: list[int] = []
        self._rows: list[tuple[int, Row] | None] = []
        self._in_rows = 0
        self._last = -1

    def __len__(self) -> int:
        return len(self._values) + self._in_rows

    def __getitem__(self, place: int) -> Any:
        if place not in self._values and self._rows:
            self._unfold(bisect_right(self._firsts, place) - 1)
        return self._values[place]

    def get(self, place: int) -> Any:
        """The value; None where there is none."""
        try:
            return self[place]
        except KeyError:
            return None

    def __setitem__(self, place: int, value: Any) -> None:
        if place > self._last:
            self._last = place
        else:
            self.replaced += 1
            for number in range(len(self._rows)):
                self._unfold(number)
            self._firsts, self._rows = [], []
        self._values[place] = value

    def takes_row(self, places: Sequence[int], count: int) -> bool:
        """Whether these places (none: `count` behind all that is there) are new, one behind the other."""
        first = places[0] if places else len(self)
        return first > self._last and places in ((), (*range(first, first + count),))

    def put_row(self, first: int, count: int, row: Row) -> None:
        """Puts the values of a row into places that it takes, from the first on."""
        self._firsts.append(first)
        self._rows.append((count, row))
        self._in_rows += count
        self._last = first + count - 1

    def _unfold(self, number: int) -> None:
        """Makes the values of a row, if it is there."""
        if number < 0 or self._rows[number] is None:
            return
        ((count, row), self._rows[number]) = self._rows[number], None  # type: ignore[misc]
        self._in_rows -= count
        self._values.update(zip(range(self._firsts[number], self._firsts[number] + count), row.values(), strict=True))
