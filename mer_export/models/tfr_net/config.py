"""Configuration and tensor contract of tfr_net; needs no torch."""

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

FUSIONS = ("c_gate", "gru", "max")


class FusionWidths(BaseModel):
    """Width of each modality in the fusion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: int = Field(36, ge=1)
    audio: int = Field(20, ge=1)
    vision: int = Field(48, ge=1)


class TfrNetConfig(BaseModel):
    """Section 3.3. Defaults are the network for MOSI."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Literal["mosi", "sims"] = "mosi"
    bert: BertConfig = BertConfig()
    audio_dim: int = Field(5, ge=1)
    vision_dim: int = Field(20, ge=1)
    arrays: ArrayLengths = ArrayLengths(text_len=50, audio_len=375, vision_len=500)
    kernels: Kernels = Kernels(text=1, audio=5, vision=3)
    width: int = Field(30, ge=4)
    heads: int = Field(6, ge=1)
    levels: int = Field(3, ge=1)
    causal: bool = True
    generator: Literal["linear", "ctc", "none"] = "linear"
    fuse_generated: bool = False
    """The fusion reads the generated features in place of the aligned ones."""
    fusion: Literal["c_gate", "gru", "max"] = "c_gate"
    fusion_widths: FusionWidths = FusionWidths()
    fusion_layers: int = Field(3, ge=1)
    fusion_linear: bool = True
    """A linear layer after the recurrent ones, with fusion `gru`."""
    head_width: int = Field(128, ge=1)
    text_dropout: float = Field(0.2, ge=0, lt=1)
    attention_dropout: float = Field(0.2, ge=0, lt=1)
    attention_dropout_audio: float = Field(0.1, ge=0, lt=1)
    attention_dropout_vision: float = Field(0.0, ge=0, lt=1)
    relu_dropout: float = Field(0.2, ge=0, lt=1)
    embedding_dropout: float = Field(0.2, ge=0, lt=1)
    residual_dropout: float = Field(0.2, ge=0, lt=1)
    fusion_dropout: float = Field(0.2, ge=0, lt=1)
    head_dropout: float = Field(0.0, ge=0, lt=1)
    buckets: tuple[Lengths, ...] = ()
    """None by default: an array is always padded to its full length, so a shorter bucket saves nothing."""

    @model_validator(mode="after")
    def _consistent(self) -> TfrNetConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        if any(k % 2 == 0 for k in self.kernels.model_dump().values()):
            raise ValueError(f"kernels must be odd to keep the length, they are {self.kernels.model_dump()}")
        if self.fuse_generated and self.generator == "none":
            raise ValueError("fuse_generated needs a generator")
        self.kernels.check(self.arrays)
        self.arrays.check(self.bert)
        check_buckets(self.buckets, self.arrays.model_dump())
        return self

    @property
    def feature_dims(self) -> dict[str, int]:
        return {"text": self.bert.hidden, "audio": self.audio_dim, "vision": self.vision_dim}

    @property
    def fused_dims(self) -> dict[str, int]:
        """Width of what the fusion reads."""
        return self.feature_dims if self.fuse_generated else dict.fromkeys(self.feature_dims, 3 * self.width)


def contract(config: TfrNetConfig) -> Contract:
    """One utterance per item. A modality that is missing has length 0."""
    longest = config.arrays.model_dump()
    return Contract(
        inputs=utterance_inputs(config.bert, config.feature_dims),
        outputs=(prediction(()),),
        buckets=config.buckets or (longest,),
        longest=longest,
    )


def task(config: TfrNetConfig) -> Task:
    return utterance_task((), config.scale)
