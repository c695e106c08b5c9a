"""An open source: the Parquet file that `mer data convert` writes (see `layout`), read in parts of a row group."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.dialogues import (
    ALL,
    IMAGES,
    MODALITIES,
    READY,
    Dialogue,
    Recording,
    Utterance,
    name_of,
    ready_array,
    speaker_of,
)
from mer_export.data.formats.parquet import layout
from mer_export.data.media.faces import FaceImages
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.parquet import open_parquet, pyarrow_modules
from mer_export.untrusted.places import Reach, within


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a file with the usual ending."""
    return path.is_file() and path.suffix == ".parquet"


def source(path: Path, spec: DataSpec) -> ParquetSource:
    """The dialogues of a file.

    Raises:
        InputError: not such a file, or damaged.
        NotAvailableError: pyarrow is not installed.
    """
    return ParquetSource(str(path), spec, spec.reach(path), lambda: open_parquet(path))


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The file itself."""
    return [path]


class ParquetSource:
    """Rows as utterances; see `dialogues.Source`. A part of a row group is held in memory at a time.

    `opening` opens the file anew each time; `groups` are the row groups to read, None reads all: such a part need not
    have a dialogue of every split. Without a `reach` no file is read that a row names.
    """

    def __init__(
        self,
        path: str,
        spec: DataSpec,
        reach: Reach | None,
        opening: Callable[[], AbstractContextManager[Any]],
        groups: range | None = None,
    ):
        self.path, self.opening, self.groups = path, opening, groups
        with opening() as file:
            self.meta = metadata(path, file.schema_arrow)
        self.spec = spec.over(declared(self.meta), path)
        self.reader = RowReader(self.spec, self.meta, reach)
        wanted = self.spec.splits
        self.splits = [s for s in self.meta["splits"] if not wanted or s in wanted]
        self.info = {"source_format": self.meta["source_format"]}

    def dialogues(self, split: str | None = None) -> Iterator[Dialogue]:
        """Yields (see `dialogues.Source`); raises InputError where the rows of a dialogue are not together."""
        if split is not None and split not in self.splits and self.groups is None:
            raise UsageError(f"no split {split!r} in {self.path}, there are {self.splits}")
        wanted = self.splits if split is None else [split]
        with self.opening() as file:
            own = range(file.num_row_groups) if self.groups is None else self.groups
            said = {g: _split_of(file, g) for g in own}
            for name in said.values():
                self.reader.refuse_stray(name, self.path)
            groups = [g for g, name in said.items() if name in (None, *wanted)]
            # Group by group: asked for all at once, the library decodes ahead.
            batches = (b for g in groups for b in file.iter_batches(batch_size=layout.BATCH_ROWS, row_groups=[g]))
            yield from self.reader.dialogues(batches, self.path, wanted)


class RowReader:
    """From rows to dialogues.

    `meta` says the widths of their vectors (`dims`) and the names of their `labels`; of version 1 also `text_vectors`.
    Without a `reach` no file is read that a row names.
    """

    def __init__(self, spec: DataSpec, meta: Mapping[str, Any], reach: Reach | None):
        self.spec, self.meta, self.reach = spec, meta, reach
        self.modalities = [m for m in MODALITIES if m not in spec.switched_off]

    def dialogues(self, batches: Iterable[Any], where: str, splits: Sequence[str] | None = None) -> Iterator[Dialogue]:
        """Those that the rows of Arrow batches or tables make one after the other, of all splits or of some.

        Raises:
            InputError: the rows of a dialogue are not together, or of a split that the metadata do not know.
        """
        rows = (row for batch in batches for row in _rows(batch))
        for (split, name), own in itertools.groupby(rows, key=lambda r: _place(r, where)):
            if splits is not None:
                self.refuse_stray(split, where)
            if splits is None or split in splits:
                yield self._dialogue(split, name, list(own), where)

    def refuse_stray(self, split: str | None, where: str) -> None:
        """Raises InputError for a split that the metadata do not know: its rows would be lost without a word."""
        if split is not None and split not in self.meta["splits"]:
            known = self.meta["splits"]
            raise InputError(
                f"{where} has rows of the split {split!r}, its metadata say {known}: convert the data again"
            )

    def _dialogue(self, split: str, name: str, rows: list[dict[str, Any]], where: str) -> Dialogue:
        if [r["index"] for r in rows] != list(range(len(rows))):
            raise InputError(f"{where}: the utterances of dialogue {name!r} are not together and in order")
        return Dialogue(name, split, [self._utterance(r, f"{where}: {r['utterance']}") for r in rows], where)

    def _utterance(self, row: dict[str, Any], where: str) -> Utterance:
        features = {m: tuple(self._steps(row, m, where)) for m in self.modalities}
        given = {n: row[n] for n in READY if row.get(n) is not None}
        wide = {n: self._rows_of(v, n, where) if READY[n].ndim > 1 else v for n, v in given.items()}
        ready: dict[str, Any] = {n: ready_array(n, v, where) for n, v in wide.items()}
        if self.spec.faces.images and row.get(IMAGES) is not None:
            paths = [within(self.reach, p, where).path(str(p), where) for p in row[IMAGES]]
            ready[IMAGES] = FaceImages(paths, self.spec.faces.size)
        labels = row.get("labels")
        return Utterance(
            id=str(row["utterance"]),
            speaker=speaker_of(row["speaker"]),
            speaker_name=row.get("speaker_name"),
            label=row["label"],
            score=row.get("score"),
            indicators=None if labels is None else dict(zip(self.meta["labels"], labels.tolist(), strict=True)),
            sentence=row.get("sentence"),
            recording=self._recording(row, where),
            features={m: parts for m, parts in features.items() if parts},
            inputs=ready,
        )

    def _recording(self, row: dict[str, Any], where: str) -> Recording | None:
        name = row.get("recording")
        if not name:
            return None
        return Recording(str(name), where, within(self.reach, name, where), row.get("start"), row.get("end"))

    def _steps(self, row: dict[str, Any], modality: str, where: str) -> list[np.ndarray]:
        """The vectors of an utterance, float32 arrays of their own."""
        vectors = self.meta.get("text_vectors", 0) if modality == "text" else 0
        cells = [row[c] for c in (modality, *(f"text_{k}" for k in range(vectors))) if row.get(c) is not None]
        return [self._rows_of(cell, modality, where).astype(np.float32) for cell in cells]

    def _rows_of(self, cell: np.ndarray, name: str, where: str) -> np.ndarray:
        width = self.meta["dims"].get(name)
        if not isinstance(width, int) or width < 1 or len(cell) % width:
            raise InputError(f"{where}: {name} has {len(cell)} numbers, which do not make vectors of width {width}")
        return cell.reshape(-1, width)


def declared(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata of a file say, by fields of the data section."""
    said = {"label_names": meta["labels"], "speakers": meta["speakers"]}
    return said | {n: meta[n] for n in ("unit", "extractors") if n in meta}


