"""Configuration of an encoder of the `transformers` package."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from mer_export.encoders.config import EncoderConfig
from mer_export.encoders.transformers.kinds import KINDS, Kind


class TransformersConfig(EncoderConfig):
    """`network` holds the values of config.json; `layers` are the ones whose states are read, side by side where there
    are several, or a vector each: 0 is what goes into the first layer, the number of layers is the last one after its
    norm."""

    kind: str
    network: dict[str, Any]
    layers: tuple[int, ...] = Field(min_length=1)

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"no encoder of kind {kind!r}, there are {list(KINDS)}")
        return kind

    @model_validator(mode="after")
    def _consistent(self) -> TransformersConfig:
        form = self.record.form
        wanted = {"waveform": "sound", "log_mel": "sound"}.get(form, form)
        if self.input.kind != wanted or getattr(self.input, "form", form) != form:
            raise ValueError(f"a {self.kind} reads {form}, not {self.input.kind}")
        if len(set(self.layers)) != len(self.layers) or not 0 <= min(self.layers) <= self.last <= self.depth:
            raise ValueError(f"layers are {list(self.layers)}, a {self.kind} of this size has 0..{self.depth}")
        if self.vectors not in (1, len(self.layers)) or self.width * self.vectors != len(self.layers) * self.hidden:
            said = f"{self.vectors} vectors of {self.width}"
            raise ValueError(f"{len(self.layers)} layers of {self.hidden} are not {said}")
        return self

    @property
    def record(self) -> Kind:
        return KINDS[self.kind]

    @property
    def last(self) -> int:
        """The last layer that is read: those after it are not kept."""
        return max(self.layers)

    @property
    def depth(self) -> int:
        """How many layers the network has."""
        return depth(self.network)

    @property
    def hidden(self) -> int:
        """How wide a state is."""
        return hidden(self.network)


DEPTHS, WIDTHS = ("encoder_layers", "num_hidden_layers", "n_layers"), ("d_model", "hidden_size", "dim")
"""What kinds call the number of layers and the width of a state."""


def depth(network: dict[str, Any]) -> int:
    """The number of layers, by the name that its kind has for it."""
    return int(next(network[n] for n in DEPTHS if n in network))


def hidden(network: dict[str, Any]) -> int:
    """The width of a state, by the name that its kind has for it."""
    return int(next(network[n] for n in WIDTHS if n in network))


def sizes_said(network: dict[str, Any]) -> bool:
    """Whether both are there."""
    return all(any(n in network for n in names) for names in (DEPTHS, WIDTHS))
