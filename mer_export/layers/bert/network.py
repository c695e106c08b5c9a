"""The BERT or RoBERTa encoder without pooler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.attention import Attention
from mer_export.layers.bert.config import BertConfig
from mer_export.layers.steps import real_steps, up_to


class TokenInputs(NamedTuple):
    """Text of a batch by contract name; `text_lengths` counts the special tokens too."""

    input_ids: Int[Tensor, "batch tokens"]
    token_type_ids: Int[Tensor, "batch tokens"]
    text_lengths: Int[Tensor, " batch"]


def tokens(inputs: Mapping[str, Tensor], config: BertConfig) -> TokenInputs:
    """Text inputs of at least two positions, in which a missing text is the two special tokens alone."""
    ids, segments, lengths = (inputs[name] for name in TokenInputs._fields)
    missing = lengths == 0
    steps = max(2, ids.shape[1])
    ids, segments = up_to(ids, steps), up_to(segments, steps)
    return TokenInputs(
        torch.where(missing[:, None], _blank(ids, config), ids),
        torch.where(missing[:, None], 0, segments),
        torch.where(missing, 2, lengths),
    )


def by_padding(
    ids: Int[Tensor, "batch tokens"], config: BertConfig
) -> tuple[Int[Tensor, "batch tokens"], Int[Tensor, " batch"]]:
    """Token ids of at least two positions and their lengths, which the padding token tells.

    A row of padding alone, which the encoder has no answer for, becomes the two special tokens.
    """
    ids = up_to(ids, max(2, ids.shape[1]), config.padding_token)
    lengths = (ids != config.padding_token).to(torch.int64).sum(dim=1)
    missing = lengths == 0
    return torch.where(missing[:, None], _blank(ids, config), ids), torch.where(missing, 2, lengths)


def _blank(ids: Int[Tensor, "batch tokens"], config: BertConfig) -> Int[Tensor, " tokens"]:
    """The two special tokens and padding."""
    place = torch.arange(ids.shape[1], device=ids.device)
    return torch.where(place == 0, config.first_token, torch.where(place == 1, config.last_token, config.padding_token))


class Bert(nn.Module):
    """Token ids in, last hidden states out. Whatever stands behind an item's length is read as padding."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        token_type_ids: Int[Tensor, "batch tokens"] | None,
        lengths: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch tokens hidden"]:
        """States of every position; at padding they are those of the padding token that attends to the real ones.

        Without `token_type_ids` all tokens are of type 0.
        """
        return self._states(input_ids, token_type_ids, lengths, first_only=False)

    def first(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        token_type_ids: Int[Tensor, "batch tokens"] | None,
        lengths: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch hidden"]:
        """The state of the first position, for which the last layer computes that one row alone: `forward()[:, 0]`."""
        return self._states(input_ids, token_type_ids, lengths, first_only=True)[:, 0]

    def _states(self, input_ids: Tensor, token_type_ids: Tensor | None, lengths: Tensor, first_only: bool) -> Tensor:
        inside = real_steps(lengths, input_ids.shape[1])
        ids = torch.where(inside, input_ids, self.config.padding_token)
        segments = None if token_type_ids is None else torch.where(inside, token_type_ids, 0)
        x = self.embeddings(ids, segments)
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, inside, first_only and number == len(self.layers))
        return x


class Embeddings(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.first_position = config.first_position
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(config.segments, config.hidden) if config.segments else None
        self.norm = nn.LayerNorm(config.hidden, eps=config.epsilon)
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "batch tokens"], segments: Int[Tensor, "batch tokens"] | None) -> Tensor:
        x = self.word_embeddings(ids)
        if self.token_type_embeddings is not None:
            x = x + (self.token_type_embeddings.weight[0] if segments is None else self.token_type_embeddings(segments))
        # Real tokens stand at the front, so their positions count up; RoBERTa's padding row is never read.
        positions = self.position_embeddings.weight[self.first_position : self.first_position + ids.shape[1]]
        return self.dropout(self.norm(x + positions))


class Layer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and norm."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.query, self.value, self.out = (_linear(config.hidden, config.hidden) for _ in range(3))
        self.key = _linear(config.hidden, config.hidden, bias=False)
        # A bias of the keys shifts all scores of a query alike, which softmax ignores: kept for checkpoints only.
        self.register_buffer("key_bias", torch.zeros(config.hidden))
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.epsilon)
        self.expand = _linear(config.hidden, config.feed_forward)
        self.contract = _linear(config.feed_forward, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.epsilon)
        self.attention = Attention(config.heads, config.attention_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens hidden"], inside: Bool[Tensor, "batch tokens"], first_only: bool = False
    ) -> Tensor:
        """States of every position, or (batch, 1, hidden) of the first."""
        keys, x = x, x[:, :1] if first_only else x
        attended = self.attention(self.query(x), self.key(keys), self.value(keys), inside[:, None, None])
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        return self.norm(x + self.dropout(self.contract(functional.gelu(self.expand(x)))))


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=0.02)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
