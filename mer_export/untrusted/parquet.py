"""Parquet files, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.impostors import refuse_impostor

ROW_RUN = 256
"""Equal values that one byte may stand for."""


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
            yield file
    except damage as error:
        raise InputError(f"{path} is damaged: {_short(error)}") from None


def _check(file: Any, budget: Budget) -> None:
    """Refuses a file whose pages say that they unfold to far more than its size."""
    meta = file.metadata
    groups = (meta.row_group(i) for i in range(meta.num_row_groups))
    budget.take(sum(max(0, g.total_byte_size) for g in groups), meta.num_rows * meta.num_columns // ROW_RUN)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
