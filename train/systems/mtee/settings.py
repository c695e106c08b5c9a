"""The `protocol:` section of mtee; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from train.encoders import Settings

OLD = "old"
"""The split that is rehearsed (`data.emotions.old`)."""


class Rehearsal(BaseModel):
    """Few-shot training that does not forget (branch `fsl` of the public code): old samples beside the few new ones.

    Old samples do not have the new label, and count for the other labels alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["joint", "gem"]
    """`joint` makes a step on old samples before each on new ones. `gem` (gradient episodic memory) makes steps on new
    ones alone, whose gradient is turned where it goes against that of old samples."""
    new: int = Field(ge=0)
    """Which of `model.labels` is new."""
    batch: int = Field(5120, ge=1)
    """Old samples that are drawn for a step, or as many as there are. The specification names it for `joint` and is
    silent on what the memory of `gem` holds: the same is drawn there."""
    margin: float = Field(0.01, ge=0)
    """The least share of the old gradient that is added where gradients disagree."""


class MteeSettings(Settings):
    """MTEE (section 6)."""

    semantics: Literal["batch", "single"] = "single"
    """`batch` is the published behaviour of the transformer baseline, where samples of a batch attend to each other."""
    loss: Literal["bce", "ce", "l1", "mse"] = "bce"
    weigh_positives: bool = True
    """bce: positives count as negatives per positive of their label in the training split."""
    shuffle: bool = True
    rehearsal: Rehearsal | None = None

    @property
    def beside(self) -> tuple[str, ...]:
        """Old samples, where they are rehearsed."""
        return (OLD,) if self.rehearsal else ()

    def class_loss(self, kind: str) -> str:
        """Cross-entropy where it is asked for; bce decides each label on its own."""
        return super().class_loss(kind) if self.loss == "ce" else f"protocol.loss={self.loss}"
