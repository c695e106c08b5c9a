"""The general reader: a table with one utterance per row, and arrays of feature vectors aligned to its rows.

What the columns and arrays are is said by the `data:` section of the configuration, or by a `table.yaml` of the same
fields beside the data (docs/data.md has a worked example).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from mer_export.data.labels import LabelReader, speaker_indices
from mer_export.data.samples import Corpus, Sample
from mer_export.data.spec import ArraySource, DataSpec
from mer_export.errors import InputError, NotAvailableError, UsageError
from mer_export.install import not_installed
from mer_export.registry import first_problem
from mer_export.untrusted.arrays import check_arrays
from mer_export.untrusted.impostors import refuse_impostor
from mer_export.untrusted.yaml_files import read_yaml

MAPPING = "table.yaml"
ALL = "all"
"""Name of the one split of a table without a split column."""
USUAL_ORDER = ("train", "dev", "valid", "test")

Columns = dict[str, list[str]]


@dataclass(frozen=True)
class Row:
    """One utterance: its place in its table, in the rows of its split, and in the arrays (`row` column)."""

    table: Columns
    at: int
    split: str
    in_split: int
    array_row: int | None

    def cell(self, column: str | None) -> str:
        """The text of a column, empty without such a column."""
        return self.table[column][self.at] if column in self.table else ""


def detect(path: Path, spec: DataSpec) -> bool:
    """True where the configuration describes a table, or the directory does."""
    return path.is_dir() and (spec.table is not None or (path / MAPPING).is_file())


def read(path: Path, spec: DataSpec, labels: Sequence[str] | None = None) -> Corpus:
    """Reads all splits. Without the label column samples are unlabelled, without the split column they are `all`.

    Args:
        path: the data directory.
        spec: the mapping; its fields override those of `table.yaml`.
        labels: class names of the model; None takes `label_names`, or what the column holds.

    Raises:
        UsageError: the mapping is incomplete.
        InputError: a file or column is missing, arrays do not match the table, a label is unknown, a dialogue lies in
            two splits, or features are bound to another split column.
    """
    spec, bound = mapping(path, spec)
    refuse_leakage(spec, bound, path)
    rows = table_rows(path, spec)
    if spec.context is not None:
        from mer_export.data.shapes.context import read_context

        return read_context(path, spec, rows, labels)
    if spec.unit == "utterance":
        from mer_export.data.shapes.sequences import read_utterances

        return read_utterances(path, spec, rows, labels)
    if not rows:
        raise InputError(f"{path}: the table {spec.table} has no rows in the chosen splits")
    values = [r.cell(spec.label) for r in rows]
    reader = LabelReader(str(path / str(spec.table)), labels, spec.label_names, values)
    arrays = Arrays(path, rows)
    splits: dict[str, list[Sample]] = {}
    sentences: dict[str, list[str]] = {}
    for (split, _), group in dialogues(rows, spec).items():
        sample = _sample(group, spec, reader, arrays)
        splits.setdefault(split, []).append(sample)
        if spec.sentence:
            sentences[sample.id] = [r.cell(spec.sentence) for r in group]
    info = {"labels": list(reader.labels), "speakers": spec.speakers, "split": spec.split, "sentences": sentences}
    return Corpus(splits={s: splits[s] for s in split_order(splits, spec)}, format="dialogue_table", info=info)


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The files of the data set."""
    spec, _ = mapping(path, spec)
    sources = [s for found in spec.sources.values() for s in found]
    sources += [spec.context.vectors] if spec.context and spec.context.vectors else []
    patterns = [str(spec.table), *(s.file for s in sources)]
    names = [p.replace("{split}", s) for p in patterns for s in (spec.splits if "{split}" in p else ("",))]
    return [path / name for name in dict.fromkeys(names)]


def sentences(path: Path, spec: DataSpec, split: str) -> list[str]:
    """What is said in one split, by `data.sentence`; raises UsageError where no column or utterance is there."""
    spec, _ = mapping(path, spec)
    found = [r.cell(spec.sentence) for r in table_rows(path, spec) if r.split == split]
    if not spec.sentence or not found:
        raise UsageError(f"{path} has no sentences of split {split!r}: name their column in data.sentence")
    return found


