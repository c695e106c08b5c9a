"""Arrays beside a table, and which of their rows belong to an utterance."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from mer_export.data.dialogues import ready_array
from mer_export.data.formats.table.rows import Row, Rows
from mer_export.data.spec import ArraySource
from mer_export.errors import InputError, UsageError
from mer_export.marks import Marks, Places, mark_of
from mer_export.untrusted.arrays import Steps, load_array, open_array
from mer_export.untrusted.cells import Cells, whole_number
from mer_export.untrusted.places import SPLIT, Reach
from mer_export.untrusted.tables import HEADER_ROWS, Table, open_table

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
    """One array: its values, where the steps of a row begin, and what finds the row of a key."""

    where: str
    values: Steps
    offsets: np.ndarray | None = None
    keys: Callable[[str], int | None] | None = None
    whole: bool = False
    """Whether everything belongs to one utterance."""

    @cached_property
    def height(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @cached_property
    def numbers(self) -> _Opened:
        """Itself; raises InputError where a row is neither a vector nor several."""
        values = self.values
        if values.dtype.kind not in "fiu" or values.ndim not in ((2, 3) if self.offsets is None else (2,)):
            shape = f"{values.dtype} {values.shape}"
            raise InputError(f"{self.where} is {shape}, expected numbers (rows, [steps,] width)")
        return self

    def row(self, place: int) -> np.ndarray:
        if place >= self.height:
            raise InputError(f"{self.where} has {self.height} rows, the table asks for row {place}")
        if self.offsets is None:
            return np.asarray(self.values[place])
        return np.asarray(self.values[int(self.offsets[place]) : int(self.offsets[place + 1])])


class ArrayFiles:
    """Array files, each opened once and held against the rows of the table."""

    def __init__(self, reach: Reach, rows: Rows):
        self.reach, self.in_split = reach, rows.in_split
        self.heights = {t: n for t, n in rows.heights.items() if n}
        self._readers: dict[ArraySource, Reader] = {}

    def reader(self, source: ArraySource) -> Reader:
        """What reads a source."""
        kind = ColumnReader if source.file is None else FileReader
        return self._readers.setdefault(source, kind(self, source))


class Reader(Protocol):
    """Reads what one source has of an utterance."""

    def steps(self, row: Row) -> np.ndarray:
        """The vectors (steps, width) of an utterance, float32; a single vector is one step."""
        ...

    def ready(self, name: str, row: Row) -> np.ndarray:
        """An input of an utterance as it is."""
        ...


class ColumnReader:
    """Columns of the table itself side by side, NaN where a cell is empty."""

    def __init__(self, files: ArrayFiles, source: ArraySource):
        self.source = source
        self._chosen: dict[Table, dict[str, int]] = {}

    def steps(self, row: Row) -> np.ndarray:
        """One step; see `Reader`."""
        return self._vector(row)[None]

    def ready(self, name: str, row: Row) -> np.ndarray:
        """The numbers; see `Reader`."""
        return ready_array(name, self._vector(row), f"columns {self.source.columns}")

    def _vector(self, row: Row) -> np.ndarray:
        if row.table not in self._chosen:
            self._chosen[row.table] = _chosen(row.table.columns, self.source, "the table")
        return np.asarray(_numbers(row.cells, self._chosen[row.table], row.at, "the table"), np.float32)


class FileReader:
    """Rows of an array file, of one for each split, or of one for each utterance."""

    def __init__(self, files: ArrayFiles, source: ArraySource):
        self.files, self.source, self.file = files, source, str(source.file)
        self.by_split = SPLIT in self.file
        self.by_cell = "{" in self.file.replace(SPLIT, "")
        self._opened: dict[str | None, _Opened] = {}

    def steps(self, row: Row) -> np.ndarray:
        """Some rows; see `Reader`."""
        opened = self._open(row)
        found = opened.numbers.row(self._place(opened, row)).astype(np.float32)
        return found[None] if found.ndim == 1 else found

    def ready(self, name: str, row: Row) -> np.ndarray:
        """A row, or some; see `Reader`."""
        opened = self._open(row)
        return ready_array(name, opened.row(self._place(opened, row)), opened.where)

    def _open(self, row: Row) -> _Opened:
        if self.by_cell:
            return _one_utterance(_open(self._path(_filled_in(self.file, row), row), self.source, load_array))
        key = row.split if self.by_split else None
        if key not in self._opened:
            self._opened[key] = _open(self._path(self.file, row), self.source, open_array)
        return self._opened[key]

    def _path(self, file: str, row: Row) -> Path:
        return self.files.reach.path(file, "the data section", split=row.split)

    def _place(self, opened: _Opened, row: Row) -> int:
        if opened.whole:
            return 0
        if self.source.column is not None:
            return _looked_up(self.source, opened, row)
        if row.array_row is not None:
            return row.array_row
        if self.by_split:
            _same_height(opened, self.files.in_split[row.split])
            return row.in_split
        if len(self.files.heights) > 1:
            raise UsageError(f"{self.file} serves several tables: name the column of its rows in data.row")
        _same_height(opened, self.files.heights[row.table])
        return row.at


def _filled_in(file: str, row: Row) -> str:
    """The name of an utterance's own file, with the cells of its columns in it."""
    for column in re.findall(r"{([^{}]+)}", file.replace(SPLIT, "")):
        if column not in row.table.columns:
            raise InputError(f"{file}: the table has no column {column!r}, there are {list(row.table.columns)}")
        cell = row.cell(column)
        if not cell or cell in (".", "..") or "/" in cell or "\\" in cell:
            raise InputError(
                f"{file}: row {row.at + HEADER_ROWS} of the table has {cell!r} in {column}, which names no file"
            )
        file = file.replace(f"{{{column}}}", cell)
    return file


