"""Writes any corpus as the Parquet file of `layout`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.dialogues import IMAGES, MODALITIES, READY
from mer_export.data.formats.parquet.rows import Head, image_names, writing
from mer_export.data.media.faces import FaceImages
from mer_export.data.samples import Corpus, Sample
from mer_export.errors import InputError

SPEAKER = "speaker"


def write_parquet(corpus: Corpus, path: Path | str) -> int:
    """Writes a corpus atomically, so that a reader or a killed writer sees the old file or the new one.

    Returns:
        The number of utterances.

    Raises:
        InputError: samples differ in width, or have an input that the format has no place for.
        NotAvailableError: no pyarrow.
    """
    path = Path(path)
    table = _Table.of(corpus, path.parent)
    with writing(path, table.head(corpus)) as rows:
        for split, samples in corpus.splits.items():
            for sample in samples:
                rows.add(list(table.rows(sample, split)))
    return rows.written


@dataclass(frozen=True)
class _Table:
    """The columns of one corpus: what a row of each list is wide, and the unit of a sample."""

    unit: str
    dims: dict[str, int]
    inputs: tuple[str, ...]
    kinds: frozenset[str]
    sentences: dict[str, Sequence[str]]
    people: dict[str, Sequence[str | None]]
    folder: Path

    @classmethod
    def of(cls, corpus: Corpus, folder: Path) -> _Table:
        names = dict.fromkeys(n for s in corpus for n in s.inputs if n != SPEAKER)
        unit = "utterance" if all(s.units == (s.id,) and SPEAKER not in s.inputs for s in corpus) else "dialogue"
        kinds = frozenset(kind_of(s.labels) for s in corpus if s.labels is not None)
        sentences, people = (corpus.info.get(n, {}) for n in ("sentences", "people"))
        return cls(unit, _widths(corpus, unit), tuple(names), kinds, sentences, people, folder)

    def head(self, corpus: Corpus) -> Head:
        return Head(
            unit=self.unit,
            labels=_class_names(corpus),
            speakers=int(corpus.info.get("speakers", 1)),
            splits=list(corpus.splits),
            dims=self.dims,
            source_format=corpus.format,
            lists=self.inputs,
            kinds=self.kinds,
            extractors=corpus.info.get("extractors") or {},
            named=bool(self.people),
        )

    def rows(self, sample: Sample, split: str) -> Iterator[dict[str, Any]]:
        """The utterances of a sample."""
        spoken, people = self.sentences.get(sample.id, ()), self.people.get(sample.id, ())
        speakers = sample.inputs.get(SPEAKER)
        for i, unit in enumerate(sample.units):
            row = {"dialogue": sample.id, "index": i, "utterance": unit, "split": split}
            row["speaker"] = None if speakers is None else int(speakers[i])
            row["sentence"] = spoken[i] if len(spoken) == len(sample.units) else None
            row["speaker_name"] = people[i] if len(people) == len(sample.units) else None
            if sample.labels is not None:
                row[kind_of(sample.labels)] = sample.labels[i]
            yield row | {n: self._cell(sample.inputs[n], n, i) for n in self.inputs if n in sample.inputs}

    def _cell(self, array: np.ndarray, name: str, place: int) -> Any:
        if isinstance(array, FaceImages):
            return image_names(array, self.folder)
        if self.unit == "utterance":
            return array.ravel()
        return np.ascontiguousarray(array[:, place]).ravel() if name == "text" else array[place]


def kind_of(labels: np.ndarray) -> str:
    """The column of labels of this form."""
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
    classes = [s.labels for s in corpus if s.labels is not None and kind_of(s.labels) == "label"]
    count = max((int(labels.max(initial=-1)) + 1 for labels in classes), default=0)
    sets = (s.labels.shape[1] for s in corpus if s.labels is not None and kind_of(s.labels) == "labels")
    return list(corpus.info.get("labels") or map(str, range(max(count, next(sets, 0)))))
