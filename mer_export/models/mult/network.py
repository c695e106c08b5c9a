"""MulT: six crossmodal encoders, three memories, a residual head on their last steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mer_export.layers.bert.network import Bert
from mer_export.layers.crossmodal import CrossModal, convolve, project
from mer_export.models.full_arrays import dropouts, full_arrays
from mer_export.models.mult.config import MultConfig
from mer_export.models.utterance import MODALITIES, others


class Mult(nn.Module):
    """One utterance per item in, its sentiment out."""

    def __init__(self, config: MultConfig):
        super().__init__()
        self.config = config
        width, kernels = config.width, config.kernels.model_dump()
        self.bert = Bert(config.bert)
        self.text_dropout = nn.Dropout(config.text_dropout)
        self.projections = nn.ModuleDict(
            {m: project(dim, width, kernels[m], padding=0) for m, dim in config.feature_dims.items()}
        )
        self.cross = nn.ModuleDict(
            {
                f"{m}_{other}": CrossModal(width, config.heads, config.levels, dropouts(config, other), config.causal)
                for m in MODALITIES
                for other in others(m)
            }
        )
        memory = dropouts(config, "text")
        self.memory = nn.ModuleDict(
            {m: CrossModal(2 * width, config.heads, max(config.levels, 3), memory, config.causal) for m in MODALITIES}
        )
        self.hidden1 = nn.Linear(6 * width, 6 * width)
        self.hidden2 = nn.Linear(6 * width, 6 * width)
        self.dropout = nn.Dropout(config.output_dropout)
        self.out = nn.Linear(6 * width, 1)

    def forward(self, **inputs: Tensor) -> Float[Tensor, "batch 1"]:
        """Score of the given view."""
        return self.score(self.features(inputs))

    def features(self, inputs: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "batch features"]]:
        """The last step of each memory; it is the last of the padded array, as in the original."""
        full = full_arrays(inputs, self.bert, self.config.arrays.model_dump())
        text = self.bert(full["input_ids"], full["token_type_ids"], full["text_lengths"])
        states = {"text": self.text_dropout(text), "audio": full["audio"], "vision": full["vision"]}
        x = {m: convolve(self.projections[m], s) for m, s in states.items()}
        return {
            m: self.memory[m](
                torch.cat([self.cross[f"{m}_{other}"](x[m], x[other]) for other in others(m)], dim=-1), last_only=True
            )[:, -1]
            for m in MODALITIES
        }

    def score(self, features: Mapping[str, Float[Tensor, "batch features"]]) -> Float[Tensor, "batch 1"]:
        """The residual head."""
        x = torch.cat([features[m] for m in MODALITIES], dim=-1)
        return self.out(x + self.hidden2(self.dropout(torch.relu(self.hidden1(x)))))
