"""The newbob schedule as the authors wrote it: halve the rate as soon as the metric gains too little."""

from __future__ import annotations

from dataclasses import dataclass

THRESHOLD = 0.001
RAMP_FROM = 20
"""Steps before which the rate is halved without falling into a steady decline."""


@dataclass
class Newbob:
    """State after each `step`; `best_step` counts from 1."""

    lr: float
    threshold: float = THRESHOLD
    ramp_from: int = RAMP_FROM
    best: float = 0.0
    best_step: int = 0
    steps: int = 0
    ramping: bool = False

    def step(self, metric: float) -> float:
        """Takes the metric of an epoch, more is better, and returns the rate of the next."""
        self.steps += 1
        gain = metric - self.best
        if gain > 0 or self.steps == 1:
            self.best, self.best_step = metric, self.steps
        if self.ramping:
            self.lr /= 2
        elif gain < self.threshold:
            self.lr /= 2
            self.ramping = self.steps >= self.ramp_from
        return self.lr
