"""MulT: six crossmodal encoders, three memories, a residual head on their last steps.

With two modalities there are two crossmodal encoders; a single one is remembered as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mer_export.layers.crossmodal import CrossModal, convolve, project
from mer_export.models.full_arrays import FullArrays, answer, dropouts
from mer_export.models.mult.config import MultConfig
from mer_export.models.utterance import others


class Mult(FullArrays):
    """One utterance per item in, its sentiment or class out."""

    config: MultConfig

    def __init__(self, config: MultConfig):
        super().__init__(config)
        width, kernels = config.width, config.kernels.model_dump()
        self.text_dropout = nn.Dropout(config.text_dropout)
        self.projections = nn.ModuleDict(
            {m: project(dim, width, kernels[m], padding=0) for m, dim in config.feature_dims.items()}
        )
        self.cross = nn.ModuleDict(
            {
                f"{m}_{other}": CrossModal(width, config.heads, config.levels, dropouts(config, other), config.causal)
                for m in config.used
                for other in others(m, config.used)
            }
        )
        memory, inner = dropouts(config, "text"), max(len(config.used) - 1, 1) * width
        self.memory = nn.ModuleDict(
            {m: CrossModal(inner, config.heads, max(config.levels, 3), memory, config.causal) for m in config.used}
        )
        total = len(config.used) * inner
        self.hidden1 = nn.Linear(total, total)
        self.hidden2 = nn.Linear(total, total)
        self.dropout = nn.Dropout(config.output_dropout)
        self.out = nn.Linear(total, len(config.labels) or 1)

    def forward(self, **inputs: Tensor) -> Float[Tensor, "batch outputs"]:
        """Score, or log-probabilities, of the given view."""
        return answer(self.score(self.features(inputs)), self.config)

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "batch features"]]:
        """The last step of each memory; it is the last of the padded array, as in the original."""
        states = self.full_arrays(inputs)
        if "text" in states:
            states["text"] = self.text_dropout(states["text"])
        x = {m: convolve(self.projections[m], states[m]) for m in self.config.used}
        return {m: self.memory[m](self._enriched(m, x), last_only=True)[:, -1] for m in self.config.used}

    def _enriched(self, m: str, x: Mapping[str, Tensor]) -> Float[Tensor, "batch time features"]:
        """What a modality sees of the others, side by side."""
        seen = [self.cross[f"{m}_{other}"](x[m], x[other]) for other in others(m, self.config.used)]
        return torch.cat(seen, dim=-1) if seen else x[m]

    def score(self, features: Mapping[str, Float[Tensor, "batch features"]]) -> Float[Tensor, "batch outputs"]:
        """The residual head."""
        x = torch.cat([features[m] for m in self.config.used], dim=-1)
        return self.out(x + self.hidden2(self.dropout(torch.relu(self.hidden1(x)))))
