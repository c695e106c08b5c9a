"""What a candidate costs in the task's metrics, and what of that chance explains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mer_export.agreement.answers import Compared
from mer_export.bundle import Strict
from mer_export.metrics.measure import measure
from mer_export.task import Task


class MetricDifference(Strict):
    """A task metric in points, and the 95 % interval of `difference` over resampled samples."""

    metric: str
    reference: float
    candidate: float
    difference: float
    low: float | None = None
    high: float | None = None


def metric_differences(
    items: Sequence[Compared], task: Task, seed: int = 0, rounds: int = 500
) -> list[MetricDifference]:
    """Task metrics of reference and candidate, with a bootstrap interval that resamples whole samples.

    Whole samples, because utterances of one dialogue are not independent.
    Identical decisions need no resampling: the interval is exactly 0.
    """
    labelled = [i for i in items if i.real and i.sample.labels is not None and task.known(i.sample.labels).any()]
    if not labelled:
        return []
    labels = [np.asarray(i.sample.labels) for i in labelled]
    reference, candidate = (list(side) for side in zip(*(i.scores(task) for i in labelled), strict=True))

    def measured(which: Sequence[int], scores: list[np.ndarray]) -> dict[str, float]:
        found = measure(task, np.concatenate([labels[i] for i in which]), np.concatenate([scores[i] for i in which]))
        return {name: value for name, value in found.items() if np.isfinite(value)}

    everything = range(len(labelled))
    a, b = measured(everything, reference), measured(everything, candidate)
    # An AUC moves where no decision does; that needs no interval.
    same = all(
        np.array_equal(_decisive(x, task), _decisive(y, task)) for x, y in zip(reference, candidate, strict=True)
    )
    drawn = {} if same else _resampled(measured, len(labelled), reference, candidate, seed, rounds)
    return [
        MetricDifference(
            metric=name,
            reference=a[name],
            candidate=b[name],
            difference=b[name] - a[name],
            low=0.0 if same else float(np.nanquantile(drawn[name], 0.025)),
            high=0.0 if same else float(np.nanquantile(drawn[name], 0.975)),
        )
        for name in a
        if name in b and (same or name in drawn)
    ]


def _decisive(scores: np.ndarray, task: Task) -> np.ndarray:
    """What metrics depend on: the decisions, or the scores of a regression."""
    return scores if task.kind == "regression" else task.decide(scores)


def _resampled(
    measure: Callable[[Sequence[int], list[np.ndarray]], dict[str, float]],
    samples: int,
    reference: list[np.ndarray],
    candidate: list[np.ndarray],
    seed: int,
    rounds: int,
) -> dict[str, list[float]]:
    random = np.random.default_rng(seed)
    differences: dict[str, list[float]] = {}
    for _ in range(rounds):
        which = random.integers(0, samples, samples).tolist()
        a, b = measure(which, reference), measure(which, candidate)
        for name in a.keys() & b.keys():
            differences.setdefault(name, []).append(b[name] - a[name])
    return differences
