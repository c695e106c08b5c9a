"""Dropout drawn faster than PyTorch does: the same random numbers for less, and other ones for next to nothing.

PyTorch draws dropout on a CPU from one Mersenne twister, number by number where the processor is not one of Intel's; in
networks with much attention that is a large part of a training step (`python3 -m benchmarks.training`). `SameDropout`
takes the twister's numbers as they are and compares all of them at once; for `FastDropout` 64 random bits of another
source decide about four values.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**16
"""A rate is rounded to one of so many."""


DIGITS = 24
"""Bits of a number of the twister that PyTorch compares with a rate."""


class SameDropout(nn.Dropout):
    """As `nn.Dropout`, to the bit."""

    def forward(self, input: Tensor) -> Tensor:
        """The values that stay, scaled; zeros for the others."""
        if not self.training or not 0 < self.p < 1 or not drawn_one_by_one():
            return super().forward(input)
        kept = 1 - self.p
        return input * _draw(input, kept).div_(kept)


def _draw(like: Tensor, part: float, generator: torch.Generator | None = None) -> Tensor:
    """`torch.empty_like(like).bernoulli_(part)`."""
    # In the order of the memory, as PyTorch draws, whatever the strides.
    drawn = torch.empty_like(like, dtype=torch.int32).random_(generator=generator)
    return torch.lt(drawn.bitwise_and_(2**DIGITS - 1), math.ceil(part * 2**DIGITS), out=torch.empty_like(like))


@cache
def drawn_one_by_one() -> bool:
    """Whether PyTorch draws so on this processor: its way with MKL, on Intel's, gives other numbers."""
    like, part = torch.empty(1000), 0.7
    ours, theirs = (torch.Generator().manual_seed(0) for _ in range(2))
    same = torch.equal(_draw(like, part, ours), torch.empty_like(like).bernoulli_(part, generator=theirs))
    return same and torch.equal(ours.get_state(), theirs.get_state())


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
