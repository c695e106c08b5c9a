"""The networks of tab: first-token features of two encoders, attention over the context, one head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mer_export.layers.bert.network import Bert, by_padding
from mer_export.models.tab.config import TabConfig

Tokens = Int[Tensor, "batch tokens"]
Window = Float[Tensor, "batch slots_by_width"]
Logits = Float[Tensor, "batch labels"]
Attention = Float[Tensor, "batch heads slots"]


class Tab(nn.Module):
    """The branches of a variant and the head that joins their vectors."""

    def __init__(self, config: TabConfig):
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleDict({m: Bert(c) for m, c in config.encoders.items() if m in config.branches})
        self.context = ContextAttention(config) if "tab" in config.branches else None
        self.hidden = nn.Linear(sum(config.widths.values()), config.head_width)
        self.out = nn.Linear(config.head_width, len(config.labels), bias=False)

    def forward(self, **inputs: Tensor) -> Logits | tuple[Logits, Attention]:
        """Scores, and where the variant reads the context the attention over it."""
        vectors = {m: self.encode(m, inputs[f"{m}_tokens"]) for m in self.encoders}
        return self.join(vectors, inputs.get("tab_embedding"))

    def join(self, vectors: Mapping[str, Tensor], window: Window | None) -> Logits | tuple[Logits, Attention]:
        """What `forward` gives, of the vectors that the encoders gave."""
        if self.context is None:
            return self.classify(vectors)
        context, attention = self.context(window)
        return self.classify({**vectors, "tab": context}), attention

    def encode(self, modality: str, tokens: Tokens) -> Float[Tensor, "batch hidden"]:
        """The state of the first token. A row of padding alone is read as the two special tokens."""
        encoder = self.encoders[modality]
        assert isinstance(encoder, Bert)
        ids, lengths = by_padding(tokens, encoder.config)
        return encoder.first(ids, None, lengths)

    def classify(self, vectors: Mapping[str, Tensor]) -> Logits:
        """Raw scores of the branches' vectors."""
        joined = torch.cat([vectors[b] for b in self.config.branches], dim=-1)
        return self.out(torch.relu(self.hidden(joined)))

    def in_batch(self, **inputs: Tensor) -> Logits:
        """Scores as the original computes them in a batch, which are the same: only its metrics differ."""
        found = self(**inputs)
        return found[0] if isinstance(found, tuple) else found


class ContextAttention(nn.Module):
    """The time-asynchronous branch: self-attention over the sentence vectors of neighbouring utterances.

    Each head scores a slot by a small network, not by a product of queries and keys. Slots of zeros, as at the border
    of a session, take part: they give what the bias of the projection gives.
    """

    def __init__(self, config: TabConfig):
        super().__init__()
        self.slots, self.sentence_dim = config.slots, config.sentence_dim
        self.project = nn.Linear(config.sentence_dim, config.tab_width)
        self.inner = nn.Linear(config.tab_width, config.tab_attention, bias=False)
        self.score = nn.Linear(config.tab_attention, config.tab_heads, bias=False)
        for layer in (self.inner, self.score):
            nn.init.uniform_(layer.weight, -0.1, 0.1)
        self.dropout = nn.Dropout(config.tab_dropout)

    def forward(self, window: Window) -> tuple[Float[Tensor, "batch heads_by_width"], Attention]:
        """The heads' vectors side by side, and the weight that each head gives to each slot."""
        states = torch.relu(self.project(window.reshape(-1, self.slots, self.sentence_dim)))
        attention = torch.softmax(self.score(torch.tanh(self.inner(states))), dim=1).transpose(1, 2)
        return self.dropout(attention @ states).flatten(1), attention
