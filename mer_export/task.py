"""What a model predicts, and how its output becomes an answer for one unit (an utterance)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict


class Task(BaseModel):
    """A prediction task: `classification` reads log-probabilities `(..., classes)` from `output`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["classification"] = "classification"
    unit: str = "utterance"
    output: str = "log_prob"
    labels: tuple[str, ...]

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Class probabilities (float64) of log-probabilities `(..., classes)`."""
        return np.exp(scores.astype(np.float64))

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Class index (int64) of each unit: the arg-max, first one on a tie."""
        return np.argmax(scores, axis=-1)

    def margin(self, scores: np.ndarray) -> np.ndarray:
        """How far a decision is from the next one: top minus second score."""
        top = np.sort(scores, axis=-1)
        return top[..., -1] - top[..., -2]
