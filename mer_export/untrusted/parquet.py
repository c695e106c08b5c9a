"""Parquet files, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed


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
    arrow, parquet = pyarrow_modules()
    try:
        file = parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is not a readable Parquet file: {_short(error)}") from None
    try:
        with file:
            yield file
    except (OSError, arrow.ArrowException) as error:
        raise InputError(f"{path} is damaged: {_short(error)}") from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
