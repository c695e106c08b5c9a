"""Utterances of a table as samples of their own, with a sequence of vectors (or of word pieces) per modality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mer_export.data.labels import LabelReader
from mer_export.data.readers.dialogue_table import Row, load_array, split_order
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import ArraySource, DataSpec
from mer_export.data.wordpiece import WordPiece
from mer_export.errors import InputError, UsageError


def read_utterances(path: Path, spec: DataSpec, rows: Sequence[Row], labels: Sequence[str] | None) -> Corpus:
    """One sample per row.

    Several sources of one modality stand side by side in each step; a source of one vector per utterance is repeated
    over the steps of the others. With a tokenizer text is word pieces of the sentence.

    Raises:
        UsageError: the mapping contradicts itself.
        InputError: arrays do not fit the table, a score is no number, a label is unknown.
    """
    if not rows:
        raise InputError(f"{path}: the table {spec.table} has no rows in the chosen splits")
    if spec.tokenizer and (spec.text or not spec.sentence):
        raise UsageError("data.tokenizer makes the text from data.sentence: name that column and leave out data.text")
    reader = LabelReader(str(path / str(spec.table)), labels, spec.label_names, [r.cell(spec.label) for r in rows])
    pieces = WordPiece.load(spec.tokenizer) if spec.tokenizer else None
    sources = {m: [_Source(path, s) for s in found] for m, found in spec.sources.items()}
    splits: dict[str, list[Sample]] = {}
    sentences: dict[str, list[str]] = {}
    for row in rows:
        sample = _sample(row, spec, sources, pieces, reader)
        splits.setdefault(row.split, []).append(sample)
        if spec.sentence:
            sentences[sample.id] = [row.cell(spec.sentence)]
    info = {"labels": [] if spec.score else list(reader.labels), "split": spec.split, "sentences": sentences}
    ordered = {name: splits[name] for name in split_order(splits, spec)}
    return Corpus(splits=ordered, format="dialogue_table", info=info)


def _sample(
    row: Row, spec: DataSpec, sources: dict[str, list[_Source]], pieces: WordPiece | None, reader: LabelReader
) -> Sample:
    named = [row.cell(c) for c in (spec.dialogue, spec.utterance) if c]
    name = "/".join(named) or str(row.at)
    inputs = {m: _side_by_side([s.steps(row) for s in found], name) for m, found in sources.items()}
    if pieces is not None:
        inputs["input_ids"] = pieces.encode(row.cell(spec.sentence))
    return Sample(id=name, inputs=inputs, units=(name,), labels=_label(row, spec, reader, name))


def _label(row: Row, spec: DataSpec, reader: LabelReader, name: str) -> np.ndarray | None:
    if spec.score:
        text = row.cell(spec.score)
        try:
            return np.asarray([float(text) if text else np.nan], dtype=np.float32)
        except ValueError:
            raise InputError(f"{name}: column {spec.score} holds {text!r}, it must be a number") from None
    return reader.indices([row.cell(spec.label)]) if spec.label in row.table else None


def _side_by_side(parts: list[np.ndarray], name: str) -> np.ndarray:
    steps = max(len(p) for p in parts)
    wrong = [len(p) for p in parts if len(p) not in (1, steps)]
    if wrong:
        raise InputError(f"{name}: sources of one modality have {steps} and {wrong[0]} steps: give them one length")
    return np.concatenate([np.repeat(p, steps, axis=0) if len(p) == 1 else p for p in parts], axis=1)


class _Source:
    """One array, read once."""

    def __init__(self, path: Path, source: ArraySource):
        if (source.keys is None) != (source.column is None):
            raise UsageError(f"data: {source.file} needs both keys and column, or neither")
        self.file = path / source.file
        self.column = source.column
        self.values = load_array(self.file, source.array)
        if self.values.dtype.kind not in "fiu" or self.values.ndim not in (2, 3):
            raise InputError(f"{self.file}: array {source.array} is {self.values.dtype} {self.values.shape}")
        self.offsets = load_array(self.file, source.offsets) if source.offsets else None
        keys = load_array(self.file, source.keys) if source.keys else np.empty(0)
        self.index = {str(k): i for i, k in enumerate(keys)}

    def steps(self, row: Row) -> np.ndarray:
        """The vectors (steps, width) of one utterance, float32."""
        place = self._place(row)
        if self.offsets is not None:
            found = self.values[self.offsets[place] : self.offsets[place + 1]]
        else:
            found = self.values[place]
        found = found.astype(np.float32)
        return found[None] if found.ndim == 1 else found

    def _place(self, row: Row) -> int:
        if self.column is not None:
            key = row.cell(self.column)
            if key not in self.index:
                raise InputError(f"{self.file} has no row for {key!r} of column {self.column}")
            return self.index[key]
        place = row.at if row.array_row is None else row.array_row
        rows = len(self.values) if self.offsets is None else len(self.offsets) - 1
        if place >= rows:
            raise InputError(f"{self.file} has {rows} rows, the table asks for row {place}")
        return place
