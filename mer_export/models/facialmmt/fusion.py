"""The parts of FacialMMT's fusion (sections 3.2 and 5): frame selection, encoders of one modality, pooling."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.attention import masked_softmax
from mer_export.layers.bert.config import BertConfig
from mer_export.layers.bert.network import Layer
from mer_export.layers.crossmodal import CrossModal, Dropouts, initialise
from mer_export.layers.steps import take_steps

Steps = Float[Tensor, "batch time width"]
Real = Bool[Tensor, "batch time"]


def distribution(
    logits: Float[Tensor, "*frames expressions"], noise: Float[Tensor, "*frames expressions"], temperature: float
) -> Float[Tensor, "*frames expressions"]:
    """Softmax with Gumbel noise, as the original samples it in evaluation too; zeros are the mode's softmax."""
    return torch.softmax((logits + noise) / temperature, dim=-1)


def confidence(distribution: Float[Tensor, "*frames expressions"]) -> Float[Tensor, "*frames"]:
    """Sum of squares: 1 where one expression is certain, 1 / expressions where nothing is known."""
    return (distribution**2).sum(-1)


def select_frames(
    features: Steps, distribution: Float[Tensor, "batch time expressions"], real: Real, threshold: float
) -> tuple[Float[Tensor, "batch time both"], Real]:
    """Moves frames with a clear expression to the front, in order; all real ones stay where none is clear.

    The shapes do not depend on how many are kept: row `i` of the result is picked by a one-hot row of a matrix.

    Returns:
        Features with their distribution beside them, zeros after the last kept frame; which rows are kept frames.
    """
    clear = (confidence(distribution) > threshold) & real
    kept = clear | (real & ~clear.any(1, keepdim=True))
    place = torch.arange(kept.shape[1], device=kept.device)
    amount = kept.to(features.dtype)
    # Products and sums only: a running sum is an operator that not every runtime has.
    rank = (amount[:, None] * (place <= place[:, None]).to(amount.dtype)).sum(-1) - 1
    picks = ((rank[:, None] - place[:, None]).abs() < 0.5) & kept[:, None]
    rows = torch.cat([features, distribution], dim=-1)
    return picks.to(rows.dtype) @ rows, place < amount.sum(1, keepdim=True)


def utterance_rows(
    hidden: Float[Tensor, "batch tokens hidden"],
    tokens: Int[Tensor, " batch"],
    span: Int[Tensor, "batch 2"],
    length: int,
) -> tuple[Float[Tensor, "batch length hidden"], Real]:
    """States of the utterance's own tokens, the first `length` of them, and which of the rows are real.

    `tokens` are those of the whole text; a span that leaves it ends with it.
    """
    place = torch.arange(length, device=hidden.device)
    row = span[:, :1] + place
    real = (place < span[:, 1:]) & (row < tokens[:, None])
    return take_steps(hidden, row.clamp(max=hidden.shape[1] - 1)), real


class Encoder(nn.Module):
    """Learnt positions and post-norm layers over one modality.

    An item without any real step attends to all its steps alike: the original lowers all scores by one amount.
    """

    def __init__(self, shape: BertConfig, positions: int, layers: int):
        """`shape` gives width, heads, feed-forward and dropouts."""
        super().__init__()
        self.positions = nn.Embedding(positions, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(layers))
        for layer in self.layers.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self, x: Steps, real: Real) -> Steps:
        x = x + self.positions.weight[: x.shape[1]]
        seen = real | ~real.any(1, keepdim=True)
        for layer in self.layers:
            x = layer(x, seen)
        return x


class Pooling(nn.Module):
    """Additive attention of one learnt query over a sequence; zeros where nothing is real."""

    def __init__(self, width: int):
        super().__init__()
        self.query_vector = nn.Parameter(torch.randn(width))
        self.keys, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Linear(width, 1)

    def forward(self, x: Steps, real: Real) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch time"]]:
        """The pooled vector and the weights."""
        score = self.score(torch.tanh(self.keys(x) + self.query(self.query_vector)))[..., 0]
        weight = masked_softmax(score, real)
        return (weight[:, None] @ x)[:, 0], weight


def cross_modal(width: int, heads: int, layers: int, dropout: float, positions: int) -> CrossModal:
    """A cross-modal encoder without any mask, which is applied in both directions."""
    dropouts = Dropouts(attention=dropout)
    return initialise(CrossModal(width, heads, layers, dropouts, False, positions, functional.gelu))
