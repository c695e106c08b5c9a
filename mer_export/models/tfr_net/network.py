"""TFR-Net: alignment, generation of missing features (training), fusion.

The original's generator attends over the samples of a batch, in their order. `batch` semantics does the same, for the
published training; in `single` semantics, which is exported, each sample stands alone. It matters to the prediction
with `fuse_generated` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mer_export.contract import Semantics
from mer_export.layers.crossmodal import CrossModal, convolve, project
from mer_export.models.full_arrays import FullArrays, answer, dropouts
from mer_export.models.tfr_net.config import TfrNetConfig
from mer_export.models.tfr_net.fusion import TfrNetFusion
from mer_export.models.utterance import others

Steps = Float[Tensor, "batch time width"]


@dataclass(frozen=True)
class Aligned:
    """Of one view by modality: features (those of text BERT's), aligned states, and real lengths."""

    features: dict[str, Steps]
    states: dict[str, Steps]
    lengths: dict[str, Int[Tensor, " batch"]]


class TfrNet(FullArrays):
    """One utterance per item in, its sentiment or class out."""

    config: TfrNetConfig

    def __init__(self, config: TfrNetConfig):
        super().__init__(config)
        self.alignment = Alignment(config)
        self.reconstruction = Reconstruction(config)
        self.fusion = TfrNetFusion(config)

    @property
    def training_only(self) -> tuple[str, ...]:
        """Parts that `forward` never calls; exports leave them out."""
        return () if self.config.fuse_generated else ("reconstruction",)

    def forward(self, **inputs: Tensor) -> Float[Tensor, "batch outputs"]:
        """Score, or log-probabilities, of the given view; generates features only where the fusion reads them."""
        aligned = self.align(inputs)
        states = aligned.states
        if self.config.fuse_generated:
            states = self.reconstruction(states, "single")
        return answer(self.fusion(states, aligned.lengths), self.config)

    def align(self, inputs: Mapping[str, Tensor]) -> Aligned:
        """Aligned states (batch, array length, modalities * width) of every modality."""
        full = self.full_arrays(inputs)
        features = {m: full[m] for m in self.config.used}
        return Aligned(features, self.alignment(features), {m: full[f"{m}_lengths"] for m in self.config.used})


class Alignment(nn.Module):
    """Every modality beside what it sees of itself and of the others."""

    def __init__(self, config: TfrNetConfig):
        super().__init__()
        width, kernels, longest = config.width, config.kernels.model_dump(), max(config.longest.values())
        self.used = config.used
        self.dropout = nn.Dropout(config.text_dropout)
        self.projections = nn.ModuleDict(
            {m: project(dim, width, kernels[m], (kernels[m] - 1) // 2) for m, dim in config.feature_dims.items()}
        )
        memory = dropouts(config, "text")
        deep = max(config.levels, 3)
        self.memory = nn.ModuleDict(
            {m: CrossModal(width, config.heads, deep, memory, config.causal, longest) for m in config.used}
        )
        self.cross = nn.ModuleDict(
            {
                f"{m}_{o}": CrossModal(width, config.heads, config.levels, dropouts(config, o), config.causal, longest)
                for m in config.used
                for o in others(m, config.used)
            }
        )

    def forward(self, states: Mapping[str, Steps]) -> dict[str, Steps]:
        kept = {m: self.dropout(s) if m == "text" else s for m, s in states.items()}
        x = {m: convolve(self.projections[m], s) for m, s in kept.items()}
        return {m: torch.cat([self.memory[m](x[m]), *self._seen(m, x)], dim=-1) for m in self.used}

    def _seen(self, m: str, x: Mapping[str, Steps]) -> list[Steps]:
        """What a modality sees of the others."""
        return [self.cross[f"{m}_{o}"](x[m], x[o]) for o in others(m, self.used)]


class Reconstruction(nn.Module):
    """Guesses complete features from aligned ones; an encoder that mixes time steps of one channel comes first."""

    def __init__(self, config: TfrNetConfig):
        super().__init__()
        deep, memory = max(config.levels, 3), dropouts(config, "text")
        self.final = nn.ModuleDict(
            {m: CrossModal(config.longest[f"{m}_len"], 1, deep, memory, config.causal) for m in config.used}
        )
        generator = GENERATORS.get(config.generator)
        self.generators = nn.ModuleDict(
            {m: generator(len(config.used) * config.width, dim) for m, dim in config.feature_dims.items()}
            if generator
            else {}
        )

    def forward(self, states: Mapping[str, Steps], semantics: Semantics) -> dict[str, Steps]:
        """Generated features (batch, array length, feature width)."""
        return {m: self.generators[m](x) for m, x in self.mixed(states, semantics).items()}

    def mixed(self, states: Mapping[str, Steps], semantics: Semantics) -> dict[str, Steps]:
        """Aligned states after the encoder over samples, in their own shape."""
        return {m: self._mix(self.final[m], x, semantics) for m, x in states.items()}

    def _mix(self, final: nn.Module, x: Steps, semantics: Semantics) -> Steps:
        if semantics == "batch":
            # TFR-Net takes the batch for the time axis and a channel's time steps for its features.
            return final(x.permute(2, 0, 1)).permute(1, 2, 0)
        channels = x.transpose(1, 2)
        return final(channels.reshape(-1, 1, x.shape[1])).reshape(channels.shape).transpose(1, 2)


class LinearGenerator(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Steps) -> Steps:
        return self.linear(x)


class RecurrentGenerator(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.rnn = nn.LSTM(inputs, outputs, num_layers=2, batch_first=True)

    def forward(self, x: Steps) -> Steps:
        return self.rnn(x)[0]


GENERATORS: dict[str, type[LinearGenerator] | type[RecurrentGenerator]] = {
    "linear": LinearGenerator,
    "ctc": RecurrentGenerator,
}
