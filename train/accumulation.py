"""When the gradients of an epoch's batches are applied; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rule = Literal["last", "each"]


@dataclass(frozen=True)
class Accumulation:
    """Gradients of `every` consecutive batches of an epoch add up (they are not averaged).

    With rule `last` the sum is applied once, after the last batch of a group; batches left over at the end of an epoch
    are never applied (EMT-DLFR). With `each` the running sum is applied after every batch, and once more after the last
    one of a group (TFR-Net and MulT in that repository).
    """

    every: int = 1
    rule: Rule = "last"

    def after(self, batch: int) -> int:
        """How many optimiser steps follow batch number `batch` (from 0) of an epoch."""
        return self.steps(batch + 1) - self.steps(batch)

    def steps(self, batches: int) -> int:
        """The optimiser steps of an epoch of so many batches."""
        return batches // self.every + self._running(batches)

    def planned(self, batches: int) -> float:
        """The steps of a whole run, by which a schedule is planned: a published recipe divides without rounding."""
        return batches / self.every + self._running(batches)

    def _running(self, batches: int) -> int:
        return batches if self.rule == "each" else 0
