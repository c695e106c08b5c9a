"""Predictions as JSONL, CSV or Parquet: written as they come, and in place only when they are complete."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mer_export.bundle import replacing
from mer_export.errors import InputError, UsageError
from mer_export.progress import SILENT, Progress
from mer_export.task import Task
from mer_export.untrusted.parquet import pyarrow_modules
from runtimes.predict.prediction import Prediction

orjson: Any = None
with suppress(ImportError):
    import orjson

GROUP = 4096
"""Units per Parquet row group, and between two progress reports."""
STDOUT = Path("-")
COUNTS = ("units", "samples", "without_prediction", "nothing_to_read")
BESIDE = ("split", "gold")
"""Columns that are written where they are asked for: where a unit is from, and what the data say of it."""


def write(
    predictions: Iterable[Prediction],
    path: Path,
    task: Task,
    beside: Sequence[str] = (),
    progress: Progress = SILENT,
) -> dict[str, int]:
    """Writes every prediction; the ending of `path` chooses the format.

    Each unit has the columns sample, unit, label, modalities and the probability of each class, or a score where the
    task is a regression; where a unit may have any number of labels, `label` is the most probable one and `labels` are
    those that hold. In JSONL probabilities are an object, labels and modalities lists; in CSV and Parquet there is one
    column `p/<label>` per class, and in CSV lists are joined by `+`. A unit without a prediction has an empty (null)
    label and no probabilities.

    Args:
        predictions: in the order to keep.
        path: .jsonl, .csv or .parquet; an existing file is replaced when all is written, a missing folder is made. `-`
            is standard output, as JSONL.
        task: names the classes.
        beside: further columns, of `BESIDE`.
        progress: shows how many units are done.

    Returns:
        How many units and samples there are, how many units have no prediction, and of how many of those there was
        nothing to read.

    Raises:
        UsageError: another ending, a column that does not exist, or a file where a folder would have to be.
        InputError: there is nothing to read of any unit.
        NotAvailableError: Parquet without pyarrow.
    """
    check_out(path)
    check_beside(beside)
    counts = dict.fromkeys(COUNTS, 0)
    with progress.over("infer", None) as shown:
        rows = _counted(predictions, counts, shown)
        if path == STDOUT:
            _jsonl(rows, sys.stdout, task, beside)
            return said_counts(counts)
        _make_folder(path)
        with replacing(path) as temporary:
            WRITERS[path.suffix](rows, temporary, task, beside)
    return said_counts(counts)


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"--out {path}: there is not a directory {path.parent}, but a file in its way") from None


def said_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts as a summary says them."""
    return {name: count for name, count in counts.items() if count or name != "nothing_to_read"}


def check_beside(beside: Sequence[str]) -> None:
    """Raises UsageError for a column that does not exist."""
    unknown = [name for name in beside if name not in BESIDE]
    if unknown:
        raise UsageError(f"--with {unknown[0]}: there are {' and '.join(BESIDE)}")


def check_out(path: Path) -> None:
    """Raises UsageError where predictions cannot be written to `path`, by its ending."""
    if path != STDOUT and path.suffix not in WRITERS:
        raise UsageError(f"--out {path}: the ending must be one of {list(WRITERS)}, or it is - for standard output")


def json_row(p: Prediction, task: Task, beside: Sequence[str] = ()) -> dict[str, Any]:
    """One unit as JSON lines and the server say it."""
    numbers = {"score": p.score} if task.kind == "regression" else {"probabilities": p.probabilities or None}
    row = {"sample": p.sample, "unit": p.unit, "label": p.label, **numbers, "modalities": p.modalities}
    if not task.exclusive:
        row["labels"] = p.labels
    return row | {name: getattr(p, name) for name in beside}


def _jsonl(predictions: Iterable[Prediction], stream: TextIO, task: Task, beside: Sequence[str]) -> None:
    for p in predictions:
        # Whoever reads along sees each row when it is there.
        print(_json(json_row(p, task, beside)), file=stream, flush=stream is sys.stdout)


def _json(row: dict[str, Any]) -> str:
    """A row as JSON: the same values by `orjson`, which leaves out spaces and takes a tenth of the time."""
    return orjson.dumps(row).decode() if orjson else json.dumps(row, ensure_ascii=False)


