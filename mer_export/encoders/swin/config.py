"""What the encoder of a face network says of itself; needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from pydantic import Field, model_validator

from mer_export.data.media.faces import normalise
from mer_export.data.samples import Sample
from mer_export.encoders.config import EncoderConfig
from mer_export.encoders.inputs import PictureInput
from mer_export.models.facialmmt.swin_config import SwinConfig

Output = Literal["features", "expressions"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
FEATURES = 512
"""Width of what the network knows of a face, before the layers that judge its expression."""


class FaceInput(PictureInput):
    """A face crop as FacialMMT reads it: scaled by areas or cubic interpolation, blue before green and red."""

    def sample(self, name: str, picture: np.ndarray) -> Sample:
        array = normalise(picture[:, :, ::-1], self.height)
        return Sample(name, {"picture": np.ascontiguousarray(array, dtype=np.float32)}, (name,))


class SwinEncoderConfig(EncoderConfig):
    """`output` is `features`, or the logits of the `expressions`, which `facialmmt` reads as `expression_logits`."""

    swin: SwinConfig
    expressions: int = Field(ge=1)
    output: Output
    input: FaceInput  # type: ignore[assignment]

    @model_validator(mode="after")
    def _consistent(self) -> SwinEncoderConfig:
        wanted = FEATURES if self.output == "features" else self.expressions
        if self.width != wanted or self.pooling != "mean":
            raise ValueError(f"{self.output} are one vector of {wanted}, not {self.width} ({self.pooling})")
        if (self.input.height, self.input.width) != (self.swin.image_size, self.swin.image_size):
            raise ValueError(f"the network reads faces of {self.swin.image_size} pixels, not {self.input.height}")
        return self
