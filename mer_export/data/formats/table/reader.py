"""An open source: a table with one utterance per row, and arrays aligned to its rows.

What the columns and arrays are is said by the `data:` section of the configuration, or by a `table.yaml` of the same
fields beside the data (docs/data.md has a worked example).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.data.dialogues import READY, USUAL_ORDER, Dialogue, Recording, Utterance
from mer_export.data.formats.table.arrays import ArrayFiles
from mer_export.data.formats.table.rows import Row, table_rows
from mer_export.data.media.faces import FaceImages, image_files
from mer_export.data.media.times import seconds
from mer_export.data.spec import ArraySource, DataSpec
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.places import SPLIT, Reach
from mer_export.untrusted.tables import HEADER_ROWS
from mer_export.untrusted.yaml_files import read_yaml

MAPPING = "table.yaml"
Bound = Mapping[tuple[object, ...], tuple[str, ...]]


SUFFIXES = (".csv", ".tsv")


def detect(path: Path, spec: DataSpec) -> bool:
    """True where the configuration describes a table, or the directory does, and for a table of text."""
    if path.is_file():
        return path.suffix in SUFFIXES
    return path.is_dir() and (spec.table is not None or (path / MAPPING).is_file())


def located(path: Path, spec: DataSpec) -> tuple[Path, DataSpec]:
    """The directory, and the section with the table that a path names.

    A table alone is read as the `table.yaml` beside it says, which may describe another table of the same form.
    """
    if not path.is_file():
        return path, spec
    named = DataSpec.model_validate(spec.model_dump() | {"table": path.name})
    return path.parent, named.beside(spec)


def source(path: Path, spec: DataSpec) -> TableSource:
    """The tables of a directory.

    Args:
        path: the data directory, or a table in one.
        spec: the mapping; its fields override those of `table.yaml`.

    Raises:
        UsageError: the mapping is incomplete or contradicts itself.
        InputError: a file or column is missing, there is no utterance, or features are bound to another split column.
    """
    return TableSource(*located(path, spec))


def described(path: Path, spec: DataSpec) -> DataSpec:
    """The mapping alone, without a look at the rows; raises as `source`."""
    return mapping(*located(path, spec))[0]


def files(path: Path, spec: DataSpec) -> list[Path]:
    """The files of the data set."""
    path, spec = located(path, spec)
    spec, _ = mapping(path, spec)
    patterns = [str(spec.table), *(s.file for _, s in spec.arrays if s.file)]
    reach = spec.reach(path)
    found: dict[Path, None] = {}
    for pattern in patterns:
        for split in spec.splits if SPLIT in pattern else ("",):
            found |= dict.fromkeys(_named(pattern, split, path, reach))
    # Data to label need not hold every split.
    return [f for f in found if f.is_file()] if SPLIT in str(spec.table) else list(found)


def _named(pattern: str, split: str, path: Path, reach: Reach) -> list[Path]:
    """The files that a pattern means for a split: itself, or where cells stand in it what they may be."""
    if "{" not in pattern.replace(SPLIT, ""):
        return [reach.path(pattern, MAPPING, split=split)]
    # Files of single utterances are named after cells; where each leads is asked when it is read.
    reach.path(re.sub(r"{[^{}]*}", "x", pattern.replace(SPLIT, split)), MAPPING)
    return sorted(path.glob(re.sub(r"{[^{}]*}", "*", pattern.replace(SPLIT, split))))


class TableSource:
    """Rows of tables as utterances; see `dialogues.Source`. A dialogue is held in memory at a time."""

    def __init__(self, path: Path, spec: DataSpec):
        self.path = path
        self.spec, bound = mapping(path, spec)
        _refuse_leakage(self.spec, bound, path)
        self.rows = table_rows(path, self.spec)
        if not self.rows:
            raise InputError(f"{path}: the table {self.spec.table} has no utterances in the chosen splits")
        self.reach = self.spec.reach(path)
        arrays = ArrayFiles(self.reach, self.rows)
        self.features = [(m, [arrays.reader(s) for s in found]) for m, found in _features(self.spec).items()]
        self.inputs = {name: arrays.reader(s) for name, s in self.spec.inputs.items()}
        self.where, self.per_file = f"{path / str(self.spec.table)}", SPLIT in str(self.spec.table)
        order = self.spec.splits or USUAL_ORDER
        self.splits = sorted(self.rows.splits, key=lambda s: order.index(s) if s in order else len(order))
        self.info = {"split": self.spec.split}

    def dialogues(self, split: str | None = None) -> Iterator[Dialogue]:
        """Yields (see `dialogues.Source`); raises InputError where arrays do not fit the table."""
        if split is not None and split not in self.splits:
            raise UsageError(f"no split {split!r} in this data, there are {self.splits}")
        yield from map(self._dialogue, self.rows.dialogues(split))

    def _dialogue(self, rows: list[Row]) -> Dialogue:
        first = rows[0]
        # Where every split has its own file, ids start again in each.
        parts = [first.split] if self.per_file else []
        parts += map(first.cell, self.rows.columns)
        utterances = []
        for place, row in enumerate(rows):
            number = place if self.spec.dialogue else row.at
            mark = row.cell(self.spec.utterance) if self.spec.utterance else str(number)
            utterances.append(self._utterance("/".join([*parts, mark]), row))
        name = "/".join(parts) if self.spec.dialogue else utterances[0].id
        return Dialogue(name, first.split, utterances, self.where)

    def _utterance(self, name: str, row: Row) -> Utterance:
        spec = self.spec
        return Utterance(
            id=name,
            speaker=row.cell(spec.speaker),
            label=_label(row, spec),
            score=_number(row, spec.score, name) if spec.score in row.table.columns else None,
            indicators=_indicators(row, spec, name),
            sentence=row.cell(spec.sentence) if spec.sentence else None,
            recording=self._recording(row, name),
            features={m: tuple([s.steps(row) for s in found]) for m, found in self.features},
            inputs=self._ready(row, name),
            row=row.at + HEADER_ROWS,
        )

    def _recording(self, row: Row, name: str) -> Recording | None:
        if not (file := row.cell(self.spec.recording)):
            return None
        start, end = (seconds(row.cell(c), f"{name}: column {c}") for c in (self.spec.start, self.spec.end))
        return Recording(file, name, self.reach, start, end)

    def _ready(self, row: Row, name: str) -> dict[str, np.ndarray]:
        ready: dict[str, Any] = {n: s.ready(n, row) for n, s in self.inputs.items()}
        faces = self.spec.faces
        if faces.images and faces.column and (folder := row.cell(faces.column)):
            ready["images"] = FaceImages(image_files(self.reach.path(folder, name)), faces.size)
        return ready


def mapping(path: Path, spec: DataSpec) -> tuple[DataSpec, Bound]:
    """The mapping, and which split columns the data's own `table.yaml` binds arrays to."""
    file = path / MAPPING
    bound: Bound = {}
    if file.is_file():
        own = read_yaml(file) or {}
        bound = {_identity(s): s.only_with_split for _, s in DataSpec().over(own, str(file)).arrays}
        spec = spec.over(own, str(file), path)
    _check(path, spec)
    return spec, bound


