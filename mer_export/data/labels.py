"""From what a file says of an utterance to the model's class index, score or row of label indicators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mer_export.data.dialogues import Utterance
from mer_export.errors import InputError

UNKNOWN = -1
MOST = 10_000
"""Classes that numbers alone may make of a column."""
KINDS = ("label", "score", "indicators")


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
        self.labels = tuple(labels) if labels is not None else self.names or _discover(values, where)
        self._index = {name: i for i, name in enumerate(self.labels)}
        others = set(self.names) - set(self.labels)
        self._others = others | {str(i) for i, name in enumerate(self.names) if name in others}

    def leaves_out(self, utterance: Utterance) -> bool:
        """Whether the class is one that the data name and the model does not have."""
        return utterance.label is not None and _written(utterance.label) in self._others

    def targets(self, utterances: Sequence[Utterance]) -> np.ndarray | None:
        """The labels of a sample with these utterances, as `Sample.labels` has them; None for unlabelled data.

        Raises:
            InputError: an unknown class, labels of several kinds, or a label of the model that the data do not have.
        """
        kinds = [k for k in KINDS if any(getattr(u, k) is not None for u in utterances)]
        if len(kinds) > 1:
            raise InputError(f"{self.where}: {utterances[0].id} has {' and '.join(kinds)}: keep one of them")
        if not kinds:
            return None
        if kinds == ["score"]:
            return np.asarray([math.nan if u.score is None else u.score for u in utterances], dtype=np.float32)
        if kinds == ["indicators"]:
            return np.stack([self._row(u) for u in utterances])
        return self.indices(u.label for u in utterances)

    def _row(self, utterance: Utterance) -> np.ndarray:
        missing = [n for n in self.labels if n not in self.names] if self.names else []
        if missing:
            raise InputError(f"{self.where} has no labels {missing}, it has {list(self.names)}")
        given = utterance.indicators or {}
        return np.asarray([given.get(n, math.nan) for n in self.labels], dtype=np.float32)

    def index(self, value: str | int | float | None) -> int:
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

    def indices(self, values: Iterable[str | int | float | None]) -> np.ndarray:
        """Class indices (int64)."""
        return np.asarray([self.index(v) for v in values], dtype=np.int64)


def class_indices(own: Sequence[str], labels: Sequence[str] | None, where: str) -> np.ndarray:
    """The model's index (int64) of each class of the data: by name, in order where it names as many its own way.

    Args:
        own: the classes of the data, in index order.
        labels: class names of the model; None takes the data's.
        where: what error messages call the data.

    Raises:
        InputError: the model lacks a class.
    """
    if labels is None or (len(labels) == len(own) and set(labels) != set(own)):
        return np.arange(len(own))
    missing = [name for name in own if name not in labels]
    if missing:
        raise InputError(f"{where} has the classes {missing}, the model knows {list(labels)}")
    return np.asarray([list(labels).index(name) for name in own], dtype=np.int64)


def said_labels(utterances: Iterable[Utterance]) -> Iterator[str]:
    """The names of all labels that utterances have."""
    for utterance in utterances:
        if utterance.label not in (None, ""):
            yield _written(utterance.label)
        yield from utterance.indicators or ()


def _discover(values: Iterable[str], where: str) -> tuple[str, ...]:
    """Class names of a column: sorted names, or `0..max` where all are integers.

    Raises:
        InputError: the largest of these would make too many.
    """
    found = {v for v in values if v not in ("", None)}
    numbers = [_integer(v) for v in found]
    known = [n for n in numbers if n is not None]
    if found and len(known) == len(found):
        if max(known) >= MOST:
            raise InputError(
                f"{where}: labels are numbers up to {max(known)}, which would be as many classes: name the column of "
                "classes in data.label, or of scores in data.score"
            )
        return tuple(str(i) for i in range(max(known) + 1))
    return tuple(sorted(str(v) for v in found))


def _written(label: str | int | float) -> str:
    """A label as text; many programs write whole numbers as 2.0."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _integer(value: str | int | float) -> int | None:
    """The integer that a value says, else None; 1.5, "x" and "10_19", which Python would read, say none."""
    try:
        number = int(value)
    except (ValueError, OverflowError):
        return None
    if isinstance(value, str) and "_" in value:
        return None
    return number if isinstance(value, str) or number == value else None


def speaker_indices(names: Sequence[str], speakers: int | None) -> np.ndarray:
    """Index (int64) of each speaker by first appearance in the dialogue; from `speakers` on they share the last."""
    seen: dict[str, int] = {}
    found = np.asarray([seen.setdefault(n, len(seen)) for n in names], dtype=np.int64)
    return found if speakers is None else np.minimum(found, speakers - 1)
