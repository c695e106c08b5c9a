"""The training step of MTEE and its baselines: one loss on the logits, positives weighted by how rare they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.models.mtee.base import Network
from mer_export.task import known_units
from train.batches import Batch
from train.model_metrics import LossMean
from train.protocol import Autocast, Protocol
from train.systems.mtee.losses import LOSSES, positive_weights, usable_weights
from train.systems.mtee.settings import MteeSettings

SUITED = {"multilabel": ("bce", "ce", "l1", "mse"), "classification": ("ce", "bce"), "regression": ("l1", "mse")}
"""Losses by task; the original has no class weights for sentiment, so no bce there."""


class InBatch(nn.Module):
    """What training calls in `batch` semantics."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model.in_batch(**inputs)  # type: ignore[operator]


class MteeProtocol(Protocol):
    """One training run's loss and order of samples."""

    settings: MteeSettings
    mean = LossMean(by_size=True, decimals=None)

    def prepare(self, model: Network, samples: Sequence[Sample], device: torch.device) -> nn.Module:
        """Takes positive weights from the training split and gives the module that training calls."""
        task, labels = model.config.task, len(model.config.labels)
        if self.settings.loss not in SUITED[task]:
            raise UsageError(f"protocol.loss {self.settings.loss} does not fit task {task}: choose {SUITED[task]}")
        if self.settings.semantics == "batch" and not hasattr(model, "in_batch"):
            raise UsageError(f"protocol.semantics batch is of the transformer, {model.config.variant} has single only")
        if self.settings.loss == "bce" and self.settings.weigh_positives:
            known = [s.labels[known_units(s.labels)] for s in samples if s.labels is not None]
            self.weight = usable_weights(positive_weights(indicators(np.concatenate(known), labels))).to(device)
        return self.prepare_module(model)

    def prepare_module(self, model: nn.Module) -> nn.Module:
        """The module that training calls."""
        return InBatch(model) if self.settings.semantics == "batch" else model

    def choose(self, samples: Sequence[Sample], epoch: int) -> list[Sample]:
        """All samples; shuffled from torch's global random stream."""
        return super().choose(samples, epoch) if self.settings.shuffle else list(samples)

    def given_batches(self) -> str | None:
        """Results that depend on the batch, or samples in the order of the data."""
        if self.settings.semantics == "batch":
            return "protocol.semantics=batch, by which samples of a batch attend to each other"
        return None if self.settings.shuffle else "protocol.shuffle=false"

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The configured loss of labelled rows; classes become label indicators."""
        if labels.ndim == 1:
            labels = labels[:, None] if labels.is_floating_point() else functional.one_hot(labels, logits.shape[-1])
        return LOSSES[self.settings.loss](logits, labels.to(logits.dtype), self.weight)

    def step(self, module: nn.Module, batch: Batch, autocast: Autocast = nullcontext) -> dict[str, Tensor]:
        """The loss of one batch as `class_loss` and `total`."""
        loss = self.class_loss(batch.rows(module(**batch.inputs)), batch.labels)
        return {"class_loss": loss, "total": loss}


def indicators(labels: np.ndarray, count: int) -> np.ndarray:
    """Label indicators (units, labels) of classes; indicators stay as they are."""
    return np.eye(count, dtype=np.float32)[labels] if labels.ndim == 1 else labels
