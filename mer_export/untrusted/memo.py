"""The memo of a pickle: what it has put aside, by place.

Nearly all of that is never asked for: what stands around the contents of arrays. Of such a row of values some numbers
are kept, and the values are made when one of their places is asked for.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Sequence
from typing import Any

ABSENT = object()
UNFOLDED = -1


class Memo:
    """Values by place, as a dict has them; `replaced` counts what may have changed one that was there.

    `unfold` makes the values of a row again: of its kind, where it begins in the file, and the one value of it that
    was kept.
    """

    def __init__(self, unfold: Callable[[Any, int, Any], Sequence[Any]]) -> None:
        self.replaced = 0
        self._unfold, self._count, self._last = unfold, 0, -1
        # What was asked for, or does not come in order.
        self._values: dict[int, Any] = {}
        self._places, self._objects = array("Q"), list[Any]()
        self._known: dict[Hashable, int] = {}
        self._without_rows()

    def _without_rows(self) -> None:
        self._firsts, self._begins, self._kinds, self._kept = array("Q"), array("Q"), array("q"), list[Any]()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Any:
        found = self._values.get(place, ABSENT)
        return self._sought(place) if found is ABSENT else found

    def get(self, place: int) -> Any:
        """The value; None where there is none."""
        try:
            return self[place]
        except KeyError:
            return None

    def __setitem__(self, place: int, value: Any) -> None:
        if place > self._last:
            self._last = place
            self._places.append(place)
            self._objects.append(value)
            self._count += 1
            return
        self.replaced += 1
        for number in range(len(self._firsts)):
            self._unfolded(number)
        self._without_rows()
        self._count += self.get(place) is None and place not in self._values
        self._values[place] = value

    def takes_row(self, places: tuple[int, ...], count: int) -> bool:
        """Whether these places (none: `count` behind all that is there) are new, one behind the other."""
        first = places[0] if places else self._count
        return first > self._last and (not places or places == tuple(range(first, first + count)))

    def put_row(self, first: int, count: int, kind: Hashable, begin: int, kept: Any) -> None:
        """Puts the values of a row into places that it takes, from the first on."""
        self._firsts.append(first)
        self._begins.append(begin)
        self._kinds.append(self._known.setdefault(kind, len(self._known)))
        self._kept.append(kept)
        self._count += count
        self._last = first + count - 1

    def _sought(self, place: int) -> Any:
        """A value that was not asked for before."""
        at = bisect_left(self._places, place)
        if at < len(self._places) and self._places[at] == place:
            self._values[place] = self._objects[at]
        elif self._firsts:
            self._unfolded(bisect_right(self._firsts, place) - 1)
        return self._values[place]

    def _unfolded(self, number: int) -> None:
        """Makes the values of a row, if it is there."""
        if number < 0 or self._kinds[number] == UNFOLDED:
            return
        kind = list(self._known)[self._kinds[number]]
        values = self._unfold(kind, self._begins[number], self._kept[number])
        self._values.update(enumerate(values, self._firsts[number]))
        self._kinds[number] = UNFOLDED
