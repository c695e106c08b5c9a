"""Arrays beside a table, and which of their rows belong to an utterance."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from mer_export.data.dialogues import ready_array
from mer_export.data.formats.table.rows import Row, Rows, height
from mer_export.data.spec import ArraySource
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.arrays import load_array
from mer_export.untrusted.places import SPLIT, Reach
from mer_export.untrusted.tables import Columns, read_table

ABOUT_ROWS = frozenset(
    (
        "name",
        "frametime",
        "frameindex",
        "frame",
        "face_id",
        "timestamp",
        "confidence",
        "success",
        "file",
        "start",
        "end",
    )
)
"""Columns of openSMILE, OpenFace and their like that say which row it is."""


@dataclass(frozen=True)
class _Opened:
    """One array: its values, where the steps of a row begin, and the row of each key."""

    where: str
    values: np.ndarray
    offsets: np.ndarray | None
    keys: dict[str, int]
    whole: bool = False
    """Whether everything belongs to one utterance."""

    @property
    def height(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    def row(self, place: int) -> np.ndarray:
        if place >= self.height:
            raise InputError(f"{self.where} has {self.height} rows, the table asks for row {place}")
        if self.offsets is None:
            return self.values[place]
        return self.values[self.offsets[place] : self.offsets[place + 1]]


class ArrayFiles:
    """Array files, each read once and held against the rows of the table."""

    def __init__(self, reach: Reach, rows: Rows):
        self.reach = reach
        self.heights = {id(t): height(t) for t in rows.tables if height(t)}
        self.in_split = rows.in_split
        self._opened: dict[tuple[ArraySource, object], _Opened] = {}

    def steps(self, source: ArraySource, row: Row) -> np.ndarray:
        """The vectors (steps, width) of an utterance, float32; a single vector is one step."""
        opened = self._open(source, row)
        values, ragged = opened.values, opened.offsets is not None
        if values.dtype.kind not in "fiu" or values.ndim not in ((2,) if ragged else (2, 3)):
            shape = f"{values.dtype} {values.shape}"
            raise InputError(f"{opened.where} is {shape}, expected numbers (rows, [steps,] width)")
        found = opened.row(self._place(source, opened, row)).astype(np.float32)
        return found[None] if found.ndim == 1 else found

    def ready(self, name: str, source: ArraySource, row: Row) -> np.ndarray:
        """An input of an utterance as it is."""
        opened = self._open(source, row)
        return ready_array(name, opened.row(self._place(source, opened, row)), opened.where)

    def _open(self, source: ArraySource, row: Row) -> _Opened:
        if source.file is None:
            return self._once((source, id(row.table)), lambda: _from_columns(source, row))
        if "{" in source.file.replace(SPLIT, ""):
            path = self.reach.path(_filled_in(source.file, row), "the data section", split=row.split)
            return _one_utterance(_open(path, source))
        file, place = source.file, row.split if SPLIT in source.file else None
        return self._once(
            (source, place), lambda: _open(self.reach.path(file, "the data section", split=row.split), source)
        )

    def _once(self, key: tuple[ArraySource, object], open_: Callable[[], _Opened]) -> _Opened:
        if key not in self._opened:
            self._opened[key] = open_()
        return self._opened[key]

    def _place(self, source: ArraySource, opened: _Opened, row: Row) -> int:
        if source.file is None:
            return row.at
        if opened.whole:
            return 0
        if source.column is not None:
            return _looked_up(source, opened, row)
        if row.array_row is not None:
            return row.array_row
        if SPLIT in source.file:
            _same_height(opened, self.in_split[row.split])
            return row.in_split
        if len(self.heights) > 1:
            raise UsageError(f"{source.file} serves several tables: name the column of its rows in data.row")
        _same_height(opened, self.heights[id(row.table)])
        return row.at


def _filled_in(file: str, row: Row) -> str:
    """The name of an utterance's own file, with the cells of its columns in it."""
    for column in re.findall(r"{([^{}]+)}", file.replace(SPLIT, "")):
        if column not in row.table:
            raise InputError(f"{file}: the table has no column {column!r}, there are {list(row.table)}")
        cell = row.cell(column)
        if not cell or cell in (".", "..") or "/" in cell or "\\" in cell:
            raise InputError(f"{file}: row {row.at + 2} of the table has {cell!r} in {column}, which names no file")
        file = file.replace(f"{{{column}}}", cell)
    return file


def _one_utterance(opened: _Opened) -> _Opened:
    """A file whose rows are all steps of one utterance."""
    values = opened.values[None] if opened.values.ndim == 1 else opened.values
    return _Opened(opened.where, values, np.asarray([0, len(values)]), {}, whole=True)


