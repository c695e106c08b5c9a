"""The three fusions of TFR-Net: gated convolution, recurrent, and plain maximum over time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.layers.recurrent import BidirectionalRNN
from mer_export.layers.steps import real_steps
from mer_export.models.tfr_net.config import TfrNetConfig

Steps = Float[Tensor, "batch time width"]
Vector = Float[Tensor, "batch width"]


class TfrNetFusion(nn.Module):
    """One encoder per modality, and the classifier on their vectors."""

    def __init__(self, config: TfrNetConfig):
        super().__init__()
        encoder = ENCODERS[config.fusion]
        widths = {m: getattr(config.fusion_widths, m) for m in config.used}
        self.encoders = nn.ModuleDict({m: encoder(config.fused_dims[m], widths[m], config) for m in config.used})
        # Dropout acts on each vector or on all of them together, which is the same.
        self.dropout = nn.Dropout(config.fusion_dropout if config.fusion != "max" else 0.0)
        width = sum(encoder.outputs(w) for w in widths.values())
        self.norm = nn.BatchNorm1d(width)
        self.hidden = nn.Linear(width, config.head_width)
        self.head_dropout = nn.Dropout(config.head_dropout)
        self.out = nn.Linear(config.head_width, len(config.labels) or 1)

    def forward(self, states: Mapping[str, Steps], lengths: Mapping[str, Int[Tensor, " batch"]]) -> Vector:
        """Output of the last layer (batch, labels or 1)."""
        x = torch.cat([encoder(states[m], lengths[m]) for m, encoder in self.encoders.items()], dim=-1)
        hidden = functional.leaky_relu(self.hidden(self.norm(self.dropout(x))), 0.01)
        return self.out(self.head_dropout(hidden))


class Recurrent(nn.Module):
    """A bidirectional GRU whose outputs past the real length are 0."""

    def __init__(self, inputs: int, width: int, layers: int):
        super().__init__()
        self.rnn = BidirectionalRNN("gru", inputs, width, layers, dropout=0.0)

    def forward(self, x: Steps, lengths: Int[Tensor, " batch"]) -> Steps:
        states = self.rnn(x, lengths.clamp(min=1))
        return torch.where(real_steps(lengths, x.shape[1])[..., None], states, 0.0)


class GatedEncoder(nn.Module):
    """`c_gate`: a convolution over the recurrent states decides how much of them each step adds."""

    def __init__(self, inputs: int, width: int, config: TfrNetConfig):
        super().__init__()
        self.recurrent = Recurrent(inputs, width, config.fusion_layers)
        self.gate = nn.Conv1d(2 * width, 1, 3, padding=1)
        self.linear = nn.Linear(inputs + 2 * width, width)

    @staticmethod
    def outputs(width: int) -> int:
        return width

    def forward(self, x: Steps, lengths: Int[Tensor, " batch"]) -> Vector:
        states = self.recurrent(x, lengths)
        gate = torch.sigmoid(self.gate(states.transpose(1, 2))).transpose(1, 2)
        merged = torch.tanh(self.linear(torch.cat([x, torch.tanh(states) * gate], dim=-1)))
        # The maximum runs over padding too, as in TFR-Net.
        return merged.amax(dim=1)


class RecurrentEncoder(nn.Module):
    """`gru`: the maximum of the recurrent states."""

    def __init__(self, inputs: int, width: int, config: TfrNetConfig):
        super().__init__()
        self.recurrent = Recurrent(inputs, width, config.fusion_layers)
        self.linear = nn.Linear(2 * width, 2 * width) if config.fusion_linear else nn.Identity()

    @staticmethod
    def outputs(width: int) -> int:
        return 2 * width

    def forward(self, x: Steps, lengths: Int[Tensor, " batch"]) -> Vector:
        return torch.tanh(self.linear(self.recurrent(x, lengths))).amax(dim=1)


class MaximumEncoder(nn.Module):
    """`max`: the maximum of a linear layer."""

    def __init__(self, inputs: int, width: int, config: TfrNetConfig):
        super().__init__()
        self.linear = nn.Linear(inputs, width)

    @staticmethod
    def outputs(width: int) -> int:
        return width

    def forward(self, x: Steps, lengths: Int[Tensor, " batch"]) -> Vector:
        return torch.tanh(self.linear(x)).amax(dim=1)


ENCODERS: dict[str, type[GatedEncoder] | type[RecurrentEncoder] | type[MaximumEncoder]] = {
    "c_gate": GatedEncoder,
    "gru": RecurrentEncoder,
    "max": MaximumEncoder,
}
