"""What a model predicts, and how its output becomes an answer for one unit (an utterance)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from mer_export.contract import Contract, Table
from mer_export.errors import UsageError
from mer_export.metrics import FAMILIES, Family

orjson: Any = None
with suppress(ImportError):
    import orjson

THRESHOLD = 0.5
LABELLED = {
    "classification": "classes (data.label)",
    "multilabel": "label sets (data.label_columns) or classes (data.label)",
    "regression": "scores (data.score)",
}
"""What a task is trained and measured by, by its kind."""


class Task(BaseModel):
    """A prediction task on the scores `(..., width)` of `output`.

    `classification` reads log-probabilities or logits and chooses one label. `multilabel` reads one logit per label;
    a label holds where its probability is strictly above its threshold (`thresholds`, empty for 0.5). `regression`
    reads one score, clipped to `limits`; `labels` then name derived classes, which end at `edges` (each edge belongs
    to the class below it), or are the nearest integers where there are no edges. `features` decides nothing: its rows
    of `features` numbers are what another model reads, and there are no labels. `scale` names the metrics that are
    published for it. `unanswered` is the label that the original's evaluation counts for a unit of which there is
    nothing to read; None leaves such units out of the metrics. They get no label in any case.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classification", "multilabel", "regression", "features"] = "classification"
    unit: str = "utterance"
    output: str = "log_prob"
    labels: tuple[str, ...] = ()
    features: int = 0
    thresholds: tuple[float, ...] = ()
    scale: Literal["mosi", "sims", "mtee"] | None = None
    limits: tuple[float, float] = (0.0, 0.0)
    edges: tuple[float, ...] = ()
    unanswered: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.unanswered is not None and (self.kind != "classification" or self.unanswered not in self.labels):
            raise ValueError(f"unanswered is {self.unanswered!r}, which is none of the classes {list(self.labels)}")
        if (self.kind == "regression") != (self.scale is not None):
            raise ValueError(f"scale goes with regression and nothing else, here it is {self.scale} of {self.kind}")
        if (self.kind == "features") != bool(self.features) or (self.features and self.labels):
            raise ValueError(f"a task of kind {self.kind} has {len(self.labels)} labels and {self.features} features")
        return self

    @property
    def family(self) -> Family:
        """The metrics of this task."""
        return FAMILIES[self.scale or self.kind]

    @property
    def headline(self) -> str:
        """The name of the metric, in percent, that this task is judged by."""
        return self.family.headline

    @property
    def exclusive(self) -> bool:
        """Whether a unit has exactly one label (of a regression, the derived class)."""
        return self.kind in ("classification", "regression")

    @property
    def decides(self) -> bool:
        """Whether its answers are labels or scores; features are not."""
        return self.kind != "features"

    @property
    def width(self) -> int:
        """How many scores there are per unit."""
        return 1 if self.kind == "regression" else self.features or len(self.labels)

    def columns(self) -> tuple[str, ...]:
        """Names of the numbers that stand beside the label of an answer."""
        return ("score",) if self.kind == "regression" else tuple(f"p/{label}" for label in self.labels)

    def known(self, labels: np.ndarray) -> np.ndarray:
        """Which units (first axis) are labelled."""
        return known_units(labels)

    def refuse_others(self, labels: np.ndarray, where: str) -> None:
        """Raises UsageError, which begins with `where`, for known labels of another kind: a class is no score."""
        if not self.decides:
            return
        if labels.ndim == 2:
            fits = self.kind != "regression" and labels.shape[1] == len(self.labels)
        else:
            fits = (labels.dtype.kind == "f") == (self.kind == "regression")
        if not fits and len(labels) and self.known(labels).any():
            sets = f"sets of {labels.shape[-1]} labels" if labels.ndim == 2 else None
            given = sets or ("scores" if labels.dtype.kind == "f" else "classes")
            raise UsageError(f"{where}: the data have {given}, a {self.kind} goes by {LABELLED[self.kind]}")

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """What is true of labelled units, in the form of `decide`: class index, or 1 and 0 for each label."""
        if self.kind == "regression":
            return self.decide(labels[:, None])
        if self.kind == "multilabel":
            # Classes are label sets of which exactly one holds.
            return (
                np.eye(len(self.labels), dtype=np.int64)[labels]
                if labels.ndim == 1
                else (labels > 0.5).astype(np.int64)
            )
        # Label sets of which exactly one holds are classes too.
        return (labels.argmax(axis=-1) if labels.ndim == 2 else labels).astype(np.int64)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities (float64) of scores `(..., labels)`; a regression has none."""
        scores = scores.astype(np.float64)
        if self.kind == "multilabel":
            return 0.5 * (1.0 + np.tanh(0.5 * scores))
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """The decision (int64) on scores `(..., width)`.

        A class index (...): the arg-max, first one on a tie, or the derived class of a score. With `multilabel` 1 or 0
        for each label (..., labels); nothing (..., 0) of features.
        """
        if self.kind == "classification":
            return np.argmax(scores, axis=-1)
        if self.kind == "multilabel":
            return (scores > self.cuts).astype(np.int64)
        if not self.decides:
            return np.zeros((*scores.shape[:-1], 0), dtype=np.int64)
        value = np.clip(scores[..., 0], *self.limits)
        if self.edges:
            # Edges in the precision of the scores, as the published code compares them.
            return np.searchsorted(np.asarray(self.edges, dtype=value.dtype), value, side="left")
        return (np.round(value) - self.limits[0]).astype(np.int64)

    def decisions(self, scores: np.ndarray) -> np.ndarray:
        """The decisions as (units, n): one class index per unit, or 1 and 0 for each label."""
        found = self.decide(scores)
        return found[:, None] if self.exclusive else found

    def gold(self, labels: np.ndarray) -> list[str | float | tuple[str, ...] | None]:
        """What is true of each unit, in words: a class, a score, or the labels that hold; None where it is unknown."""
        self.refuse_others(labels, "gold")
        known = self.known(labels)
        found: list[str | float | tuple[str, ...] | None] = [None] * len(labels)
        for place, own in zip(np.flatnonzero(known), labels[known], strict=True):
            if self.kind == "regression":
                found[place] = shortest(own[None])[0]
            else:
                (truth,) = self.truth(own[None])
                found[place] = self.labels[truth] if self.exclusive else self.holding(truth)
        return found

    def holding(self, decision: np.ndarray) -> tuple[str, ...]:
        """The labels that one row of `decisions` says."""
        if self.exclusive:
            return (self.labels[int(decision[0])],)
        return tuple(n for n, d in zip(self.labels, decision, strict=True) if d)

    def word(self, decision: int, place: int) -> str:
        """What decision number `place` of a unit says, in words."""
        if self.exclusive:
            return self.labels[decision]
        return self.labels[place] if decision else f"no {self.labels[place]}"

    def unanswered_scores(self, units: int) -> np.ndarray:
        """Rows (units, width) float32 that decide as `unanswered` says; NaN, which is no decision, where it is None."""
        if self.unanswered is None:
            return np.full((units, self.width), np.nan, dtype=np.float32)
        row = np.arange(self.width) == self.labels.index(self.unanswered)
        return np.tile(row.astype(np.float32), (units, 1))

    def margin(self, scores: np.ndarray) -> np.ndarray:
        """How far a decision is from another: top minus second score, or the distance to the nearest edge or cut."""
        if self.kind == "classification":
            top = np.sort(scores, axis=-1)
            return top[..., -1] - top[..., -2]
        if self.kind == "multilabel":
            return np.abs(scores - self.cuts)
        if not self.decides:
            return np.zeros((*scores.shape[:-1], 0), dtype=scores.dtype)
        edges = np.asarray(self.edges or np.arange(self.limits[0] + 0.5, self.limits[1]))
        return np.abs(scores[..., :1] - edges).min(axis=-1)

    @property
    def cuts(self) -> np.ndarray:
        """Score of each label of a `multilabel` task above which it holds."""
        levels = np.asarray(self.thresholds or [THRESHOLD] * len(self.labels), dtype=np.float64)
        return np.log(levels / (1.0 - levels)).astype(np.float32)

    def with_labels(self, labels: tuple[str, ...]) -> Task:
        """The same task over other labels; a threshold stays with its label, new labels have the default."""
        own = dict(zip(self.labels, self.thresholds, strict=True)) if self.thresholds else {}
        kept = tuple(own.get(n, THRESHOLD) for n in labels) if own else ()
        return self.model_copy(update={"labels": labels, "thresholds": kept})


def shortest(values: np.ndarray) -> list[Any]:
    """Numbers whose digits are the fewest that tell these float32 apart; further ones would say nothing.

    As many nested lists as there are dims. `orjson` finds the same digits faster, of numbers that JSON has.
    """
    exact = np.ascontiguousarray(values, dtype=np.float32)
    if orjson and np.isfinite(exact).all():
        found: list[Any] = orjson.loads(orjson.dumps(exact, option=orjson.OPT_SERIALIZE_NUMPY))
        return found
    flat = np.asarray([float(str(v)) for v in exact.ravel()])
    return flat.reshape(exact.shape).tolist()


def known_units(labels: np.ndarray) -> np.ndarray:
    """Which units (first axis) are labelled: classes that are not negative, label sets and scores without NaN."""
    if labels.dtype.kind == "f":
        return np.asarray(~np.isnan(labels).reshape(len(labels), -1).any(axis=1))
    return np.asarray(labels >= 0)


def with_shared(contract: Contract, task: Task, name: str, table: Table) -> tuple[Contract, Task]:
    """Contract and task with other values of a shared input: where outputs score its rows, they are the labels."""
    changed = contract.with_shared(name, table)
    dim = next(s.dims[0] for s in changed.inputs if s.name == name)
    scored = next(s for s in changed.outputs if s.name == task.output).dims[-1] == dim
    return changed, task.with_labels(tuple(table)) if scored else task
