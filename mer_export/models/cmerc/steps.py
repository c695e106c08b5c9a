"""The network of a causal CMERC as its stages run it: all utterances at once, or one after those that were heard.

What an utterance leaves behind never changes, as none hears what comes after it: the states of its recurrent layers and
its nodes in each layer of the graph. A step reads them in place of everything that made them.
"""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.steps import last_step, real_steps
from mer_export.models.cmerc.network import Cmerc, Frequency, Hypergraph, context_edges, reciprocal
from mer_export.models.cmerc.stages import levels, recurrent

States = Float[Tensor, "batch utterances states"]
Lengths = Int[Tensor, " batch"]
Now = Float[Tensor, "batch modalities hidden"]
"""The nodes of the utterance that is said."""
Before = Float[Tensor, "batch modalities utterances hidden"]
"""Those of the utterances before it that a layer reads, zeros at padding."""
Heard = Float[Tensor, "batch utterances"]
"""1 at utterances before, 0 at padding."""


class WholeStage(nn.Module):
    """Dialogues in, log-probabilities and what each utterance leaves behind out."""

    def __init__(self, model: Cmerc):
        super().__init__()
        self.model = model

    def forward(self, speaker: Tensor, lengths: Lengths, **inputs: Tensor) -> tuple[Tensor, States]:
        model = self.model
        mask = model.mask(lengths, speaker.shape[1])
        encoded = model.encode(inputs, speaker, lengths, mask, "single")
        nodes = model.projected(encoded, mask)
        high = model.hypergraph(nodes, mask, lengths, "single")
        low = model.frequency(nodes, mask, context_edges(mask, speaker, "full", causal=True))
        kept = [layer for m in recurrent(model.config) for layer in encoded[m].layers]
        kept += [x.transpose(1, 2).flatten(2) for x in (*high[:-1], *low[1:-1])]
        features = model.merged(encoded, mask, high[-1], low[-1])
        return model.classify(features, lengths), torch.cat(kept, dim=-1) * mask[..., None]


class StepStage(nn.Module):
    """An utterance and what those before it left behind in, its log-probabilities and what it leaves behind out."""

    def __init__(self, model: Cmerc):
        super().__init__()
        self.model = model

    def forward(
        self, speaker: Tensor, past_states: States, lengths: Lengths, **inputs: Tensor
    ) -> tuple[Tensor, States]:
        """`lengths` counts the utterances before."""
        model = self.model
        mask = model.mask(torch.ones_like(lengths), 1)
        heard = real_steps(lengths, past_states.shape[1]).to(mask.dtype)
        before, levels = self._read(past_states * heard[..., None], lengths)
        encoded = model.encode(inputs, speaker, torch.ones_like(lengths), mask, "single", before)
        nodes = model.projected(encoded, mask)[:, :, 0]
        layers = len(model.hypergraph.bias)
        high = hypergraph_step(model.hypergraph, nodes, levels[:layers], heard, lengths)
        low = frequency_step(model.frequency, nodes, [levels[0], *levels[layers:]], heard, lengths)
        kept = [layer[:, 0] for m in recurrent(model.config) for layer in encoded[m].layers]
        kept += [x.flatten(1) for x in (*high[:-1], *low[1:-1])]
        features = model.merged(encoded, mask, high[-1][:, :, None], low[-1][:, :, None])
        return model.classify(features, torch.ones_like(lengths)), torch.cat(kept, dim=-1)[:, None]

    def _read(self, past: States, lengths: Lengths) -> tuple[dict[str, list[Tensor]], list[Before]]:
        """The last states of each recurrent layer by modality, and the nodes by level."""
        config = self.model.config
        nodes = past[..., -levels(config) * len(config.used) * config.hidden :]
        nodes = nodes.unflatten(2, (levels(config), len(config.used), config.hidden)).permute(2, 0, 3, 1, 4)
        modalities = recurrent(config)
        last = last_step(past[..., : 2 * len(modalities) * config.width], lengths).split(config.width, dim=1)
        return {m: list(last[2 * i : 2 * i + 2]) for i, m in enumerate(modalities)}, list(nodes.unbind(0))


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
