"""Metrics of classes, in percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mer_export.metrics.metric import Family, Metric
from mer_export.metrics.tally import (
    ClassTable,
    Tally,
    accuracy,
    confusion,
    exclusive_table,
    f1_of,
    ratio,
    weighted,
    weighted_f1,
)

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


@dataclass(frozen=True)
class ClassTally(Tally):
    """Units by class: `matrices` (groups, true, predicted)."""

    names: tuple[str, ...]
    matrices: np.ndarray

    @property
    def groups(self) -> int:  # type: ignore[override]
        return len(self.matrices)

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Accuracy, its mean over classes, weighted and macro F1 and the F1 of each class, in percent.

        Weighted F1 is support-weighted (scikit-learn's "weighted" with zero where undefined); macro F1 averages the
        classes that occur in labels or predictions.
        """
        matrix = weighted(weights, self.matrices)
        f1, support = f1_of(matrix), matrix.sum(-1)
        hits = np.diagonal(matrix, axis1=-2, axis2=-1)
        occurring = (support + matrix.sum(-2)) > 0
        found = {
            "accuracy": accuracy(matrix),
            "unweighted_accuracy": ratio((hits / np.maximum(support, 1)).sum(-1), (support > 0).sum(-1)),
            "weighted_f1": weighted_f1(matrix),
            "macro_f1": ratio(f1.sum(-1), occurring.sum(-1)),
        }
        found |= {f"f1/{label}": f1[:, place] for place, label in enumerate(self.names)}
        return {name: 100 * values for name, values in found.items()}

    def tables(self) -> list[ClassTable]:
        """One, of the classes."""
        return [exclusive_table("labels", self.names, self.matrices.sum(0))]


def tally(
    names: Sequence[str], truths: np.ndarray, predictions: np.ndarray, group: np.ndarray, groups: int
) -> ClassTally:
    """Units by class in each group, of class indices (units,)."""
    return ClassTally(tuple(names), confusion(truths, predictions, len(names), group, groups))
