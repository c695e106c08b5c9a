"""The early-fusion transformer of mtee (section 3.4), whose original attends to the wrong axis.

Its encoder expects time first and is given the batch first: it attends to the other samples of the batch, separately at
each step, and adds positions by the place in the batch. `single` semantics is that at batch size 1, the default and
what is exported; `batch` semantics reproduces the original on a whole batch. With `attention: time` the network is
what was meant: it attends along time.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mer_export.contract import Semantics
from mer_export.layers.positions import alternating_sinusoid
from mer_export.layers.steps import real_steps
from mer_export.layers.transformer import TransformerLayer
from mer_export.models.mtee.base import Inputs, Lengths, Logits, Network
from mer_export.models.mtee.config import LONGEST, MteeConfig


class Transformer(Network):
    """Features of a step concatenated, transformer layers, mean over time, a head with one hidden layer."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        own = config.transformer
        self.along_time = own.attention == "time"
        self.linear = nn.Linear(config.fused_width, own.width)
        self.layers = nn.ModuleList(
            TransformerLayer(own.width, own.heads, own.feed_forward, own.dropout) for _ in range(own.layers)
        )
        self.norm = nn.LayerNorm(own.width)
        self.head = nn.Sequential(
            nn.Linear(own.width, own.head_hidden),
            nn.ReLU(),
            nn.Dropout(own.dropout),
            nn.Linear(own.head_hidden, len(config.labels)),
        )
        self.positions: Tensor
        self.register_buffer("positions", alternating_sinusoid(LONGEST, own.width), persistent=False)

    def forward(self, **inputs: Tensor) -> Logits:
        return self.classify(self.encode(inputs), inputs["lengths"])

    def encode(self, inputs: Inputs, semantics: Semantics = "single") -> Float[Tensor, "batch time width"]:
        """Encoder outputs. `batch` semantics wants items of one length, as in the authors' files."""
        x = self.linear(torch.cat(list(self.features(inputs).values()), dim=-1))
        batch, time, width = x.shape
        if self.along_time:
            return self._attend(x + self.positions[:time], real_steps(inputs["lengths"], time))
        if semantics == "single":
            # Alone in its batch every step attends to itself only, at position 0.
            x = (x + self.positions[0]).reshape(batch * time, 1, width)
            return self._attend(x).reshape(batch, time, width)
        return self._attend((x + self.positions[:batch, None]).transpose(0, 1)).transpose(0, 1)

    def in_batch(self, **inputs: Tensor) -> Logits:
        """Logits in `batch` semantics."""
        return self.classify(self.encode(inputs, "batch"), inputs["lengths"])

    def classify(self, x: Float[Tensor, "batch time width"], lengths: Lengths) -> Logits:
        """Mean over the real steps, then the head."""
        inside = real_steps(lengths, x.shape[1]).to(x.dtype)
        mean = (x * inside[..., None]).sum(1) / lengths.clamp(min=1).to(x.dtype)[:, None]
        return self.head(mean)

    def _attend(self, x: Tensor, inside: Bool[Tensor, "batch time"] | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, inside)
        return self.norm(x)
