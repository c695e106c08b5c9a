"""The training steps of TFR-Net and MulT, as the EMT-DLFR repository runs them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mer_export.data.samples import Sample
from mer_export.models.full_arrays import answer
from mer_export.models.mult.network import Mult
from mer_export.models.tfr_net.network import TfrNet
from mer_export.models.utterance import MODALITIES
from train.config import TrainConfig
from train.protocol import Autocast
from train.systems.emt.incomplete import IncompleteProtocol, Inputs, PairedBatch, bert_groups
from train.systems.emt.restoration import TFR_EPSILON, reconstruction
from train.systems.emt.settings import MultSettings, TfrNetSettings
from train.updates import Updates, make_optimizer


class Generation(nn.Module):
    """What training of TFR-Net calls: the prediction, what is generated, and what it should be."""

    def __init__(self, model: TfrNet):
        super().__init__()
        self.model = model

    def forward(self, complete: Inputs, incomplete: Inputs) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        model = self.model
        aligned = model.align(incomplete)
        guesses = model.reconstruction(aligned.states, "batch") if model.config.generator != "none" else {}
        fused = guesses if model.config.fuse_generated else aligned.states
        # The target text is not detached: it gets a gradient too, as in TFR-Net.
        targets = model.full_arrays(complete)
        return answer(model.fusion(fused, aligned.lengths), model.config), guesses, targets


class TfrNetProtocol(IncompleteProtocol):
    """One training run of tfr_net."""

    settings: TfrNetSettings
    loss_digits = 4
    generating = False

    def prepare(self, model: TfrNet, samples: Sequence[Sample], device: torch.device) -> Generation:
        """The module that training calls; the text encoder as configured."""
        self.set_up_text_encoder(model.bert)
        return Generation(model)

    def updates(self, model: TfrNet, config: TrainConfig) -> Updates:
        """Groups for the text encoder and the rest; gradients are applied after every batch, clipped by value."""
        s = self.settings
        own = {id(p) for p in model.bert.parameters()} if model.bert else set()
        rest = [p for p in model.parameters() if id(p) not in own]
        other = {"params": rest, "lr": s.other.lr, "weight_decay": s.other.weight_decay}
        optimizer = make_optimizer(config, [*(bert_groups(model.bert, s.text) if model.bert else ()), other])
        return Updates(optimizer, s.accumulation, s.clip_value)

    def begin_epoch(self, model: TfrNet, epoch: int) -> None:
        """The first epoch trains the prediction alone."""
        self.generating = epoch > 0

    def step(self, module: nn.Module, batch: PairedBatch, autocast: Autocast = nullcontext) -> dict[str, Tensor]:
        """`prediction`, `generation/<modality>` and `total`."""
        with autocast():
            output, guesses, targets = module(batch.complete, batch.incomplete)
        parts = {"prediction": self.class_loss(output.float(), batch.labels)}
        total = parts["prediction"]
        weights = dict(zip(MODALITIES, self.settings.generation_weights, strict=True))
        for m, guess in guesses.items():
            missing = batch.missing[m]
            steps = missing.shape[1]
            loss = reconstruction(guess[:, :steps].float(), targets[m][:, :steps].float(), missing, epsilon=TFR_EPSILON)
            parts[f"generation/{m}"] = loss
            if self.generating:
                total = total + weights[m] * loss
        return parts | {"total": total}


class Predicted(nn.Module):
    """What training of MulT calls: the score of the incomplete view."""

    def __init__(self, model: Mult):
        super().__init__()
        self.model = model

    def forward(self, incomplete: Inputs) -> Tensor:
        return self.model(**incomplete)


class MultProtocol(IncompleteProtocol):
    """One training run of mult."""

    settings: MultSettings
    batch_norm = False
    loss_digits = 4

    def prepare(self, model: Mult, samples: Sequence[Sample], device: torch.device) -> Predicted:
        """The module that training calls; the text encoder as configured."""
        self.set_up_text_encoder(model.bert)
        return Predicted(model)

    def updates(self, model: Mult, config: TrainConfig) -> Updates:
        """One group; gradients are applied after every batch, clipped by value."""
        s = self.settings
        params = [p for p in model.parameters() if p.requires_grad]
        group = {"params": params, "lr": s.other.lr, "weight_decay": s.other.weight_decay}
        return Updates(make_optimizer(config, [group]), s.accumulation, s.clip_value)

    def step(self, module: nn.Module, batch: PairedBatch, autocast: Autocast = nullcontext) -> dict[str, Tensor]:
        """`prediction`, which is the `total`."""
        with autocast():
            output = module(batch.incomplete)
        loss = self.class_loss(output.float(), batch.labels)
        return {"prediction": loss, "total": loss}