def _write_jsonl(predictions: Iterable[Prediction], path: Path, task: Task, beside: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        _jsonl(predictions, stream, task, beside)


def _write_csv(predictions: Iterable[Prediction], path: Path, task: Task, beside: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        several = not task.exclusive
        head = ["sample", "unit", "label", *(["labels"] if several else []), "modalities"]
        writer.writerow([*head, *task.columns(), *beside])
        for p in predictions:
            numbers = [repr(n) for n in p.numbers] or [""] * len(task.columns())
            held = ["+".join(p.labels)] if several else []
            further = [_cell(getattr(p, name)) for name in beside]
            writer.writerow([p.sample, p.unit, p.label or "", *held, "+".join(p.modalities), *numbers, *further])


def _cell(value: str | float | tuple[str, ...] | None) -> str:
    if value is None:
        return ""
    return "+".join(value) if isinstance(value, tuple) else str(value)


def write_parquet(
    predictions: Iterable[Prediction], sink: Path | BinaryIO, task: Task, beside: Sequence[str] = ()
) -> None:
    """Writes a Parquet file; raises NotAvailableError without pyarrow."""
    _, parquet = pyarrow_modules()
    with parquet.ParquetWriter(sink, answer_schema(task, beside)) as writer:
        for table in answer_tables(predictions, task, beside):
            writer.write_table(table)


def answer_schema(task: Task, beside: Sequence[str] = ()) -> Any:
    """The columns of answers in Arrow."""
    pyarrow, _ = pyarrow_modules()
    text = pyarrow.string()
    gold = pyarrow.float64() if task.kind == "regression" else text if task.exclusive else pyarrow.list_(text)
    fields = [("sample", text), ("unit", text), ("label", text), ("modalities", pyarrow.list_(text))]
    fields += [] if task.exclusive else [("labels", pyarrow.list_(text))]
    fields += [(name, pyarrow.float64()) for name in task.columns()]
    return pyarrow.schema([*fields, *((name, gold if name == "gold" else text) for name in beside)])


def answer_tables(predictions: Iterable[Prediction], task: Task, beside: Sequence[str] = ()) -> Iterator[Any]:
    """Answers as Arrow tables of bounded size."""
    pyarrow, _ = pyarrow_modules()
    schema, rows = answer_schema(task, beside), iter(predictions)
    while group := list(islice(rows, GROUP)):
        columns: dict[str, list[Any]] = {
            "sample": [p.sample for p in group],
            "unit": [p.unit for p in group],
            "label": [p.label for p in group],
            "modalities": [list(p.modalities) for p in group],
        }
        if not task.exclusive:
            columns["labels"] = [list(p.labels) for p in group]
        for place, name in enumerate(task.columns()):
            columns[name] = [p.numbers[place] if p.numbers else None for p in group]
        columns |= {name: [getattr(p, name) for p in group] for name in beside}
        yield pyarrow.table(columns, schema=schema)


WRITERS: dict[str, Callable[[Iterable[Prediction], Path, Task, Sequence[str]], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": write_parquet,
}


def _counted(predictions: Iterable[Prediction], counts: dict[str, int], progress: Progress) -> Iterator[Prediction]:
    for prediction in counted(predictions, counts):
        if counts["units"] % GROUP == 0:
            progress.end(f"{counts['units']} units")
        yield prediction
    check_counts(counts)


def counted(predictions: Iterable[Prediction], counts: dict[str, int]) -> Iterator[Prediction]:
    """Passes predictions on and counts them under the names of `COUNTS`."""
    last = first = None
    for prediction in predictions:
        counts["units"] += 1
        # Utterances of two dialogues may be called alike.
        if prediction.sample != last or prediction.unit == first:
            counts["samples"] += 1
            first = prediction.unit
        counts["without_prediction"] += prediction.label is None
        counts["nothing_to_read"] += prediction.label is None and not prediction.modalities
        last = prediction.sample
        yield prediction


def check_counts(counts: Mapping[str, int]) -> None:
    """Raises InputError where nothing of any unit could be read."""
    if counts["units"] and counts["nothing_to_read"] == counts["units"]:
        raise InputError(
            f"there is nothing to read of any of the {counts['units']} units: the data lack every modality of the "
            "model, see mer inspect"
        )
