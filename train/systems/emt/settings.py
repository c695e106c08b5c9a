"""The `protocol:` sections of emt, tfr_net and mult; needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from mer_export.data.missing import SEEDS
from train.accumulation import Accumulation
from train.encoders import Settings, Source

Seed = Annotated[int, Field(ge=0, lt=1 << 32)]
"""What numpy takes as one."""


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Missing(Strict):
    """Which share of tokens and frames is missing in training and in the measured splits, and the seeds of the draw."""

    text: float = Field(0.0, ge=0, le=1)
    audio: float = Field(0.0, ge=0, le=1)
    vision: float = Field(0.0, ge=0, le=1)
    seeds: tuple[Seed, Seed, Seed] = (SEEDS["text"], SEEDS["audio"], SEEDS["vision"])

    @property
    def rates(self) -> dict[str, float]:
        return {"text": self.text, "audio": self.audio, "vision": self.vision}

    @property
    def seed_by_modality(self) -> dict[str, int]:
        return dict(zip(SEEDS, self.seeds, strict=True))


class Group(Strict):
    """Learning rate and L2 weight decay of some parameters."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)


class Incompleteness(Settings):
    """What the three systems share."""

    missing: Missing = Missing()
    """One number stands for the rate of all three modalities."""
    text_encoder: str | None = None
    """Folder of the pre-trained BERT (config.json and weights) that training starts from, or `random`."""
    train_text_encoder: bool = True

    @property
    def sources(self) -> tuple[Source, ...]:
        """The text encoder."""
        return (Source("text_encoder", self.text_encoder, "bert"),)

    @field_validator("missing", mode="before")
    @classmethod
    def _one_for_all(cls, value: object) -> object:
        return dict.fromkeys(SEEDS, value) if isinstance(value, int | float) else value


class EmtSettings(Incompleteness):
    """EMT-DLFR, section 6. Defaults are those for MOSI."""

    text: Group = Group(lr=5e-5, weight_decay=1e-3)
    """BERT; its biases and norms have no decay."""
    audio: Group = Group(lr=1e-3, weight_decay=1e-2)
    vision: Group = Group(lr=1e-4, weight_decay=1e-3)
    other: Group = Group(lr=1e-3, weight_decay=1e-3)
    accumulate: int = Field(4, ge=1)
    attraction_weight: float = Field(1.0, ge=0)
    reconstruction_weight: float = Field(1.0, ge=0)
    reconstruction: Literal["smooth_l1", "l1", "mse"] = "smooth_l1"
    empty_text: Literal["nothing", "everywhere"] = "nothing"
    """What a text without words attends to: nothing, which is what exports compute, or every padded position, as in
    the original, where its answer depends on the padding."""

    @property
    def accumulation(self) -> Accumulation:
        """The sum of the gradients of some batches, applied once."""
        return Accumulation(self.accumulate)


class TfrNetSettings(Incompleteness):
    """TFR-Net, section 6.4. Defaults are those for MOSI and MOSEI."""

    text: Group = Group(lr=1e-5, weight_decay=1e-4)
    other: Group = Group(lr=2e-3, weight_decay=1e-3)
    accumulate: int = Field(4, ge=1)
    clip_value: float | None = Field(0.8, gt=0)
    generation_weights: tuple[float, float, float] = (5.0, 2.0, 20.0)
    """Of text, audio and vision; not used in the first epoch."""

    @property
    def accumulation(self) -> Accumulation:
        """The running sum, applied after every batch."""
        return Accumulation(self.accumulate, "each")


class MultSettings(Incompleteness):
    """MulT on incomplete data, section 6.4. Defaults are those for MOSI."""

    train_text_encoder: bool = False
    other: Group = Group(lr=1e-3)
    accumulate: int = Field(8, ge=1)
    clip_value: float | None = Field(0.8, gt=0)

    @property
    def accumulation(self) -> Accumulation:
        """The running sum, applied after every batch."""
        return Accumulation(self.accumulate, "each")
