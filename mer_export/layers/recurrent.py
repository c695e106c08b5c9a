"""Recurrent layers that padding cannot touch, in the form that every exporter takes: no packed sequences."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

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

    def forward(
        self, x: Float[Tensor, "batch time feature"], before: list[Float[Tensor, "batch hidden"]] | None = None
    ) -> list[Float[Tensor, "batch time hidden"]]:
        """Outputs of each layer, the top one last. Of a GRU they are its states: with those `before` it goes on."""
        outputs: list[Tensor] = []
        for number, layer in enumerate(self.ahead):
            x = layer(self.dropout(x) if number else x, before[number][None] if before else None)[0]
            outputs.append(x)
        return outputs


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
