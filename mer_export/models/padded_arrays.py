"""What MulT and TFR-Net share: no padding masks, so the lengths of the padded arrays are part of the network.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import Contract, Lengths
from mer_export.layers.bert.config import BertConfig
from mer_export.models.utterance import UtteranceConfig, check_buckets, prediction, utterance_inputs, utterance_task
from mer_export.task import Task


class ArrayLengths(BaseModel):
    """Lengths of the padded arrays that a model without padding masks was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_len: int | None = Field(None, ge=1)
    audio_len: int | None = Field(None, ge=1)
    vision_len: int | None = Field(None, ge=1)

    def of(self, modalities: Iterable[str]) -> Lengths:
        """The lengths of these modalities by sequence dim; raises ValueError where one is not there."""
        found = {f"{m}_len": getattr(self, f"{m}_len") for m in modalities}
        if missing := [d for d, n in found.items() if n is None]:
            raise ValueError(f"arrays lacks {missing}, the lengths of the padded arrays that the model reads")
        return found


class Kernels(BaseModel):
    """Width of the temporal convolution of each modality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: int = Field(ge=1)
    audio: int = Field(ge=1)
    vision: int = Field(ge=1)

    def check(self, lengths: Lengths) -> None:
        """Raises ValueError where a kernel is longer than its array."""
        for m, size in self.model_dump().items():
            if size > lengths.get(f"{m}_len", size):
                raise ValueError(f"kernel {size} of {m} is longer than its array")


class ArrayConfig(UtteranceConfig):
    """Inputs, crossmodal layers and dropouts."""

    arrays: ArrayLengths = ArrayLengths(text_len=50, audio_len=375, vision_len=500)
    kernels: Kernels
    width: int = Field(ge=1)
    heads: int = Field(ge=1)
    levels: int = Field(ge=1)
    causal: bool = True
    text_dropout: float = Field(0.2, ge=0, lt=1)
    attention_dropout: float = Field(ge=0, lt=1)
    attention_dropout_audio: float = Field(0.1, ge=0, lt=1)
    attention_dropout_vision: float = Field(ge=0, lt=1)
    relu_dropout: float = Field(0.2, ge=0, lt=1)
    embedding_dropout: float = Field(ge=0, lt=1)
    residual_dropout: float = Field(0.2, ge=0, lt=1)
    buckets: tuple[Lengths, ...] = ()
    """None by default: an array is always padded to its full length, so a shorter bucket saves nothing."""

    @model_validator(mode="after")
    def _arrays_hold(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        self.kernels.check(self.longest)
        if self.bert is not None:
            _check_positions(self.longest["text_len"], self.bert)
        check_buckets(self.buckets, self.longest)
        return self

    @property
    def longest(self) -> Lengths:
        """The lengths of the padded arrays, by sequence dim."""
        return self.arrays.of(self.used)

    def attention_dropout_to(self, modality: str) -> float:
        """Attention dropout goes by the sequence that is attended to."""
        return {
            "text": self.attention_dropout,
            "audio": self.attention_dropout_audio,
            "vision": self.attention_dropout_vision,
        }[modality]


def contract(config: ArrayConfig) -> Contract:
    """One utterance per item. A modality that is missing has length 0."""
    return Contract(
        inputs=utterance_inputs(config),
        outputs=(prediction(config.labels),),
        buckets=config.buckets or (config.longest,),
        longest=config.longest,
    )


def task(config: ArrayConfig) -> Task:
    return utterance_task(config.labels, config.scale)


def _check_positions(length: int, bert: BertConfig) -> None:
    if not 2 <= length <= bert.longest:
        raise ValueError(f"text_len {length} of arrays must be 2..{bert.longest}, the positions of bert")
