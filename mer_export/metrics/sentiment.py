"""Metrics of sentiment scores, exactly as the public code of each paper computes them.

Shares are in percent, error and correlation are not. `acc_7` and `acc_5` compare rounded scores (half to even) clipped
to -3..3 and -2..2; names with `non0` leave out utterances whose truth is exactly 0. The correlation of a constant is
NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mer_export.metrics.metric import Family, Metric

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
SIMS_EDGES = {"acc_2": (0.0,), "acc_3": (-0.1, 0.1), "acc_5": (-0.7, -0.1, 0.1, 0.7)}
"""Class borders; each belongs to the class below it, so a score of 0 is negative."""


def mosi_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """MOSI and MOSEI in the EMT-DLFR repository, scores in -3..3, rounded as published.

    `has0_*` splits at >= 0 and keeps neutral utterances, `non0_*` leaves them out and splits at > 0.
    """
    polar = labels != 0
    found = {
        "mae": _mae(labels, scores),
        "corr": _correlation(labels, scores),
        "acc_7": _rounded(labels, scores, 3),
        "acc_5": _rounded(labels, scores, 2),
        "has0_acc_2": _share((labels >= 0) == (scores >= 0)),
        "has0_f1": _weighted_f1(labels >= 0, scores >= 0),
        "non0_acc_2": _share((labels[polar] > 0) == (scores[polar] > 0)),
        "non0_f1": _weighted_f1(labels[polar] > 0, scores[polar] > 0),
    }
    return _percent({n: round(v, 4) for n, v in found.items()})


def sims_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """SIMS in the EMT-DLFR repository, scores in -1..1, all of clipped scores, not rounded as published."""
    labels, scores = np.clip(labels, -1.0, 1.0), np.clip(scores, -1.0, 1.0)
    found = {"mae": _mae(labels, scores), "corr": _correlation(labels, scores)}
    for name, edges in SIMS_EDGES.items():
        borders = np.asarray(edges, dtype=scores.dtype)
        found[name] = _share(np.searchsorted(borders, labels) == np.searchsorted(borders, scores))
    return _percent(found | {"f1": _weighted_f1(labels > 0, scores > 0)})


def mtee_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """CMU-MOSI and CMU-MOSEI in MTEE's repository: both splits are at > 0, `acc_2` and `f1` keep neutral utterances."""
    labels, scores = labels.astype(np.float64), scores.astype(np.float64)
    found = {
        "mae": _mae(labels, scores),
        "corr": _correlation(labels, scores),
        "acc_7": _rounded(labels, scores, 3),
        "acc_5": _rounded(labels, scores, 2),
    }
    for prefix, kept in (("", np.ones(len(labels), dtype=bool)), ("non0_", labels != 0)):
        positive, said = labels[kept] > 0, scores[kept] > 0
        # The original passes predictions as truths, so F1 is weighted by how often each sign is predicted.
        found |= {f"{prefix}acc_2": _share(positive == said), f"{prefix}f1": _weighted_f1(said, positive)}
    return _percent(found)


@dataclass(frozen=True)
class Scale:
    """A published way to measure sentiment: of labels and scores (units,) the metrics of `family` by name."""

    measure: Callable[[np.ndarray, np.ndarray], dict[str, float]]
    family: Family


def _scale(measure: Callable[[np.ndarray, np.ndarray], dict[str, float]], headline: str, names: str) -> Scale:
    return Scale(measure, Family(tuple(METRICS[name] for name in names.split()), headline))


SCALES: dict[str, Scale] = {
    "mosi": _scale(mosi_metrics, "non0_acc_2", "mae corr acc_7 acc_5 has0_acc_2 has0_f1 non0_acc_2 non0_f1"),
    "sims": _scale(sims_metrics, "acc_2", "mae corr acc_2 acc_3 acc_5 f1"),
    "mtee": _scale(mtee_metrics, "non0_acc_2", "mae corr acc_7 acc_5 acc_2 f1 non0_acc_2 non0_f1"),
}
"""By the scale of a task."""


def _percent(found: dict[str, float]) -> dict[str, float]:
    return {n: 100 * value if METRICS[n].unit == "percent" else value for n, value in found.items()}


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if hits.size else float("nan")


def _rounded(labels: np.ndarray, scores: np.ndarray, limit: int) -> float:
    return _share(np.round(np.clip(labels, -limit, limit)) == np.round(np.clip(scores, -limit, limit)))


def _mae(labels: np.ndarray, scores: np.ndarray) -> float:
    return float(np.abs(labels - scores).mean())


def _correlation(labels: np.ndarray, scores: np.ndarray) -> float:
    if len(labels) < 2 or labels.std() == 0 or scores.std() == 0:
        return float("nan")
    return float(np.corrcoef(scores, labels)[0, 1])


def _weighted_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of both classes, weighted by how often each is true; a fraction."""
    if not labels.size:
        return float("nan")
    f1 = []
    for value in (False, True):
        hits = ((labels == value) & (predictions == value)).sum()
        f1.append(2 * hits / max((labels == value).sum() + (predictions == value).sum(), 1))
    share = labels.mean()
    return float((1 - share) * f1[0] + share * f1[1])
