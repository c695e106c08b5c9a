"""What a model predicts, and how its output becomes an answer for one unit (an utterance)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

HEADLINES = {"mosi": "non0_acc_2", "sims": "acc_2"}
"""The metric, in percent, that a regression is judged by, per scale."""


class Task(BaseModel):
    """A prediction task of one of two kinds.

    `classification` reads log-probabilities `(..., classes)` from `output`. `regression` reads one score `(..., 1)`,
    clipped to `limits`; `labels` then name derived classes, which end at `edges` (each edge belongs to the class below
    it), or are the nearest integers where there are no edges. `scale` names the metrics that are published for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classification", "regression"] = "classification"
    unit: str = "utterance"
    output: str = "log_prob"
    labels: tuple[str, ...]
    scale: str | None = None
    limits: tuple[float, float] = (0.0, 0.0)
    edges: tuple[float, ...] = ()

    @property
    def headline(self) -> str:
        """The name of the metric, in percent, that this task is judged by."""
        return HEADLINES[self.scale] if self.scale else "weighted_f1"

    def known(self, labels: np.ndarray) -> np.ndarray:
        """True where a unit has a label: a class from 0 on, or a score that is a number."""
        return ~np.isnan(labels) if labels.dtype.kind == "f" else labels >= 0

    def truth(self, labels: np.ndarray) -> np.ndarray:
        """Class index (int64) of each labelled unit; for scores, of the derived class."""
        return self.decide(labels[..., None]) if labels.dtype.kind == "f" else labels

    def columns(self) -> tuple[str, ...]:
        """Names of the numbers that stand beside the label of an answer."""
        return ("score",) if self.kind == "regression" else tuple(f"p/{label}" for label in self.labels)

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Class probabilities (float64) of log-probabilities `(..., classes)`."""
        return np.exp(scores.astype(np.float64))

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Class index (int64) of each unit: the arg-max, first one on a tie, or the derived class of a score."""
        if self.kind == "classification":
            return np.argmax(scores, axis=-1)
        value = np.clip(scores[..., 0], *self.limits)
        if self.edges:
            # Edges in the precision of the scores, as the published code compares them.
            return np.searchsorted(np.asarray(self.edges, dtype=value.dtype), value, side="left")
        return (np.round(value) - self.limits[0]).astype(np.int64)

    def margin(self, scores: np.ndarray) -> np.ndarray:
        """How far a decision is from the next one: top minus second score, or the distance to the nearest edge."""
        if self.kind == "classification":
            top = np.sort(scores, axis=-1)
            return top[..., -1] - top[..., -2]
        edges = np.asarray(self.edges or np.arange(self.limits[0] + 0.5, self.limits[1]))
        return np.abs(scores[..., :1] - edges).min(axis=-1)
