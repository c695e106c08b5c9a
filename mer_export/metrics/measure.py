"""Task metrics exactly as the papers compute them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mer_export.errors import UsageError
from mer_export.metrics import classification, multilabel, sentiment
from mer_export.metrics.tally import ClassTable, Tally
from mer_export.task import Task


def measure(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The metrics of a task by name, shares in percent; units without a label are left out.

    Args:
        task: says what labels and scores mean.
        labels: class indices (units,), label sets (units, labels), or what a regression predicts (units,).
        scores: (units, width) of the task's output.
    """
    found = tally(task, labels, scores)
    return found.measured() if found else {}


def class_tables(task: Task, labels: np.ndarray, scores: np.ndarray) -> list[ClassTable]:
    """How each label was decided, in the tables that the authors print; arguments as of `measure`."""
    found = tally(task, labels, scores)
    return found.tables() if found else []


def tally(
    task: Task, labels: np.ndarray, scores: np.ndarray, group: np.ndarray | None = None, groups: int = 1
) -> Tally | None:
    """What the metrics of a task are made of, by group of units (units,); None where no unit has a label.

    Raises:
        UsageError: labels that do not fit the scores, or are of another kind than the task's.
    """
    if len(labels) != len(scores):
        raise UsageError(f"{len(labels)} labels do not fit {len(scores)} units")
    task.refuse_others(labels, "metrics")
    known = task.known(labels) if len(labels) else np.zeros(0, dtype=bool)
    if not known.any():
        return None
    own = np.zeros(len(labels), dtype=np.int64) if group is None else group
    return TALLIES[task.kind](task, labels[known], scores[known], own[known], groups)


def _classification(task: Task, labels: np.ndarray, scores: np.ndarray, group: np.ndarray, groups: int) -> Tally:
    return classification.tally(task.labels, task.truth(labels), task.decide(scores), group, groups)


def _multilabel(task: Task, labels: np.ndarray, scores: np.ndarray, group: np.ndarray, groups: int) -> Tally:
    # On probabilities in float32, whose ties the original counts too.
    likely = task.probabilities(scores).astype(np.float32)
    return multilabel.tally(task.labels, task.truth(labels), task.decide(scores), likely, group, groups)


def _regression(task: Task, labels: np.ndarray, scores: np.ndarray, group: np.ndarray, groups: int) -> Tally:
    scale = sentiment.SCALES[str(task.scale)]
    return sentiment.tally(scale, labels, scores[:, 0].astype(labels.dtype), group, groups)


TALLIES: dict[str, Callable[[Task, np.ndarray, np.ndarray, np.ndarray, int], Tally]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
}


def area_over_rates(values: np.ndarray, step: float = 0.1) -> np.ndarray:
    """AUILC: trapezoids under the metric over the missing rate, not divided by the span of the rates.

    Args:
        values: metric values (rates, ...), first one at rate 0; published for values times 100, to one decimal.
        step: between rates.
    """
    values = np.asarray(values, dtype=np.float64)
    return step * (values[:-1] + values[1:]).sum(axis=0) / 2
