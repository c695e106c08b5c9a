"""The graph of M3NET in dense padded form: hypergraph and frequency layers, of all utterances or of the newest."""

from __future__ import annotations

from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.contract import Semantics
from mer_export.errors import InputError
from mer_export.models.cmerc.config import HYPEREDGE_WEIGHTS, NODE_WEIGHTS

Context = Literal["full", "intra", "inter"]

Nodes = Float[Tensor, "batch modalities utterances hidden"]
Mask = Float[Tensor, "batch utterances"]
Lengths = Int[Tensor, " batch"]
Now = Float[Tensor, "batch modalities hidden"]
"""The nodes of the utterance that is said."""
Before = Float[Tensor, "batch modalities utterances hidden"]
"""Those of the utterances before it that a layer reads, zeros at padding."""
Heard = Float[Tensor, "batch utterances"]
"""1 at utterances before, 0 at padding."""


class Hypergraph(nn.Module):
    """Hypergraph layers (section 5.3): each node lies in its modality's and in its utterance's hyperedge.

    No projection and no attention: node weights normalise hyperedges, hyperedge weights normalise nodes, both
    looked up by number. M3NET numbers them through the whole batch; `single` restarts at 0 for every dialogue.
    """

    def __init__(self, hidden: int, layers: int, causal: bool = False):
        """`causal`: of its modality's hyperedge a node sees the part up to its own utterance."""
        super().__init__()
        self.causal = causal
        self.hyperedge_weight = nn.Parameter(torch.ones(HYPEREDGE_WEIGHTS))
        self.node_weight = nn.Parameter(torch.ones(NODE_WEIGHTS))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(hidden)) for _ in range(layers))

    def forward(self, x: Nodes, mask: Mask, lengths: Int[Tensor, " batch"], semantics: Semantics) -> list[Nodes]:
        """What goes into each layer, and what comes out of the last one."""
        node_weight, modality_weight, utterance_weight = self._weights(x.shape[1], mask, lengths, semantics)
        inside = mask[:, None, :, None]
        over_time = self._over_time(node_weight, mask)
        per_utterance = reciprocal(node_weight.sum(1))[:, :, None]
        per_node = reciprocal(modality_weight[:, :, None] + utterance_weight[:, None, :])[..., None] * inside
        nodes = [x]
        for bias in self.bias:
            first, *others = nodes[-1].unbind(1)
            edges = over_time @ nodes[-1] + (sum(others, start=first) * per_utterance)[:, None]
            nodes.append(functional.leaky_relu(per_node * edges + bias, 0.01))
        return [*nodes[:-1], nodes[-1] * inside]

    def _over_time(self, node_weight: Tensor, mask: Mask) -> Float[Tensor, "batch modalities rows utterances"]:
        """One row per modality that sums its real utterances, so that padding needs no zeroing between layers; if
        causal one for each utterance, which sums those up to it."""
        if not self.causal:
            return (reciprocal(node_weight.sum(2))[:, :, None] * mask[:, None]).unsqueeze(2)
        past = up_to(mask)
        return reciprocal(node_weight @ past.transpose(0, 1))[..., None] * (past * mask[:, None])[:, None]

    def _weights(
        self, kinds: int, mask: Tensor, lengths: Tensor, semantics: Semantics
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of `kinds` modalities the weights of nodes (batch, kinds, utterances) and hyperedges.

        Those of hyperedges are (batch or 1, kinds) and (batch or 1, utterances).
        """
        steps = torch.arange(mask.shape[1], device=lengths.device)
        node = torch.arange(kinds, device=lengths.device)[:, None] * lengths[:, None, None] + steps
        if self.causal:
            # Numbers that do not depend on how long the dialogue becomes.
            node = (torch.arange(kinds, device=lengths.device)[:, None] + kinds * steps) + 0 * node
        if semantics == "single":
            modality_weight = self.hyperedge_weight[:kinds][None]
            utterance_weight = self.hyperedge_weight[kinds : kinds + mask.shape[1]][None]
        else:
            node, edge = self._number_through_batch(node, lengths)
            modality_weight = self.hyperedge_weight[edge[:, None] + torch.arange(kinds, device=edge.device)]
            utterance = (edge[:, None] + kinds + steps).clamp(max=HYPEREDGE_WEIGHTS - 1)
            utterance_weight = self.hyperedge_weight[utterance]
        node = node.clamp(max=NODE_WEIGHTS - 1)
        weight = self.node_weight.index_select(0, node.reshape(-1)).reshape(node.shape)
        return weight * mask[:, None], modality_weight, utterance_weight

    def _number_through_batch(self, node: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        total, dialogues, kinds = int(lengths.sum()), len(lengths), node.shape[1]
        if total + kinds * dialogues > HYPEREDGE_WEIGHTS or kinds * total > NODE_WEIGHTS:
            raise InputError(
                f"a batch of {dialogues} dialogues with {total} utterances needs more than the {HYPEREDGE_WEIGHTS} "
                f"hyperedge or {NODE_WEIGHTS} node weights of M3NET: lower --batch or use single semantics"
            )
        before = lengths.cumsum(0) - lengths
        edge = before + kinds * torch.arange(dialogues, device=lengths.device)
        return node + kinds * before[:, None, None], edge


class Frequency(nn.Module):
    """Frequency layers (section 5.4): a signed gate per edge decides between high and low frequencies."""

    def __init__(self, hidden: int, layers: int):
        super().__init__()
        self.gates = nn.ModuleList(nn.Linear(2 * hidden, 1) for _ in range(layers))

    def forward(self, x: Nodes, mask: Mask, edges: Float[Tensor, "batch utterances utterances"]) -> list[Nodes]:
        """What goes into each layer, and what comes out of the last one; `edges` is 1 where two utterances of one
        modality exchange messages."""
        degree = edges.sum(-1) + 2.0
        scale = torch.rsqrt(degree)
        within = (edges * scale[:, :, None] * scale[:, None, :])[:, None]
        # Other modalities of the same utterance: (batch, receiving, sending, utterances); a node keeps itself.
        own = torch.eye(x.shape[1], device=mask.device, dtype=mask.dtype)[:, :, None]
        across = (1.0 - own) * (mask / degree)[:, None, None, :]
        nodes = [x]
        for gate in self.gates:
            x = nodes[-1]
            # The gate weight is [receiving node, sending node]; one product gives both halves for every node.
            linear = cast(nn.Linear, gate)
            halves = functional.linear(x, linear.weight.reshape(2, -1))
            receive, send = halves[..., 0] + linear.bias, halves[..., 1]
            update = (torch.tanh(receive[..., None] + send[:, :, None, :]) * within) @ x
            share = torch.tanh(receive[:, :, None, :] + send[:, None, :, :]) * across + own
            for sender in range(x.shape[1]):
                update = update + share[:, :, sender, :, None] * x[:, sender : sender + 1]
            nodes.append(update)
        return nodes


def up_to(mask: Mask) -> Float[Tensor, "utterances utterances"]:
    """1 where the second utterance is the first one or comes before it."""
    steps = torch.arange(mask.shape[1], device=mask.device)
    return (steps <= steps[:, None]).to(mask.dtype)


def context_edges(
    mask: Mask, speaker: Int[Tensor, "batch utterances"], context: Context, causal: bool = False
) -> Tensor:
    """From which utterances each one has messages: (batch, receiving, sending), 1 for pairs of different real ones.

    If causal from those before it.
    """
    apart = 1.0 - torch.eye(mask.shape[1], device=mask.device, dtype=mask.dtype)
    edges = mask[:, :, None] * mask[:, None, :] * (apart * up_to(mask) if causal else apart)
    if context == "full":
        return edges
    same = (speaker[:, :, None] == speaker[:, None, :]).to(mask.dtype)
    return edges * (1.0 - same) if context == "intra" else edges * same


def reciprocal(x: Tensor) -> Tensor:
    """1/x with 1/0 = 0, and a finite gradient there."""
    empty = x == 0
    return torch.where(empty, torch.zeros_like(x), 1.0 / torch.where(empty, torch.ones_like(x), x))


def hypergraph_step(graph: Hypergraph, x: Now, before: list[Before], heard: Heard, number: Lengths) -> list[Now]:
    """What goes into each layer for utterance `number`, and what comes out of the last one; see `Hypergraph`."""
    kinds = torch.arange(x.shape[1], device=x.device)
    earlier = kinds[:, None] + len(kinds) * torch.arange(heard.shape[1], device=x.device)
    own = graph.node_weight[(kinds + len(kinds) * number[:, None]).clamp(max=len(graph.node_weight) - 1)]
    past = graph.node_weight[earlier.clamp(max=len(graph.node_weight) - 1)]
    over_time = reciprocal((past * heard[:, None]).sum(2) + own)[..., None]
    per_utterance = reciprocal(own.sum(1))[:, None, None]
    edge = graph.hyperedge_weight[len(kinds) + number]
    per_node = reciprocal(graph.hyperedge_weight[: len(kinds)] + edge[:, None])[..., None]
    nodes = [x]
    for bias, others in zip(graph.bias, before, strict=True):
        x = nodes[-1]
        edges = (others.sum(2) + x) * over_time + x.sum(1, keepdim=True) * per_utterance
        nodes.append(functional.leaky_relu(per_node * edges + bias, 0.01))
    return nodes


def frequency_step(branch: Frequency, x: Now, before: list[Before], heard: Heard, number: Lengths) -> list[Now]:
    """What goes into each layer for utterance `number`, and what comes out of the last one; see `Frequency`."""
    degree = number[:, None].to(x.dtype) + 2.0
    earlier = torch.arange(heard.shape[1], device=x.device).to(x.dtype) + 2.0
    within = (heard * torch.rsqrt(earlier) * torch.rsqrt(degree))[:, None]
    own = torch.eye(x.shape[1], device=x.device, dtype=x.dtype)
    across = (1.0 - own) / degree[..., None]
    nodes = [x]
    for gate, others in zip(branch.gates, before, strict=True):
        x = nodes[-1]
        halves = cast(nn.Linear, gate).weight.reshape(2, -1)
        receive, send = functional.linear(x, halves).unbind(-1)
        receive = receive + cast(nn.Linear, gate).bias
        far = torch.tanh(receive[..., None] + others @ halves[1]) * within
        near = torch.tanh(receive[..., None] + send[:, None]) * across + own
        nodes.append((far[:, :, None] @ others)[:, :, 0] + near @ x)
    return nodes
