"""Parquet files, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.cells import TOGETHER
from mer_export.untrusted.impostors import refuse_impostor

ROW_RUN = 256
"""Equal values that one byte may stand for."""
TEXT = "BYTE_ARRAY"
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, TEXT: 4}
"""Bytes of a value by its physical type, of a text without its characters; others say it."""


def pyarrow_modules() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`; raises NotAvailableError where they are not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise NotAvailableError(not_installed("pyarrow", "columnar")) from None
    return pyarrow, parquet


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """An open `ParquetFile`; raises InputError where the file, or what is read of it, is damaged."""
    refuse_impostor(path)
    with opened(path, Budget.of(path)) as file:
        yield file


@contextmanager
def opened(source: Path | BinaryIO, budget: Budget) -> Iterator[Any]:
    """The same of a file or a stream whose budget has its name."""
    arrow, parquet = pyarrow_modules()
    path = budget.name
    # Names and values that are not UTF-8 fail in Python, the rest in the library.
    damage = (OSError, UnicodeError, arrow.ArrowException)
    try:
        file = parquet.ParquetFile(source)
    except damage as error:
        raise InputError(f"{path} is not a readable Parquet file: {_short(error)}") from None
    try:
        with file:
            _check(file, budget)
            _check_repeated(file, source, budget)
            yield file
    except damage as error:
        raise InputError(f"{path} is damaged: {_short(error)}") from None


def _check(file: Any, budget: Budget) -> None:
    """Refuses a file whose pages say that they unfold to far more than its size."""
    meta = file.metadata
    groups = (meta.row_group(i) for i in range(meta.num_row_groups))
    budget.take(sum(max(0, g.total_byte_size) for g in groups), meta.num_rows * meta.num_columns // ROW_RUN)


def _check_repeated(file: Any, source: Path | BinaryIO, budget: Budget) -> None:
    """Refuses a file whose rows, as many as are decoded together, take far more than its size: pages hold a value once
    that any number of rows repeat."""
    columns = [file.schema.column(i) for i in range(file.metadata.num_columns)]
    repeated = [c.max_repetition_level > 0 for c in columns]
    texts = [c.physical_type == TEXT for c in columns]
    widths = [WIDTHS.get(c.physical_type, c.length) for c in columns]
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        for place, width in enumerate(widths):
            chunk = group.column(place)
            count = chunk.num_values if repeated[place] else min(TOGETHER, chunk.num_values)
            if texts[place] and count * chunk.total_uncompressed_size > budget.bytes >= count * width:
                # No text is longer than its whole column, so only here one has to be looked at.
                width = max(width, _longest(file, source, number, chunk))
            if count * width > budget.bytes:
                budget.take(count * width)


def _longest(file: Any, source: Path | BinaryIO, group: int, chunk: Any) -> int:
    """Bytes of the longest text that rows of a column repeat; of the texts themselves none is repeated here."""
    path = chunk.path_in_schema
    arrow, parquet = pyarrow_modules()
    from pyarrow import compute

    with parquet.ParquetFile(source, metadata=file.metadata, read_dictionary=[path]) as found:
        for batch in found.iter_batches(batch_size=TOGETHER, row_groups=[group], columns=[path]):
            cells = batch.column(0)
            while not arrow.types.is_dictionary(cells.type):
                cells = cells.field(0) if arrow.types.is_struct(cells.type) else getattr(cells, "values", None)
                if cells is None:  # numbers that are written as texts
                    return int(chunk.total_uncompressed_size)
            if len(cells.dictionary):
                return int(compute.max(compute.binary_length(cells.dictionary)).as_py() or 0)
    return 0


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
