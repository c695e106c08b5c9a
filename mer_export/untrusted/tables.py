"""Tables of text cells: csv, tsv and Parquet."""

from __future__ import annotations

import csv
from pathlib import Path

from mer_export.errors import InputError
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.parquet import open_parquet

Columns = dict[str, list[str]]


def read_table(path: Path) -> Columns:
    """Columns of a table as text: csv (comma), tsv or Parquet by the ending; raises InputError."""
    refuse_impostor(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            header = next(lines, [])
            rows = [line for line in lines if line]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not UTF-8 table: {error}") from None
    if len(set(header)) != len(header) or not header:
        raise InputError(f"{path} needs a header of distinct column names, it has {header[:20]}")
    for number, line in enumerate(rows, start=2):
        if len(line) != len(header):
            raise InputError(f"{path}: row {number} has {len(line)} cells, the header has {len(header)}")
    return {name: [line[i] for line in rows] for i, name in enumerate(header)}


def _read_parquet(path: Path) -> Columns:
    with open_parquet(path) as file:
        table = file.read()
    return {n: ["" if v is None else str(v) for v in table.column(n).to_pylist()] for n in table.column_names}
