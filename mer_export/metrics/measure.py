"""Task metrics exactly as the papers compute them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mer_export.errors import UsageError
from mer_export.metrics import classification, multilabel
from mer_export.metrics.sentiment import SCALES
from mer_export.task import Task


def measure(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The metrics of a task by name, shares in percent; units without a label are left out.

    Args:
        task: says what labels and scores mean.
        labels: class indices (units,), label sets (units, labels), or what a regression predicts (units,).
        scores: (units, width) of the task's output.
    """
    if len(labels) != len(scores):
        raise UsageError(f"{len(labels)} labels do not fit {len(scores)} units")
    if task.kind == "regression" and labels.ndim != 1:
        raise UsageError(f"labels have shape {labels.shape}, a regression has one per unit")
    known = task.known(labels) if len(labels) else np.zeros(0, dtype=bool)
    return MEASURES[task.kind](task, labels[known], scores[known]) if known.any() else {}


def _classification(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return classification.measure(task.labels, task.truth(labels), task.decide(scores))


def _multilabel(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    # On probabilities in float32, whose ties the original counts too.
    likely = task.probabilities(scores).astype(np.float32)
    return multilabel.measure(task.labels, task.truth(labels), task.decide(scores), likely)


def _regression(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return SCALES[str(task.scale)].measure(labels, scores[:, 0].astype(labels.dtype))


MEASURES: dict[str, Callable[[Task, np.ndarray, np.ndarray], dict[str, float]]] = {
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
