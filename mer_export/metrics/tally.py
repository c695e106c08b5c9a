"""What metrics are made of: sums over groups of units, from which the metrics of any resample of groups follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

HEADER = ("label", "support", "predicted", "right", "precision", "recall", "F1")


class ClassRow(BaseModel):
    """How one label was decided. Shares in percent, 0 where undefined as in scikit-learn; recall is class accuracy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    support: int
    """Units of which it is true."""
    predicted: int
    """Units of which it was said."""
    right: int
    """Units of both."""
    precision: float
    recall: float
    f1: float
    accuracy: float | None = None
    """Share of units rightly said to have it or not, where each label is decided apart."""

    def cells(self) -> tuple[str, ...]:
        """The row as text, under `HEADER`, and under `accuracy` where it has one."""
        shares = (self.precision, self.recall, self.f1, *([] if self.accuracy is None else [self.accuracy]))
        return (self.label, *map(str, (self.support, self.predicted, self.right)), *(f"{s:.2f}" for s in shares))


class ClassTable(BaseModel):
    """One way in which units are decided: classes, label sets, or the classes that an accuracy makes of scores."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """`labels`, or the accuracy that these are the classes of."""
    rows: tuple[ClassRow, ...]
    matrix: tuple[tuple[int, ...], ...] | None = None
    """Units by label: row = true, column = predicted. None where a unit has any number of labels."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in order."""
        return tuple(r.label for r in self.rows)

    def header(self) -> tuple[str, ...]:
        """Headings of its rows' cells."""
        return HEADER if self.matrix is not None else (*HEADER, "accuracy")


def exclusive_table(name: str, labels: Sequence[str], matrix: np.ndarray) -> ClassTable:
    """The table of classes of which a unit has exactly one, from counts (true, predicted)."""
    rows = [_row(*given) for given in zip(labels, matrix.sum(1), matrix.sum(0), np.diag(matrix), strict=True)]
    return ClassTable(name=name, rows=tuple(rows), matrix=tuple(tuple(map(int, r)) for r in matrix))


def independent_table(name: str, labels: Sequence[str], counts: np.ndarray) -> ClassTable:
    """The table of labels that are decided apart, from counts (labels, [right, support, predicted, units])."""
    rows = [
        _row(label, support, predicted, right, units)
        for label, (right, support, predicted, units) in zip(labels, counts, strict=True)
    ]
    return ClassTable(name=name, rows=tuple(rows))


def _row(label: str, support: int, predicted: int, right: int, units: int | None = None) -> ClassRow:
    return ClassRow(
        label=label,
        support=int(support),
        predicted=int(predicted),
        right=int(right),
        precision=_percent(right, predicted),
        recall=_percent(right, support),
        f1=_percent(2 * right, support + predicted),
        accuracy=None if units is None else _percent(units - support - predicted + 2 * right, units),
    )


def _percent(part: int, whole: int) -> float:
    return round(100 * int(part) / max(int(whole), 1), 2)


class Tally(ABC):
    """Sums over each group of units. Units of a group are drawn together: those of a dialogue are not independent."""

    groups: int

    @abstractmethod
    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics (resamples,) where each group counts `weights` (resamples, groups) times.

        NaN where a metric does not exist.
        """

    @abstractmethod
    def tables(self) -> list[ClassTable]:
        """How every label was decided, over all groups."""

    def measured(self) -> dict[str, float]:
        """The metrics where every group counts once."""
        return {name: float(values[0]) for name, values in self.metrics(np.ones((1, self.groups))).items()}


def confusion(truths: np.ndarray, predictions: np.ndarray, classes: int, group: np.ndarray, groups: int) -> np.ndarray:
    """Counts (groups, classes, classes): rows are labels, columns predictions."""
    cell = (group * classes + truths) * classes + predictions
    return np.bincount(cell, minlength=groups * classes * classes).reshape(groups, classes, classes)


def weighted(weights: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Sums (resamples, ...) of `sums` (groups, ...) where each group counts `weights` (resamples, groups) times."""
    return np.tensordot(weights, sums.astype(np.float64), axes=1)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where there is nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = np.where(whole > 0, part / whole, np.nan)
    return found


def f1_of(matrix: np.ndarray) -> np.ndarray:
    """F1 (..., classes) of counts (..., true, predicted), a fraction; 0 where undefined."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    found: np.ndarray = 2 * hits / np.maximum(matrix.sum(-1) + matrix.sum(-2), 1)
    return found


def weighted_f1(matrix: np.ndarray) -> np.ndarray:
    """F1 (...) of counts (..., true, predicted) as mean over classes, each as often as it is true; a fraction."""
    support = matrix.sum(-1)
    return ratio((f1_of(matrix) * support).sum(-1), support.sum(-1))


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Share (...) of right units in counts (..., true, predicted)."""
    return ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-1, -2)))
