"""Rows of utterance tables, and the dialogues that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mer_export.data.dialogues import ALL
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError
from mer_export.untrusted.places import SPLIT
from mer_export.untrusted.tables import Columns, read_table

REQUIRED = ("order", "utterance", "speaker", "sentence", "recording", "start", "end", "row")
"""Fields of the data section whose columns a table must have."""


@dataclass(frozen=True)
class Row:
    """One utterance: its place in its table, in the rows of its split, and in the arrays (`row` column)."""

    table: Columns
    at: int
    split: str
    in_split: int
    array_row: int | None

    @property
    def height(self) -> int:
        """How many rows the table has."""
        return _height(self.table)

    def cell(self, column: str | None) -> str:
        """The text of a column, empty without such a column."""
        return self.table[column][self.at] if column in self.table else ""

    def cells(self, columns: Sequence[str]) -> tuple[str, ...]:
        """The texts of several columns."""
        return tuple(map(self.cell, columns))


def table_rows(path: Path, spec: DataSpec) -> list[Row]:
    """The rows of the chosen splits, in the order of the table.

    Raises:
        InputError: a file or column is missing, or a row number of the arrays is none.
    """
    table, reach = str(spec.table), spec.reach(path)
    if SPLIT in table:
        found: list[Row] = []
        present = [(s, reach.path(table, "data.table", split=s)) for s in spec.splits]
        # Data to label need not hold every split; whoever asks for an absent one is told.
        for split, file in [(s, f) for s, f in present if f.is_file()] or present[:1]:
            columns = read_table(file, spec.encoding, spec.separator)
            _require(columns, spec, file)
            found += [Row(columns, i, split, i, _array_row(columns, i, spec)) for i in range(_height(columns))]
        return found
    file = reach.path(table, "data.table")
    columns = read_table(file, spec.encoding, spec.separator)
    _require(columns, spec, file)
    divided = spec.split in columns
    counts: dict[str, int] = {}
    rows = []
    for i in range(_height(columns)):
        split = columns[str(spec.split)][i] if divided else ALL
        place = counts[split] = counts.get(split, -1) + 1
        # An empty cell takes an utterance out of the data set.
        if split and (not spec.splits or not divided or split in spec.splits):
            rows.append(Row(columns, i, split, place, _array_row(columns, i, spec)))
    return rows


def dialogue_rows(rows: Sequence[Row], spec: DataSpec) -> list[list[Row]]:
    """Rows by split and dialogue, in order of appearance, sorted within; without dialogues each row is one."""
    if not spec.dialogue_columns:
        return [[row] for row in rows]
    groups: dict[tuple[str, tuple[str, ...]], list[Row]] = {}
    home: dict[tuple[str, ...], str] = {}
    # Where every split has its own file, ids start again in each. Utterances on their own may be divided as one likes.
    free = SPLIT in str(spec.table) or spec.shape == "utterance"
    for row in rows:
        dialogue = row.cells(spec.dialogue_columns)
        if not free and home.setdefault(dialogue, row.split) != row.split:
            raise InputError(
                f"{spec.table}: dialogue {'/'.join(dialogue)!r} has utterances in {home[dialogue]} and {row.split}: "
                "a dialogue belongs to one split"
            )
        groups.setdefault((row.split, dialogue), []).append(row)
    if spec.order:
        for group in groups.values():
            group.sort(key=lambda r: _order_key(r.cell(spec.order)))
    return list(groups.values())


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


def _height(columns: Columns) -> int:
    return len(next(iter(columns.values()), []))
