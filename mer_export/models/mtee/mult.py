"""MulT as mtee's baseline (sections 3.3 and 5.3): cross-modal attention between unaligned sequences.

Network: Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019. Every stream is
enriched by the other two; its last step is what is read. Streams are named by modality (text is `l` in checkpoints).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.recurrent import last_step
from mer_export.models.mtee.base import Features, Lengths, Logits, Network
from mer_export.models.mtee.config import KERNELS, LONGEST, MODALITIES, MteeConfig, MultConfig

LEAST_MEMORY_LAYERS = 3


def position_table(count: int, width: int) -> Float[Tensor, "count width"]:
    """Row p holds the sines, then the cosines of p f_j; row 0 is zero, an odd width ends in a zero column."""
    half = width // 2
    frequency = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
    angle = torch.arange(count)[:, None] * frequency
    table = functional.pad(torch.cat([torch.sin(angle), torch.cos(angle)], dim=1), (0, width % 2))
    table[0] = 0
    return table


def inside(lengths: Lengths, steps: int) -> Bool[Tensor, "batch time"]:
    """Which steps are real."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


class CrossLayer(nn.Module):
    """One pre-norm layer: attention from a query stream to a key stream, then a feed-forward block."""

    def __init__(self, width: int, own: MultConfig, attention_dropout: float):
        super().__init__()
        self.heads, self.width = own.heads, width
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        for linear in (self.qkv, self.out, self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.attention_dropout = nn.Dropout(attention_dropout)
        self.relu_dropout = nn.Dropout(own.relu_dropout)
        self.residual_dropout = nn.Dropout(own.residual_dropout)

    def forward(
        self,
        x: Features,
        keys: Features | None,
        mask: Float[Tensor, "batch 1 query key"],
        present: Float[Tensor, "batch 1 1"],
    ) -> Float[Tensor, "batch query width"]:
        """`keys` None attends to `x` itself. `mask` is added to scores; where `present` is 0 nothing is attended."""
        first = self.norms[0]
        # MulT normalises both streams with the norm of the query stream.
        query = first(x)
        attended = self._attention(query, query if keys is None else first(keys), mask) * present
        x = x + self.residual_dropout(self.out(attended))
        return x + self.residual_dropout(self.fc2(self.relu_dropout(torch.relu(self.fc1(self.norms[1](x))))))

    def _attention(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        weight, bias, width = self.qkv.weight, self.qkv.bias, self.width
        q = self._split(functional.linear(query, weight[:width], bias[:width]) * (width // self.heads) ** -0.5)
        k = self._split(functional.linear(keys, weight[width : 2 * width], bias[width : 2 * width]))
        v = self._split(functional.linear(keys, weight[2 * width :], bias[2 * width :]))
        attention = self.attention_dropout(torch.softmax(q @ k.transpose(-1, -2) + mask, dim=-1))
        return (attention @ v).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        return x.reshape(batch, time, self.heads, width // self.heads).transpose(1, 2)


class CrossEncoder(nn.Module):
    """Layers of one query stream; the key stream is embedded once and stays as it is."""

    def __init__(self, width: int, layers: int, own: MultConfig, attention_dropout: float):
        super().__init__()
        self.scale, self.masked = math.sqrt(width), own.masked
        self.layers = nn.ModuleList(CrossLayer(width, own, attention_dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(own.embedding_dropout)

    def forward(
        self,
        x: Features,
        x_lengths: Lengths,
        positions: Float[Tensor, "count width"],
        keys: Features | None = None,
        key_lengths: Lengths | None = None,
    ) -> Features:
        """Outputs at real query steps; values past them mean nothing."""
        known = x_lengths if key_lengths is None else key_lengths
        allowed = self._allowed(x.shape[1], x_lengths, x.shape[1] if keys is None else keys.shape[1], known)
        # The first key is allowed to every query, so that only an empty key stream leaves a row without any.
        mask = (allowed.to(x.dtype) - 1.0) * 1e9
        present = (known > 0).to(x.dtype)[:, None, None]
        x = self._embed(x, x_lengths, positions)
        if keys is not None:
            keys = self._embed(keys, known, positions)
        for layer in self.layers:
            x = layer(x, keys, mask, present)
        return self.norm(x)

    def _embed(self, x: Features, lengths: Lengths, positions: Tensor) -> Features:
        # A step whose first channel is exactly 0 has no position in MulT: all-zero padding is told from data by this.
        placed = (inside(lengths, x.shape[1]) & (x[..., 0] != 0)).to(x.dtype)
        return self.dropout(self.scale * x + placed[..., None] * positions[1 : x.shape[1] + 1])

    def _allowed(
        self, queries: int, query_lengths: Lengths, keys: int, key_lengths: Lengths
    ) -> Bool[Tensor, "batch 1 query key"]:
        """Real keys; with the mask only those not later than the query, shifted by the difference of lengths."""
        seen = inside(key_lengths, keys)[:, None, :].expand(-1, queries, -1)
        if self.masked:
            ahead = torch.arange(keys, device=seen.device) - torch.arange(queries, device=seen.device)[:, None]
            seen = seen & (ahead <= (key_lengths - query_lengths).abs()[:, None, None])
        return seen[:, None]


class Mult(Network):
    """Three streams, six cross-modal encoders, three memory encoders, a residual head."""

    def __init__(self, config: MteeConfig):
        super().__init__(config)
        own = config.mult
        dropout_of = {str(m): rate for m, rate in own.attention_dropout.items()}
        self.streams: tuple[str, ...] = tuple(m for m in MODALITIES if m in own.streams)
        self.shrinkage = {m: config.shrinkage(m) for m in MODALITIES}
        self.text_dropout = nn.Dropout(own.embedding_dropout)
        self.projections = nn.ModuleDict(
            {m: nn.Conv1d(config.dims[m], own.width, KERNELS[m], bias=False) for m in MODALITIES if self.shrinkage[m]}
        )
        self.cross = nn.ModuleDict(
            {
                f"{stream}_with_{other}": CrossEncoder(own.width, own.layers, own, dropout_of[other])
                for stream in self.streams
                for other in MODALITIES
                if other != stream
            }
        )
        depth = max(own.layers, LEAST_MEMORY_LAYERS)
        self.memory = nn.ModuleDict(
            {m: CrossEncoder(2 * own.width, depth, own, dropout_of["text"]) for m in self.streams}
        )
        width = 2 * own.width * len(self.streams)
        self.hidden = nn.Linear(width, width)
        self.residual = nn.Linear(width, width)
        self.output_dropout = nn.Dropout(own.output_dropout)
        self.head = nn.Linear(width, len(config.labels))
        self.positions: Tensor
        self.memory_positions: Tensor
        self.register_buffer("positions", position_table(LONGEST + 1, own.width), persistent=False)
        self.register_buffer("memory_positions", position_table(LONGEST + 1, 2 * own.width), persistent=False)

    def forward(
        self,
        text: Features,
        audio: Features,
        vision: Features,
        text_lengths: Lengths,
        audio_lengths: Lengths,
        vision_lengths: Lengths,
    ) -> Logits:
        lengths = {"text": text_lengths, "audio": audio_lengths, "vision": vision_lengths}
        states = self.states({"text": text, "audio": audio, "vision": vision}, lengths)
        z = torch.cat([states[m] for m in self.streams], dim=-1)
        return self.head(self.residual(self.output_dropout(torch.relu(self.hidden(z)))) + z)

    def states(
        self, inputs: Mapping[str, Features], lengths: Mapping[str, Int[Tensor, " batch"]]
    ) -> dict[str, Float[Tensor, "batch memory"]]:
        """The last step of each stream's memory encoder; zeros for a stream without steps."""
        inputs = self.standardised(inputs)
        x = {m: self._project(m, self.text_dropout(v) if m == "text" else v) for m, v in inputs.items()}
        left = {m: (n - self.shrinkage[m]).clamp(min=0) for m, n in lengths.items()}
        found = {}
        for m in self.streams:
            enriched = [
                self.cross[f"{m}_with_{o}"](x[m], left[m], self.positions, x[o], left[o]) for o in MODALITIES if o != m
            ]
            remembered = self.memory[m](torch.cat(enriched, dim=-1), left[m], self.memory_positions)
            # Zeroed before the step is taken: a product between gather and head crashes OpenVINO 2026.4 at batch 4.
            found[m] = last_step(remembered * (left[m] > 0).to(remembered.dtype)[:, None, None], left[m])
        return found

    def _project(self, modality: str, x: Features) -> Features:
        if modality not in self.projections:
            return x
        return self.projections[modality](x.transpose(1, 2)).transpose(1, 2)
