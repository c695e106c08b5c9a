"""Configuration and tensor contract of emt; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import Contract, Lengths
from mer_export.layers.bert.config import BertConfig
from mer_export.models.utterance import (
    MODALITIES,
    FeatureStandardise,
    check_buckets,
    prediction,
    utterance_inputs,
    utterance_task,
)
from mer_export.task import Task

POSITIONS = 1024


class Restoration(BaseModel):
    """Widths of the heads that only training uses (dual-level feature restoration)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: int = Field(128, ge=1)
    text: int = Field(256, ge=1)
    audio: int = Field(8, ge=1)
    vision: int = Field(16, ge=1)


class EmtConfig(BaseModel):
    """EMT-DLFR, section 3. Defaults are the published MOSI network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = ()
    """Class names of a classification head; empty for the published regression of sentiment."""
    scale: Literal["mosi", "sims"] = "mosi"
    """Range, derived classes and metrics of the regression."""
    bert: BertConfig | None = BertConfig()
    """None where text is given as vectors per token; they go through a recurrent encoder as audio does."""
    text_dim: int = Field(768, ge=1)
    """Width of the token vectors where there is no `bert`."""
    audio_dim: int = Field(5, ge=1)
    vision_dim: int = Field(20, ge=1)
    text_hidden: int = Field(128, ge=1)
    text_out: int = Field(128, ge=1)
    """`text_hidden` and `text_out` shape the recurrent text encoder, without `bert` only."""
    audio_hidden: int = Field(32, ge=1)
    audio_out: int = Field(16, ge=1)
    vision_hidden: int = Field(64, ge=1)
    vision_out: int = Field(32, ge=1)
    encoder_dropout: dict[str, float] = Field(default_factory=dict)
    """Dropout of the recurrent encoders' utterance vectors."""
    width: int = Field(128, ge=1)
    depth: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    learnable_positions: bool = False
    position_dropout: float = Field(0.0, ge=0, lt=1)
    attention_dropout: float = Field(0.3, ge=0, lt=1)
    feed_forward_dropout: float = Field(0.1, ge=0, lt=1)
    expansion: int = Field(4, ge=1)
    share_directions: bool = True
    share_modalities: bool = True
    share_layers: bool = True
    pooling: Literal["relu", "sigmoid", "tanh"] = "tanh"
    restoration: Restoration = Restoration()
    head_width: int = Field(256, ge=1)
    head_dropout: float = Field(0.3, ge=0, lt=1)
    standardise: FeatureStandardise = ()
    """Inputs that the network itself brings to zero mean and unit variance with training-set statistics."""
    buckets: tuple[Lengths, ...] = Field(
        (
            {"text_len": 32, "audio_len": 128, "vision_len": 128},
            {"text_len": 50, "audio_len": 375, "vision_len": 500},
        ),
        min_length=1,
    )

    @model_validator(mode="after")
    def _consistent(self) -> EmtConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if len(set(self.labels)) != len(self.labels) or len(self.labels) == 1:
            raise ValueError(f"labels must be none or two and more different ones, they are {self.labels}")
        if self.bert is not None and "text" in self.standardise:
            raise ValueError("standardise text is for token vectors, with bert text is token ids")
        if unknown := set(self.encoder_dropout) - set(MODALITIES):
            raise ValueError(f"encoder_dropout is for {list(MODALITIES)}, not {sorted(unknown)}")
        check_buckets(self.buckets, self.longest)
        return self

    @property
    def pretrained(self) -> tuple[str, ...]:
        """The encoders that training starts from pre-trained weights, by their section."""
        return () if self.bert is None else ("bert",)

    @property
    def longest(self) -> Lengths:
        """Longest real lengths: the table of positions, and BERT's, which has one more for the first token."""
        text = POSITIONS if self.bert is None else min(self.bert.longest, POSITIONS + 1)
        return {"text_len": text, "audio_len": POSITIONS, "vision_len": POSITIONS}

    @property
    def feature_dims(self) -> dict[str, int]:
        """Width of the features of each modality; of text it is the encoder's where there is one."""
        text = self.text_dim if self.bert is None else self.bert.hidden
        return {"text": text, "audio": self.audio_dim, "vision": self.vision_dim}

    @property
    def utterance_dims(self) -> dict[str, int]:
        """Width of the utterance vector of each modality."""
        text = self.text_out if self.bert is None else self.bert.hidden
        return {"text": text, "audio": self.audio_out, "vision": self.vision_out}

    def unit(self, layer: int, modality: int, direction: int) -> int:
        """Which of the distinct mutual promotion units stands at a place; `direction` 0 updates local features."""
        shape = (
            1 if self.share_layers else self.depth,
            1 if self.share_modalities else len(MODALITIES),
            1 if self.share_directions else 2,
        )
        place = [min(i, n - 1) for i, n in zip((layer, modality, direction), shape, strict=True)]
        return (place[0] * shape[1] + place[1]) * shape[2] + place[2]

    @property
    def units(self) -> int:
        """How many distinct mutual promotion units there are."""
        return self.unit(self.depth - 1, len(MODALITIES) - 1, 1) + 1


def contract(config: EmtConfig) -> Contract:
    """One utterance per item. A modality that is missing has length 0."""
    return Contract(
        inputs=utterance_inputs(config.bert, config.feature_dims),
        outputs=(prediction(config.labels),),
        buckets=config.buckets,
        longest=config.longest,
    )


def task(config: EmtConfig) -> Task:
    return utterance_task(config.labels, config.scale)
