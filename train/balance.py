"""Losses that do not forget rare classes: what counts of the training split make of a cross-entropy. Needs no torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Balance(BaseModel):
    """How the cross-entropy of one class per unit treats classes of different size.

    `effective_number` weighs a class by (1 - beta) / (1 - beta^n), n being its units in the training split, and divides
    by the sum of the weights of the targets (Cui et al. 2019, Class-Balanced Loss Based on Effective Number of
    Samples). `logit_adjusted` adds tau * log(n / N) to the scores of the loss alone (Menon et al. 2021, Long-Tail
    Learning via Logit Adjustment), so that answers are for classes of equal size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["none", "effective_number", "logit_adjusted"] = "none"
    beta: float = Field(0.999, ge=0, lt=1)
    """Of `effective_number`: 0 weighs all alike, towards 1 a class by 1 / n."""
    tau: float = Field(1.0, ge=0)
    """Of `logit_adjusted`: 0 adjusts nothing, 1 is for equal sizes."""

    def weights(self, counts: np.ndarray) -> list[float] | None:
        """Weights of the classes, 1 on average; of a class without units, which no target has, that of one unit."""
        if self.rule != "effective_number":
            return None
        raw = (1 - self.beta) / (1 - self.beta ** np.maximum(counts, 1).astype(np.float64))
        return [float(w) for w in raw * len(raw) / raw.sum()]

    def offsets(self, counts: np.ndarray) -> list[float] | None:
        """What is added to the score of each class; a class without units counts as one of one unit."""
        if self.rule != "logit_adjusted":
            return None
        present = np.maximum(counts, 1)
        return [float(o) for o in self.tau * np.log(present / present.sum())]
