"""Parquet files, through pyarrow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
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
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 0}
"""Bytes of a value by its physical type, 0 for texts of any length; others say it."""
OFFSET = 4
"""Bytes of where a text begins."""
REPEATS_NOTHING = frozenset(("PLAIN", "RLE", "BIT_PACKED"))
"""How texts may be written one by one, and which of them are there."""
PASSING = 4
"""Times the budget that a batch may take on its way: writers let rows repeat texts of a MiB together."""
PAGE_HEAD = 16
PAGE = re.compile(rb"\x15(.)\x15([\x80-\xff]{0,4}[\0-\x7f])", re.DOTALL)
"""How the head of a page begins: its kind, and its bytes when it is unfolded."""
DICTIONARY = b"\x04"
"""The kind of a page of values that others repeat."""


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
    """An `Opened` file; raises InputError where the file, or what is read of it, is damaged."""
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
            yield Opened(file, source, budget)
    except damage as error:
        raise InputError(f"{path} is damaged: {_short(error)}") from None


def _check(file: Any, budget: Budget) -> None:
    """Refuses a file whose pages say that they unfold to far more than its size."""
    meta = file.metadata
    groups = (meta.row_group(i) for i in range(meta.num_row_groups))
    budget.take(sum(max(0, g.total_byte_size) for g in groups), meta.num_rows * meta.num_columns // ROW_RUN)


class Opened:
    """An open `ParquetFile`, of which is decoded what its budget has: pages hold a value once that any number of rows
    repeat."""

    def __init__(self, file: Any, source: Path | BinaryIO, budget: Budget):
        # Another one of the same size: pages were counted as they are written, what they say is counted by itself.
        self._budget = Budget(budget.name, budget.size)
        self._file, self._source, self._most = file, source, self._budget.bytes
        columns = [file.schema.column(i) for i in range(file.metadata.num_columns)]
        self._columns = [
            (c.path.partition(".")[0], c.max_repetition_level > 0, WIDTHS.get(c.physical_type, c.length))
            for c in columns
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def iter_batches(
        self, batch_size: int, row_groups: Iterable[int], columns: Sequence[str] | None = None
    ) -> Iterator[Any]:
        """Row groups in batches of so many rows, or fewer where a text that they repeat may be long.

        Raises:
            InputError: texts are more, or lists of a row group longer, than a file of that size holds.
        """
        texts: list[int] | None = None
        for group in row_groups:
            rows = min(batch_size, *self._fitting(group, columns))
            for batch in self._file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
                if texts is None:
                    texts = [i for i, kind in enumerate(batch.schema.types) if _holds_text(kind)]
                self._budget.take(sum([batch.column(i).nbytes for i in texts]))
                yield batch

    def _fitting(self, group: int, columns: Sequence[str] | None) -> Iterator[int]:
        """How many rows of each column may be decoded together."""
        found = self.metadata.row_group(group)
        for place, (name, repeated, width) in enumerate(self._columns):
            if columns is not None and name not in columns:
                continue
            chunk = found.column(place)
            if repeated:
                self._check_lists(group, chunk, width)
            else:
                # No text that is repeated is longer than all of them.
                longest = width or chunk.total_uncompressed_size
                if not width and TOGETHER * longest > PASSING * self._most:
                    longest = min(longest, self._dictionary_size(chunk))
                yield max(1, PASSING * self._most // max(1, longest))
        yield TOGETHER

    def _check_lists(self, group: int, chunk: Any, width: int) -> None:
        """Nothing says how many values a row has, so those of all rows have to fit."""
        count = chunk.num_values
        if not width and count * chunk.total_uncompressed_size > self._most >= count * OFFSET:
            width = self._longest(group, chunk)
        if count * max(OFFSET, width) > self._most:
            self._budget.take(count * max(OFFSET, width))

    def _dictionary_size(self, chunk: Any) -> int:
        """Bytes of the values that a column repeats, as the head of its first page has them (parquet.thrift)."""
        if REPEATS_NOTHING.issuperset(chunk.encodings):
            return 0
        if not isinstance(self._source, Path):
            return int(chunk.total_uncompressed_size)
        places = (chunk.dictionary_page_offset or 0, chunk.data_page_offset)
        with self._source.open("rb") as stream:
            stream.seek(min((p for p in places if p > 0), default=0))
            said = PAGE.match(stream.read(PAGE_HEAD))
        return _zigzag(said[2]) if said and said[1] == DICTIONARY else int(chunk.total_uncompressed_size)

    def _longest(self, group: int, chunk: Any) -> int:
        """Bytes of the longest text that the lists of a row group repeat; of the texts none is repeated here."""
        arrow, parquet = pyarrow_modules()
        from pyarrow import compute

        path = chunk.path_in_schema
        with parquet.ParquetFile(self._source, metadata=self.metadata, read_dictionary=[path]) as found:
            for batch in found.iter_batches(batch_size=TOGETHER, row_groups=[group], columns=[path]):
                cells = batch.column(0)
                while not arrow.types.is_dictionary(cells.type):
                    cells = cells.field(0) if arrow.types.is_struct(cells.type) else getattr(cells, "values", None)
                    if cells is None:  # numbers that are written as texts
                        return int(chunk.total_uncompressed_size)
                if len(cells.dictionary):
                    return int(compute.max(compute.binary_length(cells.dictionary)).as_py() or 0)
        return 0


def _holds_text(kind: Any) -> bool:
    """Whether cells of an Arrow type are texts, or lists of them."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return str(kind).removeprefix("large_") in ("string", "binary")


def _zigzag(number: bytes) -> int:
    """A number as Thrift's compact protocol writes it."""
    value = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(number))
    return (value >> 1) ^ -(value & 1)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
