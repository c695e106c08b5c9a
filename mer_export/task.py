"""What a model predicts, and how its output becomes an answer for one unit (an utterance)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from mer_export.contract import Contract, Table

THRESHOLD = 0.5


class Task(BaseModel):
    """A prediction task on the scores `(..., classes)` of `output`.

    `classification` reads log-probabilities or logits and chooses one label. `multilabel` reads one logit per label;
    a label holds where its probability is strictly above its threshold (`thresholds`, empty for 0.5). `regression`
    reads one value per label; its decision is whether the value is above 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classification", "multilabel", "regression"] = "classification"
    unit: str = "utterance"
    output: str = "log_prob"
    labels: tuple[str, ...]
    thresholds: tuple[float, ...] = ()

    @property
    def exclusive(self) -> bool:
        """Whether a unit has exactly one label."""
        return self.kind == "classification"

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities (float64) of scores `(..., classes)`; the values themselves for regression."""
        scores = scores.astype(np.float64)
        if self.kind == "multilabel":
            return 0.5 * (1.0 + np.tanh(0.5 * scores))
        if self.kind == "regression":
            return scores
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """The decision (int64): class index (...) by arg-max, first on a tie; else 1 or 0 for each label (..., n)."""
        if self.exclusive:
            return np.argmax(scores, axis=-1)
        return (scores > self.cuts).astype(np.int64)

    def decisions(self, scores: np.ndarray) -> np.ndarray:
        """The decisions as (units, n): one class index per unit, or 1 and 0 for each label."""
        found = self.decide(scores)
        return found[:, None] if self.exclusive else found

    def holding(self, decision: np.ndarray) -> tuple[str, ...]:
        """The labels that one row of `decisions` says; none for regression."""
        if self.exclusive:
            return (self.labels[int(decision[0])],)
        return tuple(n for n, d in zip(self.labels, decision, strict=True) if d) if self.kind == "multilabel" else ()

    def word(self, decision: int, place: int) -> str:
        """What decision number `place` of a unit says, in words."""
        if self.exclusive:
            return self.labels[decision]
        if self.kind == "regression":
            return f"{self.labels[place]} {'above' if decision else 'not above'} 0"
        return self.labels[place] if decision else f"no {self.labels[place]}"

    def margin(self, scores: np.ndarray) -> np.ndarray:
        """How far a decision is from the other one: top minus second score, or distance to the threshold's score."""
        if not self.exclusive:
            return np.abs(scores - self.cuts)
        top = np.sort(scores, axis=-1)
        return top[..., -1] - top[..., -2]

    @property
    def cuts(self) -> np.ndarray:
        """Score of each label above which it holds."""
        if self.kind == "regression":
            return np.zeros(len(self.labels), dtype=np.float32)
        levels = np.asarray(self.thresholds or [THRESHOLD] * len(self.labels), dtype=np.float64)
        return np.log(levels / (1.0 - levels)).astype(np.float32)

    def known(self, labels: np.ndarray) -> np.ndarray:
        """Which units (first axis) are labelled."""
        return known_units(labels)

    def with_labels(self, labels: tuple[str, ...]) -> Task:
        """The same task over other labels; a threshold stays with its label, new labels have the default."""
        own = dict(zip(self.labels, self.thresholds, strict=True)) if self.thresholds else {}
        kept = tuple(own.get(n, THRESHOLD) for n in labels) if own else ()
        return self.model_copy(update={"labels": labels, "thresholds": kept})


def known_units(labels: np.ndarray) -> np.ndarray:
    """Which units (first axis) are labelled: classes that are not negative, label sets and values without NaN."""
    if labels.dtype.kind == "f":
        return np.asarray(~np.isnan(labels).reshape(len(labels), -1).any(axis=1))
    return np.asarray(labels >= 0)


def with_shared(contract: Contract, task: Task, name: str, table: Table) -> tuple[Contract, Task]:
    """Contract and task with other values of a shared input: where outputs score its rows, they are the labels."""
    changed = contract.with_shared(name, table)
    dim = next(s.dims[0] for s in changed.inputs if s.name == name)
    scored = next(s for s in changed.outputs if s.name == task.output).dims[-1] == dim
    return changed, task.with_labels(tuple(table)) if scored else task
