"""Task metrics exactly as the papers compute them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mer_export.errors import UsageError
from mer_export.metrics import multilabel as multi
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
    return classification_metrics(task, task.truth(labels), task.decide(scores))


def _multilabel(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Weighted and plain accuracy, weighted F1 and AUC, each as mean and by label; accuracies of whole label sets.

    The published selection metric is `weighted_accuracy` on CMU-MOSEI, `accuracy` on IEMOCAP.
    """
    truths, predictions = task.truth(labels), task.decide(scores)
    by_label = {
        "weighted_accuracy": multi.weighted_accuracy(truths, predictions),
        "accuracy": multi.accuracy(truths, predictions),
        "weighted_f1": multi.weighted_f1(truths, predictions),
        # On probabilities in float32, whose ties the original counts too.
        "auc": multi.roc_auc(truths, task.probabilities(scores).astype(np.float32)),
    }
    metrics = {name: float(values.mean()) for name, values in by_label.items()}
    metrics |= dict(zip(("strict", "subset", "intersect"), multi.set_accuracy(truths, predictions), strict=True))
    for name, values in by_label.items():
        metrics |= {f"{name}/{label}": float(v) for label, v in zip(task.labels, values, strict=True)}
    return {name: 100 * value for name, value in metrics.items()}


def _regression(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return SCALES[str(task.scale)](labels, scores[:, 0].astype(labels.dtype))


MEASURES: dict[str, Callable[[Task, np.ndarray, np.ndarray], dict[str, float]]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
}


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): rows are labels, columns predictions."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def classification_metrics(task: Task, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Accuracy, its mean over classes, weighted and macro F1 and the F1 of each class, in percent.

    Weighted F1 is support-weighted (scikit-learn's "weighted" with zero where undefined); macro F1 averages the
    classes that occur in labels or predictions. Units labelled -1 are left out. Empty input gives an empty result.
    """
    known = labels >= 0
    labels, predictions = labels[known], predictions[known]
    if not len(labels):
        return {}
    matrix = confusion_matrix(labels, predictions, len(task.labels))
    hits, support, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    occurring = (support + predicted) > 0
    metrics = {
        "accuracy": 100 * hits.sum() / matrix.sum(),
        "unweighted_accuracy": 100 * (hits / np.maximum(support, 1))[support > 0].mean(),
        "weighted_f1": 100 * (f1 * support).sum() / support.sum(),
        "macro_f1": 100 * f1[occurring].mean(),
    }
    metrics |= {f"f1/{label}": 100 * value for label, value in zip(task.labels, f1, strict=True)}
    return {name: float(value) for name, value in metrics.items()}


def area_over_rates(values: np.ndarray, step: float = 0.1) -> np.ndarray:
    """AUILC: trapezoids under the metric over the missing rate, not divided by the span of the rates.

    Args:
        values: metric values (rates, ...), first one at rate 0; published for values times 100, to one decimal.
        step: between rates.
    """
    values = np.asarray(values, dtype=np.float64)
    return step * (values[:-1] + values[1:]).sum(axis=0) / 2
