"""Metrics of label sets, exactly as MTEE's public code computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mer_export.metrics.metric import Family, Metric
from mer_export.metrics.tally import (
    ClassTable,
    Tally,
    accuracy,
    confusion,
    independent_table,
    ratio,
    weighted,
    weighted_f1,
)

SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
ELEMENTS = 1 << 22
"""Weights of units at a time where the AUC of resamples is computed: the bound on memory."""
SETS = ("strict", "subset", "intersect")
"""Accuracies of whole label sets."""

FAMILY = Family(
    (
        Metric("weighted_accuracy", main=True),
        Metric("accuracy", main=True),
        Metric("weighted_f1", main=True),
        Metric("auc", main=True, written="AUC"),
        *map(Metric, SETS),
    ),
    headline="weighted_f1",
)
"""The published selection metric is `weighted_accuracy` on CMU-MOSEI, `accuracy` on IEMOCAP."""
Truths = np.ndarray
"""(units, labels), 1 where a label holds, else 0."""


@dataclass(frozen=True)
class LabelTally(Tally):
    """Label sets, counted for each label and as a whole.

    `counts` (groups, labels, true or not, said or not), `sets` (groups, [strict, subset, intersect, units]); the AUC
    needs the units themselves: `truths` and what it ranks, `likely` (units, labels), and the `group` of each.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    sets: np.ndarray
    truths: Truths
    likely: np.ndarray
    group: np.ndarray

    @property
    def groups(self) -> int:  # type: ignore[override]
        return len(self.counts)

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Weighted and plain accuracy, weighted F1, AUC as mean and by label, accuracies of whole label sets; percent.

        Weighted accuracy is the mean of recall and specificity; it and the AUC are NaN where a label always or never
        holds. Weighted F1 is that of presence and of absence, each as often as it is true.
        """
        counts, sets = weighted(weights, self.counts), weighted(weights, self.sets)
        share_right = ratio(np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1))
        by_label = {
            "weighted_accuracy": share_right.mean(-1),
            "accuracy": accuracy(counts),
            "weighted_f1": weighted_f1(counts),
            "auc": self._auc(weights),
        }
        found = {name: values.mean(-1) for name, values in by_label.items()}
        found |= {name: ratio(sets[:, i], sets[:, -1]) for i, name in enumerate(SETS)}
        for name, values in by_label.items():
            found |= {f"{name}/{label}": values[:, place] for place, label in enumerate(self.names)}
        return {name: 100 * values for name, values in found.items()}

    def tables(self) -> list[ClassTable]:
        """One, of each label's presence."""
        total = self.counts.sum(0)
        rows = np.stack([total[:, 1, 1], total[:, 1].sum(-1), total[:, :, 1].sum(-1), total.sum((-1, -2))], axis=-1)
        return [independent_table("labels", self.names, rows)]

    def _auc(self, weights: np.ndarray) -> np.ndarray:
        """Of some resamples at a time: each takes memory by the number of units, of which a group may have many."""
        columns = [*zip(self.truths.T == 1, self.likely.T, strict=True)]
        count = min(len(weights), 1 + len(weights) * len(self.group) // ELEMENTS)
        parts = np.array_split(weights, count)
        found = [[_auc(truth, score, part, self.group) for truth, score in columns] for part in parts]
        return np.concatenate([np.stack(part, axis=-1) for part in found])


def tally(
    names: Sequence[str],
    truths: Truths,
    predictions: np.ndarray,
    likely: np.ndarray,
    group: np.ndarray,
    groups: int,
) -> LabelTally:
    """Label sets counted in each group.

    Args:
        names: of the labels.
        truths: (units, labels), 1 where a label holds, else 0.
        predictions: of the same form.
        likely: (units, labels), what the AUC ranks.
        group: of each unit.
        groups: how many there are.
    """
    apart = [confusion(t, p, 2, group, groups) for t, p in zip(truths.T, predictions.T, strict=True)]
    sets = np.stack([np.bincount(group, found, groups) for found in _right_sets(truths, predictions)], axis=-1)
    units = np.bincount(group, minlength=groups)[:, None]
    return LabelTally(tuple(names), np.stack(apart, axis=1), np.hstack([sets, units]), truths, likely, group)


def _auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Area under the ROC curve (resamples,), ties counted half; NaN where a label always or never holds."""
    order = np.argsort(scores[~positive], kind="stable")
    ranked, drawn = scores[~positive][order], weights.astype(np.float32)
    # Whole numbers: exact in float32 up to 16 million units.
    misses = np.zeros((len(weights), len(order) + 1), dtype=np.float32)
    np.cumsum(drawn[:, group[~positive][order]], axis=1, out=misses[:, 1:])
    hits = drawn[:, group[positive]]
    below, not_above = (np.searchsorted(ranked, scores[positive], side) for side in SIDES)
    won = np.einsum("ru,ru->r", hits, misses[:, below], dtype=np.float64)
    tied = below != not_above
    won += (
        np.einsum("ru,ru->r", hits[:, tied], misses[:, not_above[tied]] - misses[:, below[tied]], dtype=np.float64) / 2
    )
    return ratio(won, hits.sum(1, dtype=np.float64) * misses[:, -1])


def _right_sets(truths: Truths, predictions: np.ndarray) -> tuple[np.ndarray, ...]:
    """Which units have their label set predicted exactly, as a subset, and with a common label.

    The original reads the labels in order and stops at the first wrong one: `intersect` counts a unit only if a right
    label came before it, and a unit without predictions counts in none unless it has no labels.
    """
    strict = (truths == predictions).all(1)
    said = predictions == 1
    wrong = said & (truths != 1)
    before = np.cumsum(wrong, axis=1) == 0
    hit = (said & before).any(1)
    subset = strict | (hit & ~wrong.any(1))
    return strict, subset, strict | hit
