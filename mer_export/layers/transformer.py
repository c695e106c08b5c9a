"""The encoder layer of PyTorch's own transformer, with explicit attention."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mer_export.layers.attention import Attention


class TransformerLayer(nn.Module):
    """One post-norm layer as `nn.TransformerEncoderLayer` computes it."""

    def __init__(self, width: int, heads: int, feed_forward: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.attention = Attention(heads, dropout)
        self.out = nn.Linear(width, width)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time feature"], inside: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time feature"]:
        """`inside` is true at real steps; None makes all real. An item without any attends to nothing."""
        attended = self.attention(*self.qkv(x).chunk(3, dim=-1), None if inside is None else inside[:, None, None])
        x = self.norm1(x + self.dropout(self.out(attended)))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(torch.relu(self.linear1(x))))))
