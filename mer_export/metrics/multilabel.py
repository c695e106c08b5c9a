"""Metrics of label sets, exactly as MTEE's public code computes them.

Every function but `measure` gives fractions; `measure` makes percent of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_export.metrics.metric import Family, Metric

FAMILY = Family(
    (
        Metric("weighted_accuracy", main=True),
        Metric("accuracy", main=True),
        Metric("weighted_f1", main=True),
        Metric("auc", main=True, written="AUC"),
        Metric("strict"),
        Metric("subset"),
        Metric("intersect"),
    ),
    headline="weighted_f1",
)
"""The published selection metric is `weighted_accuracy` on CMU-MOSEI, `accuracy` on IEMOCAP."""
Scores = np.ndarray
"""(units, labels) raw logits."""
Truths = np.ndarray
"""(units, labels), 1 where a label holds, else 0."""


def measure(names: Sequence[str], truths: Truths, predictions: np.ndarray, likely: np.ndarray) -> dict[str, float]:
    """Weighted and plain accuracy, weighted F1 and AUC as mean and by label, accuracies of whole label sets; percent.

    Args:
        names: of the labels.
        truths: (units, labels), 1 where a label holds, else 0.
        predictions: of the same form.
        likely: (units, labels), what the AUC ranks.
    """
    by_label = {
        "weighted_accuracy": weighted_accuracy(truths, predictions),
        "accuracy": accuracy(truths, predictions),
        "weighted_f1": weighted_f1(truths, predictions),
        "auc": roc_auc(truths, likely),
    }
    metrics = {name: float(values.mean()) for name, values in by_label.items()}
    metrics |= dict(zip(("strict", "subset", "intersect"), set_accuracy(truths, predictions), strict=True))
    for name, values in by_label.items():
        metrics |= {f"{name}/{label}": float(v) for label, v in zip(names, values, strict=True)}
    return {name: 100 * value for name, value in metrics.items()}


def weighted_accuracy(truths: Truths, predictions: np.ndarray) -> np.ndarray:
    """Mean of recall and specificity of each label; NaN where a label always or never holds."""
    positive, predicted = truths == 1, predictions == 1
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = (positive & predicted).sum(0) / positive.sum(0)
        specificity = (~positive & ~predicted).sum(0) / (~positive).sum(0)
    return (recall + specificity) / 2


def accuracy(truths: Truths, predictions: np.ndarray) -> np.ndarray:
    """Share of right decisions of each label."""
    return (truths == predictions).mean(0)


def weighted_f1(truths: Truths, predictions: np.ndarray) -> np.ndarray:
    """F1 of presence and of absence of each label, weighted by how often each is true; 0 where undefined."""
    total = np.zeros(truths.shape[1])
    for value in (0, 1):
        is_true, is_said = truths == value, predictions == value
        support = is_true.sum(0)
        f1 = 2 * (is_true & is_said).sum(0) / np.maximum(support + is_said.sum(0), 1)
        total += support * f1
    return total / len(truths)


def roc_auc(truths: Truths, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each label, ties counted half; NaN where a label always or never holds."""
    return np.asarray([_auc(t == 1, s) for t, s in zip(truths.T, scores.T, strict=True)])


def _auc(positive: np.ndarray, scores: np.ndarray) -> float:
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return float("nan")
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    return float((rank[place][positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def set_accuracy(truths: Truths, predictions: np.ndarray) -> tuple[float, float, float]:
    """Share of units whose label set is predicted exactly, as a subset, and with a common label.

    The original reads the labels in order and stops at the first wrong one: `intersect` counts a unit only if a right
    label came before it, and a unit without predictions counts in none unless it has no labels.
    """
    strict = (truths == predictions).all(1)
    said = predictions == 1
    wrong = said & (truths != 1)
    before = np.cumsum(wrong, axis=1) == 0
    hit = (said & before).any(1)
    subset = strict | (hit & ~wrong.any(1))
    return float(strict.mean()), float(subset.mean()), float((strict | hit).mean())
