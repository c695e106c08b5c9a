"""The network of vq-wav2vec up to its indices, and the names of its checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from mer_export.encoders.vq_wav2vec.config import VqConfig, VqEncoderConfig
from mer_export.layers.masked_norm import MaskedGroupNorm, States
from mer_export.weights import WeightMap

if TYPE_CHECKING:
    from torch import Tensor as State


class VqWav2vec(nn.Module):
    """Waveform in, index pairs out."""

    def __init__(self, config: VqEncoderConfig):
        super().__init__()
        self.encoder, self.config = config, config.network
        shape = self.config
        inputs = [1, *(channels for channels, _, _ in shape.layers[:-1])]
        self.layers = nn.ModuleList(
            ConvolutionLayer(n, layer, shape) for n, layer in zip(inputs, shape.layers, strict=True)
        )
        channels = shape.layers[-1][0]
        self.projection = nn.Conv1d(channels, shape.vector, 1, groups=shape.groups, bias=False)
        self.norm = MaskedGroupNorm(shape.groups, shape.vector)
        books = 1 if shape.shared else shape.groups
        self.code_book = nn.Parameter(0.01 * torch.randn(shape.entries, books, shape.vector // shape.groups))

    def forward(
        self, sound: Float[Tensor, "batch frames hop"], samples: Int[Tensor, "batch one"]
    ) -> Int[Tensor, "batch frames groups"]:
        """Indices of an utterance whose padding stands behind its real samples; those of padding are 0."""
        audio = functional.pad(sound.flatten(1), (0, self.config.shortest - self.config.hop))
        features, frames = self.features(audio, samples)
        real = torch.arange(features.shape[-1], device=audio.device) < frames
        return self.nearest(self.project(features, frames)) * real[..., None].long()

    def nearest(self, projected: States) -> Int[Tensor, "batch frames groups"]:
        """Index of the nearest code-book row of each frame and group."""
        vectors = projected.transpose(1, 2).unflatten(-1, (self.config.groups, -1))
        book = self.code_book.expand(-1, self.config.groups, -1).transpose(0, 1)
        # Nearest in distance: the length of the frame's own vector is the same for all rows.
        nearness = vectors.transpose(1, 2) @ book.transpose(1, 2) - 0.5 * (book * book).sum(-1)[:, None]
        return nearness.argmax(-1).transpose(1, 2)

    def features(
        self, audio: Float[Tensor, "batch samples"], real: Int[Tensor, "batch one"]
    ) -> tuple[States, Int[Tensor, "batch one"]]:
        """Convolutional features, and how many frames of them are real."""
        x = audio[:, None]
        for layer, (_, kernel, stride) in zip(self.layers, self.config.layers, strict=True):
            real = (real - kernel) // stride + 1
            x = layer(x, real)
        return torch.log(1 + x.abs()) if self.config.log_compression else x, real

    def project(self, features: States, real: Int[Tensor, "batch one"]) -> States:
        """What is compared with the code book, groups one after the other."""
        return self.norm(self.projection(features), real)


class ConvolutionLayer(nn.Module):
    """Convolution without padding, norm over channels and the whole time, activation, maybe a residual."""

    def __init__(self, inputs: int, layer: tuple[int, int, int], config: VqConfig):
        super().__init__()
        channels, kernel, stride = layer
        self.convolution = nn.Conv1d(inputs, channels, kernel, stride, bias=False)
        self.norm = MaskedGroupNorm(1, channels)
        self.gelu = config.activation == "gelu"
        self.residual = config.residual_scale**0.5 if config.skip and inputs == channels else None

    def forward(self, x: States, real: Int[Tensor, "batch one"]) -> States:
        """Its frames, of which so many are real. A residual is right at the true length alone."""
        y = self.norm(self.convolution(x), real)
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


def renames(config: VqEncoderConfig) -> dict[str, str]:
    """Names of fairseq and ours."""
    names = dict(QUANTISER)
    for i in range(len(config.network.layers)):
        theirs = f"feature_extractor.conv_layers.{i}"
        names[f"{theirs}.0.weight"] = f"layers.{i}.convolution.weight"
        names |= {f"{theirs}.2.{part}": f"layers.{i}.norm.{part}" for part in ("weight", "bias")}
    return names


def prepare(config: VqEncoderConfig, state: dict[str, State]) -> dict[str, State]:
    """The tokenizer alone, in float32."""
    return {n: t.float() for n, t in state.items() if not n.startswith(TRAINING)}


WEIGHT_MAP = WeightMap(renames=renames, unused=lambda config: {}, prepare=prepare)
