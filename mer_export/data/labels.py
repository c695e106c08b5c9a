"""From what a file says about the class of an utterance to the model's class index."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from mer_export.errors import InputError

UNKNOWN = -1


class LabelReader:
    """Maps values of a label column to indices of `labels`.

    Args:
        where: what error messages call the data.
        labels: class names of the model in index order; None takes the data's own.
        names: names of the data's integer labels, or its class names in index order.
        values: everything in the column, needed only where neither `labels` nor `names` are known.

    Attributes:
        labels: the resulting class names.
    """

    def __init__(
        self, where: str, labels: Sequence[str] | None, names: Sequence[str] = (), values: Iterable[str] = ()
    ) -> None:
        self.where = where
        self.names = tuple(names)
        self.labels = tuple(labels) if labels is not None else self.names or _discover(values)
        self._index = {name: i for i, name in enumerate(self.labels)}

    def index(self, value: str | int | None) -> int:
        """The class index of one value, -1 for an empty one; raises InputError for an unknown class."""
        if value is None or value == "":
            return UNKNOWN
        if isinstance(value, str) and value in self._index:
            return self._index[value]
        number = _integer(value)
        if number == UNKNOWN:
            return UNKNOWN
        if number is not None and not self.names and 0 <= number < len(self.labels):
            return number
        if number is not None and 0 <= number < len(self.names) and self.names[number] in self._index:
            return self._index[self.names[number]]
        shown = f"{value} ({self.names[number]})" if number is not None and 0 <= number < len(self.names) else value
        raise InputError(f"{self.where}: label {shown!r} is none of the classes {list(self.labels)}")

    def indices(self, values: Iterable[str | int | None]) -> np.ndarray:
        """Class indices (int64)."""
        return np.asarray([self.index(v) for v in values], dtype=np.int64)


def _discover(values: Iterable[str]) -> tuple[str, ...]:
    """Class names of a column: sorted names, or `0..max` where all are integers."""
    found = {v for v in values if v not in ("", None)}
    numbers = [_integer(v) for v in found]
    known = [n for n in numbers if n is not None]
    if found and len(known) == len(found):
        return tuple(str(i) for i in range(max(known) + 1))
    return tuple(sorted(str(v) for v in found))


def _integer(value: str | int) -> int | None:
    """The integer that a value says, else None; 1.5 and "x" say none."""
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    return number if isinstance(value, str) or number == value else None


def speaker_indices(names: Sequence[str], speakers: int) -> np.ndarray:
    """Index (int64) of each speaker by first appearance in the dialogue; later ones share `speakers - 1`."""
    seen: dict[str, int] = {}
    return np.asarray([min(seen.setdefault(n, len(seen)), speakers - 1) for n in names], dtype=np.int64)