def _from_columns(source: ArraySource, row: Row) -> _Opened:
    """Columns of the table itself side by side, NaN where a cell is empty."""
    return _Opened(f"columns {source.columns}", _numbers(row.table, source, "the table"), None, {})


def _numbers(table: Columns, source: ArraySource, where: str) -> np.ndarray:
    """The columns that a source names as (rows, width) float32; of a table of numbers by default all features."""
    asked = (source.columns,) if isinstance(source.columns, str) else source.columns
    names = list(dict.fromkeys(name for part in asked for name in _named(part, list(table), where)))
    names = names or [n for n in table if n.lower() not in ABOUT_ROWS and n != source.keys]
    values = np.empty((len(table[names[0]]) if names else 0, len(names)), dtype=np.float32)
    for place, name in enumerate(names):
        for at, cell in enumerate(table[name]):
            values[at, place] = _number(cell, name, at, where)
    return values


def _from_table(path: Path, source: ArraySource) -> _Opened:
    """A table of numbers: a row per utterance, or with `keys` the rows of each utterance together."""
    table = read_table(path)
    if source.keys is not None and source.keys not in table:
        raise InputError(f"{path} has no column {source.keys!r} (keys), there are {list(table)[:40]}")
    values = _numbers(table, source, str(path))
    if source.keys is None:
        return _Opened(str(path), values, None, {})
    names = [name.strip("'\"") for name in table[source.keys]]
    begins = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
    keys: dict[str, int] = {}
    for place, begin in enumerate(begins):
        if names[begin] in keys:
            raise InputError(f"{path}: row {begin + 2}: the rows of {names[begin]!r} are not together: sort the file")
        keys[names[begin]] = place
    # openSMILE writes the name of the recording.
    stems = {PurePosixPath(name).stem: place for name, place in keys.items()}
    keys = (stems if len(stems) == len(keys) else {}) | keys
    return _Opened(str(path), values, np.asarray([*begins, len(values)]), keys)


def _named(part: str, columns: list[str], where: str) -> list[str]:
    """The columns that a name, a prefix with a star behind it or a range stands for."""
    first, colon, last = part.partition(":")
    if part in columns:
        return [part]
    if part.endswith("*"):
        found = [c for c in columns if c.startswith(part[:-1])]
    elif colon and first in columns and last in columns:
        found = columns[columns.index(first) : columns.index(last) + 1]
    else:
        found = []
    if not found:
        raise InputError(f"{where} has no columns {part!r} (data: columns), there are {columns[:40]}")
    return found


def _number(cell: str, column: str, at: int, where: str) -> float:
    text = cell.strip()
    try:
        return float(text) if text else np.nan
    except ValueError:
        raise InputError(f"row {at + 2} of {where}: column {column} holds {cell!r}, it must be a number") from None


def _open(path: Path, source: ArraySource) -> _Opened:
    if source.keys is not None and source.column is None:
        raise UsageError(f"data: keys of {source.file} need the column that is looked up in them")
    if source.of_table:
        return _from_table(path, source)
    where = f"{path}: {source.array or 'array'}"
    values = load_array(path, source.array)
    if not values.ndim:
        raise InputError(f"{where} is a single value, expected rows")
    offsets = load_array(path, source.offsets) if source.offsets else None
    if offsets is not None and not _ascending(offsets, len(values)):
        raise InputError(f"{where}: {source.offsets} are not ascending places in {len(values)} steps")
    keys = load_array(path, source.keys) if source.keys else np.empty(0)
    return _Opened(where, values, offsets, {str(k): i for i, k in enumerate(keys.tolist())})


def _looked_up(source: ArraySource, opened: _Opened, row: Row) -> int:
    """The row that a column names, by its number or by a key."""
    if source.column not in row.table:
        raise InputError(f"{opened.where}: the table has no column {source.column!r}, there are {list(row.table)}")
    value = row.cell(source.column)
    if source.keys is not None:
        if value not in opened.keys:
            raise InputError(f"{opened.where}: {source.keys} has no {value!r} of column {source.column}")
        return opened.keys[value]
    if not value.isdecimal():
        raise InputError(f"{opened.where}: column {source.column} holds no row numbers: name an array of keys")
    return int(value)


def _same_height(opened: _Opened, rows: int) -> None:
    """Rows that belong to each other by their place alone have to be as many."""
    if opened.height != rows:
        raise InputError(
            f"{opened.where} has {opened.height} rows, its table has {rows}: name a column of rows in data.row, or in "
            "the `column` of this source"
        )


def _ascending(offsets: np.ndarray, steps: int) -> bool:
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or not len(offsets):
        return False
    return bool((np.diff(offsets.astype(np.int64)) >= 0).all() and offsets[0] >= 0 and offsets[-1] <= steps)
