"""The training step of EMT-DLFR: both views through one network, attraction and reconstruction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mer_export.contract import Contract
from mer_export.data.collate import collate
from mer_export.data.missing import Incomplete
from mer_export.data.samples import Sample
from mer_export.models.emt.network import Emt, View
from mer_export.models.utterance import MODALITIES
from train.protocols.emt_settings import EmtSettings
from train.restoration import attraction, emt_losses, reconstruction
from train.updates import Updates

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class PairedBatch:
    """Both views of a batch, the steps that only the complete one has, and the labels of its items."""

    incomplete: Inputs
    complete: Inputs
    missing: dict[str, Tensor]
    labels: Tensor


def paired_batch(samples: Sequence[Sample], contract: Contract, device: torch.device) -> PairedBatch:
    """Pads to the longest item of the batch; a sample that was not made incomplete is complete in both views."""
    lengths = {d: max(1, *(s.lengths(contract)[d] for s in samples)) for d in contract.sequence_dims}
    whole = [Sample(s.id, s.complete, s.units, s.labels) if isinstance(s, Incomplete) else s for s in samples]
    missing = {m: np.zeros((len(samples), lengths[f"{m}_len"]), dtype=np.float32) for m in MODALITIES}
    for row, sample in enumerate(samples):
        for m, kept in (sample.kept if isinstance(sample, Incomplete) else {}).items():
            missing[m][row, : len(kept)] = ~kept
    labels = np.stack([s.labels[0] for s in samples if s.labels is not None])
    return PairedBatch(
        incomplete=_tensors(collate(samples, contract, lengths), device),
        complete=_tensors(collate(whole, contract, lengths), device),
        missing=_tensors(missing, device),
        labels=torch.from_numpy(labels).to(device),
    )


def prediction_loss(output: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute error of scores, negative log-likelihood of classes."""
    if labels.dtype == torch.int64:
        return functional.nll_loss(output, labels)
    return functional.l1_loss(output[:, 0], labels)


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


class EmtProtocol:
    """One training run of emt."""

    def __init__(self, settings: EmtSettings):
        self.settings = settings

    def prepare(self, model: Emt) -> Views:
        """The module that training calls; freezes the text encoder where it is not trained."""
        if model.bert is not None:
            model.bert.requires_grad_(self.settings.train_text_encoder)
        return Views(model, uniform=self.settings.empty_text == "everywhere")

    def updates(self, model: Emt) -> Updates:
        """Adam with a group per part of the network, and the accumulation of gradients."""
        s = self.settings
        return Updates(torch.optim.Adam(list(self._groups(model))), s.accumulate)

    def step(
        self, module: nn.Module, batch: PairedBatch, autocast: Callable[[], Any] = contextlib.nullcontext
    ) -> dict[str, Tensor]:
        """Losses of one batch by name and their `total`; see `losses`."""
        with autocast():
            whole, part, rebuilt = module(batch.complete, batch.incomplete)
        return self.losses(whole, part, rebuilt, batch)

    def losses(self, whole: View, part: View, rebuilt: Mapping[str, Tensor], batch: PairedBatch) -> dict[str, Tensor]:
        """All parts of the loss in float32."""
        s = self.settings
        targets = {m: x.detach() for m, x in whole.encoded.features.items()}
        # The first token is no local position.
        missing = {m: x[:, x.shape[1] - rebuilt[m].shape[1] :] for m, x in batch.missing.items()}
        return emt_losses(
            (prediction_loss(part.output.float(), batch.labels), prediction_loss(whole.output.float(), batch.labels)),
            attraction(_float(whole.guess), _float(whole.target), _float(part.guess), _float(part.target)),
            {
                m: reconstruction(rebuilt[m].float(), targets[m].float(), missing[m], s.reconstruction)
                for m in MODALITIES
            },
            s.attraction_weight,
            s.reconstruction_weight,
        )

    def _groups(self, model: Emt) -> Iterable[dict[str, Any]]:
        s = self.settings
        encoders = {"audio": s.audio, "vision": s.vision, "text": s.text}
        taken: set[int] = set()
        if model.bert is not None and s.train_text_encoder:
            named = list(model.bert.named_parameters())
            plain = [p for n, p in named if not is_bias_or_norm(n)]
            yield {"params": plain, "lr": s.text.lr, "weight_decay": s.text.weight_decay}
            yield {"params": [p for n, p in named if is_bias_or_norm(n)], "lr": s.text.lr, "weight_decay": 0.0}
        if model.bert is not None:
            taken |= {id(p) for p in model.bert.parameters()}
        for m, encoder in model.encoders.items():
            params = list(encoder.parameters())
            taken |= {id(p) for p in params}
            yield {"params": params, "lr": encoders[m].lr, "weight_decay": encoders[m].weight_decay}
        rest = [p for p in model.parameters() if id(p) not in taken]
        yield {"params": rest, "lr": s.other.lr, "weight_decay": s.other.weight_decay}


def is_bias_or_norm(name: str) -> bool:
    """True for the parameters of BERT that have no weight decay."""
    *_, layer, kind = name.split(".")
    return kind == "bias" or "norm" in layer


def _float(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: v.float() for n, v in vectors.items()}


def _tensors(arrays: Mapping[str, np.ndarray], device: torch.device) -> Inputs:
    return {n: torch.from_numpy(a).to(device) for n, a in arrays.items()}
