"""The crossmodal transformer of MulT: one sequence attends to another.

Paper: Tsai et al., "Multimodal Transformer for Unaligned Multimodal Language Sequences", ACL 2019.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.attention import Attention
from mer_export.layers.positions import halved_sinusoid
from mer_export.layers.steps import real_steps

Steps = Float[Tensor, "batch time width"]
Keys = Float[Tensor, "batch keys width"]
Lengths = Int[Tensor, " batch"]
Allowed = Bool[Tensor, "*#batch_heads_queries keys"]


@dataclass(frozen=True)
class Dropouts:
    """Dropout of attention weights, after the activation, of residual branches and of the embedded input."""

    attention: float
    relu: float = 0.0
    residual: float = 0.0
    embedding: float = 0.0


class CrossModal(nn.Module):
    """A stack of pre-norm layers and a final norm. Without `context` the sequence attends to itself.

    The original has no padding masks: how far a sequence was padded is part of its answer. Given the lengths, padding
    is not attended to and gets no position.
    """

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
        self.layers = nn.ModuleList(CrossModalLayer(width, heads, dropouts, activation) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropouts.embedding)
        self.scale, self.causal = math.sqrt(width), causal
        self.positions: Tensor | None
        table = None if positions is None else halved_sinusoid(positions, width)
        self.register_buffer("positions", table, persistent=False)

    def forward(
        self,
        x: Steps,
        context: Keys | None = None,
        lengths: Lengths | None = None,
        context_lengths: Lengths | None = None,
        last_only: bool = False,
    ) -> Steps:
        """States of every step, or (batch, 1, width) of the last one; with lengths those past them mean nothing.

        Args:
            x: the sequence whose steps are the queries.
            context: the sequence that is attended to; it is embedded once and stays as it is.
            lengths: real steps of `x`; with `context` the next argument goes with it.
            context_lengths: real steps of `context`.
            last_only: computes the last step of the array alone.
        """
        if context is None:
            context_lengths = lengths
        allowed = self._allowed(x.shape[1], (x if context is None else context).shape[1], lengths, context_lengths)
        x = self._embed(x, lengths)
        keys = None if context is None else self._embed(context, context_lengths)
        for index, layer in enumerate(self.layers):
            last = last_only and index == len(self.layers) - 1
            x = layer(x, keys, allowed, context_lengths is not None, last)
        return self.norm(x)

    def _embed(self, x: Steps, lengths: Lengths | None) -> Steps:
        embedded = self.scale * x
        if self.positions is not None:
            # A step whose first channel is exactly 0 gets no position: the original takes it for padding.
            placed = x[..., :1] != 0
            if lengths is not None:
                placed = placed & real_steps(lengths, x.shape[1])[..., None]
            embedded = embedded + self.positions[: x.shape[1]] * placed.to(x.dtype)
        return self.dropout(embedded)

    def _allowed(self, queries: int, keys: int, lengths: Lengths | None, key_lengths: Lengths | None) -> Allowed | None:
        """Which keys a query may attend to; None where it is all of them."""
        if lengths is None or key_lengths is None:
            return causal_mask(queries, keys, abs(keys - queries), self.norm.weight.device) if self.causal else None
        real = real_steps(key_lengths, keys)[:, None, None]
        if not self.causal:
            return real
        # The first key is allowed to every query, so that only a context without steps leaves queries without any.
        shift = (key_lengths - lengths).abs()[:, None, None, None]
        return real & causal_mask(queries, keys, shift, lengths.device)


class CrossModalLayer(nn.Module):
    def __init__(self, width: int, heads: int, dropouts: Dropouts, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.activation = activation
        self.project = nn.Linear(width, 3 * width)
        """Query, key and value rows."""
        self.attention = Attention(heads, dropouts.attention)
        self.out = nn.Linear(width, width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)
        self.relu_dropout = nn.Dropout(dropouts.relu)
        self.residual_dropout = nn.Dropout(dropouts.residual)

    def forward(
        self,
        x: Steps,
        keys: Keys | None,
        allowed: Allowed | None = None,
        zero_empty: bool = False,
        last_only: bool = False,
    ) -> Steps:
        """`last_only` computes the last step alone."""
        # Query and key inputs share one norm, also where they are different sequences.
        own = self.attention_norm(x)
        other = own if keys is None else self.attention_norm(keys)
        if last_only:
            x, own, allowed = x[:, -1:], own[:, -1:], None if allowed is None else allowed[..., -1:, :]
        x = x + self.residual_dropout(self.out(self.attention(*self._project(own, other), allowed, zero_empty)))
        hidden = self.relu_dropout(self.activation(self.expand(self.norm(x))))
        return x + self.residual_dropout(self.contract(hidden))

    def _project(self, own: Steps, other: Keys) -> tuple[Tensor, ...]:
        """Queries, keys and values. The rows are slices, which exporters fold: a split stays in their graphs."""
        width = own.shape[-1]
        rows = [slice(start, start + width) for start in (0, width, 2 * width)]
        weight, bias = self.project.weight, self.project.bias
        return tuple(functional.linear(x, weight[r], bias[r]) for x, r in zip((own, other, other), rows, strict=True))


def causal_mask(
    queries: int, keys: int, shift: int | Tensor, device: torch.device
) -> Bool[Tensor, "*#batch queries keys"]:
    """True at keys that are at most `shift` ahead of a query."""
    ahead = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None]
    return ahead <= shift


def initialise(encoder: CrossModal) -> CrossModal:
    """Draws the weights of the linear layers as the authors of MulT do: Xavier uniform, biases zero."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return encoder


def project(inputs: int, width: int, kernel: int, padding: int) -> nn.Module:
    """A temporal convolution without bias; nothing where the features already have the width."""
    return nn.Identity() if inputs == width else nn.Conv1d(inputs, width, kernel, padding=padding, bias=False)


def convolve(layer: nn.Module, x: Float[Tensor, "batch time inputs"]) -> Float[Tensor, "batch time width"]:
    return layer(x.transpose(1, 2)).transpose(1, 2)
