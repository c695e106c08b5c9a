"""The recurrent layers of a model as single ONNX nodes that know the real lengths.

In PyTorch a bidirectional layer is two one-directional passes with a length-based reversal, which every exporter takes.
ONNX has an operator for the whole: bidirectional, with the real length of each item as an input. Its weights go into
the file in the operator's own gate order, and a runtime stops at the longest real length of the batch.

Kernels for CUDA read those lengths on the CPU: a copy and a wait per layer, which no CUDA graph can hold. The form for
CUDA keeps PyTorch's passes, each an operator without lengths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mer_export.layers.recurrent import BidirectionalRNN, LastStepRNN, reversal
from mer_export.layers.steps import last_step, take_steps

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
        x = x.transpose(0, 1)
        for layer in range(self.layers):
            x = _rnn(self.operator, x, [getattr(self, f"{name}{layer}") for name in "wrb"], steps, self.hidden)
        return x.transpose(0, 1)


class OnnxLastStepRNN(nn.Module):
    """A `LastStepRNN` for the ONNX exporter alone: same inputs, weights and outputs.

    The backward half of the top layer stays the one step that it is.
    """

    def __init__(self, source: LastStepRNN):
        super().__init__()
        self.operator = "GRU" if isinstance(source.ahead[0], nn.GRU) else "LSTM"
        self.hidden = cast(int, source.ahead[0].hidden_size)
        self.layers = len(source.ahead)
        self.back = OnnxPass(cast(nn.GRU | nn.LSTM, source.back[-1])) if source.back else None
        for layer in range(self.layers):
            below = layer < self.layers - 1 and self.back is not None
            directions = (source.ahead[layer], source.back[layer]) if below else (source.ahead[layer],)
            for name, value in zip("wrb", _weights(directions, GATES[self.operator]), strict=True):
                self.register_buffer(f"{name}{layer}", value)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        steps = lengths.clamp(min=1).to(torch.int32)
        x = x.transpose(0, 1)
        for layer in range(self.layers - 1):
            x = self._layer(layer, x, steps)
        halves = [last_step(self._layer(self.layers - 1, x, steps).transpose(0, 1), lengths)]
        if self.back is not None:
            halves.append(self.back(last_step(x.transpose(0, 1), lengths)[:, None])[0][:, 0])
        present = (lengths > 0).to(x.dtype)
        return torch.stack(halves, dim=1) * present[:, None, None]

    def _layer(self, layer: int, x: Tensor, steps: Tensor) -> Tensor:
        return _rnn(self.operator, x, [getattr(self, f"{name}{layer}") for name in "wrb"], steps, self.hidden)


class OnnxPass(nn.Module):
    """A one-directional `nn.GRU` or `nn.LSTM`, batch first, for the ONNX exporter alone.

    PyTorch's own takes the exporter several times as long where the batch is dynamic: each call is captured as a loop.
    """

    def __init__(self, source: nn.GRU | nn.LSTM):
        super().__init__()
        self.operator = "GRU" if isinstance(source, nn.GRU) else "LSTM"
        self.hidden, self.layers = source.hidden_size, source.num_layers
        for layer in range(self.layers):
            for name, value in zip("wrb", _weights((source,), GATES[self.operator], layer), strict=True):
                self.register_buffer(f"{name}{layer}", value)

    def forward(
        self, x: Tensor, before: Tensor | tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[None, Tensor] | None]:
        """Outputs of all steps, padding included; no state.

        One layer may go on after a state `before`, that of an LSTM with cells: then it gives cells too.
        """
        x = x.transpose(0, 1)
        if isinstance(before, tuple):
            x, cells = _lstm_after(before, x, self._layer(0), self.hidden)
            return x.transpose(0, 1), (None, cells)
        for layer in range(self.layers):
            x = _rnn(self.operator, x, self._layer(layer), None, self.hidden, before)
        return x.transpose(0, 1), None

    def _layer(self, layer: int) -> list[Tensor]:
        return [getattr(self, f"{name}{layer}") for name in "wrb"]


def in_passes(source: BidirectionalRNN | LastStepRNN) -> nn.Module:
    """The layer itself, its passes replaced in place."""
    for passes in (source.ahead, source.back):
        for place, rnn in enumerate(passes):
            passes[place] = OnnxPass(cast(nn.GRU | nn.LSTM, rnn))
    return source


def _rnn(
    operator: str,
    x: Tensor,
    weights: list[Tensor],
    steps: Tensor | None,
    hidden: int,
    before: Tensor | None = None,
) -> Tensor:
    """One operator, time first: outputs (time, batch, directions x hidden), with `steps` 0 at padding."""
    time, batch, _ = x.shape
    directions = weights[0].shape[0]
    attributes: dict[str, int | str] = {
        "hidden_size": hidden,
        "direction": "bidirectional" if directions == 2 else "forward",
    }
    if operator == "GRU":
        attributes["linear_before_reset"] = 1
    inputs = [x, *weights, steps, before]
    while inputs[-1] is None:
        inputs.pop()
    y = torch.onnx.ops.symbolic(
        operator,
        inputs,
        attributes,  # type: ignore[arg-type]
        dtype=x.dtype,
        shape=(time, directions, batch, hidden),
    )
    return y.transpose(1, 2).reshape(time, batch, directions * hidden)


def _lstm_after(
    before: tuple[Tensor, Tensor], x: Tensor, weights: list[Tensor], hidden: int
) -> tuple[Tensor, Float[Tensor, "1 batch hidden"]]:
    """One operator in one direction, time first, after outputs and cells: outputs, and cells after the last step."""
    time, batch, _ = x.shape
    y, _, cells = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        [x, *weights, None, *before],
        {"hidden_size": hidden, "direction": "forward"},
        dtypes=[x.dtype] * 3,
        shapes=[(time, 1, batch, hidden), *[(1, batch, hidden)] * 2],
    )
    return y[:, 0], cells


def run_rnn(
    operator: str, x: Tensor, weights: Sequence[Tensor], steps: Tensor | None
) -> Float[Tensor, "time direction batch feature"]:
    """What the operator of `_rnn` gives, computed by PyTorch's own layers from the operator's weights."""
    rows = x.transpose(0, 1)
    index = None if steps is None else reversal(steps, rows.shape[1])
    directions = []
    for direction, own in enumerate(zip(*weights, strict=True)):
        layer = _restored(operator, *own)
        turn = index if direction else None
        found = layer(rows if turn is None else take_steps(rows, turn))[0]
        directions.append(found if turn is None else take_steps(found, turn))
    found = torch.stack(directions, dim=1).permute(2, 1, 0, 3)
    if steps is None:
        return found
    real = torch.arange(len(x))[:, None] < steps
    return found * real[:, None, :, None]


def _restored(operator: str, w: Tensor, r: Tensor, b: Tensor) -> nn.Module:
    """One direction as PyTorch's layer: its gates back in PyTorch's order."""
    order = sorted(range(len(GATES[operator])), key=lambda gate: GATES[operator][gate])
    layer = {"GRU": nn.GRU, "LSTM": nn.LSTM}[operator](w.shape[1], r.shape[1], batch_first=True)
    values = {"weight_ih_l0": w, "weight_hh_l0": r, **dict(zip(("bias_ih_l0", "bias_hh_l0"), b.chunk(2), strict=True))}
    layer.load_state_dict({n: torch.cat([v.chunk(len(order))[g] for g in order]) for n, v in values.items()})
    return layer


def lower(model: nn.Module, device: str) -> nn.Module:
    """A copy of `model` with the same weights for the ONNX exporter, its recurrent layers in the form for a device."""
    copied = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    for module in list(copied.modules()):
        for name, child in list(module.named_children()):
            for kind, replacement in REPLACEMENTS[device].items():
                if isinstance(child, kind):
                    setattr(module, name, replacement(child))
    return copied


REPLACEMENTS: dict[str, dict[type[nn.Module], Callable[[Any], nn.Module]]] = {
    "cpu": {BidirectionalRNN: OnnxRNN, LastStepRNN: OnnxLastStepRNN, nn.GRU: OnnxPass, nn.LSTM: OnnxPass},
    "cuda": {BidirectionalRNN: in_passes, LastStepRNN: in_passes, nn.GRU: OnnxPass, nn.LSTM: OnnxPass},
}


def _weights(pair: tuple[nn.Module, ...], gates: tuple[int, ...], layer: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """W (n, gates x hidden, input), R (n, gates x hidden, hidden) and B (n, 2 x gates x hidden) of n directions."""

    def ordered(name: str) -> list[Tensor]:
        return [torch.cat([getattr(rnn, name).detach().chunk(len(gates))[g] for g in gates]) for rnn in pair]

    biases = [torch.cat(b) for b in zip(ordered(f"bias_ih_l{layer}"), ordered(f"bias_hh_l{layer}"), strict=True)]
    return torch.stack(ordered(f"weight_ih_l{layer}")), torch.stack(ordered(f"weight_hh_l{layer}")), torch.stack(biases)
