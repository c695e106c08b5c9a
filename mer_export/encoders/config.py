"""What an encoder says of itself, whatever its network: its preprocessing, pooling and source. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import BATCH, Contract, Dim, TensorSpec
from mer_export.encoders.inputs import PictureInput, SoundInput, TextInput
from mer_export.task import Task

Pooling = Literal["mean", "first", "last", "none"]
"""Of the states of an item one vector: their mean, the first or the last of them; or all, as a sequence."""
VECTOR, STATES = "vector", "states"
"""The output of an encoder, by whether it pools."""


class Provenance(BaseModel):
    """Whose weights these are: name and revision as their publisher calls them, SHA-256 of the file, licence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    revision: str = ""
    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    licence: str = ""


class EncoderConfig(BaseModel):
    """The part of a configuration that all encoders have.

    `unit` brings pooled vectors to unit length. `every` averages so many states of a sequence into one, the last group
    being what remains. `width` is how many numbers a vector or state has; of a text there may be several `vectors`, one
    below the other, which the network gives one behind the other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: Annotated[TextInput | SoundInput | PictureInput, Field(discriminator="kind")]
    pooling: Pooling = "mean"
    unit: bool = False
    every: int = Field(1, ge=1)
    width: int = Field(ge=1)
    vectors: int = Field(1, ge=1)
    source: Provenance

    @model_validator(mode="after")
    def _stacked(self) -> EncoderConfig:
        if self.vectors > 1 and (self.input.kind != "text" or self.pooling == "none"):
            raise ValueError(
                f"vectors is {self.vectors}, pooling {self.pooling}: several vectors are those of a sentence, pooled "
                "by mean, first or last"
            )
        if self.pooling == "none" and not self.input.steps:
            raise ValueError(f"pooling is none, and a {self.input.kind} has one vector: mean, first or last")
        return self

    @property
    def identity(self) -> str:
        """SHA-256 of all that decides a feature: weights, preprocessing with its window or tokens, layers, pooling."""
        content: dict[str, Any] = self.model_dump(mode="json")
        # By which name and terms weights go round says nothing of what they compute.
        content["source"] = content["source"]["sha256"] or content["source"]["name"]
        content["input"].pop("buckets", None)
        if not content["input"].get("tokenizer"):
            # As those of before there were several vectors: encoders of text that do not say theirs.
            content["input"].pop("tokenizer", None)
        if self.vectors == 1:
            # Encoders of before there were several keep the identity that data know them by.
            del content["vectors"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def contract(config: EncoderConfig) -> Contract:
    """Inputs as `config.input` makes them; one output, a vector or the states of a sequence."""
    inputs, steps = config.input.specs, config.input.steps
    dims: tuple[Dim, ...] = (BATCH, config.vectors * config.width)
    if config.pooling == "none":
        dims = (BATCH, steps, config.width) if steps else dims
    output = TensorSpec(name=_output(config), dtype="float32", dims=dims)
    return Contract(
        inputs=inputs, outputs=(output,), buckets=config.input.lengths, longest=dict(config.input.lengths[-1])
    )


def task(config: EncoderConfig) -> Task:
    """Features of an item decide nothing."""
    return Task(kind="features", unit=config.input.unit, output=_output(config), features=config.vectors * config.width)


def _output(config: EncoderConfig) -> str:
    return STATES if config.pooling == "none" and config.input.steps else VECTOR
