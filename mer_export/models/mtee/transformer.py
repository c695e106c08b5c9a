"""The early-fusion transformer of mtee (section 3.4), whose original attends to the wrong axis.

Its encoder expects time first and is given the batch first: it attends to the other samples of the batch, separately at
each step, and adds positions by the place in the batch. `single` semantics is that at batch size 1, the default and
what is exported; `batch` semantics reproduces the original on a whole batch. With `attention: time` the network is
what was meant: it attends along time.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mer_export.contract import Semantics
from mer_export.layers.recurrent import TransformerLayer
from mer_export.models.mtee.base import Features, Lengths, Logits, Network
from mer_export.models.mtee.config import LONGEST, MODALITIES, MteeConfig


def sinusoids(count: int, width: int) -> Float[Tensor, "count width"]:
    """Row p is sin(p f_0), cos(p f_0), sin(p f_1), ... with f_j = 10000^(-2j / width)."""
    frequency = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10000.0)) / width))
    angle = torch.arange(count)[:, None] * frequency
    return torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(1)


class Transformer(Network):
    """Features of a step concatenated, transformer layers, mean over time, a head with one hidden layer."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        own = config.transformer
        self.along_time = own.attention == "time"
        self.linear = nn.Linear(sum(config.dims.values()), own.width)
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
        self.register_buffer("positions", sinusoids(LONGEST, own.width), persistent=False)

    def forward(self, text: Features, audio: Features, vision: Features, lengths: Lengths) -> Logits:
        return self.classify(self.encode(text, audio, vision, lengths), lengths)

    def encode(
        self, text: Features, audio: Features, vision: Features, lengths: Lengths, semantics: Semantics = "single"
    ) -> Float[Tensor, "batch time width"]:
        """Encoder outputs. `batch` semantics wants items of one length, as in the authors' files."""
        inputs = self.standardised({"text": text, "audio": audio, "vision": vision})
        x = self.linear(torch.cat([inputs[m] for m in MODALITIES], dim=-1))
        batch, time, width = x.shape
        if self.along_time:
            inside = (torch.arange(time, device=lengths.device) < lengths[:, None]).to(x.dtype)
            return self._attend(x + self.positions[:time], inside)
        if semantics == "single":
            # Alone in its batch every step attends to itself only, at position 0.
            x = (x + self.positions[0]).reshape(batch * time, 1, width)
            return self._attend(x, torch.ones_like(x[..., 0])).reshape(batch, time, width)
        x = (x + self.positions[:batch, None]).transpose(0, 1)
        return self._attend(x, torch.ones_like(x[..., 0])).transpose(0, 1)

    def in_batch(self, **inputs: Tensor) -> Logits:
        """Logits in `batch` semantics."""
        return self.classify(self.encode(**inputs, semantics="batch"), inputs["lengths"])

    def classify(self, x: Float[Tensor, "batch time width"], lengths: Int[Tensor, " batch"]) -> Logits:
        """Mean over the real steps, then the head."""
        inside = (torch.arange(x.shape[1], device=lengths.device) < lengths[:, None]).to(x.dtype)
        mean = (x * inside[..., None]).sum(1) / lengths.clamp(min=1).to(x.dtype)[:, None]
        return self.head(mean)

    def _attend(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)
