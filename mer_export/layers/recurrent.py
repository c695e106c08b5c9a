"""Recurrent layers that padding cannot touch, in the form that every exporter takes: no packed sequences."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.steps import last_step, take_steps

Model = TypeVar("Model", bound=nn.Module)


def in_one_piece(model: Model) -> Model:
    """Puts the weights of each recurrent layer on a GPU side by side again, which those of a copied model are not.

    Elsewhere cuDNN would do it at every call.
    """
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return model


def reversal(lengths: Int[Tensor, " batch"], steps: int) -> Int[Tensor, "batch time"]:
    """Index that reverses the real part of each item and leaves padding in place."""
    time = torch.arange(steps, device=lengths.device)
    last = lengths[:, None] - 1
    return torch.where(time <= last, last - time, time)


class BidirectionalRNN(nn.Module):
    """A stacked bidirectional GRU or LSTM whose outputs at real steps equal those of a packed run.

    Every layer is two one-directional RNNs; the backward one reads the real part reversed, so padding is read only
    after the last real step. Dropout acts between layers, as in PyTorch.
    """

    def __init__(self, kind: Literal["gru", "lstm"], inputs: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        cell = {"gru": nn.GRU, "lstm": nn.LSTM}[kind]
        widths = [inputs] + [2 * hidden] * (layers - 1)
        self.ahead = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths)
        self.back = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time feature"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch time feature"]:
        """Outputs of both directions side by side; values at padding are finite and meaningless."""
        index = reversal(lengths, x.shape[1])
        for layer, (ahead, back) in enumerate(zip(self.ahead, self.back, strict=True)):
            if layer:
                x = self.dropout(x)
            x = torch.cat([ahead(x)[0], take_steps(back(take_steps(x, index))[0], index)], dim=-1)
        return x


class ForwardRNN(nn.Module):
    """A stacked GRU or LSTM in one direction: no output has read what comes after it, so padding behind is harmless."""

    def __init__(self, kind: Literal["gru", "lstm"], inputs: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        cell = {"gru": nn.GRU, "lstm": nn.LSTM}[kind]
        widths = [inputs] + [hidden] * (layers - 1)
        self.ahead = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch time feature"]) -> list[Float[Tensor, "batch time feature"]]:
        """What each layer reads, but for dropout, and what the top one gives."""
        values = [x]
        for number, layer in enumerate(self.ahead):
            values.append(layer(self.dropout(values[-1]) if number else x)[0])
        return values

    def go_on(
        self, x: Float[Tensor, "batch 1 feature"], before: list[Float[Tensor, "batch hidden"]]
    ) -> list[Float[Tensor, "batch 1 hidden"]]:
        """The states after one step more than those `before`, each in the order of `StatesOf`."""
        states: list[Tensor] = []
        each = len(before) // len(self.ahead)
        for number, layer in enumerate(self.ahead):
            *cells, outputs = (s[None] for s in before[number * each : (number + 1) * each])
            x, last = layer(x, (outputs, *cells) if cells else outputs)
            states += [last[1].transpose(0, 1), x] if cells else [x]
        return states


class StatesOf(nn.Module):
    """The states of a `ForwardRNN` after every step, of what its `forward` gives: layer by layer cells, then outputs.

    A GRU has outputs alone.
    """

    def __init__(self, rnn: ForwardRNN):
        super().__init__()
        self.cells = nn.ModuleList(Cells(layer) for layer in rnn.ahead if isinstance(layer, nn.LSTM))

    def forward(self, values: list[Float[Tensor, "batch time feature"]]) -> list[Float[Tensor, "batch time hidden"]]:
        if not self.cells:
            return values[1:]
        both = zip(self.cells, values, values[1:], strict=False)
        return [state for cells, read, outputs in both for state in (cells(read, outputs), outputs)]


class Cells(nn.Module):
    """The cells of an LSTM after every step, of which PyTorch and runtimes give the last ones alone.

    With its outputs known the gates of all steps are products; c = forget * c_before + input * new is joined over spans
    of steps that double.
    """

    def __init__(self, lstm: nn.LSTM):
        """Shares the parameters of a layer in one direction."""
        super().__init__()
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        self.weights = nn.ParameterList(getattr(lstm, name) for name in names)

    def forward(
        self, read: Float[Tensor, "batch time feature"], outputs: Float[Tensor, "batch time hidden"]
    ) -> Float[Tensor, "batch time hidden"]:
        # Gates of PyTorch: input, forget, new, output.
        of_read, of_outputs, *biases = (w[: 3 * outputs.shape[2]] for w in self.weights)
        gates = functional.linear(read, of_read, sum(biases)) + functional.linear(_later(outputs, 1), of_outputs)
        given, forget, new = gates.chunk(3, dim=2)
        cells, kept = torch.sigmoid(given) * torch.tanh(new), torch.sigmoid(forget)
        span = 1
        while span < outputs.shape[1]:
            cells, kept = cells + kept * _later(cells, span), kept * _later(kept, span)
            span *= 2
        return cells


def _later(x: Float[Tensor, "batch time hidden"], steps: int) -> Float[Tensor, "batch time hidden"]:
    """Everything so many steps later, zeros before it."""
    return functional.pad(x, (0, 0, steps, 0))[:, : x.shape[1]]


class LastStepRNN(nn.Module):
    """A stacked GRU or LSTM read at the last real step of its top layer; zeros for an item without steps.

    At that step the backward half of the top layer has read nothing but the step itself, so it runs for one step.
    """

    def __init__(
        self,
        kind: Literal["gru", "lstm"],
        inputs: int,
        hidden: int,
        layers: int,
        bidirectional: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        cell = {"gru": nn.GRU, "lstm": nn.LSTM}[kind]
        widths = [inputs] + [(2 if bidirectional else 1) * hidden] * (layers - 1)
        self.ahead = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths)
        self.back = nn.ModuleList(cell(w, hidden, batch_first=True) for w in widths if bidirectional)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch time feature"], lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch direction hidden"]:
        """Forward half, then the backward half where there is one."""
        index = reversal(lengths, x.shape[1])
        for layer, ahead in enumerate(self.ahead[:-1]):
            outputs = [ahead(x)[0]]
            if self.back:
                outputs.append(take_steps(self.back[layer](take_steps(x, index))[0], index))
            x = self.dropout(torch.cat(outputs, dim=-1))
        halves = [last_step(self.ahead[-1](x)[0], lengths)]
        if self.back:
            halves.append(self.back[-1](last_step(x, lengths)[:, None])[0][:, 0])
        present = (lengths > 0).to(x.dtype)
        return torch.stack(halves, dim=1) * present[:, None, None]