def mapping(path: Path, spec: DataSpec) -> tuple[DataSpec, dict[tuple[str, str | None], tuple[str, ...]]]:
    """The mapping, and which split columns the data's own `table.yaml` binds arrays to."""
    own: dict[str, Any] = {}
    if (path / MAPPING).is_file():
        try:
            own = read_yaml(path / MAPPING) or {}
            declared = DataSpec.model_validate(own)
        except ValidationError as error:
            raise InputError(f"{path / MAPPING}: {first_problem(error)}") from None
        bound = {(s.file, s.array): s.only_with_split for all_ in declared.sources.values() for s in all_}
        spec = DataSpec.model_validate({**declared.model_dump(exclude_unset=True), **_set_fields(spec)})
    else:
        bound = {}
    if spec.table is None or (spec.dialogue is None and spec.unit == "dialogue"):
        raise UsageError(f"{path}: a dialogue table needs data.table and data.dialogue, or a {MAPPING} that says them")
    if "{split}" in spec.table and not spec.splits:
        raise UsageError(f"data.table {spec.table} has one file per split: name the splits in data.splits")
    return spec, bound


def _set_fields(spec: DataSpec) -> dict[str, Any]:
    """Fields that say something; a resolved configuration also lists those that do not."""
    default = DataSpec().model_dump()
    return {k: v for k, v in spec.model_dump().items() if v != default[k]}


def refuse_leakage(spec: DataSpec, bound: dict[tuple[str, str | None], tuple[str, ...]], path: Path) -> None:
    for modality, sources in spec.sources.items():
        for source in sources:
            allowed = source.only_with_split or bound.get((source.file, source.array), ())
            if allowed and spec.split not in allowed:
                raise InputError(
                    f"{path}: {modality} features {source.array or source.file} come from a network trained with the "
                    f"labels of {' or '.join(allowed)}, with data.split={spec.split} test labels leak: "
                    f"set data.split={allowed[0]} or choose other features"
                )


def table_rows(path: Path, spec: DataSpec) -> list[Row]:
    table = str(spec.table)
    if "{split}" in table:
        found: list[Row] = []
        present = [(s, path / table.replace("{split}", s)) for s in spec.splits]
        # Data to label need not hold every split; whoever asks for an absent one is told.
        for split, file in [(s, f) for s, f in present if f.is_file()] or present[:1]:
            columns = read_table(file)
            _require(columns, spec, file)
            found += [Row(columns, i, split, i, _array_row(columns, i, spec)) for i in range(_height(columns))]
        return found
    columns = read_table(path / table)
    _require(columns, spec, path / table)
    divided = spec.split in columns
    counts: dict[str, int] = {}
    rows = []
    for i in range(_height(columns)):
        split = columns[str(spec.split)][i] if divided else ALL
        place = counts[split] = counts.get(split, -1) + 1
        # An empty cell takes an utterance out of the data set.
        if split and (not spec.splits or not divided or split in spec.splits):
            rows.append(Row(columns, i, split, place, _array_row(columns, i, spec)))
    return rows


def _array_row(columns: Columns, at: int, spec: DataSpec) -> int | None:
    if spec.row is None:
        return None
    value = columns[spec.row][at]
    if not value.isdecimal():
        raise InputError(f"{spec.table}: column {spec.row} holds {value!r}, it must be a row number of the arrays")
    return int(value)


def _require(columns: Columns, spec: DataSpec, path: Path) -> None:
    """Columns for label and split may be absent: then the data are unlabelled, or one split."""
    for role in ("dialogue", "order", "utterance", "speaker", "sentence", "score", "row"):
        name = getattr(spec, role)
        if name is not None and name not in columns:
            raise InputError(f"{path} has no column {name!r} (data.{role}), there are {list(columns)}")


def dialogues(rows: list[Row], spec: DataSpec) -> dict[tuple[str, str], list[Row]]:
    """Rows by split and dialogue, in order of appearance, sorted within."""
    groups: dict[tuple[str, str], list[Row]] = {}
    home: dict[str, str] = {}
    per_file = "{split}" in str(spec.table)
    for row in rows:
        dialogue = row.cell(spec.dialogue)
        if not per_file and home.setdefault(dialogue, row.split) != row.split:
            raise InputError(
                f"{spec.table}: dialogue {dialogue!r} has utterances in {home[dialogue]} and {row.split}: "
                "a dialogue belongs to one split"
            )
        groups.setdefault((row.split, dialogue), []).append(row)
    if spec.order:
        for group in groups.values():
            group.sort(key=lambda r: _order_key(r.cell(spec.order)))
    return groups


def _order_key(value: str) -> tuple[int, float, str]:
    try:
        return (0, float(value), "")
    except ValueError:
        return (1, 0.0, value)


