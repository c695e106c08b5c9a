"""The training step of CMERC and M3NET: class loss, calibration against degraded views, contrast, curriculum."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mer_export.bundle import Bundle
from mer_export.contract import Semantics
from mer_export.data.samples import Sample
from mer_export.errors import UsageError
from mer_export.layers.recurrent import in_one_piece
from mer_export.models.cmerc.config import CmercConfig
from mer_export.models.cmerc.network import Cmerc
from train.batches import Batch, for_batch_norm
from train.protocol import Before, Protocol
from train.systems.cmerc import curriculum, losses
from train.systems.cmerc.difficulty import find_difficulty, measure_difficulty, read_difficulty
from train.systems.cmerc.settings import CmercSettings
from train.systems.cmerc.views import degraded


class Stepped(nn.Module):
    """What training calls: features and log-probabilities in one forward, so that wrappers see a single call."""

    def __init__(self, model: Cmerc, semantics: Semantics):
        super().__init__()
        self.model = model
        self.semantics = semantics

    def forward(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Features (batch, utterances, features) and log-probabilities (batch, utterances, classes)."""
        features = self.model.features(**inputs, semantics=self.semantics)
        return features, self.model.classify(features, inputs["lengths"])


class CmercProtocol(Protocol):
    """One training run's losses and choice of dialogues."""

    def __init__(self, settings: CmercSettings, difficulty: Mapping[str, float] | None = None):
        """`difficulty` (dialogue id to value) is needed with a curriculum."""
        super().__init__(settings, difficulty)
        self.frozen: Cmerc | None = None

    def check(self, model: CmercConfig) -> None:
        """Raises UsageError for class frequencies of other labels."""
        given = self.settings.class_frequencies
        if isinstance(given, tuple) and len(given) != len(model.labels):
            raise UsageError(
                f"protocol.class_frequencies has {len(given)} values, the model has {len(model.labels)} labels"
            )

    def find_difficulty(self, before: Before) -> dict[str, float] | None:
        """Difficulties for the curriculum: from a file, or measured with a plain model, trained first or a bundle."""
        rule = self.settings.curriculum
        if rule is None:
            return None
        if rule.difficulty == "measure":
            plain = before.train("plain model for difficulties", self.settings.plain(), rule.measure_epochs)
            return measure_difficulty(plain, before.samples)
        if rule.difficulty == "file":
            return read_difficulty(find_difficulty(before.data, before.dataset))
        path = before.reach.path(rule.difficulty, "protocol.curriculum.difficulty")
        if path.is_dir():
            return measure_difficulty(Bundle.open(path), before.samples)
        return read_difficulty(path)

    def prepare(self, model: Cmerc, samples: Sequence[Sample], device: torch.device) -> Stepped:
        """Takes what it needs from the training split and gives the module that training calls."""
        if self.settings.curriculum and self.difficulty is not None:
            curriculum.check(samples, self.difficulty)
        self.set_class_weights(self._class_weights(samples, len(model.config.labels)), device)
        return self.prepare_module(model)

    def prepare_module(self, model: Cmerc) -> Stepped:
        """The module that training calls."""
        return Stepped(model, self.settings.semantics)

    def choose(self, samples: Sequence[Sample], epoch: int) -> list[Sample]:
        """The dialogues of one epoch in their order; draws from torch's global random stream when shuffling."""
        chosen = list(samples)
        rule = self.settings.curriculum
        if rule and self.difficulty is not None:
            share = curriculum.ratio(epoch, rule.epoch_ratio, rule.steps)
            chosen = curriculum.select(samples, self.difficulty, share)
            if not chosen:
                raise UsageError(f"the curriculum leaves no dialogue in epoch {epoch + 1}: raise epoch_ratio")
        if self.settings.shuffle:
            chosen = [chosen[i] for i in torch.randperm(len(chosen)).tolist()]
        return chosen

    def batches(self, samples: Sequence[Sample], size: int, model: CmercConfig) -> list[list[Sample]]:
        """Consecutive batches; one utterance left over joins the batch before it where batch norm needs two."""
        found = super().batches(samples, size, model)
        if model.norm != "BN" or "text" not in model.used:
            return found
        return for_batch_norm(found, size, "raise batch, or set model.norm=LN")

    def given_batches(self) -> str | None:
        """Results that depend on the batch, or dialogues in the order of the data."""
        if self.settings.semantics == "batch":
            return "protocol.semantics=batch, by which a dialogue's result depends on its batch"
        return None if self.settings.shuffle else "protocol.shuffle=false"

    def begin_epoch(self, model: Cmerc, epoch: int = 0) -> None:
        """Freezes the weights that the degraded views use until the next epoch."""
        if self.settings.calibrate or self.settings.contrast:
            # Weights that may have a gradient: without, PyTorch multiplies the steps of a recurrent layer one by one.
            self.frozen = in_one_piece(copy.deepcopy(model)).eval()

    def class_loss(self, log_prob: Tensor, labels: Tensor) -> Tensor:
        """Weighted negative log-likelihood or focal loss of labelled rows."""
        if self.settings.loss == "focal":
            return losses.focal(log_prob, labels, self.settings.focal_gamma, self.settings.focal_alpha)
        return losses.weighted_nll(self.adjusted(log_prob), labels, self.weight)

    def step(
        self, module: nn.Module, batch: Batch, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> dict[str, Tensor]:
        """Losses of one batch by name: `class_loss`, `rank`, `mscl`, `cscl` where used, and their `total`.

        `module` brings its own precision; `autocast` is for the frozen model. Losses are always float32.
        """
        features, log_prob = module(**batch.inputs)
        views = {}
        if self.frozen is not None:
            with autocast():
                views = degraded(self.frozen, batch.inputs, self.settings.semantics)
        return self.losses(
            batch.rows(log_prob), batch.rows(features), {n: batch.rows(v) for n, v in views.items()}, batch.labels
        )

    def losses(
        self, log_prob: Tensor, features: Tensor, views: Mapping[str, Tensor], labels: Tensor
    ) -> dict[str, Tensor]:
        """The loss terms of labelled rows; `views` may be empty when neither calibration nor contrast is on."""
        s = self.settings
        parts = {"class_loss": self.class_loss(log_prob, labels)}
        total = parts["class_loss"]
        if s.calibrate:
            parts["rank"] = losses.rank(log_prob, views, labels)
            total = total + s.rank_coefficient * parts["rank"]
        if s.contrast:
            binary = {n: losses.binary_labels(log_prob, view, labels) for n, view in views.items()}
            modality = {n: b for n, b in binary.items() if n in losses.MODALITY_VIEWS}
            context = {n: binary[n] for n in losses.CONTEXT_VIEWS}
            parts["mscl"] = losses.contrast(features, modality, s.temperature)
            parts["cscl"] = losses.contrast(features, context, s.temperature)
            total = total + s.mscl_coefficient * parts["mscl"] + s.cscl_coefficient * parts["cscl"]
        return parts | {"total": total}

    def _class_weights(self, samples: Sequence[Sample], classes: int) -> list[float] | None:
        given = self.settings.class_frequencies
        if given is None:
            return None
        if given == "train":
            known = np.concatenate([s.labels[s.labels >= 0] for s in samples if s.labels is not None])
            count = np.bincount(known, minlength=classes)
            return [float(w) for w in count.sum() / np.maximum(count, 1) / classes]
        return [1.0 / frequency for frequency in given]
