"""Rows of utterances into a Parquet file of `layout`, a row group at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle import replacing
from mer_export.data.dialogues import IMAGES, READY
from mer_export.data.formats.parquet import layout
from mer_export.data.media.faces import FaceImages
from mer_export.data.spec import Extractor
from mer_export.errors import UsageError
from mer_export.untrusted.parquet import pyarrow_modules

SUFFIX = ".parquet"
SCALARS = {
    "dialogue": "string",
    "index": "int32",
    "utterance": "string",
    "split": "string",
    "speaker": "int64",
    "label": "int64",
    "sentence": "string",
}
NAMED = {"speaker_name": "string"}
RECORDED = {"recording": "string", "start": "float64", "end": "float64"}
KINDS = {"score": "float32"}
Row = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """What a file says of all its rows.

    `lists` are the names of columns of lists, `dims` how wide a vector of each is; `kinds` are the kinds of labels that
    rows have, `recorded` tells whether they name recordings, `named` whether speakers have names.
    """

    unit: str
    labels: Sequence[str]
    speakers: int
    splits: Sequence[str]
    dims: Mapping[str, int]
    source_format: str
    lists: Sequence[str] = ()
    kinds: frozenset[str] = frozenset()
    extractors: Mapping[str, Extractor] = field(default_factory=dict)
    recorded: bool = False
    named: bool = False

    def schema(self, arrow: Any) -> Any:
        """The columns, with the metadata."""
        scalars = SCALARS | (KINDS if "score" in self.kinds else {}) | (RECORDED if self.recorded else {})
        scalars |= NAMED if self.named else {}
        fields = [arrow.field(n, getattr(arrow, t)()) for n, t in scalars.items()]
        lists = {n: READY[n].dtype if n in READY else "string" if n == IMAGES else "float32" for n in self.lists}
        lists |= {"labels": "float32"} if "labels" in self.kinds else {}
        fields += [arrow.field(n, arrow.list_(getattr(arrow, t)())) for n, t in lists.items()]
        meta: dict[str, Any] = {
            "version": layout.VERSION,
            "unit": self.unit,
            "labels": list(self.labels),
            "speakers": self.speakers,
            "splits": list(self.splits),
            "dims": dict(self.dims),
            "source_format": self.source_format,
        }
        if self.extractors:
            meta["extractors"] = {n: e.model_dump() for n, e in self.extractors.items()}
        return arrow.schema(fields, metadata={layout.KEY: json.dumps(meta).encode()})


class RowWriter:
    """Collects rows until there are `GROUP_BYTES` of them; a group ends between dialogues and between splits."""

    def __init__(self, arrow: Any, writer: Any, schema: Any):
        self.arrow, self.writer, self.schema = arrow, writer, schema
        self.rows: list[Row] = []
        self.size = 0
        self.written = 0

    def add(self, rows: Sequence[Row]) -> None:
        """The rows of one dialogue, in order."""
        if self.rows and rows and self.rows[-1]["split"] != rows[0]["split"]:
            self.flush()
        self.rows += rows
        self.size += sum(v.nbytes for row in rows for v in row.values() if isinstance(v, np.ndarray))
        if self.size >= layout.GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected."""
        if self.rows:
            columns = {name: [row.get(name) for row in self.rows] for name in self.schema.names}
            self.writer.write_table(self.arrow.Table.from_pydict(columns, schema=self.schema))
        self.written += len(self.rows)
        self.rows, self.size = [], 0

    def copy(self, file: Any) -> None:
        """All row groups of an opened file with the same columns."""
        self.flush()
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).cast(self.schema)
            self.writer.write_table(table)
            self.written += table.num_rows


@contextmanager
def writing(path: Path, head: Head) -> Iterator[RowWriter]:
    """A new file, which takes its place when the block ends well; raises NotAvailableError without pyarrow."""
    arrow, parquet = pyarrow_modules()
    schema = head.schema(arrow)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        rows = RowWriter(arrow, writer, schema)
        yield rows
        rows.flush()


def new_file(out: Path, force: bool, goes_on: Callable[[Path], bool] = lambda path: False) -> Path:
    """Where a data set is written, with the ending added.

    Args:
        out: as it was asked for.
        force: what is there may be replaced.
        goes_on: says whether what is there is that of a run which may be gone on with.

    Raises:
        UsageError: another ending, or a file that is there.
    """
    out = out if out.suffix else out.with_name(f"{out.name}{SUFFIX}")
    if out.suffix != SUFFIX:
        raise UsageError(f"{out} is written as Parquet: name it {out.with_suffix(SUFFIX)}")
    if out.exists() and not force and not goes_on(out):
        raise UsageError(f"{out} exists: pass --force to replace it")
    return out


def image_names(images: FaceImages, folder: Path) -> list[str]:
    """The files of images as they read from `folder`."""
    return [beside(Path(p), folder) for p in images.paths]


def beside(file: Path, folder: Path) -> str:
    """A path as it reads from the folder of the data set, so that the two can be moved together."""
    file, folder = file.absolute(), folder.absolute()
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)
