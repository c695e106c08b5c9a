"""When gradients are cleared, clipped and applied: one step per batch, or the authors' ways of accumulating."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["last", "each"]


class Updates:
    """Gradients of `every` consecutive batches of an epoch add up (they are not averaged).

    With rule `last` the sum is applied once, after the last batch of a group; batches left over at the end of an epoch
    are never applied (EMT-DLFR). With `each` the running sum is applied after every batch, and once more after the last
    one of a group (TFR-Net and MulT in that repository).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        every: int = 1,
        rule: Rule = "last",
        clip_value: float | None = None,
    ):
        """`clip_value` bounds every single gradient value before each step."""
        self.optimizer, self.every, self.rule, self.clip_value = optimizer, every, rule, clip_value

    def before(self, batch: int) -> None:
        """To call before the backward pass of batch number `batch` (from 0) of an epoch."""
        if batch % self.every == 0:
            self.optimizer.zero_grad()

    def after(self, batch: int) -> int:
        """To call after the backward pass; returns how many optimiser steps were taken."""
        if self.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self._parameters(), self.clip_value)
        full = (batch + 1) % self.every == 0
        steps = int(full) + int(self.rule == "each")
        for _ in range(steps):
            self.optimizer.step()
        return steps

    def _parameters(self) -> Iterable[Tensor]:
        return (p for group in self.optimizer.param_groups for p in group["params"])
