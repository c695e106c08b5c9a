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
from mer_export.layers.bert.network import Bert
from mer_export.layers.crossmodal import CrossModal, convolve, project
from mer_export.models.full_arrays import dropouts, full_arrays
from mer_export.models.tfr_net.config import TfrNetConfig
from mer_export.models.tfr_net.fusion import TfrNetFusion
from mer_export.models.utterance import MODALITIES, others

Steps = Float[Tensor, "batch time width"]


@dataclass(frozen=True)
class Aligned:
    """States of one view by modality: BERT's for the text, aligned ones, and real lengths."""

    text: Steps
    states: dict[str, Steps]
    lengths: dict[str, Int[Tensor, " batch"]]


class TfrNet(nn.Module):
    """One utterance per item in, its sentiment out."""

    def __init__(self, config: TfrNetConfig):
        super().__init__()
        self.config = config
        self.bert = Bert(config.bert)
        self.alignment = Alignment(config)
        self.reconstruction = Reconstruction(config)
        self.fusion = TfrNetFusion(config)

    @property
    def training_only(self) -> tuple[str, ...]:
        """Parts that `forward` never calls; exports leave them out."""
        return () if self.config.fuse_generated else ("reconstruction",)

    def forward(self, **inputs: Tensor) -> Float[Tensor, "batch 1"]:
        """Score of the given view; generates features only where the fusion reads them."""
        aligned = self.align(inputs)
        states = aligned.states
        if self.config.fuse_generated:
            states = self.reconstruction(states, "single")
        return self.fusion(states, aligned.lengths)

    def align(self, inputs: Mapping[str, Tensor]) -> Aligned:
        """Aligned states (batch, array length, 3 * width) of every modality."""
        full = full_arrays(inputs, self.bert, self.config.arrays.model_dump())
        text = self.bert(full["input_ids"], full["token_type_ids"], full["text_lengths"])
        states = self.alignment({"text": text, "audio": full["audio"], "vision": full["vision"]})
        return Aligned(text, states, {m: full[f"{m}_lengths"] for m in MODALITIES})


class Alignment(nn.Module):
    """Every modality beside what it sees of itself and of the two others."""

    def __init__(self, config: TfrNetConfig):
        super().__init__()
        width, kernels, arrays = config.width, config.kernels.model_dump(), config.arrays.model_dump()
        longest = max(arrays.values())
        self.dropout = nn.Dropout(config.text_dropout)
        self.projections = nn.ModuleDict(
            {m: project(dim, width, kernels[m], (kernels[m] - 1) // 2) for m, dim in config.feature_dims.items()}
        )
        memory = dropouts(config, "text")
        deep = max(config.levels, 3)
        self.memory = nn.ModuleDict(
            {m: CrossModal(width, config.heads, deep, memory, config.causal, longest) for m in MODALITIES}
        )
        self.cross = nn.ModuleDict(
            {
                f"{m}_{o}": CrossModal(width, config.heads, config.levels, dropouts(config, o), config.causal, longest)
                for m in MODALITIES
                for o in others(m)
            }
        )

    def forward(self, states: Mapping[str, Steps]) -> dict[str, Steps]:
        states = {**states, "text": self.dropout(states["text"])}
        x = {m: convolve(self.projections[m], states[m]) for m in MODALITIES}
        return {
            m: torch.cat([self.memory[m](x[m]), *(self.cross[f"{m}_{o}"](x[m], x[o]) for o in others(m))], dim=-1)
            for m in MODALITIES
        }


class Reconstruction(nn.Module):
    """Guesses complete features from aligned ones; an encoder that mixes time steps of one channel comes first."""

    def __init__(self, config: TfrNetConfig):
        super().__init__()
        deep, memory = max(config.levels, 3), dropouts(config, "text")
        self.final = nn.ModuleDict(
            {m: CrossModal(config.arrays.model_dump()[f"{m}_len"], 1, deep, memory, config.causal) for m in MODALITIES}
        )
        generator = GENERATORS.get(config.generator)
        self.generators = nn.ModuleDict(
            {m: generator(3 * config.width, dim) for m, dim in config.feature_dims.items()} if generator else {}
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
