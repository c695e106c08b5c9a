"""Metrics of sentiment scores, exactly as the public code of each paper computes them.

Shares are in percent, error and correlation are not. `acc_7` and `acc_5` compare rounded scores (half to even) clipped
to -3..3 and -2..2; names with `non0` leave out utterances whose truth is exactly 0. The correlation of a constant is
NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mer_export.metrics.metric import Family, Metric
from mer_export.metrics.tally import (
    ClassTable,
    Tally,
    accuracy,
    confusion,
    exclusive_table,
    ratio,
    weighted,
    weighted_f1,
)

METRICS = {
    m.name: m
    for m in (
        Metric("mae", "plain", "lower", main=True, written="MAE"),
        Metric("corr", "plain", main=True, written="correlation"),
        Metric("acc_7", main=True),
        Metric("acc_5", main=True),
        Metric("acc_3"),
        Metric("acc_2", main=True),
        Metric("f1"),
        Metric("has0_acc_2", main=True),
        Metric("has0_f1"),
        Metric("non0_acc_2", main=True),
        Metric("non0_f1"),
    )
}
Scores = np.ndarray
"""(units,)."""
CONSTANT = 1e-12
"""Part of the sum of squares below which a variance is rounding: scores that never change have no correlation."""


@dataclass(frozen=True)
class Cut:
    """How an accuracy makes classes of scores. A `polar` one leaves out units whose truth is exactly 0."""

    labels: tuple[str, ...]
    decide: Callable[[Scores], np.ndarray]
    polar: bool = False


def _above(scores: Scores) -> np.ndarray:
    return scores > 0


def _not_below(scores: Scores) -> np.ndarray:
    return scores >= 0


def _nearest(scores: Scores, limit: int) -> np.ndarray:
    return np.round(np.clip(scores, -limit, limit)) + limit


def _between(scores: Scores, edges: tuple[float, ...]) -> np.ndarray:
    """Each edge belongs to the class below it, so a score of 0 is negative; compared in the scores' precision."""
    return np.searchsorted(np.asarray(edges, dtype=scores.dtype), scores)


def _rounded(limit: int) -> Cut:
    return Cut(tuple(f"{n:+d}" if n else "0" for n in range(-limit, limit + 1)), partial(_nearest, limit=limit))


POLAR = Cut(("negative", "positive"), _above, polar=True)


@dataclass(frozen=True)
class Scale:
    """A published way to measure sentiment: error and correlation, accuracies by `cuts`, and the F1 of some of them.

    `decimals` rounds as the public code does.
    """

    family: Family
    cuts: Mapping[str, Cut]
    f1: Mapping[str, str]
    prepared: Callable[[Scores], Scores]
    decimals: int | None = None
    f1_by_said: bool = False
    """F1 is weighted by how often each class is predicted: the original passes predictions as truths."""


def _scale(
    headline: str, names: str, cuts: Mapping[str, Cut], prepared: Callable[[Scores], Scores], **how: Any
) -> Scale:
    f1 = {n: f"{n.removesuffix('f1')}acc_2" for n in names.split() if n.endswith("f1")}
    return Scale(Family(tuple(METRICS[name] for name in names.split()), headline), cuts, f1, prepared, **how)


