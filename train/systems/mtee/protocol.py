"""The training step of MTEE and its baselines: one loss on the logits, positives weighted by how rare they are."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.models.mtee.base import Network
from mer_export.models.mtee.config import MteeConfig
from mer_export.task import known_units
from train.batches import Batch, host_batch
from train.model_metrics import LossMean
from train.protocol import Autocast, Protocol
from train.systems.mtee.losses import LOSSES, positive_weights, usable_weights
from train.systems.mtee.rehearsal import Memory, Rehearsed, with_old
from train.systems.mtee.settings import OLD, MteeSettings

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
    memory: Memory | None = None
    mean = LossMean(by_size=True, decimals=None)

    def check(self, model: MteeConfig) -> None:
        """Raises UsageError for a loss, semantics or a rehearsal of another task or network."""
        s, task, labels = self.settings, model.task, len(model.labels)
        if s.loss not in SUITED[task]:
            raise UsageError(f"protocol.loss {s.loss} does not fit task {task}: choose {SUITED[task]}")
        if s.semantics == "batch" and model.model != "transformer":
            raise UsageError(f"protocol.semantics batch is of the transformer, {model.variant} has single only")
        if s.rehearsal is not None and task != "multilabel":
            raise UsageError(f"protocol.rehearsal is for task multilabel, this is {task}")
        if s.rehearsal is not None and s.rehearsal.new >= labels:
            raise UsageError(f"protocol.rehearsal.new is {s.rehearsal.new}, the model has labels 0..{labels - 1}")

    def prepare(self, model: Network, samples: Sequence[Sample], device: torch.device) -> nn.Module:
        """Takes positive weights from the training split and gives the module that training calls."""
        labels = len(model.config.labels)
        weighted = self.settings.loss == "bce" and self.settings.weigh_positives
        if self.settings.rehearsal is not None:
            self.memory = Memory(self.settings.rehearsal, self.beside[OLD], labels, weighted, device)
        if weighted:
            known = [s.labels[known_units(s.labels)] for s in samples if s.labels is not None]
            self.weight = usable_weights(positive_weights(indicators(np.concatenate(known), labels))).to(device)
        return self.prepare_module(model)

    def prepare_module(self, model: nn.Module) -> nn.Module:
        """The module that training calls."""
        return InBatch(model) if self.settings.semantics == "batch" else model

    def choose(self, samples: Sequence[Sample], epoch: int) -> list[Sample]:
        """All samples; shuffled from torch's global random stream."""
        return super().choose(samples, epoch) if self.settings.shuffle else list(samples)

    def batches(self, samples: Sequence[Sample], size: int, model: Any) -> list[list[Sample]]:
        """Consecutive batches; where old samples are rehearsed, with some of those."""
        found, rule = super().batches(samples, size, model), self.settings.rehearsal
        return found if rule is None else with_old(found, self.beside[OLD], rule)

    def padded(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """Old samples too."""
        return [samples] if self.memory is None else [samples, self.memory.old]

    def collate(self, samples: Sequence[Sample], contract: Contract) -> Batch | Rehearsed:
        """A batch; of old and new samples one each."""
        if self.memory is None:
            return host_batch(samples, contract, self.padding)
        old = [s for s in samples if id(s) in self.memory.places]
        new = [s for s in samples if id(s) not in self.memory.places]
        made = [host_batch(group, contract, self.padding) if group else None for group in (new, old)]
        return Rehearsed(*made)

    def given_batches(self) -> str | None:
        """Results that depend on the batch, or samples in the order of the data."""
        if self.settings.semantics == "batch":
            return "protocol.semantics=batch, by which samples of a batch attend to each other"
        return None if self.settings.shuffle else "protocol.shuffle=false"

    def class_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The configured loss of labelled rows; classes become label indicators."""
        if labels.ndim == 1:
            labels = labels[:, None] if labels.is_floating_point() else functional.one_hot(labels, logits.shape[-1])
        return LOSSES[self.settings.loss](self.adjusted(logits), labels.to(logits.dtype), self.weight)

    def step(self, module: nn.Module, batch: Any, autocast: Autocast = nullcontext) -> dict[str, Tensor]:
        """The loss of one batch as `class_loss` and `total`; of old samples alone their own."""
        if isinstance(batch, Rehearsed):
            if batch.old is not None:
                old = self._old_loss(module, batch.old)
                if batch.new is None:
                    return {"class_loss": old, "total": old}
                assert self.memory is not None
                self.memory.remember(old, module)
            assert batch.new is not None
            batch = batch.new
        loss = self.class_loss(batch.rows(module(**batch.inputs)), batch.labels)
        return {"class_loss": loss, "total": loss}

    def _old_loss(self, module: nn.Module, batch: Batch) -> Tensor:
        assert self.memory is not None
        return self.memory.loss(self.settings.loss, batch.rows(module(**batch.inputs)), batch.labels)

    def adjust_gradients(self, model: nn.Module) -> None:
        """Turns the gradient of new samples where it goes against that of old ones (`gem`)."""
        if self.memory is not None and self.memory.settings.rule == "gem":
            self.memory.turn(model)


def indicators(labels: np.ndarray, count: int) -> np.ndarray:
    """Label indicators (units, labels) of classes; indicators stay as they are."""
    return np.eye(count, dtype=np.float32)[labels] if labels.ndim == 1 else labels