def _rows(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of a batch; lists as numpy arrays."""
    arrow, _ = pyarrow_modules()
    columns = {name: _cells(arrow, batch.column(i)) for i, name in enumerate(batch.schema.names)}
    for i in range(batch.num_rows):
        yield {name: cells[i] for name, cells in columns.items()}


def _cells(arrow: Any, column: Any) -> list[Any]:
    if not arrow.types.is_list(column.type):
        return column.to_pylist()
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    valid = column.is_valid().to_pylist()
    return [values[a:b] if ok else None for a, b, ok in zip(offsets, offsets[1:], valid, strict=False)]


def _place(row: Mapping[str, Any], where: str) -> tuple[str, str]:
    """The split and the dialogue of a row; raises InputError for one without a name."""
    for column in ("dialogue", "utterance"):
        if row[column] is None:
            raise InputError(f"{where}: a row has null under {column}: give every dialogue and utterance a name")
    return name_of(row.get("split"), ALL), str(row["dialogue"])


def _split_of(file: Any, group: int) -> str | None:
    """The split of a row group where its statistics prove that there is one only."""
    column = file.schema_arrow.names.index("split")
    statistics = file.metadata.row_group(group).column(column).statistics
    if statistics is None or not statistics.has_min_max or statistics.null_count or statistics.min != statistics.max:
        return None
    return str(statistics.min)


def metadata(path: str, schema: Any) -> dict[str, Any]:
    """What the schema of a file says of it; raises InputError for a file of another layout, or a later version."""
    raw = (schema.metadata or {}).get(layout.KEY)
    missing = [c for c in layout.REQUIRED if c not in schema.names]
    if raw is None or missing:
        raise InputError(f"{path} was not written by mer data convert: describe it as a dialogue table in data.table")
    try:
        meta = json.loads(raw)
        version = int(meta["version"])
        for key in (
            "labels",
            "speakers",
            "splits",
            "dims",
            "source_format",
            *(("text_vectors",) if version == 1 else ()),
        ):
            meta[key]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} has damaged metadata: {error}") from None
    if version > layout.VERSION:
        raise InputError(f"{path} has format version {version}, this mer reads up to {layout.VERSION}: update mer")
    return meta
