"""The network of vq-wav2vec up to its indices, and the names of its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.encoders.vq_wav2vec.config import VqConfig
from mer_export.weights import WeightMap

if TYPE_CHECKING:
    from torch import Tensor as State

Frames = Float[Tensor, "one channels frames"]


class VqWav2vec(nn.Module):
    """Waveform in, index pairs out."""

    def __init__(self, config: VqConfig):
        super().__init__()
        self.config = config
        inputs = [1, *(channels for channels, _, _ in config.layers[:-1])]
        self.layers = nn.ModuleList(
            ConvolutionLayer(n, layer, config) for n, layer in zip(inputs, config.layers, strict=True)
        )
        channels = config.layers[-1][0]
        self.projection = nn.Conv1d(channels, config.vector, 1, groups=config.groups, bias=False)
        self.norm = nn.GroupNorm(config.groups, config.vector)
        books = 1 if config.shared else config.groups
        self.code_book = nn.Parameter(0.01 * torch.randn(config.entries, books, config.vector // config.groups))

    def forward(self, audio: Float[Tensor, "one samples"]) -> Int[Tensor, "one frames groups"]:
        """Index of the nearest code-book row of each frame and group."""
        vectors = self.project(self.features(audio)).transpose(1, 2).unflatten(-1, (self.config.groups, -1))
        book = self.code_book.expand(-1, self.config.groups, -1).transpose(0, 1)
        # Nearest in distance: the length of the frame's own vector is the same for all rows.
        nearness = vectors.transpose(1, 2) @ book.transpose(1, 2) - 0.5 * (book * book).sum(-1)[:, None]
        return nearness.argmax(-1).transpose(1, 2)

    def features(self, audio: Float[Tensor, "one samples"]) -> Frames:
        """Convolutional features."""
        x = audio[:, None]
        for layer in self.layers:
            x = layer(x)
        return torch.log(1 + x.abs()) if self.config.log_compression else x

    def project(self, features: Frames) -> Frames:
        """What is compared with the code book, groups one after the other."""
        return self.norm(self.projection(features))


class ConvolutionLayer(nn.Module):
    """Convolution without padding, norm over channels and the whole time, activation, maybe a residual."""

    def __init__(self, inputs: int, layer: tuple[int, int, int], config: VqConfig):
        super().__init__()
        channels, kernel, stride = layer
        self.convolution = nn.Conv1d(inputs, channels, kernel, stride, bias=False)
        self.norm = nn.GroupNorm(1, channels)
        self.gelu = config.activation == "gelu"
        self.residual = config.residual_scale**0.5 if config.skip and inputs == channels else None

    def forward(self, x: Float[Tensor, "one channels samples"]) -> Frames:
        y = self.norm(self.convolution(x))
        y = functional.gelu(y) if self.gelu else torch.relu(y)
        if self.residual is None:
            return y
        return (y + x[..., :: x.shape[-1] // y.shape[-1]][..., : y.shape[-1]]) * self.residual


QUANTISER = {
    "vector_quantizer.embedding": "code_book",
    "vector_quantizer.projection.0.weight": "projection.weight",
    "vector_quantizer.projection.1.weight": "norm.weight",
    "vector_quantizer.projection.1.bias": "norm.bias",
}
TRAINING = ("feature_aggregator.", "wav2vec_predictions.")
"""Parts of a checkpoint that only its pre-training used."""


def renames(config: VqConfig) -> dict[str, str]:
    """Names of fairseq and ours."""
    names = dict(QUANTISER)
    for i in range(len(config.layers)):
        theirs = f"feature_extractor.conv_layers.{i}"
        names[f"{theirs}.0.weight"] = f"layers.{i}.convolution.weight"
        names |= {f"{theirs}.2.{part}": f"layers.{i}.norm.{part}" for part in ("weight", "bias")}
    return names


def prepare(config: VqConfig, state: dict[str, State]) -> dict[str, State]:
    """The tokenizer alone, in float32."""
    return {n: t.float() for n, t in state.items() if not n.startswith(TRAINING)}


WEIGHT_MAP = WeightMap(renames=renames, unused=lambda config: {}, prepare=prepare)
