"""Tables of text cells: csv with any separator, tsv and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from mer_export.errors import InputError
from mer_export.untrusted.cells import TOGETHER, Cells
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.parquet import open_parquet

Columns = dict[str, Sequence[str]]
TABLES = (".csv", ".tsv", ".parquet")
"""How the names of tables end."""
UTF8 = "utf-8-sig"
"""UTF-8 with or without a byte order mark."""
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""How UTF-16 begins."""


def read_table(path: Path, encoding: str = UTF8, separator: str | None = None) -> Columns:
    """Columns of a table as text.

    Args:
        path: Parquet by the ending, else lines of cells.
        encoding: of the text.
        separator: between cells; None takes a tab in a tsv, else the comma, or what else the header has.

    Raises:
        InputError: damaged, in another encoding, or not a table.
    """
    refuse_impostor(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with path.open(newline="", encoding=UTF8 if encoding.lower() in ("utf-8", "utf8") else encoding) as stream:
            first = stream.readline()
            lines = csv.reader(chain([first], stream), delimiter=separator or _separator(first, path))
            # OpenFace puts a space before each name.
            header = [name.strip() for name in next(lines, [])]
            return _columns(header, filter(None, lines), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except LookupError:
        raise InputError(f"{path}: data.encoding {encoding!r} is not an encoding, use utf-8, cp1252 or gbk") from None
    except UnicodeError:
        raise InputError(_undecodable(path, encoding)) from None
    except csv.Error as error:
        raise InputError(f"{path} is not a table: {error}") from None


def _columns(header: list[str], lines: Iterable[list[str]], path: Path) -> Columns:
    if len(set(header)) != len(header) or not header:
        raise InputError(f"{path} needs a header of distinct column names, it has {header[:20]}")
    columns = {name: Cells() for name in header}
    rows: list[list[str]] = []
    for number, line in enumerate(lines, start=2):
        if len(line) != len(header):
            raise InputError(f"{path}: row {number} has {len(line)} cells, the header has {len(header)}")
        rows.append(line)
        if len(rows) == TOGETHER:
            _add(rows, columns)
    _add(rows, columns)
    return dict(columns)


def _add(rows: list[list[str]], columns: dict[str, Cells]) -> None:
    for cells, column in zip(zip(*rows, strict=True), columns.values(), strict=False):
        column.extend(cells)
    rows.clear()


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


def _read_parquet(path: Path) -> Columns:
    with open_parquet(path) as file:
        columns = {n: Cells() for n in file.schema_arrow.names}
        for batch in file.iter_batches(batch_size=TOGETHER):
            for name, column in columns.items():
                column.extend("" if v is None else str(v) for v in batch.column(name).to_pylist())
        return dict(columns)
