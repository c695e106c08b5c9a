"""The training step of EMT-DLFR: both views through one network, attraction and reconstruction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mer_export.data.samples import Sample
from mer_export.models.emt.network import Emt, View
from train.config import TrainConfig
from train.protocol import Autocast
from train.systems.emt.incomplete import IncompleteProtocol, Inputs, PairedBatch, bert_groups
from train.systems.emt.restoration import attraction, emt_losses, reconstruction
from train.systems.emt.settings import EmtSettings
from train.updates import Updates, make_optimizer


class Views(nn.Module):
    """What training calls: the complete view first, then the incomplete one, as batch norm statistics need it."""

    def __init__(self, model: Emt, uniform: bool):
        super().__init__()
        self.model = model
        self.uniform = uniform

    def forward(self, complete: Inputs, incomplete: Inputs) -> tuple[View, View, dict[str, Tensor]]:
        whole = self.model.view(complete, self.uniform)
        part = self.model.view(incomplete, self.uniform)
        return whole, part, self.model.restoration.reconstruct(part.local)


class EmtProtocol(IncompleteProtocol):
    """One training run of emt."""

    settings: EmtSettings

    def prepare(self, model: Emt, samples: Sequence[Sample], device: torch.device) -> Views:
        """The module that training calls; the text encoder as configured."""
        self.set_up_text_encoder(model.bert)
        return self.prepare_module(model)

    def prepare_module(self, model: Emt) -> Views:
        """Both views through one network."""
        return Views(model, uniform=self.settings.empty_text == "everywhere")

    def updates(self, model: Emt, config: TrainConfig) -> Updates:
        """A group per part of the network, and the accumulation of gradients."""
        return Updates(make_optimizer(config, list(self._groups(model))), self.settings.accumulation)

    def losses_and_output(self, model: Emt, batch: PairedBatch) -> tuple[dict[str, Tensor], Tensor]:
        """All losses, and the output of the incomplete view."""
        whole, part, rebuilt = self.prepare_module(model)(batch.complete, batch.incomplete)
        return self.losses(whole, part, rebuilt, batch), part.output

    def step(self, module: nn.Module, batch: PairedBatch, autocast: Autocast = nullcontext) -> dict[str, Tensor]:
        """Losses of one batch by name and their `total`; see `losses`."""
        with autocast():
            whole, part, rebuilt = module(batch.complete, batch.incomplete)
        return self.losses(whole, part, rebuilt, batch)

    def losses(self, whole: View, part: View, rebuilt: Mapping[str, Tensor], batch: PairedBatch) -> dict[str, Tensor]:
        """All parts of the loss in float32."""
        s = self.settings
        targets = {m: x.detach() for m, x in whole.encoded.features.items()}
        # The first token is not a local position.
        missing = {m: x[:, x.shape[1] - rebuilt[m].shape[1] :] for m, x in batch.missing.items()}
        return emt_losses(
            (self.class_loss(part.output.float(), batch.labels), self.class_loss(whole.output.float(), batch.labels)),
            attraction(_float(whole.guess), _float(whole.target), _float(part.guess), _float(part.target)),
            {m: reconstruction(rebuilt[m].float(), targets[m].float(), missing[m], s.reconstruction) for m in rebuilt},
            s.attraction_weight,
            s.reconstruction_weight,
        )

    def _groups(self, model: Emt) -> Iterable[dict[str, Any]]:
        s = self.settings
        encoders = {"audio": s.audio, "vision": s.vision, "text": s.text}
        taken: set[int] = set()
        if model.bert is not None:
            yield from bert_groups(model.bert, s.text)
            taken |= {id(p) for p in model.bert.parameters()}
        for m, encoder in model.encoders.items():
            params = list(encoder.parameters())
            taken |= {id(p) for p in params}
            yield {"params": params, "lr": encoders[m].lr, "weight_decay": encoders[m].weight_decay}
        rest = [p for p in model.parameters() if id(p) not in taken]
        yield {"params": rest, "lr": s.other.lr, "weight_decay": s.other.weight_decay}


def _float(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: v.float() for n, v in vectors.items()}
