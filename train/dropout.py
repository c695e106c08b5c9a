"""Dropout whose random numbers cost next to nothing: other ones than PyTorch's, equally distributed.

PyTorch draws dropout on a CPU from one Mersenne twister, number by number where the processor is not one of Intel's; in
networks with much attention that is more than a third of a training step (`python3 -m benchmarks.training`). Here 64
random bits decide about four values.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**16
"""A rate is rounded to one of so many."""


class Source:
    """The random bits of all layers of a network, in the order in which they ask."""

    def __init__(self) -> None:
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Starts anew."""
        self._bits = np.random.Generator(np.random.SFC64(seed))

    def factors(self, like: Tensor, rate: float) -> Tensor:
        """0 at a part of the places, drawn anew; elsewhere what keeps the mean."""
        level = min(round(rate * LEVELS), LEVELS - 1)
        bits = self._bits.integers(0, 2**64, -(-like.numel() // 4), np.uint64)
        drawn = torch.from_numpy(bits.view(np.int16)[: like.numel()]).view(like.shape)
        kept = torch.empty(like.shape, dtype=like.dtype)
        return torch.ge(drawn, level - LEVELS // 2, out=kept).mul_(LEVELS / (LEVELS - level))


class FastDropout(nn.Dropout):
    """In training as `nn.Dropout`, from another source."""

    source: Source

    def forward(self, input: Tensor) -> Tensor:
        """The values that stay, scaled; zeros for the others."""
        return input * self.source.factors(input, self.p) if self.training and self.p else input


def draw_fast(model: nn.Module) -> Source:
    """Makes every dropout layer of a network on the CPU draw from one source, which is given back to be seeded."""
    source = Source()
    for layer in model.modules():
        if type(layer) is nn.Dropout:
            layer.__class__ = FastDropout
            assert isinstance(layer, FastDropout)
            layer.source = source
    return source
