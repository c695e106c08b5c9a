"""What the training loop asks of a system's protocol, with the plain answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mer_export.contract import Contract, Semantics
from mer_export.data.samples import Corpus, Sample
from mer_export.task import Task, known_units
from mer_export.untrusted.places import Reach
from train.balance import Balance
from train.batches import host_batch, in_batches
from train.config import TrainConfig
from train.model_metrics import LossMean, evaluate_model
from train.padding import FromSamples, Padding
from train.updates import Updates, make_optimizer

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class AuxiliaryPass:
    """What a pass over other data needs: where in the run it stands, and the loop's own means."""

    epoch: int
    epochs: int
    optimizer: Any
    device: torch.device
    autocast: Autocast
    backward: Callable[[Tensor], None]
    """Gradients of a loss, averaged over processes."""
    share: Callable[[list[Any]], list[Any]]
    """Of the first process's batches those of this process; the same number in every process."""


@dataclass(frozen=True)
class Before:
    """What a protocol can work with before its run: the data, and a way to train a first model on `samples`.

    `reach` says where paths lead that settings name. `train` takes what the progress calls it, protocol settings, and a
    number of epochs.
    """

    data: Path
    reach: Reach
    dataset: str | None
    samples: Sequence[Sample]
    train: Callable[[str, Any, int], nn.Module]


class Protocol(ABC):
    """One training run of one system. A subclass gives `prepare`, `step` and whatever else it does its own way."""

    mean = LossMean()
    """How the loss of a measured split is made from those of its batches."""

    def __init__(self, settings: Any, difficulty: Mapping[str, float] | None = None):
        """`settings` is the checked `protocol:` section; `difficulty` (item id to value) is for a curriculum."""
        self.settings = settings
        self.difficulty = difficulty
        self.weight: Tensor | None = None
        """Class weights of the loss, kept in the bundle's provenance."""
        self.offset: Tensor | None = None
        """What the loss adds to the scores of each class (`balance`), kept there too."""
        self.beside: Mapping[str, Sequence[Sample]] = {}
        """The splits that the settings name beside the training split."""
        self.padding: Padding = FromSamples()
        """Where the inputs of batches come from."""

    def check(self, model: Any) -> None:  # noqa: B027
        """Raises UsageError where the settings are of another network; `model` is the checked `model:` section."""

    def find_difficulty(self, before: Before) -> dict[str, float] | None:
        """Item id to value, which the constructor of the run's protocol gets and the bundle keeps; None needs none."""
        return None

    def views(self, corpus: Corpus, model: Any) -> Corpus:
        """The data set as training and measuring see it; `model` is the checked `model:` section."""
        return corpus

    @abstractmethod
    def prepare(self, model: Any, samples: Sequence[Sample], device: torch.device) -> nn.Module:
        """Takes what it needs from the training split and gives the module that training calls."""

    def updates(self, model: Any, config: TrainConfig) -> Updates:
        """The optimiser and how gradients are accumulated."""
        return Updates(make_optimizer(config, model.parameters()))

    def set_class_weights(self, weights: Sequence[float] | None, device: torch.device) -> None:
        """Weights of the loss by class or label; None weighs all alike."""
        self.weight = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)

    def set_class_offsets(self, offsets: Sequence[float] | None, device: torch.device) -> None:
        """What the loss adds to the scores of each class; None leaves them."""
        self.offset = None if offsets is None else torch.tensor(offsets, dtype=torch.float32, device=device)

    def balance(self, rule: Balance, samples: Sequence[Sample], model: Any, device: torch.device) -> None:
        """Takes weights or offsets of the classes from the training split."""
        if rule.rule == "none":
            return
        known = np.concatenate([s.labels[known_units(s.labels)] for s in samples if s.labels is not None])
        counts = np.bincount(known if known.ndim == 1 else known.argmax(axis=1), minlength=len(model.config.labels))
        self.set_class_weights(rule.weights(counts), device)
        self.set_class_offsets(rule.offsets(counts), device)

    def adjusted(self, scores: Tensor) -> Tensor:
        """Scores (rows, classes) as the loss sees them: as they are, or as adjusted log-probabilities."""
        return scores if self.offset is None else functional.log_softmax(scores + self.offset, dim=-1)

    def choose(self, samples: Sequence[Sample], epoch: int) -> list[Sample]:
        """The items of one epoch in their order."""
        return [samples[i] for i in torch.randperm(len(samples)).tolist()]

    def batches(self, samples: Sequence[Sample], size: int, model: Any) -> list[list[Sample]]:
        """Consecutive batches; `model` is the checked `model:` section."""
        return list(in_batches(samples, size))

    def batches_each(self, samples: Sequence[Sample], size: int, model: Any, processes: int) -> int:
        """How many batches of an epoch over these samples each process has."""
        return -(-len(self.batches(samples, size, model)) // processes)

    def given_batches(self) -> str | None:
        """The setting by which it matters what stands in a batch together, in words; None where there is none."""
        return None

    def padded(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """What batches of these samples are padded from."""
        return [samples]

    def begin_epoch(self, model: Any, epoch: int) -> None:  # noqa: B027
        """Called before every epoch (from 0)."""

    def auxiliary_pass(self, model: Any, run: AuxiliaryPass) -> dict[str, float]:
        """A pass over other data before an epoch's own, in training mode; its losses by name."""
        return {}

    def collate(self, samples: Sequence[Sample], contract: Contract) -> Any:
        """A batch on the host, made ahead of its step: no random numbers here, they belong into `vary`."""
        return host_batch(samples, contract, self.padding)

    def vary(self, batch: Any) -> Any:
        """What `step` gets of a batch on the device: the place for noise and random changes."""
        return batch

    @abstractmethod
    def step(self, module: nn.Module, batch: Any, autocast: Autocast = nullcontext) -> dict[str, Tensor]:
        """Losses of one batch by name, and their `total`."""

    @abstractmethod
    def class_loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """The loss of predictions alone, for evaluation."""

    def published_metrics(self, scores: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, float]:
        """Further metrics that the authors report, from the rows of each batch; only with `batch` semantics."""
        return {}

    def adjust_gradients(self, model: nn.Module) -> None:  # noqa: B027
        """Called after the backward pass of a step, before clipping."""

    def end_epoch(self, record: Mapping[str, Any], model: nn.Module, optimizer: Any, passed: bool) -> None:  # noqa: B027
        """Called after every epoch with its record; after a resume again for all epochs that have `passed` before.

        `passed` is False for the epoch that the loaded tensors come from.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What else resuming needs."""
        return {}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027
        """Takes back what `tensors` gave."""

    def measured(self, model: Any) -> Any:
        """What evaluation calls: the model, or something with its answers that does less work."""
        return model

    def evaluate(self, model: Any, samples: Sequence[Sample], contract: Contract, task: Task) -> dict[str, float]:
        """Metrics after an epoch, with the semantics that are being trained."""
        semantics: Semantics = getattr(self.settings, "semantics", "single")
        return evaluate_model(
            self.measured(model),
            samples,
            contract,
            task,
            semantics=semantics,
            class_loss=self.class_loss,
            mean=self.mean,
            published=self.published_metrics,
            padding=self.padding,
        ).metrics
