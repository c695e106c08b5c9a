"""Training-set statistics of the inputs as a part of the network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Standardise(nn.Module):
    """Brings features to zero mean and unit variance with fixed statistics, so that an export carries them.

    A row of zeros is a missing modality or padding: it stays zeros, which is the mean of the training data.
    """

    def __init__(self, width: int):
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        given = (x != 0).any(-1, keepdim=True).to(x.dtype)
        return (x - self.mean) / self.std * given