def _sample(rows: list[Row], spec: DataSpec, labels: LabelReader, arrays: Arrays) -> Sample:
    dialogue = rows[0].cell(spec.dialogue)
    # Where every split has its own file, ids start again in each.
    name = f"{rows[0].split}/{dialogue}" if "{split}" in str(spec.table) else dialogue
    inputs: dict[str, np.ndarray] = {}
    for modality, sources in spec.sources.items():
        vectors = [arrays.take(source, rows) for source in sources]
        if modality == "text":
            if len({v.shape for v in vectors}) > 1:
                raise InputError(f"text vectors of one utterance differ in width: {[v.shape[1] for v in vectors]}")
            inputs["text"] = np.stack(vectors)
        else:
            inputs[modality] = np.concatenate(vectors, axis=1)
    speakers = [r.cell(spec.speaker) for r in rows]
    inputs["speaker"] = speaker_indices(speakers, spec.speakers)
    marks = [r.cell(spec.utterance) if spec.utterance else str(i) for i, r in enumerate(rows)]
    units = tuple(f"{name}/{m}" for m in marks)
    found = labels.indices(r.cell(spec.label) for r in rows) if spec.label in rows[0].table else None
    return Sample(id=name, inputs=inputs, units=units, labels=found)


class Arrays:
    """Feature files, each read once and held against the table."""

    def __init__(self, path: Path, rows: list[Row]):
        self.path = path
        self.heights = {id(r.table): _height(r.table) for r in rows}
        self.in_split = Counter(r.split for r in rows)
        self.tables = len(self.heights)
        self._loaded: dict[tuple[str, str | None], np.ndarray] = {}

    def take(self, source: ArraySource, rows: list[Row]) -> np.ndarray:
        """The vectors (n, d) of these rows of one dialogue, float32."""
        split = rows[0].split
        per_split = "{split}" in source.file
        array = self._load(source.file.replace("{split}", split), source.array)
        if rows[0].array_row is not None:
            index = [r.array_row for r in rows if r.array_row is not None]
        elif per_split:
            index = [r.in_split for r in rows]
            self._same_height(source.file.replace("{split}", split), len(array), self.in_split[split])
        elif self.tables > 1:
            raise UsageError(f"{source.file} serves several tables: name the column of its rows in data.row")
        else:
            index = [r.at for r in rows]
            self._same_height(source.file, len(array), self.heights[id(rows[0].table)])
        if max(index) >= len(array):
            raise InputError(f"{self.path / source.file} has {len(array)} rows, the table asks for row {max(index)}")
        return array[index]

    def _same_height(self, file: str, have: int, want: int) -> None:
        if have != want:
            raise InputError(
                f"{self.path / file} has {have} rows, its table has {want}: name the column of array rows in data.row"
            )

    def _load(self, file: str, name: str | None) -> np.ndarray:
        if (file, name) not in self._loaded:
            array = load_array(self.path / file, name)
            if array.ndim != 2 or array.dtype.kind not in "fiu":
                raise InputError(
                    f"{self.path / file}: array {name} is {array.dtype} {array.shape}, expected numbers (rows, width)"
                )
            self._loaded[file, name] = array.astype(np.float32)
        return self._loaded[file, name]


def load_array(path: Path, name: str | None = None) -> np.ndarray:
    """An array of an npy file, or the one of that name (or the only one) of an npz file; raises InputError."""
    check_arrays(path)
    try:
        with open(path, "rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = content.files
            if name is None and len(names) == 1:
                name = names[0]
            if name not in names:
                raise InputError(f"{path} has no array {name!r}, there are {names}")
            return content[name]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except InputError:
        raise
    except Exception as error:  # zip, header and length errors have many types
        raise InputError(f"{path} is not a readable array file: {' '.join(str(error).split())[:120]}") from None


def read_table(path: Path) -> Columns:
    """Columns of a table as text: csv (comma), tsv or parquet by the ending; raises InputError."""
    refuse_impostor(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            lines = csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            header = next(lines, [])
            rows = [line for line in lines if line]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no UTF-8 table: {error}") from None
    if len(set(header)) != len(header) or not header:
        raise InputError(f"{path} needs a header of distinct column names, it has {header[:20]}")
    for number, line in enumerate(rows, start=2):
        if len(line) != len(header):
            raise InputError(f"{path}: row {number} has {len(line)} cells, the header has {len(header)}")
    return {name: [line[i] for line in rows] for i, name in enumerate(header)}


def _read_parquet(path: Path) -> Columns:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise NotAvailableError(not_installed("pyarrow", "columnar")) from None
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is no readable Parquet file: {' '.join(str(error).split())[:120]}") from None
    return {n: ["" if v is None else str(v) for v in table.column(n).to_pylist()] for n in table.column_names}


def _height(columns: Columns) -> int:
    return len(next(iter(columns.values()), []))


def split_order(splits: dict[str, list[Sample]], spec: DataSpec) -> list[str]:
    order = spec.splits or USUAL_ORDER
    return sorted(splits, key=lambda s: order.index(s) if s in order else len(order))
