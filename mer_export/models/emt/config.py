"""Configuration and tensor contract of emt; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.contract import Contract, Lengths
from mer_export.models.utterance import (
    MODALITIES,
    UtteranceConfig,
    check_buckets,
    prediction,
    utterance_inputs,
    utterance_task,
)
from mer_export.task import Task

POSITIONS = 1024
BUCKETS = (
    {"text_len": 32, "audio_len": 128, "vision_len": 128},
    {"text_len": 50, "audio_len": 375, "vision_len": 500},
)
"""Fixed lengths to export where none are configured."""


class Restoration(BaseModel):
    """Widths of the heads that only training uses (dual-level feature restoration)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: int = Field(128, ge=1)
    text: int = Field(256, ge=1)
    audio: int = Field(8, ge=1)
    vision: int = Field(16, ge=1)


class EmtConfig(UtteranceConfig):
    """EMT-DLFR, section 3. Defaults are the published MOSI network.

    Token vectors, without `bert`, go through a recurrent encoder as audio does.
    """

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
    buckets: tuple[Lengths, ...] = ()
    """Fixed lengths to export; none means those of the published data, as far as the network takes them."""

    @model_validator(mode="after")
    def _consistent(self) -> EmtConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if unknown := set(self.encoder_dropout) - set(MODALITIES):
            raise ValueError(f"encoder_dropout is for {list(MODALITIES)}, not {sorted(unknown)}")
        check_buckets(self.buckets, self.longest)
        return self

    @property
    def longest(self) -> Lengths:
        """Longest real lengths: the table of positions, and BERT's, which has one more for the first token."""
        text = POSITIONS if self.bert is None else min(self.bert.longest, POSITIONS + 1)
        return {f"{m}_len": text if m == "text" else POSITIONS for m in self.used}

    @property
    def lengths(self) -> tuple[Lengths, ...]:
        """The buckets."""
        return self.buckets or tuple({d: min(b[d], n) for d, n in self.longest.items()} for b in BUCKETS)

    @property
    def utterance_dims(self) -> dict[str, int]:
        """Width of the utterance vector of each modality."""
        text = self.text_out if self.bert is None else self.bert.hidden
        widths = {"text": text, "audio": self.audio_out, "vision": self.vision_out}
        return {m: widths[m] for m in self.used}

    def unit(self, layer: int, modality: int, direction: int) -> int:
        """Which of the distinct mutual promotion units stands at a place; `direction` 0 updates local features."""
        shape = (
            1 if self.share_layers else self.depth,
            1 if self.share_modalities else len(self.used),
            1 if self.share_directions else 2,
        )
        place = [min(i, n - 1) for i, n in zip((layer, modality, direction), shape, strict=True)]
        return (place[0] * shape[1] + place[1]) * shape[2] + place[2]

    @property
    def units(self) -> int:
        """How many distinct mutual promotion units there are."""
        return self.unit(self.depth - 1, len(self.used) - 1, 1) + 1


def contract(config: EmtConfig) -> Contract:
    """One utterance per item. A modality that is missing has length 0."""
    return Contract(
        inputs=utterance_inputs(config),
        outputs=(prediction(config.labels),),
        buckets=config.lengths,
        longest=config.longest,
    )


def task(config: EmtConfig) -> Task:
    return utterance_task(config.labels, config.scale)
