"""Configuration of tfr_net; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.models.padded_arrays import ArrayConfig, Kernels

FUSIONS = ("c_gate", "gru", "max")


class FusionWidths(BaseModel):
    """Width of each modality in the fusion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: int = Field(36, ge=1)
    audio: int = Field(20, ge=1)
    vision: int = Field(48, ge=1)


class TfrNetConfig(ArrayConfig):
    """Section 3.3. Defaults are the network for MOSI."""

    kernels: Kernels = Kernels(text=1, audio=5, vision=3)
    width: int = Field(30, ge=4)
    heads: int = Field(6, ge=1)
    levels: int = Field(3, ge=1)
    generator: Literal["linear", "ctc", "none"] = "linear"
    fuse_generated: bool = False
    """The fusion reads the generated features in place of the aligned ones."""
    fusion: Literal["c_gate", "gru", "max"] = "c_gate"
    fusion_widths: FusionWidths = FusionWidths()
    fusion_layers: int = Field(3, ge=1)
    fusion_linear: bool = True
    """A linear layer after the recurrent ones, with fusion `gru`."""
    head_width: int = Field(128, ge=1)
    attention_dropout: float = Field(0.2, ge=0, lt=1)
    attention_dropout_vision: float = Field(0.0, ge=0, lt=1)
    embedding_dropout: float = Field(0.2, ge=0, lt=1)
    fusion_dropout: float = Field(0.2, ge=0, lt=1)
    head_dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _fusion_holds(self) -> TfrNetConfig:
        if any(getattr(self.kernels, m) % 2 == 0 for m in self.used):
            raise ValueError(f"kernels must be odd to keep the length, they are {self.kernels.model_dump()}")
        if self.fuse_generated and self.generator == "none":
            raise ValueError("fuse_generated needs a generator")
        return self

    @property
    def fused_dims(self) -> dict[str, int]:
        """Width of what the fusion reads."""
        return self.feature_dims if self.fuse_generated else dict.fromkeys(self.used, len(self.used) * self.width)