SCALES: dict[str, Scale] = {
    # MOSI and MOSEI in the EMT-DLFR repository, scores in -3..3, rounded as published. `has0_*` splits at >= 0 and
    # keeps neutral utterances, `non0_*` leaves them out and splits at > 0.
    "mosi": _scale(
        "non0_acc_2",
        "mae corr acc_7 acc_5 has0_acc_2 has0_f1 non0_acc_2 non0_f1",
        {
            "acc_7": _rounded(3),
            "acc_5": _rounded(2),
            "has0_acc_2": Cut(("negative", "not negative"), _not_below),
            "non0_acc_2": POLAR,
        },
        lambda scores: scores,
        decimals=4,
    ),
    # SIMS in the EMT-DLFR repository, scores in -1..1, all of clipped scores, not rounded as published.
    "sims": _scale(
        "acc_2",
        "mae corr acc_2 acc_3 acc_5 f1",
        {
            "acc_2": Cut(("not positive", "positive"), partial(_between, edges=(0.0,))),
            "acc_3": Cut(("negative", "neutral", "positive"), partial(_between, edges=(-0.1, 0.1))),
            "acc_5": Cut(
                ("negative", "weakly negative", "neutral", "weakly positive", "positive"),
                partial(_between, edges=(-0.7, -0.1, 0.1, 0.7)),
            ),
        },
        lambda scores: np.clip(scores, -1.0, 1.0),
    ),
    # CMU-MOSI and CMU-MOSEI in MTEE's repository: both splits are at > 0, `acc_2` and `f1` keep neutral utterances.
    "mtee": _scale(
        "non0_acc_2",
        "mae corr acc_7 acc_5 acc_2 f1 non0_acc_2 non0_f1",
        {
            "acc_7": _rounded(3),
            "acc_5": _rounded(2),
            "acc_2": Cut(("not positive", "positive"), _above),
            "non0_acc_2": POLAR,
        },
        lambda scores: scores.astype(np.float64),
        f1_by_said=True,
    ),
}
"""By the scale of a task."""


@dataclass(frozen=True)
class ScoreTally(Tally):
    """Scores beside what is true of them.

    `matrices` holds (groups, true, predicted) of each cut; `moments` (groups, 7) the sums of 1, the error, x, y, x², y²
    and xy, where x are truths and y scores, each less the first one.
    """

    scale: Scale
    matrices: Mapping[str, np.ndarray]
    moments: np.ndarray

    @property
    def groups(self) -> int:  # type: ignore[override]
        return len(self.moments)

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Error and correlation, and in percent the accuracy of each cut and the F1 of some; as published."""
        units, error, *sums = np.moveaxis(weighted(weights, self.moments), -1, 0)
        matrices = {name: weighted(weights, matrix) for name, matrix in self.matrices.items()}
        found = {"mae": ratio(error, units), "corr": _correlation(units, *sums)}
        found |= {name: accuracy(matrix) for name, matrix in matrices.items()}
        for name, cut in self.scale.f1.items():
            found[name] = weighted_f1(matrices[cut].swapaxes(-1, -2) if self.scale.f1_by_said else matrices[cut])
        if self.scale.decimals is not None:
            found = {name: np.round(values, self.scale.decimals) for name, values in found.items()}
        return {m.name: (100 if m.unit == "percent" else 1) * found[m.name] for m in self.scale.family.metrics}

    def tables(self) -> list[ClassTable]:
        """One for each accuracy."""
        return [exclusive_table(n, self.scale.cuts[n].labels, m.sum(0)) for n, m in self.matrices.items()]


def tally(scale: Scale, labels: Scores, scores: Scores, group: np.ndarray, groups: int) -> ScoreTally:
    """What the metrics of a scale need of the scores of each group."""
    labels, scores = scale.prepared(labels), scale.prepared(scores)
    x, y = (v.astype(np.float64) - float(v[0]) for v in (labels, scores))
    columns = (np.ones(len(x)), np.abs(labels - scores), x, y, x * x, y * y, x * y)
    moments = np.stack([np.bincount(group, column, groups) for column in columns], axis=-1)
    matrices = {}
    for name, cut in scale.cuts.items():
        kept = labels != 0 if cut.polar else np.ones(len(labels), dtype=bool)
        truths, said = (cut.decide(v[kept]).astype(np.int64) for v in (labels, scores))
        matrices[name] = confusion(truths, said, len(cut.labels), group[kept], groups)
    return ScoreTally(scale, matrices, moments)


def _correlation(units: np.ndarray, *sums: np.ndarray) -> np.ndarray:
    """Pearson's, from the sums of x, y, x², y² and xy; NaN where either never changes."""
    x, y, xx, yy, xy = sums
    spread_x, spread_y = (units * square - total**2 for square, total in ((xx, x), (yy, y)))
    constant = (spread_x <= CONSTANT * units * xx) | (spread_y <= CONSTANT * units * yy)
    found = ratio(units * xy - x * y, np.sqrt(np.maximum(spread_x, 0) * np.maximum(spread_y, 0)))
    return np.where(constant, np.nan, found)
