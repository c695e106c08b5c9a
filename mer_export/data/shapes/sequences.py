"""Utterances of a table as samples of their own, with a sequence of vectors (or of word pieces) per modality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mer_export.data.formats.table.reader import Row, load_array, split_order
from mer_export.data.labels import LabelReader
from mer_export.data.samples import Corpus, Sample
from mer_export.data.shapes.packed import place, table_texts
from mer_export.data.spec import ArraySource, DataSpec
from mer_export.data.tokens.text_tokenizer import TextTokenizer
from mer_export.data.tokens.tokenizer import load_tokenizer
from mer_export.errors import InputError, UsageError


def read_utterances(path: Path, spec: DataSpec, rows: Sequence[Row], labels: Sequence[str] | None) -> Corpus:
    """One sample per row.

    Several sources of one modality stand side by side in each step; a source of one vector per utterance is repeated
    over the steps of the others. With a tokenizer text is tokens of the sentence, or with `packing` of the dialogue, in
    which utterances that are left out stay. Utterances with another label of
    `label_names` than the model's are left out: a model trained on some emotions reads those.

    Raises:
        UsageError: the mapping contradicts itself.
        InputError: arrays do not fit the table, a score is no number, a label is unknown.
    """
    packed = table_texts(rows, spec) if spec.packing else {}
    rows = _known_to(labels, rows, spec)
    if not rows:
        raise InputError(f"{path}: the table {spec.table} has no utterances in the chosen splits and labels")
    if spec.tokenizer and (spec.text or not spec.sentence):
        raise UsageError("data.tokenizer makes the text from data.sentence: name that column and leave out data.text")
    reader = LabelReader(str(path / str(spec.table)), labels, spec.label_names, [r.cell(spec.label) for r in rows])
    pieces = load_tokenizer(spec.tokenizer) if spec.tokenizer and not packed else None
    sources = {m: [_Source(path, s, rows) for s in found] for m, found in spec.sources.items()}
    splits: dict[str, list[Sample]] = {}
    sentences: dict[str, list[str]] = {}
    for row in rows:
        sample = _sample(row, spec, sources, pieces, reader)
        if packed:
            sample = replace(sample, inputs={**packed[place(row)], **sample.inputs})
        splits.setdefault(row.split, []).append(sample)
        if spec.sentence:
            sentences[sample.id] = [row.cell(spec.sentence)]
    info = {"labels": [] if spec.score else list(reader.labels), "split": spec.split, "sentences": sentences}
    ordered = {name: splits[name] for name in split_order(splits, spec)}
    return Corpus(splits=ordered, format="dialogue_table", info=info)


def _sample(
    row: Row,
    spec: DataSpec,
    sources: dict[str, list[_Source]],
    pieces: TextTokenizer | None,
    reader: LabelReader,
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
    """One array of vectors or of sequences, read once, and which of its rows an utterance has."""

    def __init__(self, path: Path, source: ArraySource, rows: Sequence[Row]):
        if source.keys is not None and source.column is None:
            raise UsageError(f"data: keys of {source.file} need the column that is looked up in them")
        self.source = source
        self.where = f"{path / source.file}: {source.array or 'array'}"
        self.values = load_array(path / source.file, source.array)
        if self.values.dtype.kind not in "fiu" or self.values.ndim not in (2, 3):
            shape = f"{self.values.dtype} {self.values.shape}"
            raise InputError(f"{self.where} is {shape}, expected numbers (rows, [steps,] width)")
        self.offsets = load_array(path / source.file, source.offsets) if source.offsets else None
        if self.offsets is not None and (self.values.ndim != 2 or not _ascending(self.offsets, len(self.values))):
            raise InputError(f"{self.where}: {source.offsets} are no ascending places in {len(self.values)} steps")
        keys = load_array(path / source.file, source.keys) if source.keys else np.empty(0)
        self.index = {str(k): i for i, k in enumerate(keys.tolist())}
        self.height = len(self.values) if self.offsets is None else len(self.offsets) - 1
        self._check_height(rows)

    def steps(self, row: Row) -> np.ndarray:
        """The vectors (steps, width) of one utterance, float32."""
        place = self._place(row)
        if place >= self.height:
            raise InputError(f"{self.where} has {self.height} rows, the table asks for row {place}")
        if self.offsets is not None:
            found = self.values[self.offsets[place] : self.offsets[place + 1]]
        else:
            found = self.values[place]
        found = found.astype(np.float32)
        return found[None] if found.ndim == 1 else found

    def _check_height(self, rows: Sequence[Row]) -> None:
        """Rows that belong to each other by their place alone have to be as many."""
        for row in rows if self.source.column is None else ():
            table = len(next(iter(row.table.values())))
            if row.array_row is None and table != self.height:
                raise InputError(
                    f"{self.where} has {self.height} rows, the table {table}: name a column of rows in data.row, or in "
                    "the `column` of this source"
                )

    def _place(self, row: Row) -> int:
        column = self.source.column
        if column is None:
            return row.at if row.array_row is None else row.array_row
        if column not in row.table:
            raise InputError(f"{self.where}: the table has no column {column!r}, there are {list(row.table)}")
        value = row.cell(column)
        if self.source.keys is not None:
            if value not in self.index:
                raise InputError(f"{self.where}: {self.source.keys} has no {value!r} of column {column}")
            return self.index[value]
        if not value.isdecimal():
            raise InputError(f"{self.where}: column {column} holds no row numbers: name an array of keys")
        return int(value)


def _ascending(offsets: np.ndarray, steps: int) -> bool:
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or not len(offsets):
        return False
    return bool((np.diff(offsets.astype(np.int64)) >= 0).all() and offsets[0] >= 0 and offsets[-1] <= steps)


def _known_to(labels: Sequence[str] | None, rows: Sequence[Row], spec: DataSpec) -> list[Row]:
    """Rows whose label the model knows, or that have none; all rows where `label_names` does not say what there is."""
    others = set(spec.label_names) - set(spec.label_names if labels is None else labels)
    others |= {str(i) for i, name in enumerate(spec.label_names) if name in others}
    return [r for r in rows if r.cell(spec.label) not in others]
