"""Configuration of mult; needs no torch."""

from __future__ import annotations

from pydantic import Field

from mer_export.models.padded_arrays import ArrayConfig, Kernels


class MultConfig(ArrayConfig):
    """Section 3.4. Defaults are the network for MOSI."""

    kernels: Kernels = Kernels(text=1, audio=5, vision=1)
    width: int = Field(40, ge=1)
    heads: int = Field(10, ge=1)
    levels: int = Field(4, ge=1)
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    attention_dropout_vision: float = Field(0.2, ge=0, lt=1)
    embedding_dropout: float = Field(0.1, ge=0, lt=1)
    output_dropout: float = Field(0.1, ge=0, lt=1)
