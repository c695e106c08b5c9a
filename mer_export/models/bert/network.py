"""The BERT encoder without pooler, with explicit attention whose masks are finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.models.bert.config import BertConfig
from mer_export.models.layers import masked_softmax, real_steps


class TokenInputs(NamedTuple):
    """Text of a batch by contract name; `text_lengths` counts the special tokens too."""

    input_ids: Int[Tensor, "batch tokens"]
    token_type_ids: Int[Tensor, "batch tokens"]
    text_lengths: Int[Tensor, " batch"]


def tokens(inputs: Mapping[str, Tensor], config: BertConfig) -> TokenInputs:
    """Text inputs of at least two positions, in which a missing text is the two special tokens alone."""
    ids, segments, lengths = (inputs[name] for name in TokenInputs._fields)
    missing = lengths == 0
    extra = max(0, 2 - ids.shape[1])
    ids, segments = functional.pad(ids, (0, extra)), functional.pad(segments, (0, extra))
    place = torch.arange(ids.shape[1], device=ids.device)
    blank = torch.where(
        place == 0, config.first_token, torch.where(place == 1, config.last_token, config.padding_token)
    )
    return TokenInputs(
        torch.where(missing[:, None], blank, ids),
        torch.where(missing[:, None], 0, segments),
        torch.where(missing, 2, lengths),
    )


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
        token_type_ids: Int[Tensor, "batch tokens"],
        lengths: Int[Tensor, " batch"],
    ) -> Float[Tensor, "batch tokens hidden"]:
        """States of every position; at padding they are those of the padding token that attends to the real ones."""
        inside = real_steps(lengths, input_ids.shape[1])
        ids = torch.where(inside, input_ids, self.config.padding_token)
        x = self.embeddings(ids, torch.where(inside, token_type_ids, 0))
        for layer in self.layers:
            x = layer(x, inside)
        return x


class Embeddings(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.hidden)
        self.position_embeddings = nn.Embedding(config.positions, config.hidden)
        self.token_type_embeddings = nn.Embedding(config.segments, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.epsilon)
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.word_embeddings, self.position_embeddings, self.token_type_embeddings):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Int[Tensor, "batch tokens"], segments: Int[Tensor, "batch tokens"]) -> Tensor:
        x = self.word_embeddings(ids) + self.token_type_embeddings(segments)
        return self.dropout(self.norm(x + self.position_embeddings.weight[: ids.shape[1]]))


class Layer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and norm."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.heads = config.heads
        self.query, self.value, self.out = (_linear(config.hidden, config.hidden) for _ in range(3))
        self.key = _linear(config.hidden, config.hidden, bias=False)
        # A bias of the keys shifts all scores of a query alike, which softmax ignores: kept for checkpoints only.
        self.register_buffer("key_bias", torch.zeros(config.hidden))
        self.attention_norm = nn.LayerNorm(config.hidden, eps=config.epsilon)
        self.expand = _linear(config.hidden, config.feed_forward)
        self.contract = _linear(config.feed_forward, config.hidden)
        self.norm = nn.LayerNorm(config.hidden, eps=config.epsilon)
        self.attention_dropout = nn.Dropout(config.attention_dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "batch tokens hidden"], inside: Tensor) -> Tensor:
        q, k, v = (self._heads(project(x)) for project in (self.query, self.key, self.value))
        score = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weight = self.attention_dropout(masked_softmax(score, inside[:, None, None, :]))
        attended = (weight @ v).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.dropout(self.out(attended)))
        return self.norm(x + self.dropout(self.contract(functional.gelu(self.expand(x)))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, x.shape[-1] // self.heads)).transpose(1, 2)


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=0.02)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
