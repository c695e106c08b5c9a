"""Predictions as JSONL, CSV or Parquet: written as they come, and in place only when they are complete."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mer_export.bundle import replacing
from mer_export.errors import NotAvailableError, UsageError
from mer_export.install import not_installed
from mer_export.task import Task
from runtimes.predict.predictor import Prediction

GROUP = 4096
"""Units per Parquet row group, and between two progress reports."""


def write(
    predictions: Iterable[Prediction], path: Path, task: Task, say: Callable[[str], None] | None = None
) -> dict[str, int]:
    """Writes every prediction; the ending of `path` chooses the format.

    Each unit has the columns sample, unit, label, modalities and the probability of each class, or a score where the
    task is a regression; where a unit may have any number of labels, `label` is the most probable one and `labels` are
    those that hold. In JSONL probabilities are an object, labels and modalities lists; in CSV and Parquet there is one
    column `p/<label>` per class, and in CSV lists are joined by `+`. A unit without a prediction has an empty (null)
    label and no probabilities.

    Args:
        predictions: in the order to keep.
        path: .jsonl, .csv or .parquet; an existing file is replaced when all is written.
        task: names the classes.
        say: receives progress.

    Returns:
        How many units and samples there are, and how many units have no prediction.

    Raises:
        UsageError: another ending, or a directory that does not exist.
        NotAvailableError: Parquet without pyarrow.
    """
    if path.suffix not in WRITERS:
        raise UsageError(f"--out {path}: the ending must be one of {list(WRITERS)}")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is not a directory {path.parent}")
    counts = {"units": 0, "samples": 0, "without_prediction": 0}
    with replacing(path) as temporary:
        WRITERS[path.suffix](_counted(predictions, counts, say), temporary, task)
    return counts


def _write_jsonl(predictions: Iterable[Prediction], path: Path, task: Task) -> None:
    regression = task.kind == "regression"
    with path.open("w", encoding="utf-8") as stream:
        for p in predictions:
            row = {
                "sample": p.sample,
                "unit": p.unit,
                "label": p.label,
                **({"score": p.score} if regression else {"probabilities": p.probabilities or None}),
                "modalities": p.modalities,
            }
            if not task.exclusive:
                row["labels"] = p.labels
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(predictions: Iterable[Prediction], path: Path, task: Task) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        several = not task.exclusive
        head = ["sample", "unit", "label", *(["labels"] if several else []), "modalities"]
        writer.writerow([*head, *task.columns()])
        for p in predictions:
            numbers = [repr(n) for n in p.numbers] or [""] * len(task.columns())
            held = ["+".join(p.labels)] if several else []
            writer.writerow([p.sample, p.unit, p.label or "", *held, "+".join(p.modalities), *numbers])


def _write_parquet(predictions: Iterable[Prediction], path: Path, task: Task) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise NotAvailableError(not_installed("pyarrow", "columnar")) from None
    text = pyarrow.string()
    fields = [("sample", text), ("unit", text), ("label", text), ("modalities", pyarrow.list_(text))]
    fields += [] if task.exclusive else [("labels", pyarrow.list_(text))]
    schema = pyarrow.schema([*fields, *((name, pyarrow.float64()) for name in task.columns())])
    with parquet.ParquetWriter(path, schema) as writer:
        rows = iter(predictions)
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
            writer.write_table(pyarrow.table(columns, schema=schema))


WRITERS: dict[str, Callable[[Iterable[Prediction], Path, Task], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def _counted(
    predictions: Iterable[Prediction], counts: dict[str, int], say: Callable[[str], None] | None
) -> Iterator[Prediction]:
    last = None
    for prediction in predictions:
        counts["units"] += 1
        counts["samples"] += prediction.sample != last
        counts["without_prediction"] += prediction.label is None
        last = prediction.sample
        if say and counts["units"] % GROUP == 0:
            say(f"{counts['units']} units")
        yield prediction
