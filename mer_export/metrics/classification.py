"""Metrics of classes, in percent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_export.metrics.metric import Family, Metric

FAMILY = Family(
    (
        Metric("accuracy", main=True),
        Metric("unweighted_accuracy"),
        Metric("weighted_f1", main=True),
        Metric("macro_f1", main=True),
        Metric("f1", whole=False),
        # What the authors of tab report: means over batches, only in their semantics.
        Metric("batch_mean", whole=False),
    ),
    headline="weighted_f1",
)
"""`f1` is that of each class."""


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): rows are labels, columns predictions."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def measure(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Accuracy, its mean over classes, weighted and macro F1 and the F1 of each class, in percent.

    Weighted F1 is support-weighted (scikit-learn's "weighted" with zero where undefined); macro F1 averages the
    classes that occur in labels or predictions. Units labelled -1 are left out. Empty input gives an empty result.

    Args:
        names: of the classes.
        labels: class indices (units,).
        predictions: class indices (units,).
    """
    known = labels >= 0
    labels, predictions = labels[known], predictions[known]
    if not len(labels):
        return {}
    matrix = confusion_matrix(labels, predictions, len(names))
    hits, support, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    f1 = 2 * hits / np.maximum(support + predicted, 1)
    occurring = (support + predicted) > 0
    metrics = {
        "accuracy": 100 * hits.sum() / matrix.sum(),
        "unweighted_accuracy": 100 * (hits / np.maximum(support, 1))[support > 0].mean(),
        "weighted_f1": 100 * (f1 * support).sum() / support.sum(),
        "macro_f1": 100 * f1[occurring].mean(),
    }
    metrics |= {f"f1/{label}": 100 * value for label, value in zip(names, f1, strict=True)}
    return {name: float(value) for name, value in metrics.items()}
