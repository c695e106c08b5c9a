"""Shape of the facial expression model, a Swin transformer; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class StageShape:
    """One stage: grid of `size` x `size` tokens, cut into windows of `window` x `window`."""

    size: int
    width: int
    depth: int
    heads: int
    window: int
    merges: bool
    """Whether the next stage sees four tokens as one."""

    def shift(self, block: int) -> int:
        """By how much the windows of a block are shifted: every second one by half, never where one window is all."""
        return self.window // 2 if block % 2 and self.size > self.window else 0


class SwinConfig(BaseModel):
    """Defaults are Swin-tiny as FacialMMT uses it (section 3.4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_size: int = Field(224, ge=1)
    patch: int = Field(4, ge=1)
    channels: int = Field(3, ge=1)
    width: int = Field(96, ge=1)
    depths: tuple[int, ...] = Field((2, 2, 6, 2), min_length=1)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = Field(7, ge=1)
    expansion: float = Field(4.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    drop_path: float = Field(0.3, ge=0, lt=1)
    """Probability that the last block leaves out a branch in training; rises from 0 over the blocks."""

    @model_validator(mode="after")
    def _consistent(self) -> SwinConfig:
        if len(self.heads) != len(self.depths) or self.image_size % self.patch:
            raise ValueError(
                f"heads {self.heads} and depths {self.depths} need one entry per stage, and image_size "
                f"{self.image_size} has to be a multiple of patch {self.patch}"
            )
        for stage in self.stages:
            if stage.size % stage.window or (stage.merges and stage.size % 2) or stage.width % stage.heads:
                raise ValueError(
                    f"a stage of {stage.size} x {stage.size} tokens, {stage.width} wide, does not divide into windows "
                    f"of {stage.window}, halves, or {stage.heads} heads"
                )
        return self

    @property
    def stages(self) -> tuple[StageShape, ...]:
        """The stages in order."""
        last, size = len(self.depths) - 1, self.image_size // self.patch
        return tuple(
            StageShape(size >> i, self.width << i, depth, heads, min(self.window, size >> i), i < last)
            for i, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True))
        )

    @property
    def flat(self) -> int:
        """Tokens times width after the last stage."""
        return self.stages[-1].size ** 2 * self.stages[-1].width
