"""Rows of utterance tables, and the dialogues that they make."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mer_export.data.dialogues import ALL
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.untrusted.places import SPLIT
from mer_export.untrusted.tables import Columns, read_table

REQUIRED = ("order", "utterance", "speaker", "sentence", "recording", "start", "end", "row")
"""Fields of the data section whose columns a table must have."""


@dataclass(frozen=True, slots=True)
class Row:
    """One utterance: its place in its table, in the rows of its split, and in the arrays (`row` column)."""

    table: Columns
    at: int
    split: str
    in_split: int
    array_row: int | None

    def cell(self, column: str | None) -> str:
        """The text of a column, empty without such a column."""
        return self.table[column][self.at] if column in self.table else ""

    def cells(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The texts of several columns."""
        return tuple(map(self.cell, columns))


class Rows:
    """The rows of the chosen splits, in the order of the tables: some numbers each, a `Row` while it is looked at."""

    def __init__(self, spec: DataSpec):
        self.spec = spec
        self.tables: list[Columns] = []
        self.in_split: Counter[str] = Counter()
        """How many rows a split has, with those that were not chosen."""
        self._splits: dict[str, int] = {}
        # Of each row its table, its place in that, its split, and its place among the rows of the split.
        self._table, self._at, self._split, self._place = array("I"), array("Q"), array("I"), array("Q")

    def __len__(self) -> int:
        return len(self._at)

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have rows."""
        return list(self._splits)

    def __getitem__(self, number: int) -> Row:
        table, at = self.tables[self._table[number]], self._at[number]
        return Row(table, at, self._name(number), self._place[number], _array_row(table, at, self.spec))

    def add(self, table: Columns, split: str | None = None) -> None:
        """The rows of another table, all of one split, or of those that its column of splits names.

        Raises:
            InputError: a row number of the arrays is none.
        """
        divided, wanted = split is None and self.spec.split in table, self.spec.splits
        self.tables.append(table)
        for at in range(height(table)):
            own = table[str(self.spec.split)][at] if divided else split or ALL
            place = self.in_split[own]
            self.in_split[own] += 1
            # An empty cell takes an utterance out of the data set.
            if own and (not divided or not wanted or own in wanted):
                _array_row(table, at, self.spec)
                self._table.append(len(self.tables) - 1)
                self._at.append(at)
                self._split.append(self._splits.setdefault(own, len(self._splits)))
                self._place.append(place)

    def dialogues(self, split: str | None = None) -> Iterator[list[Row]]:
        """Rows by split and dialogue, in order of appearance, sorted within; without dialogues each row is one.

        Raises:
            InputError: a dialogue has rows in two splits.
        """
        numbers, ends = self._grouped
        begin = 0
        for end in ends:
            own = numbers[begin:end].tolist()
            begin = end
            if split in (None, self._name(own[0])):
                rows = [self[n] for n in own]
                if self.spec.dialogue_columns and self.spec.order:
                    rows.sort(key=lambda r: _order_key(r.cell(self.spec.order)))
                yield rows

    @cached_property
    def _grouped(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of all rows, those of a dialogue together, and where each dialogue ends in them."""
        numbers = np.arange(len(self))
        if not self.spec.dialogue_columns:
            return numbers, numbers + 1
        # Where every split has its own file, ids start again in each. Utterances on their own may be divided as one
        # likes.
        free = SPLIT in str(self.spec.table) or self.spec.shape == "utterance"
        marks = bytearray()
        for number in range(len(self)):
            name = (self._name(number) if free else "", *self._dialogue(number))
            marks += blake2b("\0".join(name).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        names = np.frombuffer(marks, dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort((numbers, *names.T))
        begins = np.concatenate([[True], (names[order[1:]] != names[order[:-1]]).any(axis=1)])
        dialogue, earliest = np.cumsum(begins) - 1, order[begins]
        if not free:
            self._refuse_two_splits(order, earliest[dialogue])
        place = np.empty_like(earliest)
        place[np.argsort(earliest)] = np.arange(len(earliest))
        places = np.empty_like(order)
        places[order] = place[dialogue]
        return np.argsort(places, kind="stable"), np.cumsum(np.bincount(places))

    def _refuse_two_splits(self, numbers: np.ndarray, earliest: np.ndarray) -> None:
        """Raises InputError where a row is in another split than the first one of its dialogue."""
        splits = np.asarray(self._split)
        other = splits[numbers] != splits[earliest]
        if not other.any():
            return
        at = numbers[other].argmin()
        number, home = int(numbers[other][at]), int(earliest[other][at])
        name, both = "/".join(self._dialogue(number)), f"{self._name(home)} and {self._name(number)}"
        raise InputError(
            f"{self.spec.table}: dialogue {name!r} has utterances in {both}: a dialogue belongs to one split"
        )

    def _name(self, number: int) -> str:
        """The split of a row."""
        return self.splits[self._split[number]]

    def _dialogue(self, number: int) -> tuple[str, ...]:
        """What names the dialogue of a row."""
        table, at = self.tables[self._table[number]], self._at[number]
        return tuple(table[column][at] for column in self.spec.dialogue_columns)


def table_rows(path: Path, spec: DataSpec) -> Rows:
    """The rows of the chosen splits.

    Raises:
        InputError: a file or column is missing, or a row number of the arrays is none.
    """
    table, reach, rows = str(spec.table), spec.reach(path), Rows(spec)
    if SPLIT not in table:
        rows.add(_read(reach.path(table, "data.table"), spec))
        return rows
    present = [(s, reach.path(table, "data.table", split=s)) for s in spec.splits]
    # Data to label need not hold every split; whoever asks for an absent one is told.
    for split, file in [(s, f) for s, f in present if f.is_file()] or present[:1]:
        rows.add(_read(file, spec), split)
    return rows


def _read(file: Path, spec: DataSpec) -> Columns:
    columns = read_table(file, spec.encoding, spec.separator)
    _require(columns, spec, file)
    return columns


def _array_row(columns: Columns, at: int, spec: DataSpec) -> int | None:
    if spec.row is None:
        return None
    value = columns[spec.row][at]
    if not value.isdecimal():
        raise InputError(f"{spec.table}: column {spec.row} holds {value!r}, it must be a row number of the arrays")
    return int(value)


def _require(columns: Columns, spec: DataSpec, path: Path) -> None:
    """Columns for labels, scores and split may be absent: then the data are unlabelled, or one split."""
    roles = [("dialogue", name) for name in spec.dialogue_columns]
    roles += [(role, getattr(spec, role)) for role in REQUIRED]
    for role, name in roles:
        if name is not None and name not in columns:
            raise InputError(f"{path} has no column {name!r} (data.{role}), there are {list(columns)}")
    given = [c for c in spec.label_columns if c in columns]
    missing = [c for c in spec.label_columns if c not in columns]
    if given and missing:
        raise InputError(f"{path} has no columns {missing} (data.label_columns), there are {list(columns)}")


def _order_key(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def height(columns: Columns) -> int:
    """How many rows a table has."""
    return len(next(iter(columns.values()), []))
