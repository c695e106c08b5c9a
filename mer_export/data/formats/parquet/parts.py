"""Row groups of a file that lies anywhere, cut between dialogues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mer_export.data.formats.parquet.reader import ParquetSource
from mer_export.data.spec import DataSpec
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.impostors import HEAD, refuse_head
from mer_export.untrusted.parquet import opened
from mer_export.untrusted.stored import Stored

SUFFIXES = (".parquet",)


def cut(file: Stored, most: int) -> Iterator[tuple[int, int, int]]:
    """First row group, end and bytes of parts that end with a dialogue; each has `most` bytes, or one row group.

    Raises:
        InputError: the file cannot be read, or is no Parquet file.
    """
    begin, nbytes = 0, 0
    with _opening(file) as found:
        for group in range(found.num_row_groups):
            own = found.metadata.row_group(group).total_byte_size
            if nbytes and nbytes + own > most and _begins_dialogue(found, group):
                yield begin, group, nbytes
                begin, nbytes = group, 0
            nbytes += own
        if nbytes:
            yield begin, found.num_row_groups, nbytes


def source(file: Stored, begin: int, end: int, spec: DataSpec) -> ParquetSource:
    """The dialogues of a part; raises InputError as the reader of whole files does."""
    reach = spec.reach(file.local) if file.local else None
    return ParquetSource(file.said, spec, reach, lambda: _opening(file), range(begin, end))


@contextmanager
def _opening(file: Stored) -> Iterator[Any]:
    with file.open() as stream:
        refuse_head(stream.read(HEAD), file.said)
        stream.seek(0)
        with opened(stream, Budget(file.said, file.size)) as found:
            yield found


def _begins_dialogue(found: Any, group: int) -> bool:
    """Whether the first row of a row group is that of a dialogue; a file of another layout its reader refuses."""
    if "index" not in found.schema_arrow.names:
        return True
    rows = found.iter_batches(batch_size=1, row_groups=[group], columns=["index"])
    return next((batch.column(0)[0].as_py() for batch in rows), 0) == 0
