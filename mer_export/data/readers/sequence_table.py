"""The reader for utterances on their own: a table with one per row, and arrays with a sequence of vectors for each.

What the columns and arrays are is said by the `data:` section. A source is an array (rows, width) for one vector per
utterance, (rows, steps, width) for sequences of one length, or (all steps, width) with `offsets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mer_export.data.labels import LabelReader
from mer_export.data.readers.dialogue_table import ALL, USUAL_ORDER, load_array, read_table
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import ArraySource, DataSpec
from mer_export.errors import InputError, UsageError


def detect(path: Path, spec: DataSpec) -> bool:
    """True where the configuration describes a table without dialogues."""
    return path.is_dir() and spec.table is not None and spec.dialogue is None and bool(spec.sources)


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None) -> Corpus:
    """Reads all splits. Without the label column samples are unlabelled, without the split column they are `all`.

    Args:
        path: the data directory.
        spec: `table`, `label`, `split`, `utterance`, and a source per modality.
        labels: class names of the model; None takes `label_names`, or what the column holds. Utterances with another
            label of `label_names` are left out of the data: a model trained on some emotions reads those.

    Raises:
        UsageError: the mapping is incomplete.
        InputError: a file or column is missing, arrays do not match the table, or a label is unknown.
    """
    if spec.table is None or not spec.sources:
        raise UsageError(f"{path}: a sequence table needs data.table and an array for a modality")
    file = path / spec.table
    columns = read_table(file)
    for column in filter(None, (spec.utterance, *(s.row for sources in spec.sources.values() for s in sources))):
        if column not in columns:
            raise InputError(f"{file} has no column {column!r}, there are {list(columns)}")
    height = len(next(iter(columns.values()), []))
    said = columns.get(spec.label or "")
    kept = range(height) if said is None else _chosen(said, labels, spec)
    reader = LabelReader(str(file), labels, () if labels else spec.label_names, [said[i] for i in kept] if said else [])
    sources = {m: [_Source(path, s, columns, height) for s in found] for m, found in spec.sources.items()}
    splits: dict[str, list[Sample]] = {}
    for i in kept:
        split = columns[spec.split][i] if spec.split in columns else ALL
        if not split or (spec.splits and spec.split in columns and split not in spec.splits):
            continue
        name = columns[spec.utterance][i] if spec.utterance else str(i)
        inputs = {m: np.concatenate([s.take(i) for s in found], axis=1) for m, found in sources.items()}
        label = np.asarray([reader.index(said[i])], dtype=np.int64) if said else None
        splits.setdefault(split, []).append(Sample(name, inputs, (name,), label))
    if not splits:
        raise InputError(f"{file} has no utterances in the chosen splits and labels")
    order = spec.splits or USUAL_ORDER
    ordered = sorted(splits, key=lambda s: order.index(s) if s in order else len(order))
    info = {"labels": list(reader.labels), "split": spec.split}
    return Corpus(splits={s: splits[s] for s in ordered}, format="sequence_table", info=info)


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The files of the data set."""
    names = [str(spec.table), *(s.file for sources in spec.sources.values() for s in sources)]
    return [path / name for name in dict.fromkeys(names)]


def _chosen(said: Sequence[str], labels: Sequence[str] | None, spec: DataSpec) -> list[int]:
    """Rows whose label the model knows, or that have none; all rows where `label_names` does not say what there is."""
    if labels is None or not spec.label_names:
        return list(range(len(said)))
    others = set(spec.label_names) - set(labels)
    return [i for i, label in enumerate(said) if label not in others]


def _ascending(offsets: np.ndarray, steps: int) -> bool:
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or not len(offsets):
        return False
    return bool((np.diff(offsets.astype(np.int64)) >= 0).all() and offsets[0] >= 0 and offsets[-1] <= steps)


class _Source:
    """One array, or ragged sequences, and which of its rows an utterance has."""

    def __init__(self, path: Path, source: ArraySource, columns: dict[str, list[str]], height: int):
        self.where = f"{path / source.file}: {source.array or 'array'}"
        array = load_array(path / source.file, source.array)
        if array.dtype.kind not in "fiu" or array.ndim not in (2, 3):
            raise InputError(f"{self.where} is {array.dtype} {array.shape}, expected numbers (rows, [steps,] width)")
        self.array = array.astype(np.float32)
        self.offsets = None if source.offsets is None else load_array(path / source.file, source.offsets)
        rows = len(self.array)
        if self.offsets is not None:
            rows = len(self.offsets) - 1
            if array.ndim != 2 or not _ascending(self.offsets, len(array)):
                raise InputError(f"{self.where}: {source.offsets} are no ascending places in {len(array)} steps")
        self.rows = self._rows(path, source, columns, height)
        if height and max(self.rows, default=0) >= rows:
            raise InputError(f"{self.where} has {rows} rows, the table asks for row {max(self.rows)}")
        if source.row is None and rows != height:
            raise InputError(f"{self.where} has {rows} rows, the table {height}: name a column of rows in its `row`")

    def take(self, at: int) -> np.ndarray:
        """The sequence (steps, width) of the utterance in row `at` of the table."""
        row = self.rows[at]
        if self.offsets is not None:
            return self.array[self.offsets[row] : self.offsets[row + 1]]
        return self.array[row] if self.array.ndim == 3 else self.array[row : row + 1]

    def _rows(self, path: Path, source: ArraySource, columns: dict[str, list[str]], height: int) -> list[int]:
        if source.row is None:
            return list(range(height))
        values = columns[source.row]
        if source.names is not None:
            places = {str(n): i for i, n in enumerate(load_array(path / source.file, source.names).tolist())}
            unknown = [v for v in values if v not in places]
            if unknown:
                raise InputError(f"{self.where}: {source.names} has no {unknown[0]!r}")
            return [places[v] for v in values]
        if not all(v.isdecimal() for v in values):
            raise InputError(f"{self.where}: column {source.row} holds no row numbers: name an array of names")
        return [int(v) for v in values]
