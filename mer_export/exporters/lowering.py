"""The recurrent layers of a model as single ONNX nodes that know the real lengths.

In PyTorch a bidirectional layer is two one-directional passes with a length-based reversal, which every exporter takes.
ONNX has an operator for the whole: bidirectional, with the real length of each item as an input. Its weights go into
the file in the operator's own gate order, and a runtime stops at the longest real length of the batch.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from mer_export.models.layers import BidirectionalRNN

GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""Position of each ONNX gate among PyTorch's: z r h of r z n, i o f c of i f g o."""


class OnnxRNN(nn.Module):
    """A `BidirectionalRNN` for the ONNX exporter alone: same inputs and weights, outputs 0 at padding."""

    def __init__(self, source: BidirectionalRNN):
        super().__init__()
        first = source.ahead[0]
        self.operator = "GRU" if isinstance(first, nn.GRU) else "LSTM"
        self.hidden = cast(int, first.hidden_size)
        self.layers = len(source.ahead)
        for layer, pair in enumerate(zip(source.ahead, source.back, strict=True)):
            for name, value in zip("wrb", _weights(pair, GATES[self.operator]), strict=True):
                self.register_buffer(f"{name}{layer}", value)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        # An empty slot counts as one step: runtimes refuse 0, and what it gives is never read.
        steps = lengths.clamp(min=1).to(torch.int32)
        attributes: dict[str, int | str] = {"hidden_size": self.hidden, "direction": "bidirectional"}
        if self.operator == "GRU":
            attributes["linear_before_reset"] = 1
        batch, time, _ = x.shape
        x = x.transpose(0, 1)
        for layer in range(self.layers):
            weights = [getattr(self, f"{name}{layer}") for name in "wrb"]
            y = torch.onnx.ops.symbolic(
                self.operator,
                (x, *weights, steps),
                attributes,  # type: ignore[arg-type]
                dtype=x.dtype,
                shape=(time, 2, batch, self.hidden),
            )
            x = y.transpose(1, 2).reshape(time, batch, 2 * self.hidden)
        return x.transpose(0, 1)


def lower(model: nn.Module) -> nn.Module:
    """A copy of `model` for the ONNX exporter, its recurrent layers replaced."""
    copied = copy.deepcopy(model)
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BidirectionalRNN):
                setattr(module, name, OnnxRNN(child))
    return copied


def _weights(pair: tuple[nn.Module, nn.Module], gates: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """W (2, gates x hidden, input), R (2, gates x hidden, hidden) and B (2, 2 x gates x hidden) of both directions."""

    def ordered(name: str) -> list[Tensor]:
        return [torch.cat([getattr(rnn, name).detach().chunk(len(gates))[g] for g in gates]) for rnn in pair]

    biases = [torch.cat(b) for b in zip(ordered("bias_ih_l0"), ordered("bias_hh_l0"), strict=True)]
    return torch.stack(ordered("weight_ih_l0")), torch.stack(ordered("weight_hh_l0")), torch.stack(biases)
