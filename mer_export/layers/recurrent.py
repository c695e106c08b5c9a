"""Layers that several systems share, in the form that every exporter takes and padding cannot touch."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def reversal(lengths: Int[Tensor, " batch"], steps: int) -> Int[Tensor, "batch time"]:
    """Index that reverses the real part of each item and leaves padding in place."""
    time = torch.arange(steps, device=lengths.device)
    last = lengths[:, None] - 1
    return torch.where(time <= last, last - time, time)


def take_steps(x: Float[Tensor, "batch time feature"], index: Int[Tensor, "batch taken"]) -> Tensor:
    """Rows `x[b, index[b, t]]`, as one flat row gather, which runtimes do as block copies."""
    batch, time, width = x.shape
    start = torch.arange(batch, device=x.device)[:, None] * time
    taken = x.reshape(batch * time, width).index_select(0, (start + index).reshape(-1))
    return taken.reshape(batch, index.shape[1], width)


MASKED = -3e4
"""Score of a masked key: finite in float16 too, and far enough below any real score that its weight is exactly 0."""


def real_steps(lengths: Int[Tensor, " batch"], steps: int) -> Bool[Tensor, "batch time"]:
    """True at the real steps of each item."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def masked_softmax(
    score: Float[Tensor, "*rows keys"], mask: Bool[Tensor, "*#rows keys"]
) -> Float[Tensor, "*rows keys"]:
    """Attention weights over the keys where `mask` is true; all zero where there is none."""
    weight = torch.softmax(torch.where(mask, score, MASKED), dim=-1)
    return torch.where(mask, weight, 0.0)


def last_step(x: Float[Tensor, "batch time feature"], lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch feature"]:
    """The last real step of each item; an item without any gives its first, which means nothing."""
    batch, time, width = x.shape
    row = torch.arange(batch, device=x.device) * time + (lengths - 1).clamp(min=0)
    return x.reshape(batch * time, width).index_select(0, row)


class BidirectionalRNN(nn.Module):
    """A stacked bidirectional GRU or LSTM whose outputs at real steps equal those of a packed run.

    Every layer is two one-directional RNNs; the backward one reads the real part reversed, so padding is read only
    after the last real step. Dropout acts between layers, as in PyTorch.
    """

    def __init__(self, kind: Literal["gru", "lstm"], inputs: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        cell = {"gru": nn.GRU, "lstm": nn.LSTM}[kind]
        widths = [inputs] + [2 * hidden] * (layers - 1)
        self.ahead = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths)
        self.back = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time feature"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch time feature"]:
        """Outputs of both directions side by side; values at padding are finite and meaningless."""
        index = reversal(lengths, x.shape[1])
        for layer, (ahead, back) in enumerate(zip(self.ahead, self.back, strict=True)):
            if layer:
                x = self.dropout(x)
            x = torch.cat([ahead(x)[0], take_steps(back(take_steps(x, index))[0], index)], dim=-1)
        return x


class LastStepRNN(nn.Module):
    """A stacked GRU or LSTM read at the last real step of its top layer; zeros for an item without steps.

    At that step the backward half of the top layer has read nothing but the step itself, so it runs for one step.
    """

    def __init__(
        self,
        kind: Literal["gru", "lstm"],
        inputs: int,
        hidden: int,
        layers: int,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        cell = {"gru": nn.GRU, "lstm": nn.LSTM}[kind]
        widths = [inputs] + [(2 if bidirectional else 1) * hidden] * (layers - 1)
        self.ahead = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths)
        self.back = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths if bidirectional)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time feature"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch direction hidden"]:
        """Forward half, then the backward half where there is one."""
        index = reversal(lengths, x.shape[1])
        for layer, ahead in enumerate(self.ahead[:-1]):
            outputs = [ahead(x)[0]]
            if self.back:
                outputs.append(take_steps(self.back[layer](take_steps(x, index))[0], index))
            x = self.dropout(torch.cat(outputs, dim=-1))
        halves = [last_step(self.ahead[-1](x)[0], lengths)]
        if self.back:
            halves.append(self.back[-1](last_step(x, lengths)[:, None])[0][:, 0])
        present = (lengths > 0).to(x.dtype)
        return torch.stack(halves, dim=1) * present[:, None, None]


class TransformerLayer(nn.Module):
    """One post-norm transformer encoder layer with explicit, always finite masking (no fused fast path)."""

    def __init__(self, width: int, heads: int, feed_forward: int = 2048, dropout: float = 0.1):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time feature"], mask: Float[Tensor, "batch time"]
    ) -> Float[Tensor, "batch time feature"]:
        """`mask` is 1 at real steps. A row with no real step attends to nothing and gives finite values."""
        batch, time, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        score = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + (mask - 1.0)[:, None, None, :] * 1e9
        weight = self.dropout(torch.softmax(score, dim=-1) * mask[:, None, None, :])
        attended = (weight @ v).permute(0, 2, 1, 3).reshape(batch, time, width)
        x = self.norm1(x + self.dropout(self.out(attended)))
        return self.norm2(x + self.dropout(self.linear2(self.dropout(torch.relu(self.linear1(x))))))


class Standardise(nn.Module):
    """Brings features to zero mean and unit variance with fixed statistics, so that an export carries them.

    A row of zeros is a missing modality or padding: it stays zeros, which is the mean of the training data.
    """

    def __init__(self, width: int):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        given = (x != 0).any(-1, keepdim=True).to(x.dtype)
        return (x - self.mean) / self.std * given
