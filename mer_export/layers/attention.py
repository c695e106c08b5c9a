"""Multi-head attention with one mask rule: scores stay finite in float16, and a query without any key gets zeros."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

MASKED = -3e4
"""Score of a masked key: finite in float16 too, and far enough below any real score that its weight is exactly 0."""


class Attention(nn.Module):
    """Scaled dot-product attention of several heads, without a fused fast path, which treats padding in its own way.

    It has no parameters: the layers project, each with the parameters that its checkpoints have.
    """

    def __init__(self, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Float[Tensor, "batch queries width"],
        key: Float[Tensor, "batch keys width"],
        value: Float[Tensor, "batch keys width"],
        allowed: Bool[Tensor, "*#batch_heads_queries keys"] | None = None,
        zero_empty: bool = True,
    ) -> Float[Tensor, "batch queries width"]:
        """What each query gathers from the values, its heads side by side.

        Args:
            query: projected queries; their width is that of all heads together.
            key: projected keys.
            value: projected values.
            allowed: the keys that a query may attend to, of a shape that broadcasts to (batch, heads, queries, keys);
                None allows all.
            zero_empty: as in `masked_softmax`.
        """
        q, k, v = (self._split(x) for x in (query, key, value))
        score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weight = torch.softmax(score, dim=-1) if allowed is None else masked_softmax(score, allowed, zero_empty)
        return (self.dropout(weight) @ v).transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(1, 2)


def masked_softmax(
    score: Float[Tensor, "*rows keys"], allowed: Bool[Tensor, "*#rows keys"], zero_empty: bool = True
) -> Float[Tensor, "*rows keys"]:
    """Attention weights over the keys where `allowed` is true.

    A row that allows no key is all zero. Without `zero_empty` it weighs all keys alike; where every row allows a key
    that saves an operator.
    """
    weight = torch.softmax(torch.where(allowed, score, MASKED), dim=-1)
    return torch.where(allowed, weight, 0.0) if zero_empty else weight
