"""The two tables of sinusoidal positions: sines and cosines in turn, and all sines before all cosines."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def alternating_sinusoid(positions: int, width: int) -> Float[Tensor, "positions width"]:
    """Sines at even and cosines at odd columns (Vaswani et al., 2017); an odd width has one cosine less."""
    step = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angle = torch.arange(positions)[:, None] * step
    return torch.stack([torch.sin(angle), torch.cos(angle)], dim=-1).flatten(1)[:, :width]


def halved_sinusoid(positions: int, width: int) -> Float[Tensor, "positions width"]:
    """Rows 1 to `positions` of fairseq's table: sines, then cosines, a zero column where the width is odd."""
    half = width // 2
    step = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
    angle = torch.arange(1, positions + 1)[:, None] * step
    return functional.pad(torch.cat([torch.sin(angle), torch.cos(angle)], dim=1), (0, width % 2))
