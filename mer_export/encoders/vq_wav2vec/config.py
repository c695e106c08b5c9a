"""Shape of a vq-wav2vec tokenizer; needs no torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.errors import UnsupportedError, UsageError

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

    def frames(self, samples: int) -> int:
        """How many frames so many samples give, 0 where they are too few."""
        for _, kernel, stride in self.layers:
            samples = max(0, (samples - kernel) // stride + 1)
        return samples


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
