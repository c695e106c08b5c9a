"""Norms over time that leave padding out."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

States = Float[Tensor, "batch channels steps"]


def masked_group_norm(
    states: States, real: Int[Tensor, "batch one"], groups: int, weight: Tensor, bias: Tensor, eps: float
) -> States:
    """`torch.nn.functional.group_norm` over the first `real` steps of each item; what stands behind them is finite.

    Sums go over time first and over channels then: a minute of sound has 10^8 values, too many for one sum in float32.
    """
    grouped = states.unflatten(1, (groups, -1))
    mask = (torch.arange(states.shape[-1], device=states.device) < real)[:, None, None].to(states.dtype)
    steps = real[:, None, None].to(states.dtype)
    mean = ((grouped * mask).sum(dim=-1, keepdim=True) / steps).mean(dim=2, keepdim=True)
    away = (grouped - mean) * mask
    variance = ((away * away).sum(dim=-1, keepdim=True) / steps).mean(dim=2, keepdim=True)
    normal = ((grouped - mean) * torch.rsqrt(variance + eps)).flatten(1, 2)
    return normal * weight[:, None] + bias[:, None]


class MaskedGroupNorm(nn.GroupNorm):
    """A group norm that is told how many steps of each item are real."""

    def forward(self, states: States, real: Int[Tensor, "batch one"]) -> States:  # type: ignore[override]
        """Normalised states."""
        return masked_group_norm(states, real, self.num_groups, self.weight, self.bias, self.eps)
