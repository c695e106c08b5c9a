"""Columns in, columns out: what Spark, Dask and their like call in their own processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from mer_export.data.bundle_data import line_spec, stored_spec
from mer_export.data.dialogues import ALL, Dialogue
from mer_export.data.formats.jsonl.reader import DialogueReader
from mer_export.data.formats.parquet import layout
from mer_export.data.formats.parquet.reader import RowReader, declared
from mer_export.data.open import OpenData
from mer_export.data.spec import DataSpec
from mer_export.errors import InputError, UsageError
from mer_export.untrusted.parquet import pyarrow_modules
from runtimes.pipeline import How
from runtimes.predict.output import answer_schema, answer_tables
from runtimes.scale.desk import Desk

WHERE = "columns"
UTTERANCES = "utterances"
FILLED: dict[str, Any] = {"split": ALL, "speaker": 0, "label": None}
"""Columns that need not be there, and what stands for them."""


class BatchWorker:
    """Answers batches of columns with a bundle; goes to other processes and machines by pickle.

    The bundle is opened by the process that calls it, at its first call, and stays open there. It has to lie at the
    same path on every machine.
    """

    def __init__(self, bundle: Path | str, **options: Any):
        """Opens nothing yet.

        Args:
            bundle: the bundle's directory.
            options: fields of `runtimes.pipeline.How`: runtime, device, threads and most_workers (default 1), batch,
                precision, goal, cuda_graph, overflow, beside (`("split", "gold")`), trust.

        Raises:
            UsageError: `strict_features`, which nobody could judge here.
        """
        self.bundle, self.how = Path(bundle).absolute(), How(**{"threads": 1, "most_workers": 1} | options)
        if self.how.strict_features:
            raise UsageError("strict_features judges a whole data set, a worker sees a part of it: leave it out")
        self._desk: Desk | None = None
        self._process, self._opening = 0, Lock()

    def __call__(self, columns: Any) -> Any:
        """The answers, with the columns of `mer infer -o out.parquet`.

        Args:
            columns: an Arrow table or batch, a pandas frame, or a dict of arrays or lists. Either a row for each
                utterance, as in the Parquet file of `mer data convert` (`dialogue` and `utterance`, features as one
                list of numbers; `index`, `split`, `speaker` and `label` may be absent), the rows of a dialogue
                together; or a row for each dialogue, as in JSON lines (`dialogue` and `utterances`).

        Returns:
            What came in: an Arrow table, a pandas frame, or a dict of numpy arrays.

        Raises:
            InputError: columns that are none of these, or part of a dialogue only, for a model that reads dialogues.
        """
        desk = self._opened()
        task, beside = desk.predictor.task, self.how.beside
        data = OpenData(_Columns(_table(columns, _widths(desk)), desk), WHERE, WHERE, desk.labels)
        arrow, _ = pyarrow_modules()
        tables = answer_tables(desk.predictions(data), task, beside)
        return _as_given(arrow.concat_tables([answer_schema(task, beside).empty_table(), *tables]), columns)

    def close(self) -> None:
        """Frees what this process opened."""
        if self._desk is not None and self._process == os.getpid():
            self._desk.close()
        self._desk = None

    def _opened(self) -> Desk:
        with self._opening:
            # A forked child has none of the engine's threads, and opens a predictor of its own.
            if self._desk is None or self._process != os.getpid():
                self._desk, self._process = Desk(self.bundle, self.how), os.getpid()
            return self._desk

    def __getstate__(self) -> dict[str, Any]:
        return {"bundle": self.bundle, "how": self.how}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.bundle, self.how, self._desk = state["bundle"], state["how"], None
        self._process, self._opening = 0, Lock()


class _Columns:
    """A table as a source (see `dialogues.Source`)."""

    def __init__(self, table: Any, desk: Desk):
        self.splits: Sequence[str] = ()
        self.info: Mapping[str, Any] = {}
        bundle, names = desk.bundle, table.schema.names
        if UTTERANCES in names:
            self.spec = line_spec(bundle)
            reader = DialogueReader(self.spec, None)
            self.found = [reader.dialogue(_said(row), f"{WHERE}: row {n}") for n, row in enumerate(table.to_pylist())]
            return
        missing = [n for n in ("dialogue", "utterance") if n not in names]
        if missing:
            raise InputError(f"{WHERE} are {names}, without {missing[0]}: give the columns of mer data convert")
        raw = (table.schema.metadata or {}).get(layout.KEY)
        meta: dict[str, Any] = (
            json.loads(raw) if raw else {"dims": _widths(desk), "labels": list(desk.predictor.task.labels)}
        )
        self.spec = stored_spec(bundle, "parquet")
        self.spec = self.spec.over(declared(meta), WHERE) if raw else self.spec
        rows = _plain(_filled(table, self.spec), meta["dims"])
        self.found = list(RowReader(self.spec, meta, None).dialogues(rows.combine_chunks().to_batches(), WHERE))

    def dialogues(self, split: str | None = None) -> Iterator[Dialogue]:
        """All of them."""
        return iter(self.found)


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """A dialogue as its line would say it: tables give None for what is not there."""
    utterances = [{n: v for n, v in (u or {}).items() if v is not None} for u in row[UTTERANCES] or ()]
    return {n: v for n, v in row.items() if v is not None} | {UTTERANCES: utterances}


def _widths(desk: Desk) -> dict[str, Any]:
    """The last dim of each input of the model: what it is wide, where that is a number."""
    return {s.name: s.dims[-1] for s in desk.bundle.manifest.contract.features}


def _table(columns: Any, widths: Mapping[str, Any]) -> Any:
    arrow, _ = pyarrow_modules()
    if isinstance(columns, arrow.Table):
        return columns
    if isinstance(columns, arrow.RecordBatch):
        return arrow.Table.from_batches([columns])
    if hasattr(columns, "iloc"):
        columns = {n: columns[n].to_numpy() for n in columns.columns}
    if not isinstance(columns, Mapping):
        raise InputError(f"columns are a {type(columns).__name__}: give an Arrow table, a pandas frame or a dict")
    try:
        return arrow.table({str(n): _column(c, str(n), widths) for n, c in columns.items()})
    except (arrow.ArrowException, ValueError) as error:
        raise InputError(f"columns do not make a table: {' '.join(str(error).split())[:160]}") from None


def _column(values: Any, name: str, widths: Mapping[str, Any]) -> Any:
    """One column for Arrow, which takes vectors but no matrices."""
    return [
        (v.tolist() if v.dtype == object else _in_a_row(v, name, widths)) if isinstance(v, np.ndarray) else v
        for v in values
    ]


def _filled(table: Any, spec: DataSpec) -> Any:
    """With the columns that may be absent. Utterances that stand on their own are numbered as they come."""
    arrow, _ = pyarrow_modules()
    for name, value in FILLED.items():
        if name not in table.schema.names:
            table = table.append_column(name, arrow.array([value] * len(table)))
    if "index" in table.schema.names and spec.shape != "utterance":
        return table
    own = zip(table["split"].to_pylist(), table["dialogue"].to_pylist(), strict=True)
    index, last = [], None
    for key in own:
        index.append(index[-1] + 1 if key == last else 0)
        last = key
    kept = table.drop_columns(["index"]) if "index" in table.schema.names else table
    return kept.append_column("index", arrow.array(index, arrow.int32()))


def _plain(table: Any, widths: Mapping[str, Any]) -> Any:
    """With lists as files have them, whatever kind of list another engine made."""
    arrow, _ = pyarrow_modules()
    for place, column in enumerate(table.schema):
        kind = column.type
        if arrow.types.is_dictionary(kind):
            table = table.set_column(place, column.name, table[column.name].cast(kind.value_type))
        elif (arrow.types.is_large_list(kind) or arrow.types.is_fixed_size_list(kind)) or _nested(arrow, kind):
            cells = [_flat(cell, column.name, widths) for cell in table[column.name].to_pylist()]
            table = table.set_column(place, column.name, arrow.array(cells))
    return table


def _nested(arrow: Any, kind: Any) -> bool:
    return bool(arrow.types.is_list(kind) and arrow.types.is_nested(kind.value_type))


def _flat(cell: Any, name: str, widths: Mapping[str, Any]) -> Any:
    try:
        return None if cell is None else _in_a_row(np.asarray(cell), name, widths)
    except ValueError:
        raise InputError(f"{WHERE}: {name} holds vectors of several widths in one cell: give them one width") from None


def _in_a_row(array: np.ndarray, name: str, widths: Mapping[str, Any]) -> np.ndarray:
    """The vectors of an utterance one after the other; raises InputError for those that would be read as others."""
    width = widths.get(name)
    if array.ndim > 1 and isinstance(width, int) and array.shape[-1] != width:
        raise InputError(f"{WHERE}: {name} has vectors of width {array.shape[-1]}, they are read in width {width}")
    return array.ravel()


def _as_given(table: Any, given: Any) -> Any:
    arrow, _ = pyarrow_modules()
    if isinstance(given, arrow.Table | arrow.RecordBatch):
        return table
    if hasattr(given, "iloc"):
        return table.to_pandas()
    return {n: table[n].to_numpy() for n in table.schema.names}
