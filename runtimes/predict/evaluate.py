"""Answers of a bundle for labelled samples on any backend, and what they measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mer_export.data.samples import Sample
from mer_export.errors import InputError
from mer_export.metrics.measure import class_tables, measure
from mer_export.metrics.tally import ClassTable
from mer_export.task import Task
from runtimes.predict.predictor import Predictor


class Answers(NamedTuple):
    """Labelled units and what a bundle says of them: a row each of `labels`, `scores` (NaN without an answer).

    `groups` names what a unit belongs to: its dialogue or video, or itself. `empty` are units with nothing to read.
    """

    task: Task
    units: tuple[str, ...]
    groups: tuple[str, ...]
    labels: np.ndarray
    scores: np.ndarray
    empty: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Which units have a label."""
        return self.task.known(self.labels)

    @property
    def scored(self) -> np.ndarray:
        """Which units have an answer."""
        return ~np.isnan(self.scores).any(axis=-1)


class Evaluation(NamedTuple):
    """Metrics by name, in percent, and over how many labelled units.

    `left_out` have no answer and do not count. `as_original` have none either, as there is nothing of them to read, and
    count with the label that the original's evaluation gives them (`Task.unanswered`). `classes` say how each label was
    decided.
    """

    metrics: dict[str, float]
    units: int
    left_out: int = 0
    as_original: int = 0
    classes: Sequence[ClassTable] = ()

    @property
    def counts(self) -> dict[str, Any]:
        """The numbers of units, as a result lists them; what is 0 is not said."""
        found = {"units": self.units, "left_out": self.left_out, "scored_as_original": self.as_original}
        return {n: v for n, v in found.items() if v or n == "units"}


def answers(predictor: Predictor, samples: Sequence[Sample]) -> Answers:
    """What a bundle says of all labelled samples; units that the original's evaluation counts unread say that label.

    Raises:
        InputError: no unit has a label.
        UsageError: labels of another kind than the task's.
    """
    task = predictor.task
    labelled = [s for s in samples if s.labels is not None and task.known(s.labels).any()]
    if not labelled:
        raise InputError("no item of this split has labels: evaluation needs labelled data")
    for sample in labelled:
        if sample.labels is not None:
            task.refuse_others(sample.labels, sample.id)
    empty = np.concatenate([np.full(len(s.units), not s.readable(predictor.contract)) for s in labelled])
    scores = np.concatenate(predictor.scores(labelled))
    scores[empty] = task.unanswered_scores(int(empty.sum()))
    return Answers(
        task,
        units=tuple(u for s in labelled for u in s.units),
        groups=tuple(s.group or s.id for s in labelled for _ in s.units),
        labels=np.concatenate([s.labels for s in labelled if s.labels is not None]),
        scores=scores,
        empty=empty,
    )


def evaluate(predictor: Predictor, samples: Sequence[Sample]) -> Evaluation:
    """Metrics over all labelled units that have an answer, or that the original's evaluation counts without one.

    Raises:
        InputError: no unit has a label.
    """
    return evaluated(answers(predictor, samples))


def evaluated(found: Answers) -> Evaluation:
    """The same of answers."""
    task, known, scored = found.task, found.known, found.scored
    rows = (task, found.labels[scored], found.scores[scored])
    return Evaluation(
        measure(*rows),
        units=int((known & scored).sum()),
        left_out=int((known & ~scored).sum()),
        as_original=int((known & scored & found.empty).sum()),
        classes=class_tables(*rows),
    )