def _one_utterance(opened: _Opened) -> _Opened:
    """A file whose rows are all steps of one utterance."""
    values = np.atleast_2d(np.asarray(opened.values))
    return _Opened(opened.where, values, np.asarray([0, len(values)]), whole=True)


def _chosen(columns: Mapping[str, int], source: ArraySource, where: str) -> dict[str, int]:
    """The columns that a source names, with their places; of a table of numbers by default all features."""
    asked = (source.columns,) if isinstance(source.columns, str) else source.columns
    names = list(dict.fromkeys(name for part in asked for name in _named(part, list(columns), where)))
    names = names or [n for n in columns if n.lower() not in ABOUT_ROWS and n != source.keys]
    return {name: columns[name] for name in names}


def _numbers(cells: Sequence[str], chosen: Mapping[str, int], at: int, where: str) -> list[float]:
    """The numbers in some cells of a row."""
    try:
        return [float(cells[place]) for place in chosen.values()]
    except ValueError:  # a cell is empty, or none
        return [_number(cells[place], name, at, where) for name, place in chosen.items()]


def _from_table(path: Path, source: ArraySource) -> _Opened:
    """A table of numbers: a row per utterance, or with `keys` the rows of each utterance together."""
    table = open_table(path)
    if source.keys is not None and source.keys not in table.columns:
        raise InputError(f"{path} has no column {source.keys!r} (keys), there are {list(table.columns)[:40]}")
    chosen, numbers = _chosen(table.columns, source, str(path)), array("f")
    begins, keys, stems = array("Q"), Cells(), Cells()
    seen, before = Marks(), None
    with closing(table.rows()) as rows:
        for at, cells in enumerate(rows):
            numbers.extend(_numbers(cells, chosen, at, str(path)))
            name = None if source.keys is None else cells[table.columns[source.keys]].strip("'\"")
            if name is None or name == before:
                continue
            if not seen.new(mark_of(name)):
                raise InputError(
                    f"{path}: row {at + HEADER_ROWS}: the rows of {name!r} are not together: sort the file"
                )
            begins.append(at)
            keys.extend([name])
            # openSMILE writes the name of the recording.
            stems.extend([PurePosixPath(name).stem])
            before = name
    values = np.frombuffer(numbers, np.float32).reshape(-1, max(1, len(chosen)))
    if source.keys is None:
        return _Opened(str(path), values)
    return _Opened(str(path), values, np.asarray([*begins, len(values)]), _by_key_or_stem(Places(keys), Places(stems)))


def _by_key_or_stem(keys: Places, stems: Places) -> Callable[[str], int | None]:
    """Finds a name, or where no two are alike the stem of one."""

    told_apart = stems.distinct

    def find(name: str) -> int | None:
        place = keys.get(name)
        return stems.get(name) if place is None and told_apart else place

    return find


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
        raise InputError(
            f"row {at + HEADER_ROWS} of {where}: column {column} holds {cell!r}, it must be a number"
        ) from None


def _open(path: Path, source: ArraySource, load: Callable[[Path, str | None], Steps]) -> _Opened:
    if source.keys is not None and source.column is None:
        raise UsageError(f"data: keys of {source.file} need the column that is looked up in them")
    if source.of_table:
        return _from_table(path, source)
    where = f"{path}: {source.array or 'array'}"
    values = load(path, source.array)
    if not values.ndim:
        raise InputError(f"{where} is a single value, expected rows")
    offsets = load_array(path, source.offsets) if source.offsets else None
    if offsets is not None and not _ascending(offsets, len(values)):
        raise InputError(f"{where}: {source.offsets} are not ascending places in {len(values)} steps")
    return _Opened(where, values, offsets, _by_key(path, source.keys) if source.keys else None)


def _by_key(path: Path, name: str) -> Callable[[str], int | None]:
    """Finds a key of an array of them."""
    keys = load_array(path, name)
    if keys.ndim != 1:
        raise InputError(f"{path}: {name} has shape {keys.shape}, keys are one for each row")
    return Places(map(str, keys.tolist())).get


def _looked_up(source: ArraySource, opened: _Opened, row: Row) -> int:
    """The row that a column names, by its number or by a key."""
    columns, value = row.table.columns, row.cell(source.column)
    if source.column not in columns:
        raise InputError(f"{opened.where}: the table has no column {source.column!r}, there are {list(columns)}")
    if opened.keys is not None:
        place = opened.keys(value)
        if place is None:
            raise InputError(f"{opened.where}: {source.keys} has no {value!r} of column {source.column}")
        return place
    place = whole_number(value)
    if place is None:
        raise InputError(f"{opened.where}: column {source.column} holds no row numbers: name an array of keys")
    return place


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
