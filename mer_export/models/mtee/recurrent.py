"""The recurrent networks of mtee: emotion embeddings (eea) and the early, late and combined fusion baselines.

Sections 3.1 and 3.2. All of them read nothing but the last real step of the top layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mer_export.layers.recurrent import LastStepRNN
from mer_export.models.mtee.base import Features, Inputs, Lengths, Logits, Network
from mer_export.models.mtee.config import EMOTIONS, MteeConfig

HEAD_DROPOUT = 0.1
"""Of the combined baseline, whatever the configured rate."""


def encoders(config: MteeConfig) -> nn.ModuleDict:
    """One recurrent encoder per modality."""
    return nn.ModuleDict({m: encoder(config, config.dims[m], config.hidden[m]) for m in config.used})


def encoder(config: MteeConfig, width: int, hidden: int) -> LastStepRNN:
    return LastStepRNN(config.cell, width, hidden, config.layers, config.bidirectional, config.dropout)


def last_states(
    encoders: nn.ModuleDict, features: Mapping[str, Features], lengths: Mapping[str, Lengths]
) -> list[Float[Tensor, "batch hidden"]]:
    """The last states of each modality, both directions side by side."""
    return [encoders[m](x, lengths[m]).flatten(1) for m, x in features.items()]


class Eea(Network):
    """Emotion embeddings: a label scores by the dot product of its word vector with each modality's sequence vector.

    Two affine maps carry word vectors to audio and visual space. Here the sequence vectors are carried back instead
    (h . (A e + b) = (h A) . e + h . b), so that the whole network ends in one product with the emotion matrix.
    """

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        self.used = config.used
        word = config.hidden_sizes[0]
        self.encoders = encoders(config)
        self.affine = nn.ModuleDict({m: nn.Linear(word, config.hidden[m]) for m in self.used if m != "text"})
        # One modality is not weighted in the original; several are not normalised.
        weights = torch.full((len(self.used),), 1.0 / len(self.used))
        self.modality_weight = nn.Parameter(weights) if len(self.used) > 1 else None

    def forward(self, **inputs: Tensor) -> Logits:
        """Weighted sum of the modalities' scores; a modality without steps adds nothing."""
        queries = self.queries(inputs)
        query, offset = queries[self.used[0]]
        if self.modality_weight is not None:
            weight = dict(zip(self.used, self.modality_weight.unbind(0), strict=True))
            query = torch.stack([weight[m] * q for m, (q, _) in queries.items()]).sum(0)
            offset = torch.stack([weight[m] * o for m, (_, o) in queries.items()]).sum(0)
        return query @ inputs[EMOTIONS].transpose(0, 1) + offset

    def queries(self, inputs: Inputs) -> dict[str, tuple[Float[Tensor, "batch word"], Float[Tensor, "batch 1"]]]:
        """By modality: what is multiplied with the word vectors, and what is added for every emotion alike."""
        found, lengths = {}, self.lengths(inputs)
        for modality, x in self.features(inputs).items():
            # Both directions are added, not concatenated as in the baselines.
            state = self.encoders[modality](x, lengths[modality]).sum(1)
            if modality == "text":
                found[modality] = state, torch.zeros_like(state[:, :1])
            else:
                affine = cast(nn.Linear, self.affine[modality])
                found[modality] = state @ affine.weight, state @ affine.bias[:, None]
        return found


class EarlyFusion(Network):
    """Features of a step concatenated, one RNN, a linear head."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        self.encoder = encoder(config, config.fused_width, config.hidden_size)
        self.head = nn.Linear(config.directions * config.hidden_size, len(config.labels))

    def forward(self, **inputs: Tensor) -> Logits:
        fused = torch.cat(list(self.features(inputs).values()), dim=-1)
        return self.head(self.encoder(fused, inputs["lengths"]).flatten(1))


class LateFusion(Network):
    """One RNN per modality, last states concatenated, a linear head."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        self.encoders = encoders(config)
        self.head = nn.Linear(config.directions * sum(config.hidden[m] for m in config.used), len(config.labels))

    def forward(self, **inputs: Tensor) -> Logits:
        return self.head(torch.cat(last_states(self.encoders, self.features(inputs), self.lengths(inputs)), dim=-1))


class BothFusions(Network):
    """The states of late and of early fusion side by side, a head with one hidden layer."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        self.encoders = encoders(config)
        self.encoder = encoder(config, config.fused_width, config.hidden_size)
        width = config.directions * (config.hidden_size + sum(config.hidden[m] for m in config.used))
        self.head = nn.Sequential(
            nn.Linear(width, width // 2), nn.ReLU(), nn.Dropout(HEAD_DROPOUT), nn.Linear(width // 2, len(config.labels))
        )

    def forward(self, **inputs: Tensor) -> Logits:
        features, lengths = self.features(inputs), self.lengths(inputs)
        states = last_states(self.encoders, features, lengths)
        # The modalities are aligned: one that is missing has length 0, the fused sequence is as long as the others.
        steps = torch.stack(list(lengths.values())).amax(0)
        fused = torch.cat(list(features.values()), dim=-1)
        return self.head(torch.cat([*states, self.encoder(fused, steps).flatten(1)], dim=-1))
