"""The face network up to what is read of it."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mer_export.encoders.swin.config import SwinEncoderConfig
from mer_export.models.facialmmt.swin import FaceExpression


class SwinFaces(nn.Module):
    """Face crops in, a vector of each out."""

    def __init__(self, config: SwinEncoderConfig):
        super().__init__()
        self.config = config
        self.face = FaceExpression(config.swin, config.expressions)

    def forward(self, picture: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch width"]:
        """Features or logits, at unit length where that is asked for."""
        vector = self.face.describe(picture) if self.config.output == "features" else self.face(picture)
        return functional.normalize(vector, dim=-1) if self.config.unit else vector
