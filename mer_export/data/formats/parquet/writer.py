"""Writes any corpus as the Parquet file of `layout`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle import replacing
from mer_export.data.dialogues import IMAGES, MODALITIES, READY
from mer_export.data.formats.parquet import layout
from mer_export.data.media.faces import FaceImages
from mer_export.data.samples import Corpus, Sample
from mer_export.errors import InputError
from mer_export.untrusted.parquet import pyarrow_modules

SCALARS = {
    "dialogue": "string",
    "index": "int32",
    "utterance": "string",
    "split": "string",
    "speaker": "int64",
    "label": "int64",
    "sentence": "string",
}
SPEAKER = "speaker"


def write_parquet(corpus: Corpus, path: Path | str) -> int:
    """Writes a corpus atomically, so that a reader or a killed writer sees the old file or the new one.

    Returns:
        The number of utterances.

    Raises:
        InputError: samples differ in width, or have an input that the format has no place for.
        NotAvailableError: no pyarrow.
    """
    arrow, parquet = pyarrow_modules()
    path = Path(path)
    table = _Table.of(corpus, path.parent)
    schema = table.schema(arrow, corpus)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for split, samples in corpus.splits.items():
            for group in _groups(samples):
                rows = [row for sample in group for row in table.rows(sample, split)]
                columns = {name: [row.get(name) for row in rows] for name in schema.names}
                writer.write_table(arrow.Table.from_pydict(columns, schema=schema))
    return sum(len(sample.units) for sample in corpus)


@dataclass(frozen=True)
class _Table:
    """The columns of one corpus: what a row of each list is wide, and the unit of a sample."""

    unit: str
    dims: dict[str, int]
    inputs: tuple[str, ...]
    kinds: frozenset[str]
    sentences: dict[str, Sequence[str]]
    folder: Path

    @classmethod
    def of(cls, corpus: Corpus, folder: Path) -> _Table:
        names = dict.fromkeys(n for s in corpus for n in s.inputs if n != SPEAKER)
        unit = "utterance" if all(s.units == (s.id,) and SPEAKER not in s.inputs for s in corpus) else "dialogue"
        kinds = frozenset(_kind(s.labels) for s in corpus if s.labels is not None)
        sentences = corpus.info.get("sentences", {})
        return cls(unit, _widths(corpus, unit), tuple(names), kinds, sentences, folder)

    def schema(self, arrow: Any, corpus: Corpus) -> Any:
        fields = [arrow.field(n, getattr(arrow, t)()) for n, t in SCALARS.items()]
        if "score" in self.kinds:
            fields.append(arrow.field("score", arrow.float32()))
        lists = {n: READY[n].dtype if n in READY else "string" if n == IMAGES else "float32" for n in self.inputs}
        lists |= {"labels": "float32"} if "labels" in self.kinds else {}
        fields += [arrow.field(n, arrow.list_(getattr(arrow, t)())) for n, t in lists.items()]
        meta = {
            "version": layout.VERSION,
            "unit": self.unit,
            "labels": _class_names(corpus),
            "speakers": int(corpus.info.get("speakers", 1)),
            "splits": list(corpus.splits),
            "dims": self.dims,
            "source_format": corpus.format,
        }
        if said := corpus.info.get("extractors"):
            meta["extractors"] = {n: e.model_dump() for n, e in said.items()}
        return arrow.schema(fields, metadata={layout.KEY: json.dumps(meta).encode()})

    def rows(self, sample: Sample, split: str) -> Iterator[dict[str, Any]]:
        """The utterances of a sample."""
        spoken = self.sentences.get(sample.id, ())
        speakers = sample.inputs.get(SPEAKER)
        for i, unit in enumerate(sample.units):
            row = {"dialogue": sample.id, "index": i, "utterance": unit, "split": split}
            row["speaker"] = None if speakers is None else int(speakers[i])
            row["sentence"] = spoken[i] if len(spoken) == len(sample.units) else None
            if sample.labels is not None:
                row[_kind(sample.labels)] = sample.labels[i]
            yield row | {n: self._cell(sample.inputs[n], n, i) for n in self.inputs if n in sample.inputs}

    def _cell(self, array: np.ndarray, name: str, place: int) -> Any:
        if isinstance(array, FaceImages):
            return [_beside(Path(p), self.folder) for p in array.paths]
        if self.unit == "utterance":
            return array.ravel()
        return np.ascontiguousarray(array[:, place]).ravel() if name == "text" else array[place]


def _kind(labels: np.ndarray) -> str:
    if labels.dtype.kind != "f":
        return "label"
    return "score" if labels.ndim == 1 else "labels"


def _widths(corpus: Corpus, unit: str) -> dict[str, int]:
    """The width of everything that is a list of vectors; every sample must agree."""
    widths: dict[str, int] = {}
    for sample in corpus:
        for name, array in sample.inputs.items():
            _refuse(sample, name, unit)
            if name not in MODALITIES and (name not in READY or READY[name].ndim == 1):
                continue
            if widths.setdefault(name, array.shape[-1]) != array.shape[-1]:
                raise InputError(f"{sample.id}: {name} is {array.shape[-1]} wide, others have {widths[name]}")
    return widths


def _refuse(sample: Sample, name: str, unit: str) -> None:
    """Raises InputError for an input that has no column."""
    array = sample.inputs[name]
    if name in MODALITIES:
        fits = array.ndim == (3 if unit == "dialogue" and name == "text" else 2)
    elif name in READY:
        fits = unit == "utterance" and array.ndim == READY[name].ndim
    else:
        fits = name == SPEAKER or (name == IMAGES and unit == "utterance" and array.ndim == FaceImages.ndim)
    if not fits:
        raise InputError(f"{sample.id}: {name} {array.shape} has no place in a Parquet file of {unit}s: keep the files")


def _class_names(corpus: Corpus) -> list[str]:
    """The names that the corpus gives its labels, else their numbers."""
    classes = [s.labels for s in corpus if s.labels is not None and _kind(s.labels) == "label"]
    count = max((int(labels.max(initial=-1)) + 1 for labels in classes), default=0)
    sets = (s.labels.shape[1] for s in corpus if s.labels is not None and _kind(s.labels) == "labels")
    return list(corpus.info.get("labels") or map(str, range(max(count, next(sets, 0)))))


def _groups(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Samples in row groups of about `GROUP_BYTES`, never cutting a dialogue."""
    group: list[Sample] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += sum(array.nbytes for array in sample.inputs.values() if isinstance(array, np.ndarray))
        if size >= layout.GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _beside(image: Path, folder: Path) -> str:
    """A path as it reads from the folder of the file, so that the two can be moved together."""
    image, folder = image.absolute(), folder.absolute()
    return str(image.relative_to(folder) if image.is_relative_to(folder) else image)
