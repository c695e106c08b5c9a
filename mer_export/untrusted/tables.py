"""Tables of text cells, read row by row: csv with any separator, tsv and Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mer_export.errors import InputError
from mer_export.untrusted.cells import TOGETHER, Cells
from mer_export.untrusted.file_state import State, state_of, states
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.parquet import open_parquet

Columns = dict[str, Sequence[str]]
TABLES = (".csv", ".tsv", ".parquet")
"""How the names of tables end."""
UTF8 = "utf-8-sig"
"""UTF-8 with or without a byte order mark."""
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""How UTF-16 begins."""
STATEFUL = ("hz", "iso2022", "utf-7")
"""Encodings in which a line may depend on the one before."""
HEADER_ROWS = 2
"""The number of the first row of cells, as a spreadsheet counts."""


class Rows(Protocol):
    """The rows of a table, from the one at `place` on."""

    @property
    def place(self) -> int:
        """Where the next row begins, as the table counts."""
        ...

    def __iter__(self) -> Rows: ...

    def __next__(self) -> list[str]:
        """The cells of a row; raises InputError for a damaged one."""
        ...

    def seek(self, place: int, number: int) -> None:
        """Goes on with the row that begins at `place`, and is that number of the table."""
        ...

    def close(self) -> None:
        """Nothing more is read."""
        ...


class Table(Protocol):
    """A table."""

    @property
    def columns(self) -> Mapping[str, int]:
        """The places of its columns in a row."""
        ...

    def rows(self, only: Collection[str] = ()) -> Rows:
        """All rows; the cells of columns beside `only` may be empty, where it names any.

        Raises:
            InputError: the file has changed since it was opened.
        """
        ...


def open_table(path: Path, encoding: str = UTF8, separator: str | None = None) -> Table:
    """A table, of which the header is read.

    Args:
        path: Parquet by the ending, else lines of cells.
        encoding: of the text.
        separator: between cells; None takes a tab in a tsv, else the comma, or what else the header has.

    Raises:
        InputError: damaged, in another encoding, or not a table.
    """
    refuse_impostor(path)
    return ParquetTable(path) if path.suffix == ".parquet" else TextTable(path, encoding, separator)


def read_table(path: Path, encoding: str = UTF8, separator: str | None = None) -> Columns:
    """All columns of a table as text; arguments and errors are those of `open_table`."""
    return _columns(open_table(path, encoding, separator))


def _columns(table: Table) -> Columns:
    columns = {name: Cells() for name in table.columns}
    with closing(table.rows()) as rows:
        while some := list(islice(rows, TOGETHER)):
            for cells, column in zip(zip(*some, strict=True), columns.values(), strict=True):
                column.extend(cells)
    return dict(columns)


# Text


