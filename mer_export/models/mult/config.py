"""Configuration and tensor contract of mult; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import Contract, Lengths
from mer_export.models.bert.config import BertConfig
from mer_export.models.utterance import (
    ArrayLengths,
    Kernels,
    check_buckets,
    prediction,
    utterance_inputs,
    utterance_task,
)
from mer_export.task import Task


class MultConfig(BaseModel):
    """Section 3.4. Defaults are the network for MOSI."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Literal["mosi", "sims"] = "mosi"
    bert: BertConfig = BertConfig()
    audio_dim: int = Field(5, ge=1)
    vision_dim: int = Field(20, ge=1)
    arrays: ArrayLengths = ArrayLengths(text_len=50, audio_len=375, vision_len=500)
    kernels: Kernels = Kernels(text=1, audio=5, vision=1)
    width: int = Field(40, ge=1)
    heads: int = Field(10, ge=1)
    levels: int = Field(4, ge=1)
    causal: bool = True
    text_dropout: float = Field(0.2, ge=0, lt=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout_audio: float = Field(0.1, ge=0, lt=1)
    attention_dropout_vision: float = Field(0.2, ge=0, lt=1)
    relu_dropout: float = Field(0.2, ge=0, lt=1)
    embedding_dropout: float = Field(0.1, ge=0, lt=1)
    residual_dropout: float = Field(0.2, ge=0, lt=1)
    output_dropout: float = Field(0.1, ge=0, lt=1)
    buckets: tuple[Lengths, ...] = ()
    """None by default: an array is always padded to its full length, so a shorter bucket saves nothing."""

    @model_validator(mode="after")
    def _consistent(self) -> MultConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        self.kernels.check(self.arrays)
        self.arrays.check(self.bert)
        check_buckets(self.buckets, self.arrays.model_dump())
        return self

    @property
    def feature_dims(self) -> dict[str, int]:
        return {"text": self.bert.hidden, "audio": self.audio_dim, "vision": self.vision_dim}


def contract(config: MultConfig) -> Contract:
    """One utterance per item. A modality that is missing has length 0."""
    longest = config.arrays.model_dump()
    return Contract(
        inputs=utterance_inputs(config.bert, config.feature_dims),
        outputs=(prediction(()),),
        buckets=config.buckets or (longest,),
        longest=longest,
    )


def task(config: MultConfig) -> Task:
    return utterance_task((), config.scale)
