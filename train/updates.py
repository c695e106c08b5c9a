"""The optimiser, its schedule, and when gradients are cleared, clipped and applied.

One step per batch, or the authors' ways of accumulating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train.adamw import AdamW
from train.config import TrainConfig

Rule = Literal["last", "each"]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": AdamW,
    "sgd": torch.optim.SGD,
}


FUSED = ("adam", "sgd")
"""Those with one kernel for each parameter's whole update, or for all of them on a GPU; the other is made of a few."""


def make_optimizer(config: TrainConfig, params: Iterable[Any]) -> torch.optim.Optimizer:
    """The configured optimiser of parameters, or of groups of them that have a rate and a decay of their own."""
    fused = {"fused": True} if config.optimizer in FUSED else {}
    return OPTIMIZERS[config.optimizer](list(params), lr=config.lr, weight_decay=config.weight_decay, **fused)


def plateau_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> ReduceLROnPlateau | None:
    """The configured schedule, None without one."""
    if config.plateau is None:
        return None
    inner = getattr(optimizer, "optimizer", optimizer)
    return ReduceLROnPlateau(inner, mode="min", factor=config.plateau.factor, patience=config.plateau.patience)


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

    def applies(self, batch: int) -> bool:
        """Whether the gradients after batch number `batch` are applied at once."""
        return self.rule == "each" or (batch + 1) % self.every == 0

    def after(self, batch: int) -> int:
        """To call after the backward pass; returns how many optimiser steps were taken."""
        if self.clip_value is not None and self.applies(batch):
            torch.nn.utils.clip_grad_value_(self._parameters(), self.clip_value)
        full = (batch + 1) % self.every == 0
        steps = int(full) + int(self.rule == "each")
        for _ in range(steps):
            self.optimizer.step()
        return steps

    def _parameters(self) -> Iterable[Tensor]:
        return (p for group in self.optimizer.param_groups for p in group["params"])
