"""What a candidate costs in the task's metrics, and what of that chance explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mer_export.agreement.answers import Compared
from mer_export.bundle import Strict
from mer_export.metrics.measure import tally
from mer_export.metrics.resampling import bootstrap, interval
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
    labels = np.concatenate([np.asarray(i.sample.labels) for i in labelled])
    sides = [np.concatenate(side) for side in zip(*(i.scores(task) for i in labelled), strict=True)]
    group = np.repeat(np.arange(len(labelled)), [len(i.sample.units) for i in labelled])
    tallies = [t for side in sides if (t := tally(task, labels, side, group, len(labelled)))]
    a, b = (t.measured() for t in tallies)
    # An AUC moves where no decision does; that needs no interval.
    first, second = (_decisive(side, task) for side in sides)
    same = np.array_equal(first, second)
    drawn = [] if same else bootstrap(tallies, rounds, seed)
    ends = {n: (0.0, 0.0) if same else interval(drawn[1][n] - drawn[0][n]) for n in a}
    return [
        MetricDifference(
            metric=name,
            reference=a[name],
            candidate=b[name],
            difference=b[name] - a[name],
            low=ends[name][0],
            high=ends[name][1],
        )
        for name in a
        if np.isfinite([a[name], b[name], *ends[name]]).all()
    ]


def _decisive(scores: np.ndarray, task: Task) -> np.ndarray:
    """What metrics depend on: the decisions, or the scores of a regression."""
    return scores if task.kind == "regression" else task.decide(scores)
