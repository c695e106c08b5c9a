"""What MulT and TFR-Net share: no padding masks, so the lengths of the padded arrays are part of the network.

Needs no torch.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import Contract, Lengths
from mer_export.layers.bert.config import BertConfig
from mer_export.models.utterance import check_buckets, prediction, utterance_inputs, utterance_task
from mer_export.task import Task


class ArrayLengths(BaseModel):
    """Lengths of the padded arrays that a model without padding masks was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_len: int = Field(ge=2)
    audio_len: int = Field(ge=1)
    vision_len: int = Field(ge=1)

    def check(self, bert: BertConfig) -> None:
        """Raises ValueError where the text is longer than BERT's table of positions."""
        if self.text_len > bert.longest:
            raise ValueError(f"text_len {self.text_len} is more than the {bert.longest} positions of bert")


class Kernels(BaseModel):
    """Width of the temporal convolution of each modality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: int = Field(ge=1)
    audio: int = Field(ge=1)
    vision: int = Field(ge=1)

    def check(self, arrays: ArrayLengths) -> None:
        """Raises ValueError where a kernel is longer than its array."""
        for m, size in self.model_dump().items():
            if size > arrays.model_dump()[f"{m}_len"]:
                raise ValueError(f"kernel {size} of {m} is longer than its array")


class ArrayConfig(BaseModel):
    """Inputs, crossmodal layers and dropouts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Literal["mosi", "sims"] = "mosi"
    bert: BertConfig = BertConfig()
    audio_dim: int = Field(5, ge=1)
    vision_dim: int = Field(20, ge=1)
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
        self.kernels.check(self.arrays)
        self.arrays.check(self.bert)
        check_buckets(self.buckets, self.arrays.model_dump())
        return self

    @property
    def pretrained(self) -> tuple[str, ...]:
        """The encoders that training starts from pre-trained weights, by their section."""
        return ("bert",)

    @property
    def feature_dims(self) -> dict[str, int]:
        """Width of the features of each modality."""
        return {"text": self.bert.hidden, "audio": self.audio_dim, "vision": self.vision_dim}

    def attention_dropout_to(self, modality: str) -> float:
        """Attention dropout goes by the sequence that is attended to."""
        return {
            "text": self.attention_dropout,
            "audio": self.attention_dropout_audio,
            "vision": self.attention_dropout_vision,
        }[modality]


def contract(config: ArrayConfig) -> Contract:
    """One utterance per item. A modality that is missing has length 0."""
    longest = config.arrays.model_dump()
    return Contract(
        inputs=utterance_inputs(config.bert, config.feature_dims),
        outputs=(prediction(()),),
        buckets=config.buckets or (longest,),
        longest=longest,
    )


def task(config: ArrayConfig) -> Task:
    return utterance_task((), config.scale)
