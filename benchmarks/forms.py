"""Parts of the networks in the form that the authors run, of the same weights: their public code written again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from mer_export.layers.bert.network import Bert
from mer_export.layers.recurrent import BidirectionalRNN, LastStepRNN
from mer_export.layers.steps import last_step
from mer_export.models.cmerc.graph import Frequency
from mer_export.models.emt.network import SequenceEncoder

Model = TypeVar("Model", bound=nn.Module)


class MessagePassing(nn.Module):
    """CMERC's frequency layers as M3NET runs them: edge lists that Python makes for every batch, gather and scatter."""

    def __init__(self, own: Frequency):
        super().__init__()
        self.gates = own.gates

    def forward(self, x: Tensor, mask: Tensor, edges: Tensor) -> list[Tensor]:
        """Nodes (batch, modalities, utterances, hidden), as `Frequency` of the network takes and gives them last."""
        lengths = [int(n) for n in mask.sum(1)]
        kinds = x.shape[1]
        nodes = torch.cat([x[b, :, :n].reshape(kinds * n, -1) for b, n in enumerate(lengths)])
        whole = int(edges.sum()) == sum(n * (n - 1) for n in lengths)
        sending, receiving = _edges(lengths, kinds, None if whole else edges.tolist())
        degree = torch.zeros(len(nodes)).index_add(0, receiving, torch.ones(len(receiving)))
        scale = degree.rsqrt()
        norm = scale[sending] * scale[receiving]
        for gate in self.gates:
            there, here = nodes[receiving], nodes[sending]
            sign = torch.tanh(gate(torch.cat([there, here], dim=1))).squeeze(1)
            nodes = nodes + torch.zeros_like(nodes).index_add(0, receiving, (norm * sign)[:, None] * here)
        found, at = torch.zeros_like(x), 0
        for b, n in enumerate(lengths):
            found[b, :, :n] = nodes[at : at + kinds * n].reshape(kinds, n, -1)
            at += kinds * n
        return [found]


def _edges(
    lengths: Sequence[int], kinds: int, kept: Sequence[Sequence[Sequence[float]]] | None = None
) -> tuple[Tensor, Tensor]:
    """Sending and receiving nodes: all pairs of a modality, or those that are `kept`, and all pairs of an utterance."""
    pairs: list[tuple[int, int]] = []
    first = 0
    for dialogue, n in enumerate(lengths):
        inside = list(itertools.permutations(range(n), 2))
        if kept is not None:
            inside = [(i, j) for i, j in inside if kept[dialogue][j][i]]
        for kind in range(kinds):
            start = first + kind * n
            pairs += [(start + i, start + j) for i, j in inside]
        for step in range(n):
            pairs += itertools.permutations([first + kind * n + step for kind in range(kinds)], 2)
        first += kinds * n
    made = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return made[:, 0], made[:, 1]


class Stacked(nn.Module):
    """A stacked bidirectional layer as one module: all its outputs, or those of the `last` real step."""

    def __init__(self, own: BidirectionalRNN | LastStepRNN, last: bool):
        super().__init__()
        cells = [cast(nn.RNNBase, cell) for cell in own.ahead]
        first, wide, dropout = cells[0], len(own.back) > 0, own.dropout.p if len(cells) > 1 else 0.0
        self.last, self.hidden, self.directions = last, first.hidden_size, 1 + wide
        layers = {"num_layers": len(cells), "batch_first": True, "bidirectional": wide, "dropout": dropout}
        self.rnn = cast(Any, type(first))(first.input_size, self.hidden, **layers)
        with torch.no_grad():
            for suffix, halves in (("", own.ahead), ("_reverse", own.back)):
                for layer, cell in enumerate(halves):
                    for name, value in cell.named_parameters():
                        getattr(self.rnn, name.replace("_l0", f"_l{layer}{suffix}")).copy_(value)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """As the layer that it is made of."""
        states = _packed(self.rnn, x, lengths) if bool((lengths < x.shape[1]).any()) else self.rnn(x)[0]
        if not self.last:
            return states
        present = (lengths > 0).to(x.dtype)[:, None, None]
        return last_step(states, lengths).unflatten(-1, (self.directions, self.hidden)) * present


class Packed(nn.Module):
    """EMT's encoder of one modality, on packed sequences."""

    def __init__(self, own: SequenceEncoder):
        super().__init__()
        self.rnn, self.linear, self.dropout = own.rnn, own.linear, own.dropout

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As `SequenceEncoder` gives them."""
        states = _packed(self.rnn, x, lengths)
        return self.linear(self.dropout(last_step(states, lengths))), self.linear(states)


def _packed(rnn: nn.RNNBase, x: Tensor, lengths: Tensor) -> Tensor:
    real = lengths.clamp(min=1).cpu()
    rows = nn.utils.rnn.pack_padded_sequence(x, real, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(rnn(rows)[0], batch_first=True, total_length=x.shape[1])[0]


def _every_position(encoder: Bert) -> Bert:
    """TAB's encoders compute all positions of their last layer and read the first."""
    encoder.first = lambda ids, segments, lengths: encoder(ids, segments, lengths)[:, 0]  # type: ignore[assignment,method-assign]
    return encoder


FORMS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    Frequency: MessagePassing,
    BidirectionalRNN: partial(Stacked, last=False),
    LastStepRNN: partial(Stacked, last=True),
    SequenceEncoder: Packed,
    Bert: _every_position,
}
"""By the part of our networks: what stands in its place."""


def in_their_form(network: Model) -> Model:
    """The network with what the authors compute in another form, of the same weights."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) in FORMS:
                setattr(module, name, FORMS[type(child)](child))
    return network
