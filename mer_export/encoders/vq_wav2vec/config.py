"""Shape of a vq-wav2vec tokenizer, and what its encoder says of itself; needs no torch."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mer_export.bucket import Bucket
from mer_export.contract import Contract
from mer_export.data.samples import Sample
from mer_export.encoders.config import EncoderConfig, Provenance
from mer_export.encoders.config import contract as encoder_contract
from mer_export.encoders.inputs import SoundInput
from mer_export.errors import InputError, UnsupportedError, UsageError
from mer_export.registry import first_problem

Layer = tuple[int, int, int]
"""Channels, kernel and stride of a convolution."""
PUBLISHED: tuple[Layer, ...] = ((512, 10, 5), (512, 8, 4), *((512, 4, 2),) * 3, *((512, 1, 1),) * 3)
BEFORE: tuple[Layer, ...] = PUBLISHED[:5]
"""Layers of a checkpoint whose arguments do not say."""


class VqConfig(BaseModel):
    """Defaults are the command line of the published k-means model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[Layer, ...] = Field(PUBLISHED, min_length=1)
    activation: Literal["gelu", "relu"] = "gelu"
    log_compression: bool = False
    skip: bool = False
    """Residual connections where a layer keeps the number of channels."""
    residual_scale: float = Field(0.5, gt=0)
    entries: int = Field(320, ge=1)
    groups: int = Field(2, ge=1)
    shared: bool = True
    """One code book for all groups."""
    width: int = Field(0, ge=0)
    """Width of all groups' vectors together; 0 takes the channels of the last layer."""

    @model_validator(mode="after")
    def _consistent(self) -> VqConfig:
        if self.layers[-1][0] % self.groups or self.vector % self.groups:
            raise ValueError(f"{self.layers[-1][0]} channels or {self.vector} values do not divide into {self.groups}")
        return self

    @property
    def vector(self) -> int:
        """Width of the quantised vector."""
        return self.width or self.layers[-1][0]

    @property
    def shortest(self) -> int:
        """Samples that give one frame."""
        samples = 1
        for _, kernel, stride in reversed(self.layers):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.layers)

    def frames(self, samples: int) -> int:
        """How many frames so many samples give, 0 where they are too few."""
        for _, kernel, stride in self.layers:
            samples = max(0, (samples - kernel) // stride + 1)
        return samples


class VqInput(SoundInput):
    """An utterance of at least one token and of `window` seconds at most: a part of it would have other tokens."""

    @property
    def lengths(self) -> tuple[Bucket, ...]:
        usual = sorted({math.ceil(self.most / part) for part in (8, 4, 2, 1)})
        return tuple(Bucket(frames=n) for n in self.buckets or usual)

    def samples(self, name: str, sound: np.ndarray) -> list[Sample]:
        if len(sound) < self.field:
            raise InputError(f"{name}: {len(sound)} samples are too short, one token needs {self.field}")
        if len(sound) > self.most * self.hop:
            raise InputError(
                f"{name}: {len(sound) / self.rate:.1f} s are longer than the {self.window:g} s that this tokenizer was "
                "made for: give a part (start and end), or make it again with a longer --window"
            )
        return super().samples(name, sound)


class VqEncoderConfig(EncoderConfig):
    """Of each token the index in every group, side by side; `network` is the shape."""

    network: VqConfig
    input: VqInput  # type: ignore[assignment]

    @model_validator(mode="after")
    def _consistent(self) -> VqEncoderConfig:
        network, sound = self.network, self.input
        if network.skip:
            raise ValueError("residual connections cut their input by its length: such a tokenizer takes no padding")
        if (sound.field, sound.hop, sound.form) != (network.shortest, network.hop, "waveform"):
            raise ValueError(f"a token stands for {network.hop} samples of {network.shortest}, not {sound.hop}")
        if (self.width, self.pooling, self.every, self.unit) != (network.groups, "none", 1, False):
            raise ValueError(f"tokens are a sequence of {network.groups} indices each: they are not pooled")
        return self


def encoder_config(network: VqConfig, rate: int, window: float, source: Provenance, **more: Any) -> VqEncoderConfig:
    """The configuration of an encoder at a sample rate; `more` are settings of its input."""
    heard = {"rate": rate, "window": window, "hop": network.hop, "field": network.shortest} | more
    values = {"network": network.model_dump(), "input": heard, "source": source.model_dump()}
    try:
        return VqEncoderConfig.model_validate(values | {"width": network.groups, "pooling": "none"})
    except ValidationError as error:
        raise UnsupportedError(f"vq-wav2vec: {first_problem(error)}") from None


def contract(config: VqEncoderConfig) -> Contract:
    """As that of any encoder; the output holds indices."""
    found = encoder_contract(config)
    indices = found.outputs[0].model_copy(update={"dtype": "int64", "below": config.network.entries})
    return found.model_copy(update={"outputs": (indices,)})


OURS = {
    "activation": "activation",
    "log_compression": "log_compression",
    "skip_connections_feat": "skip",
    "residual_scale": "residual_scale",
    "vq_vars": "entries",
    "vq_groups": "groups",
    "combine_groups": "shared",
    "vq_dim": "width",
}
DEFAULTS: dict[str, Any] = {"activation": "relu", "shared": False}
"""What fairseq assumes where a checkpoint does not say, as far as it differs from the published model."""
FIXED = {"vq_type": ("kmeans",), "non_affine_group_norm": (False,), "vq_depth": (1,), "encoder": ("cnn",)}


def from_arguments(arguments: Mapping[str, Any]) -> VqConfig:
    """The shape that a checkpoint's training arguments describe.

    Raises:
        UnsupportedError: another kind of quantiser or encoder.
        UsageError: the layers are not a list of triples.
    """
    for name, allowed in FIXED.items():
        if arguments.get(name, allowed[0]) not in allowed:
            raise UnsupportedError(f"{name} of this tokenizer is {arguments[name]!r}, only {allowed[0]!r} can be read")
    layers: Any = arguments.get("conv_feature_layers", BEFORE)
    try:
        layers = ast.literal_eval(layers) if isinstance(layers, str) else layers
        given = {ours: arguments[theirs] for theirs, ours in OURS.items() if theirs in arguments}
        return VqConfig.model_validate(DEFAULTS | given | {"layers": layers})
    except (ValueError, SyntaxError) as error:
        raise UsageError(f"the arguments do not describe a tokenizer: {str(error).splitlines()[0]}") from None
