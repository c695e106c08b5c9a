"""Task metrics of a bundle on labelled samples, on any backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mer_export.data.samples import Sample
from mer_export.errors import InputError
from mer_export.metrics.measure import measure
from runtimes.predict.predictor import Predictor


class Evaluation(NamedTuple):
    """Metrics by name, in percent, and over how many labelled units.

    `left_out` have no answer and do not count. `as_original` have none either, as there is nothing of them to read, and
    count with the label that the original's evaluation gives them (`Task.unanswered`).
    """

    metrics: dict[str, float]
    units: int
    left_out: int = 0
    as_original: int = 0

    @property
    def counts(self) -> dict[str, Any]:
        """The numbers of units, as a result lists them; what is 0 is not said."""
        found = {"units": self.units, "left_out": self.left_out, "scored_as_original": self.as_original}
        return {n: v for n, v in found.items() if v or n == "units"}


def evaluate(predictor: Predictor, samples: Sequence[Sample]) -> Evaluation:
    """Metrics over all labelled units that have an answer, or that the original's evaluation counts without one.

    Raises:
        InputError: no unit has a label.
    """
    task = predictor.task
    labelled = [s for s in samples if s.labels is not None and task.known(s.labels).any()]
    if not labelled:
        raise InputError("no item of this split has labels: evaluation needs labelled data")
    empty = np.concatenate([np.full(len(s.units), not s.readable(predictor.contract)) for s in labelled])
    labels = np.concatenate([s.labels for s in labelled if s.labels is not None])
    scores = np.concatenate(predictor.scores(labelled))
    scores[empty] = task.unanswered_scores(int(empty.sum()))
    known, scored = task.known(labels), ~np.isnan(scores).any(axis=-1)
    return Evaluation(
        measure(task, labels[scored], scores[scored]),
        units=int((known & scored).sum()),
        left_out=int((known & ~scored).sum()),
        as_original=int((known & scored & empty).sum()),
    )
