"""The crossmodal transformer of MulT, which TFR-Net and FacialMMT use too: one sequence attends to another.

Paper: Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019. Parameter names in
checkpoints are those of `NAMES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.bert.network import Bert, tokens
from mer_export.layers.recurrent import MASKED, real_steps
from mer_export.models.padded_arrays import ArrayConfig

if TYPE_CHECKING:
    from mer_export.contract import Lengths

Steps = Float[Tensor, "batch time width"]


@dataclass(frozen=True)
class Dropouts:
    """Dropout of attention weights, after the activation, of residual branches and of the embedded input."""

    attention: float
    relu: float = 0.0
    residual: float = 0.0
    embedding: float = 0.0


def dropouts(config: ArrayConfig, attended: str) -> Dropouts:
    """Those of layers that attend to the modality `attended`."""
    attention = config.attention_dropout_to(attended)
    return Dropouts(attention, config.relu_dropout, config.residual_dropout, config.embedding_dropout)


class CrossModal(nn.Module):
    """A stack of pre-norm layers and a final norm. Without `context` the sequence attends to itself."""

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        dropouts: Dropouts,
        causal: bool,
        positions: int | None = None,
        activation: Callable[[Tensor], Tensor] = torch.relu,
    ):
        """`positions` is the longest sequence that gets positions; None for an encoder without them."""
        super().__init__()
        self.layers = nn.ModuleList(CrossModalLayer(width, heads, dropouts, causal, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropouts.embedding)
        self.scale = math.sqrt(width)
        self.positions: Tensor | None
        table = None if positions is None else sinusoid(positions, width)
        self.register_buffer("positions", table, persistent=False)

    def forward(
        self, x: Steps, context: Float[Tensor, "batch keys width"] | None = None, last_only: bool = False
    ) -> Steps:
        """States of every step, or (batch, 1, width) of the last one."""
        x = self._embed(x)
        keys = None if context is None else self._embed(context)
        for index, layer in enumerate(self.layers):
            x = layer(x, keys, last_only and index == len(self.layers) - 1)
        return self.norm(x)

    def _embed(self, x: Steps) -> Steps:
        embedded = self.scale * x
        if self.positions is not None:
            # A step whose first channel is exactly 0 gets no position: the original takes it for padding.
            embedded = embedded + self.positions[: x.shape[1]] * (x[..., :1] != 0).to(x.dtype)
        return self.dropout(embedded)


class CrossModalLayer(nn.Module):
    def __init__(
        self, width: int, heads: int, dropouts: Dropouts, causal: bool, activation: Callable[[Tensor], Tensor]
    ):
        super().__init__()
        self.heads, self.causal, self.activation = heads, causal, activation
        self.project = nn.Linear(width, 3 * width)
        """Query, key and value rows."""
        self.out = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.attention_dropout = nn.Dropout(dropouts.attention)
        self.relu_dropout = nn.Dropout(dropouts.relu)
        self.residual_dropout = nn.Dropout(dropouts.residual)

    def forward(self, x: Steps, keys: Float[Tensor, "batch keys width"] | None, last_only: bool = False) -> Steps:
        """`last_only` computes the last step alone."""
        # Query and key inputs share one norm, also where they are different sequences.
        own = self.attention_norm(x)
        other = own if keys is None else self.attention_norm(keys)
        allowed = causal_mask(own.shape[1], other.shape[1], x.device) if self.causal else None
        if last_only:
            x, own, allowed = x[:, -1:], own[:, -1:], None if allowed is None else allowed[-1:]
        x = x + self.residual_dropout(self._attend(own, other, allowed))
        hidden = self.relu_dropout(self.activation(self.expand(self.norm(x))))
        return x + self.residual_dropout(self.contract(hidden))

    def _attend(self, own: Steps, other: Tensor, allowed: Tensor | None) -> Steps:
        width = own.shape[-1]
        weight, bias = self.project.weight, self.project.bias
        q = self._heads(functional.linear(own, weight[:width], bias[:width]))
        k = self._heads(functional.linear(other, weight[width : 2 * width], bias[width : 2 * width]))
        v = self._heads(functional.linear(other, weight[2 * width :], bias[2 * width :]))
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if allowed is not None:
            score = torch.where(allowed, score, MASKED)
        attended = self.attention_dropout(torch.softmax(score, dim=-1)) @ v
        return self.out(attended.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(1, 2)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """True at keys that are at most the difference of the lengths ahead of a query."""
    ahead = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None]
    return ahead <= abs(keys - queries)


def sinusoid(positions: int, width: int) -> Float[Tensor, "positions width"]:
    """Rows 1 to `positions` of the original table: sines, then cosines, a zero column where the width is odd."""
    half = width // 2
    step = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
    angle = torch.arange(1, positions + 1)[:, None] * step
    return functional.pad(torch.cat([torch.sin(angle), torch.cos(angle)], dim=1), (0, width % 2))


NAMES = {
    "self_attn.in_proj_weight": "project.weight",
    "self_attn.in_proj_bias": "project.bias",
    **{
        f"{theirs}.{p}": f"{ours}.{p}"
        for theirs, ours in {
            "self_attn.out_proj": "out",
            "fc1": "expand",
            "fc2": "contract",
            "layer_norms.0": "attention_norm",
            "layer_norms.1": "norm",
        }.items()
        for p in ("weight", "bias")
    },
}
"""Names of a layer in the authors' checkpoints, and ours."""


def renames(layers: int, theirs: str, ours: str) -> dict[str, str]:
    """Every entry of one encoder under the prefixes `theirs` and `ours`."""
    names = {f"{theirs}.layers.{n}.{a}": f"{ours}.layers.{n}.{o}" for n in range(layers) for a, o in NAMES.items()}
    return names | {f"{theirs}.layer_norm.{p}": f"{ours}.norm.{p}" for p in ("weight", "bias")}


def full_arrays(inputs: Mapping[str, Tensor], bert: Bert, lengths: Lengths) -> dict[str, Tensor]:
    """The inputs at the array lengths that the model was trained with, whatever the bucket.

    These models have no padding masks: how far an array was padded is part of their answer. Token ids get the padding
    token, frames zeros.

    Returns:
        `input_ids`, `token_type_ids`, `text_lengths`, `audio`, `audio_lengths`, `vision`, `vision_lengths`.
    """
    text = tokens(inputs, bert.config)
    full = text._asdict()
    for name in ("input_ids", "token_type_ids"):
        full[name] = functional.pad(full[name], (0, lengths["text_len"] - full[name].shape[1]))
    for m in ("audio", "vision"):
        x, own = inputs[m], inputs[f"{m}_lengths"]
        x = torch.where(real_steps(own, x.shape[1])[..., None], x, 0.0)
        full[m] = functional.pad(x, (0, 0, 0, lengths[f"{m}_len"] - x.shape[1]))
        full[f"{m}_lengths"] = own
    return full


def project(inputs: int, width: int, kernel: int, padding: int) -> nn.Module:
    """A temporal convolution without bias; nothing where the features already have the width."""
    return nn.Identity() if inputs == width else nn.Conv1d(inputs, width, kernel, padding=padding, bias=False)


def convolve(layer: nn.Module, x: Float[Tensor, "batch time inputs"]) -> Float[Tensor, "batch time width"]:
    return layer(x.transpose(1, 2)).transpose(1, 2)
