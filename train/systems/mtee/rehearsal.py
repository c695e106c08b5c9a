"""Old samples beside few new ones: joint training and gradient episodic memory, as branch `fsl` of MTEE does them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from train.batches import Batch
from train.systems.mtee.losses import LOSSES, positive_weights, usable_weights
from train.systems.mtee.settings import Rehearsal

DAMPING = 1e-3
ALMOST_ONE = 1 + 1e-7
"""As the public code has them: the square of the old gradient is damped, the margin divided."""


@dataclass(frozen=True)
class Rehearsed:
    """What a step sees: new samples, old ones, or both."""

    new: Batch | None
    old: Batch | None


def with_old(batches: Sequence[list[Sample]], old: Sequence[Sample], settings: Rehearsal) -> list[list[Sample]]:
    """Batches of new samples with old ones that are drawn: before each (`joint`), or in each (`gem`)."""
    found: list[list[Sample]] = []
    for batch in batches:
        drawn = [old[i] for i in torch.randperm(len(old))[: settings.batch].tolist()]
        found += [drawn, batch] if settings.rule == "joint" else [drawn + batch]
    return found


class Memory:
    """The old samples of a run, their loss, and their last gradient."""

    def __init__(self, settings: Rehearsal, old: Sequence[Sample], labels: int, weighted: bool, device: torch.device):
        """Raises UsageError in one of several processes."""
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise UsageError("protocol.rehearsal takes its steps in turn: train it in one process")
        self.settings, self.old = settings, old
        self.places = {id(s) for s in old}
        columns = [i for i in range(labels) if i != settings.new]
        self.columns = torch.tensor(columns, device=device)
        self.weight: Tensor | None = None
        if weighted:
            known = np.concatenate([s.labels for s in old if s.labels is not None])
            self.weight = usable_weights(positive_weights(known[:, columns])).to(device)
        self.gradient: list[Tensor | None] = []

    def loss(self, loss: str, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of old samples, over the labels that are not new."""
        targets = labels.to(logits.dtype).index_select(1, self.columns)
        return LOSSES[loss](logits.index_select(1, self.columns), targets, self.weight)

    def remember(self, loss: Tensor, model: nn.Module) -> None:
        """Takes the gradient of old samples, which `turn` holds against that of new ones."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradient = list(torch.autograd.grad(loss, parameters, allow_unused=True))

    def turn(self, model: nn.Module) -> None:
        """Adds so much of the old gradient that the new one no longer goes against it."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        pairs = [
            (p.grad, m) for p, m in zip(parameters, self.gradient, strict=True) if p.grad is not None and m is not None
        ]
        agreement = sum((g * m).sum() for g, m in pairs)
        if agreement >= 0:
            return
        square = sum((m * m).sum() for _, m in pairs)
        share = max(float(-agreement / (square + DAMPING)), self.settings.margin / ALMOST_ONE)
        for g, m in pairs:
            g.add_(m, alpha=share)
