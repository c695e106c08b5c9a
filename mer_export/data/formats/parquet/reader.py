"""An open source: the Parquet file that `mer data convert` writes (see `layout`), read in parts of a row group."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.dialogues import IMAGES, MODALITIES, READY, Dialogue, Recording, Utterance, ready_array
from mer_export.data.formats.parquet import layout
from mer_export.data.media.faces import FaceImages
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.parquet import open_parquet, pyarrow_modules


def detect(path: Path, spec: DataSpec) -> bool:
    """True for a file with the usual ending."""
    return path.is_file() and path.suffix == ".parquet"


def source(path: Path, spec: DataSpec) -> ParquetSource:
    """The dialogues of a file.

    Raises:
        InputError: not such a file, or damaged.
        NotAvailableError: pyarrow is not installed.
    """
    return ParquetSource(path, spec)


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The file itself."""
    return [path]


class ParquetSource:
    """Rows as utterances; see `dialogues.Source`. A part of a row group is held in memory at a time."""

    def __init__(self, path: Path, spec: DataSpec):
        self.path = path
        with open_parquet(path) as file:
            self.meta = _metadata(path, file)
        declared = {"label_names": self.meta["labels"], "speakers": self.meta["speakers"]}
        declared |= {n: self.meta[n] for n in ("unit", "extractors") if n in self.meta}
        self.spec = spec.over(declared, str(path))
        self.reach = self.spec.reach(path)
        self.modalities = [m for m in MODALITIES if m not in self.spec.switched_off]
        wanted = self.spec.splits
        self.splits = [s for s in self.meta["splits"] if not wanted or s in wanted]
        self.info = {"source_format": self.meta["source_format"]}

    def dialogues(self, split: str | None = None) -> Iterator[Dialogue]:
        """Yields (see `dialogues.Source`); raises InputError where the rows of a dialogue are not together."""
        if split is not None and split not in self.splits:
            raise UsageError(f"no split {split!r} in {self.path}, there are {self.splits}")
        wanted = self.splits if split is None else [split]
        with open_parquet(self.path) as file:
            groups = [g for g in range(file.num_row_groups) if _split_of(file, g) in (None, *wanted)]
            rows = itertools.groupby(_rows(file, groups), key=lambda row: (str(row["split"]), str(row["dialogue"])))
            for (name, dialogue), own in rows:
                if name in wanted:
                    yield self._dialogue(name, dialogue, list(own))

    def _dialogue(self, split: str, name: str, rows: list[dict[str, Any]]) -> Dialogue:
        if [r["index"] for r in rows] != list(range(len(rows))):
            raise InputError(f"{self.path}: the utterances of dialogue {name!r} are not together and in order")
        return Dialogue(name, split, [self._utterance(r) for r in rows], str(self.path))

    def _utterance(self, row: dict[str, Any]) -> Utterance:
        where = f"{self.path}: {row['utterance']}"
        features = {m: tuple(self._steps(row, m, where)) for m in self.modalities}
        given = {n: row[n] for n in READY if row.get(n) is not None}
        wide = {n: self._rows_of(v, n, where) if READY[n].ndim > 1 else v for n, v in given.items()}
        ready: dict[str, Any] = {n: ready_array(n, v, where) for n, v in wide.items()}
        if self.spec.faces.images and row.get(IMAGES) is not None:
            ready[IMAGES] = FaceImages([self.reach.path(str(p), where) for p in row[IMAGES]], self.spec.faces.size)
        labels = row.get("labels")
        return Utterance(
            id=str(row["utterance"]),
            speaker=row["speaker"],
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
        return Recording(str(name), where, self.reach, row.get("start"), row.get("end")) if name else None

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


def _rows(file: Any, groups: list[int]) -> Iterator[dict[str, Any]]:
    """Rows of the chosen row groups; lists as numpy arrays."""
    arrow, _ = pyarrow_modules()
    # Group by group: asked for all at once, the library decodes ahead.
    for batch in (b for g in groups for b in file.iter_batches(batch_size=layout.BATCH_ROWS, row_groups=[g])):
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


def _split_of(file: Any, group: int) -> str | None:
    """The split of a row group where its statistics prove that there is one only."""
    column = file.schema_arrow.names.index("split")
    statistics = file.metadata.row_group(group).column(column).statistics
    if statistics is None or not statistics.has_min_max or statistics.min != statistics.max:
        return None
    return str(statistics.min)


def _metadata(path: Path, file: Any) -> dict[str, Any]:
    raw = (file.schema_arrow.metadata or {}).get(layout.KEY)
    missing = [c for c in layout.REQUIRED if c not in file.schema_arrow.names]
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