class TextTable:
    """A table of lines. Its places are bytes, so that reading may go on at any row.

    In an encoding whose lines cannot be told apart as bytes (UTF-16), its text is held in memory.
    """

    def __init__(self, path: Path, encoding: str, separator: str | None):
        self.path, self.encoding = path, encoding
        self._state: State | None = None
        with self.told():
            self.codec, self._whole = _codec(encoding), None
            if self.codec is None:
                self.codec, self._whole = "utf-8", path.read_bytes().decode(encoding).encode()
            with self.open() as stream:
                lines = _Lines(stream, self.codec)
                decoded = iter(lines)
                first = next(decoded, "")
                self.separator = separator or _separator(first, path)
                # OpenFace puts a space before each name.
                names = next(csv.reader(chain([first], decoded), delimiter=self.separator), [])
                header = [name.strip() for name in names]
                self.begin = lines.place
        self.columns = _places(header, path)

    def rows(self, only: Collection[str] = ()) -> TextRows:
        """All rows; see `Table`."""
        with self.told():
            return TextRows(self)

    def open(self) -> BinaryIO:
        """Its bytes, behind a byte order mark."""
        if self._whole is not None:
            return io.BytesIO(self._whole)
        stream = self.path.open("rb")
        state = state_of(os.fstat(stream.fileno()))
        if self._state not in (None, state):
            stream.close()
            raise _changed(self.path)
        self._state = state
        if self.codec != "utf-8" or stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            stream.seek(0)
        return stream

    @contextmanager
    def told(self) -> Iterator[None]:
        """Says what is wrong with the file."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror or error}") from None
        except LookupError:
            raise InputError(
                f"{self.path}: data.encoding {self.encoding!r} is not an encoding, use utf-8, cp1252 or gbk"
            ) from None
        except UnicodeError:
            raise InputError(_undecodable(self.path, self.encoding)) from None
        except csv.Error as error:
            raise InputError(f"{self.path} is not a table: {error}") from None


class TextRows:
    """The rows of a `TextTable`; see `Rows`."""

    def __init__(self, table: TextTable):
        self.table, self.width = table, len(table.columns)
        self.lines = _Lines(table.open(), str(table.codec))
        self.seek(table.begin, 0)

    @property
    def place(self) -> int:
        """The byte at which the next row begins."""
        return self.lines.place

    def seek(self, place: int, number: int) -> None:
        """Goes on elsewhere; see `Rows`."""
        self.number = number
        if place != self.lines.place or not number:
            self.lines.seek(place)
            self._cells = csv.reader(iter(self.lines), delimiter=self.table.separator)

    def __iter__(self) -> TextRows:
        return self

    def __next__(self) -> list[str]:
        try:
            cells = next(self._cells)
            while not cells:
                cells = next(self._cells)
        except (OSError, LookupError, UnicodeError, csv.Error):
            with self.table.told():
                raise
        if len(cells) != self.width:
            number = self.number + HEADER_ROWS
            raise InputError(f"{self.table.path}: row {number} has {len(cells)} cells, the header has {self.width}")
        self.number += 1
        return cells

    def close(self) -> None:
        """Closes the file."""
        self.lines.stream.close()


class _Lines:
    """Decoded lines of a stream, and at which byte the next one begins. As a csv has them, they end with CR too."""

    def __init__(self, stream: BinaryIO, codec: str):
        self.stream, self.codec, self.place = stream, codec, stream.tell()

    def seek(self, place: int) -> None:
        self.stream.seek(place)
        self.place = place

    def __iter__(self) -> Iterator[str]:
        for line in self.stream:
            for part in line.splitlines(keepends=True) if b"\r" in line else (line,):
                self.place += len(part)
                yield part.decode(self.codec)


def _places(header: Sequence[str], path: Path) -> dict[str, int]:
    """The places of columns; raises InputError where there is none, or two have one name."""
    if len(set(header)) != len(header) or not header:
        raise InputError(f"{path} needs a header of distinct column names, it has {list(header[:20])}")
    return {name: place for place, name in enumerate(header)}


def _changed(path: Path) -> InputError:
    return InputError(f"{path} changed while it was read: start again when nothing writes to it")


def _codec(encoding: str) -> str | None:
    """What decodes each line alone; None where lines do not end as those of ASCII, or depend on each other.

    Raises:
        LookupError: no encoding of texts.
    """
    name = codecs.lookup(encoding).name
    if name in ("utf-8", "utf-8-sig"):
        return "utf-8"
    alone = "\r\n".encode(encoding) == b"\r\n" and not name.startswith(STATEFUL)
    return encoding if alone else None


def _separator(header: str, path: Path) -> str:
    """What stands between the names of a header: a comma wherever there is one."""
    if path.suffix == ".tsv":
        return "\t"
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")


def _undecodable(path: Path, encoding: str) -> str:
    """Which byte of which row is not text in `encoding`, and what to do about it."""
    content = path.read_bytes()
    likely = "utf-16" if content.startswith(WIDE_MARKS) else "cp1252 or gbk"
    advice = f"say what it is in, such as data.encoding: {likely}, or save it as UTF-8"
    try:
        content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start]
        row, byte = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        return f"{path}: row {row}, byte {byte} is 0x{content[error.start]:02x}, which is not {encoding} text: {advice}"
    except UnicodeError:
        pass
    return f"{path} is not {encoding} text: {advice}"


# Parquet


class ParquetTable:
    """A table in Parquet. Its places are numbers of rows; whoever goes back holds it in memory, as packed cells."""

    def __init__(self, path: Path):
        self.path = path
        self._state: State | None = None
        with self.open() as file:
            self.columns = _places(file.schema_arrow.names, path)

    def rows(self, only: Collection[str] = ()) -> ParquetRows:
        """All rows; see `Table`."""
        return ParquetRows(self, only)

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Its file; raises InputError where that has changed."""
        with open_parquet(self.path) as file:
            (state,) = states([self.path])
            if self._state not in (None, state):
                raise _changed(self.path)
            self._state = state
            yield file

    @cached_property
    def held(self) -> Columns:
        """All cells."""
        return _columns(self)


class ParquetRows:
    """The rows of a `ParquetTable`; see `Rows`."""

    def __init__(self, table: ParquetTable, only: Collection[str]):
        self.table, self.place, self._jumps = table, 0, False
        names = list(table.columns)
        self._cells = _parquet_rows(table, names, [n for n in names if n in only] or names)

    def seek(self, place: int, number: int) -> None:
        """Goes on elsewhere; see `Rows`."""
        self._jumps |= place < self.place
        if self._jumps:
            self.place = place
        for _ in range(place - self.place):
            if next(self, None) is None:
                raise _changed(self.table.path)

    def __iter__(self) -> ParquetRows:
        return self

    def __next__(self) -> list[str]:
        cells = [column[self.place] for column in self.table.held.values()] if self._jumps else next(self._cells)
        self.place += 1
        return cells

    def close(self) -> None:
        """Closes the file."""
        self._cells.close()


def _parquet_rows(table: ParquetTable, names: list[str], only: list[str]) -> Generator[list[str], None, None]:
    with table.open() as file:
        for group in range(file.num_row_groups):
            # Group by group: asked for all at once, the library decodes ahead.
            for batch in file.iter_batches(batch_size=TOGETHER, row_groups=[group], columns=only):
                empty = [""] * batch.num_rows
                columns = {n: ["" if v is None else str(v) for v in batch.column(n).to_pylist()] for n in only}
                yield from map(list, zip(*(columns.get(n, empty) for n in names), strict=True))
