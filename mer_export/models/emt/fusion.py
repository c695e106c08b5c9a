"""Global-local fusion: global tokens, one of each modality, exchange with the local features (section 5.2)."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.attention import Attention
from mer_export.layers.positions import alternating_sinusoid
from mer_export.models.emt.config import POSITIONS, EmtConfig

Local = Float[Tensor, "batch time width"]
Context = Float[Tensor, "batch modalities width"]
Keys = Bool[Tensor, "batch time"]
ACTIVATIONS = {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


class EmtFusion(nn.Module):
    """Layers of mutual promotion units and the pooling of the views of the global context."""

    def __init__(self, config: EmtConfig):
        super().__init__()
        self.config = config
        table = alternating_sinusoid(POSITIONS, config.width)[None]
        self.positions: Tensor
        if config.learnable_positions:
            self.positions = nn.Parameter(table)
        else:
            self.register_buffer("positions", table, persistent=False)
        self.dropout = nn.Dropout(config.position_dropout)
        # Unshared units start as copies of one another, as in EMT.
        unit, pool = Unit(config), Pool(config)
        self.units = nn.ModuleList(copy.deepcopy(unit) for _ in range(config.units))
        self.pools = nn.ModuleList(copy.deepcopy(pool) for _ in range(1 if config.share_layers else config.depth))

    def forward(
        self, context: Context, local: dict[str, Local], keys: dict[str, Keys], uniform: bool, update_all: bool
    ) -> tuple[Context, dict[str, Local]]:
        """The global context and the local features after the last layer.

        Args:
            context: global tokens in the order text, audio, vision.
            local: features of each modality, before positions.
            keys: the positions that may be attended to.
            uniform: an item without any key attends to all its positions alike, padding included, as in EMT; else it
                attends to nothing.
            update_all: the last layer updates local features too, which only the reconstruction heads read.
        """
        local = {m: self.dropout(x + self.positions[:, : x.shape[1]]) for m, x in local.items()}
        for layer in range(self.config.depth):
            seen, updated = [], {}
            for index, m in enumerate(self.config.used):
                inwards, outwards = (self.units[self.config.unit(layer, index, d)] for d in (1, 0))
                seen.append(inwards(context, local[m], keys[m], None, uniform))
                if update_all or layer < self.config.depth - 1:
                    updated[m] = outwards(local[m], context, None, keys[m], uniform)
            context = self.pools[0 if self.config.share_layers else layer](torch.stack(seen, dim=1))
            local = local | updated
        return context, local


class Unit(nn.Module):
    """A mutual promotion unit: cross-attention, self-attention, feed-forward, each pre-norm and residual."""

    def __init__(self, config: EmtConfig):
        super().__init__()
        width, inner = config.width, config.expansion * config.width
        self.cross_norm, self.context_norm, self.self_norm, self.norm = (nn.LayerNorm(width) for _ in range(4))
        self.cross, self.itself = ProjectedAttention(config), ProjectedAttention(config)
        self.expand = nn.Linear(width, 2 * inner)
        self.contract = nn.Linear(inner, width)
        self.dropout = nn.Dropout(config.feed_forward_dropout)

    def forward(
        self,
        x: Local,
        context: Float[Tensor, "batch keys width"],
        context_keys: Keys | None,
        own_keys: Keys | None,
        uniform: bool,
    ) -> Local:
        x = x + self.cross(self.cross_norm(x), self.context_norm(context), context_keys, uniform)
        own = self.self_norm(x)
        x = x + self.itself(own, own, own_keys, uniform)
        value, gate = self.expand(self.norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.contract(value * functional.gelu(gate)))


class ProjectedAttention(nn.Module):
    """Attention whose queries, keys and values have no biases."""

    def __init__(self, config: EmtConfig):
        super().__init__()
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * config.width, bias=False)
        self.attention = Attention(config.heads, config.attention_dropout)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Local, context: Float[Tensor, "batch keys width"], keys: Keys | None, uniform: bool) -> Local:
        allowed = None if keys is None else keys[:, None, None]
        key, value = self.key_value(context).chunk(2, dim=-1)
        return self.out(self.attention(self.query(x), key, value, allowed, zero_empty=not uniform))


class Pool(nn.Module):
    """Attention over the versions of the global context, each seen through one modality."""

    def __init__(self, config: EmtConfig):
        super().__init__()
        self.tokens = len(config.used)
        width = self.tokens * config.width
        self.hidden = nn.Linear(width, width)
        self.score = nn.Linear(width, 1)
        self.activation = ACTIVATIONS[config.pooling]

    def forward(self, seen: Float[Tensor, "batch views modalities width"]) -> Context:
        rows = seen.flatten(2)
        weight = torch.softmax(self.score(self.activation(self.hidden(rows))), dim=1)
        return (weight * rows).sum(dim=1).unflatten(-1, (self.tokens, seen.shape[-1]))