def _check(path: Path, spec: DataSpec) -> None:
    """Refuses a mapping that is incomplete or says two things."""
    if spec.table is None or (not spec.dialogue and spec.shape == "dialogue"):
        raise UsageError(
            f"{path}: a dialogue table needs data.table and data.dialogue, or a {MAPPING} that says them: `mer inspect "
            f"{path} --draft` drafts one"
        )
    if SPLIT in spec.table and not spec.splits:
        raise UsageError(f"data.table {spec.table} has one file per split: name the splits in data.splits")
    if spec.context is not None and not spec.dialogue:
        raise UsageError("data.context needs data.dialogue: windows end at the borders of a dialogue")
    if (
        spec.shape == "packed"
        and "input_ids" not in spec.inputs
        and (not spec.dialogue or not spec.sentence or spec.text)
    ):
        raise UsageError("data.packing needs the columns data.dialogue and data.sentence, and no data.text")
    if spec.shape == "utterance" and spec.tokenizer and (spec.text or not spec.sentence) and not spec.inputs:
        raise UsageError("data.tokenizer makes the text from data.sentence: name that column and leave out data.text")
    if spec.score and spec.label_columns:
        raise UsageError("data.score and data.label_columns are both what is to be predicted: leave one of them out")
    unknown = [n for n in spec.inputs if n not in READY]
    if unknown:
        raise UsageError(f"data.inputs {unknown} cannot come with data: the inputs that can are {list(READY)}")


def _identity(source: ArraySource) -> tuple[object, ...]:
    """What numbers a source names, however it finds a row of them."""
    return source.file, source.array, source.columns


def _refuse_leakage(spec: DataSpec, bound: Bound, path: Path) -> None:
    for modality, array in spec.arrays:
        named = array.array or array.file or array.columns
        allowed = array.only_with_split or bound.get(_identity(array), ())
        if allowed and spec.split not in allowed:
            raise InputError(
                f"{path}: {modality} features {named} come from a network trained with the "
                f"labels of {' or '.join(allowed)}, with data.split={spec.split} test labels leak: "
                f"set data.split={allowed[0]} or choose other features"
            )


def _features(spec: DataSpec) -> Mapping[str, tuple[ArraySource, ...]]:
    """The arrays of each modality that the shape takes: with context they are the sentence vectors alone.

    These are the text of an utterance, unless `context.vectors` names others.
    """
    if spec.context is None:
        return spec.sources
    vectors = (spec.context.vectors,) if spec.context.vectors else spec.text
    return {"text": vectors} if vectors else {}


def _label(row: Row, spec: DataSpec) -> str | None:
    """The class of an utterance, unless the model predicts a score or several labels."""
    if spec.score or spec.label_columns or spec.label not in row.table.columns:
        return None
    return row.cell(spec.label)


def _number(row: Row, column: str | None, name: str) -> float:
    text = row.cell(column)
    try:
        return float(text) if text else math.nan
    except ValueError:
        raise InputError(f"{name}: column {column} holds {text!r}, it must be a number") from None


def _indicators(row: Row, spec: DataSpec, name: str) -> dict[str, float] | None:
    if not any(c in row.table.columns for c in spec.label_columns):
        return None
    return {column: _number(row, column, name) for column in spec.label_columns}
