"""Rows of utterance tables, and the dialogues that they make."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from functools import cached_property
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mer_export.data.dialogues import ALL
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.untrusted.cells import whole_number
from mer_export.untrusted.places import SPLIT
from mer_export.untrusted.tables import Rows as TableRows
from mer_export.untrusted.tables import Table, open_table

REQUIRED = ("order", "utterance", "speaker", "sentence", "recording", "start", "end", "row")
"""Fields of the data section whose columns a table must have."""
EXACT = 1 << 53
"""Up to here a float is any integer."""


class Row(NamedTuple):
    """One utterance: its cells, its place in its table, in the rows of its split, and in the arrays (`row` column)."""

    table: Table
    cells: Sequence[str]
    at: int
    split: str
    in_split: int
    array_row: int | None

    def cell(self, column: str | None) -> str:
        """The text of a column, empty without such a column."""
        place = self.table.columns.get(column or "")
        return "" if place is None else self.cells[place]


class Run(NamedTuple):
    """Rows of one dialogue that stand one behind the other.

    `table` and `split` are numbers, `place` is where the table has the first row, `at` and `in_split` are the numbers
    of that row in its table and in its split.
    """

    table: int
    place: int
    at: int
    split: int
    in_split: int
    rows: int


class Rows:
    """The rows of the chosen splits, in the order of the tables: read twice, first for what is said of all of them.

    Of rows of a dialogue that stand together a few numbers are kept; without dialogues, of all rows of a split that do.
    """

    def __init__(self, spec: DataSpec):
        self.spec, self.columns = spec, spec.dialogue_columns
        self.heights: dict[Table, int] = {}
        """The tables, and how many rows each has."""
        self.in_split: Counter[str] = Counter()
        """How many rows a split has, with those that were not chosen."""
        self._splits: dict[str, int] = {}
        self._runs = [array(kind) for kind in "IQIIII"]
        self._marks = bytearray()
        # Where every split has its own file, ids start again in each. Utterances on their own may be divided as one
        # likes.
        self._free = SPLIT in str(spec.table) or spec.shape == "utterance"

    def __bool__(self) -> bool:
        return len(self._runs[0]) > 0

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have rows."""
        return list(self._splits)

    def add(self, table: Table, split: str | None = None) -> None:
        """The rows of another table, all of one split, or of those that its column of splits names.

        Raises:
            InputError: a row is damaged, or a row number of the arrays is none.
        """
        divided, wanted = split is None and self.spec.split in table.columns, self.spec.splits
        names = {*self.columns, *(n for n in (self.spec.row, self.spec.split) if n is not None and n in table.columns)}
        number, before, at = len(self.heights), None, -1
        counts = self._runs[-1]
        with closing(table.rows(names or [*table.columns][:1])) as rows:
            place = rows.place
            for at, cells in enumerate(rows):
                own = cells[table.columns[str(self.spec.split)]] if divided else split or ALL
                # An empty cell takes an utterance out of the data set.
                chosen = own and (not divided or not wanted or own in wanted)
                name = (own, *(cells[table.columns[c]] for c in self.columns)) if chosen else None
                if name is not None:
                    _array_row(table, cells, self.spec)
                    if name == before:
                        counts[-1] += 1
                    else:
                        self._begin(name, Run(number, place, at, self._number(own), self.in_split[own], 1))
                self.in_split[own] += 1
                before, place = name, rows.place
        self.heights[table] = at + 1

    def _begin(self, name: tuple[str, ...], run: Run) -> None:
        for numbers, value in zip(self._runs, run, strict=True):
            numbers.append(value)
        if self.columns:
            said = "\0".join(name if self._free else ("", *name[1:]))
            self._marks += blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def _number(self, split: str) -> int:
        return self._splits.setdefault(split, len(self._splits))

    def dialogues(self, split: str | None = None) -> Iterator[list[Row]]:
        """Rows by split and dialogue, in order of appearance, sorted within; without dialogues each row is one.

        Raises:
            InputError: a dialogue has rows in two splits, or a table has changed.
        """
        chosen = None if split is None else self._splits[split]
        with ExitStack() as stack:
            read = _Reader(self, stack)
            for runs in self._dialogues():
                if chosen not in (None, runs[0].split):
                    continue
                rows = chain.from_iterable(map(read.rows, runs))
                if self.columns:
                    together = list(rows)
                    if self.spec.order:
                        together.sort(key=lambda r: _order_key(r.cell(self.spec.order)))
                    yield together
                else:
                    yield from ([row] for row in rows)

    def _dialogues(self) -> Iterator[list[Run]]:
        """The runs of each dialogue, in order of appearance; without dialogues each run alone."""
        if not self.columns:
            yield from ([self._run(number)] for number in range(len(self._runs[0])))
            return
        numbers, ends = self._grouped
        begin = 0
        for end in ends:
            yield [self._run(number) for number in numbers[begin:end].tolist()]
            begin = end

    def _run(self, number: int) -> Run:
        return Run(*(numbers[number] for numbers in self._runs))

    @cached_property
    def _grouped(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of all runs, those of a dialogue together, and where each dialogue ends in them."""
        names = np.frombuffer(self._marks, dtype=np.uint64).reshape(-1, 2)
        order = np.lexsort(names.T)
        names = names[order]
        begins = np.flatnonzero(np.concatenate([[True], (names[1:] != names[:-1]).any(axis=1)]))
        counts, earliest = np.diff(begins, append=len(order)), order[begins]
        if not self._free:
            self._refuse_two_splits(order, np.repeat(earliest, counts))
        rank = np.argsort(earliest)
        ends = np.cumsum(counts[rank])
        # From place to place within a dialogue, and at its end to where the next one begins.
        steps = np.ones(len(order), np.int64)
        steps[ends[:-1]] = begins[rank[1:]] - (begins + counts)[rank[:-1]] + 1
        steps[0] = begins[rank[0]]
        self._marks = bytearray()
        return order[np.cumsum(steps)], ends

    def _refuse_two_splits(self, numbers: np.ndarray, earliest: np.ndarray) -> None:
        """Raises InputError where a run is in another split than the first one of its dialogue."""
        splits = np.asarray(self._runs[Run._fields.index("split")])
        other = splits[numbers] != splits[earliest]
        if not other.any():
            return
        at = numbers[other].argmin()
        run, home = self._run(int(numbers[other][at])), self._run(int(earliest[other][at]))
        with ExitStack() as stack:
            row = next(_Reader(self, stack).rows(run))
        name, both = "/".join(map(row.cell, self.columns)), f"{self.splits[home.split]} and {row.split}"
        raise InputError(
            f"{self.spec.table}: dialogue {name!r} has utterances in {both}: a dialogue belongs to one split"
        )


class _Reader:
    """Reads runs, each table through one open file."""

    def __init__(self, rows: Rows, stack: ExitStack):
        self.spec, self.tables, self.splits, self.stack = rows.spec, list(rows.heights), rows.splits, stack
        self.open: dict[int, TableRows] = {}

    def rows(self, run: Run) -> Iterator[Row]:
        """The rows of one."""
        table, split = self.tables[run.table], self.splits[run.split]
        if run.table not in self.open:
            self.open[run.table] = self.stack.enter_context(closing(table.rows()))
        rows = self.open[run.table]
        rows.seek(run.place, run.at)
        for k, cells in enumerate(islice(rows, run.rows)):
            yield Row(table, cells, run.at + k, split, run.in_split + k, _array_row(table, cells, self.spec))


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


def _read(file: Path, spec: DataSpec) -> Table:
    table = open_table(file, spec.encoding, spec.separator)
    _require(table.columns, spec, file)
    return table


def _array_row(table: Table, cells: Sequence[str], spec: DataSpec) -> int | None:
    if spec.row is None:
        return None
    value = cells[table.columns[spec.row]]
    row = whole_number(value)
    if row is None:
        said = f"column {spec.row} holds {value[:60]!r}"
        raise InputError(f"{spec.table}: {said}, it must be a row number of the arrays")
    return row


def _require(columns: Mapping[str, int], spec: DataSpec, path: Path) -> None:
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
    """Numbers go first; one that is none stands with the empty cells. Large integers do not become a rounded float."""
    try:
        number = float(value)
    except ValueError:
        return (1, 0.0, value)
    if abs(number) < EXACT:
        return (0, number, "")
    if math.isnan(number):
        return (1, 0.0, "")
    with suppress(ValueError):
        number = int(value)
    return (0, number, "")
