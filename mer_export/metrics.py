"""Task metrics exactly as the papers compute them, from one confusion matrix."""

from __future__ import annotations

import numpy as np

from mer_export.task import Task


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts (classes, classes): rows are labels, columns predictions."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def classification_metrics(task: Task, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Accuracy, weighted and macro F1 and the F1 of each class, in percent.

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
        "weighted_f1": 100 * (f1 * support).sum() / support.sum(),
        "macro_f1": 100 * f1[occurring].mean(),
    }
    metrics |= {f"f1/{label}": 100 * value for label, value in zip(task.labels, f1, strict=True)}
    return {name: float(value) for name, value in metrics.items()}


def sentiment_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of MOSI and MOSEI, scores in -3..3: shares in percent, rounded as published.

    `acc_7` and `acc_5` compare rounded scores (half to even) clipped to -3..3 and -2..2; `has0_*` splits at >= 0 and
    keeps neutral utterances, `non0_*` leaves them out and splits at > 0. `corr` of a constant is NaN.
    """
    polar = labels != 0
    found = {
        "mae": _mae(labels, scores),
        "corr": _correlation(labels, scores),
        "acc_7": _share(np.round(np.clip(labels, -3, 3)) == np.round(np.clip(scores, -3, 3))),
        "acc_5": _share(np.round(np.clip(labels, -2, 2)) == np.round(np.clip(scores, -2, 2))),
        "has0_acc_2": _share((labels >= 0) == (scores >= 0)),
        "has0_f1": _weighted_f1(labels >= 0, scores >= 0),
        "non0_acc_2": _share((labels[polar] > 0) == (scores[polar] > 0)),
        "non0_f1": _weighted_f1(labels[polar] > 0, scores[polar] > 0),
    }
    return {n: round(v, 4) if n in SCORE_METRICS else 100 * round(v, 4) for n, v in found.items()}


SCORE_METRICS = ("mae", "corr")
"""Metrics that are no shares in percent."""
SIMS_EDGES = {"acc_2": (0.0,), "acc_3": (-0.1, 0.1), "acc_5": (-0.7, -0.1, 0.1, 0.7)}
"""Class borders; each belongs to the class below it, so a score of 0 is negative."""


def sims_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of SIMS, scores in -1..1, all of clipped scores: shares in percent, not rounded as published."""
    labels, scores = np.clip(labels, -1.0, 1.0), np.clip(scores, -1.0, 1.0)
    found = {"mae": _mae(labels, scores), "corr": _correlation(labels, scores)}
    for name, edges in SIMS_EDGES.items():
        borders = np.asarray(edges, dtype=scores.dtype)
        found[name] = 100 * _share(np.searchsorted(borders, labels) == np.searchsorted(borders, scores))
    return found | {"f1": 100 * _weighted_f1(labels > 0, scores > 0)}


SCALES = {"mosi": sentiment_metrics, "sims": sims_metrics}


def regression_metrics(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The published metrics of the task's scale; `labels` (units,), `scores` (units, 1). NaN labels are left out."""
    known = ~np.isnan(labels)
    if not known.any():
        return {}
    return SCALES[task.scale or "mosi"](labels[known], scores[known, 0].astype(labels.dtype))


def task_metrics(task: Task, labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Metrics of any task from raw output rows (units, outputs); shares in percent."""
    if task.kind == "regression":
        return regression_metrics(task, labels, scores)
    return classification_metrics(task, labels, task.decide(scores))


def area_over_rates(values: np.ndarray, step: float = 0.1) -> np.ndarray:
    """AUILC: trapezoids under the metric over the missing rate, not divided by the span of the rates.

    Args:
        values: metric values (rates, ...), first one at rate 0; published for values times 100, to one decimal.
        step: between rates.
    """
    values = np.asarray(values, dtype=np.float64)
    return step * (values[:-1] + values[1:]).sum(axis=0) / 2


def _share(hits: np.ndarray) -> float:
    return float(hits.mean()) if hits.size else float("nan")


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
