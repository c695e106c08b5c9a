"""The `protocol:` section of cmerc; needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from train.encoders import Settings


class Curriculum(BaseModel):
    """Easiest dialogues first. `epoch_ratio` is the share added every `steps` epochs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch_ratio: float = Field(gt=0, le=1)
    steps: int = Field(1, ge=1)
    difficulty: str = "file"
    """`file` looks for a difficulty file in the data directory, `measure` trains a plain model first and measures,
    anything else is a path, relative to the data directory: of a difficulty file, or of a bundle to measure with."""
    measure_epochs: int = Field(10, ge=1)


class CmercSettings(Settings):
    """CMERC (section 6); with `calibrate`, `contrast` and `curriculum` off it is plain M3NET training."""

    semantics: Literal["batch", "single"] = "batch"
    """`batch` is the published behaviour; `single` trains what is exported: neighbours and padding have no say."""
    loss: Literal["nll", "focal"] = "nll"
    class_frequencies: tuple[float, ...] | Literal["train"] | None = None
    """The weight of a class in the nll loss is 1 / its frequency; `train` counts the training split."""
    focal_gamma: float = 2.5
    focal_alpha: float = 1.0
    shuffle: bool = False
    calibrate: bool = False
    rank_coefficient: float = Field(0.0, ge=0)
    contrast: bool = False
    mscl_coefficient: float = Field(0.0, ge=0)
    cscl_coefficient: float = Field(0.0, ge=0)
    temperature: float = Field(0.07, gt=0)
    curriculum: Curriculum | None = None

    @property
    def data_files(self) -> dict[str, str]:
        """What the curriculum takes difficulties from, where that is named."""
        rule = self.curriculum
        if rule is None or rule.difficulty in ("file", "measure"):
            return {}
        return {"curriculum.difficulty": rule.difficulty}

    def class_loss(self, kind: str) -> str:
        """The focal loss, and frequencies of its own, treat classes differently already."""
        if self.loss == "focal":
            return "protocol.loss=focal"
        return super().class_loss(kind) if self.class_frequencies is None else "protocol.class_frequencies"

    def plain(self) -> CmercSettings:
        """The same without calibration, contrast and curriculum: M3NET."""
        return self.model_copy(update={"calibrate": False, "contrast": False, "curriculum": None})
