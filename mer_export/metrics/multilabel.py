"""Metrics of label sets, exactly as MTEE's public code computes them.

Everything here is a fraction; `measure` in `mer_export.metrics.measure` makes percent of it.
"""

from __future__ import annotations

import numpy as np

Scores = np.ndarray
"""(units, labels) raw logits."""
Truths = np.ndarray
"""(units, labels), 1 where a label holds, else 0."""


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
