"""The `protocol:` section of facialmmt; needs no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from train.accumulation import Accumulation
from train.encoders import Settings, Source


class Auxiliary(BaseModel):
    """The pass over faces with expression labels before every epoch, for variant `end_to_end`. Defaults are published.

    `lr` rises over the first `warm_up` of all its steps and then falls to 0, as that of the utterances does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str | None = None
    """Folder of Aff-Wild2 (annotations and images); None leaves the pass out."""
    split: str = "train"
    batch: int = Field(150, ge=1)
    lr: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warm_up: float = Field(0.1, ge=0, lt=1)
    clip: float | None = Field(0.8, gt=0)
    augment: bool = True


class FacialMmtSettings(Settings):
    """FacialMMT, section 6."""

    accumulate: int = Field(4, ge=1)
    """Batches per step; their losses are divided by it, batches left over at the end of an epoch are not applied."""
    text_encoder: str | None = None
    """Folder of the pre-trained text encoder (config.json and weights) that training starts from, or `random`."""
    face_encoder: str | None = None
    """File of a face recognition Swin (`backbone.*`) that the expression model starts from, without
    its classifier, or `random`."""
    train_text_encoder: bool = True
    text_encoder_lr: float | None = Field(None, gt=0)
    """None: as everything else, as published."""
    by_dialogue: bool = False
    """A batch is the utterances of one dialogue, whose text is then encoded once; as published a batch is any."""
    gumbel: bool = True
    """Draw the noise of the expression distribution in training; measuring goes without, as exports do."""
    colour_jitter: float = Field(0.5, ge=0)
    """Of face crops in training."""
    augment_faces: bool = False
    """Change face crops of variant `face` as those of the auxiliary task are."""
    auxiliary: Auxiliary = Auxiliary()

    @property
    def accumulation(self) -> Accumulation:
        """The sum of the gradients of some batches, applied once."""
        return Accumulation(self.accumulate)

    @property
    def files(self) -> dict[str, str]:
        """Those of the encoders, and Aff-Wild2."""
        own = {"auxiliary.data": self.auxiliary.data} if self.auxiliary.data else {}
        return super().files | own

    @property
    def sources(self) -> tuple[Source, ...]:
        """The text encoder and the expression model. Dialogues are padded with id 0 whatever the folder says."""
        return (
            Source("text_encoder", self.text_encoder, "bert", form="encoder", own=("padding_token",)),
            Source("face_encoder", self.face_encoder, "swin"),
        )
