"""The optimiser, its schedule, and when gradients are cleared, clipped and applied.

One step per batch, or the authors' ways of accumulating.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from train.accumulation import Accumulation
from train.adamw import AdamW
from train.config import TrainConfig

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
    """Clears, clips and applies gradients between the batches of an epoch."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        accumulation: Accumulation = Accumulation(),
        clip_value: float | None = None,
    ):
        """`clip_value` bounds every single gradient value before each step."""
        self.optimizer, self.accumulation, self.clip_value = optimizer, accumulation, clip_value

    def before(self, batch: int) -> None:
        """To call before the backward pass of batch number `batch` (from 0) of an epoch."""
        if batch % self.accumulation.every == 0:
            self.optimizer.zero_grad()

    def applies(self, batch: int) -> bool:
        """Whether the gradients after batch number `batch` are applied at once."""
        return self.accumulation.after(batch) > 0

    def after(self, batch: int) -> int:
        """To call after the backward pass; returns how many optimiser steps were taken."""
        if self.clip_value is not None and self.applies(batch):
            torch.nn.utils.clip_grad_value_(self._parameters(), self.clip_value)
        steps = self.accumulation.after(batch)
        for _ in range(steps):
            self.optimizer.step()
        return steps

    def _parameters(self) -> Iterable[Tensor]:
        return (p for group in self.optimizer.param_groups for p in group["params"])
