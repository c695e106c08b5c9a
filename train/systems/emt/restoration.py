"""Losses that train for missing features: EMT-DLFR's attraction and reconstruction, TFR-Net's generation.

EMT-DLFR, section 6.1, and TFR-Net, section 6.4, of their descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Vector = Float[Tensor, "batch width"]
Steps = Float[Tensor, "batch time width"]
Missing = Float[Tensor, "batch time"]
Distance = Literal["smooth_l1", "l1", "mse"]
DISTANCES = {"smooth_l1": functional.smooth_l1_loss, "l1": functional.l1_loss, "mse": functional.mse_loss}
EMT_EPSILON = 1e-6
TFR_EPSILON = 1e-4


def attraction(
    guess: Mapping[str, Vector],
    target: Mapping[str, Vector],
    guess_incomplete: Mapping[str, Vector],
    target_incomplete: Mapping[str, Vector],
) -> dict[str, Tensor]:
    """By name: each view's guess is drawn to the other view's target; -1 where they agree."""
    return {
        name: -0.5 * (_cosine(guess_incomplete[name], target[name]) + _cosine(guess[name], target_incomplete[name]))
        for name in guess
    }


def reconstruction(
    guess: Steps, target: Steps, missing: Missing, distance: Distance = "smooth_l1", epsilon: float = EMT_EPSILON
) -> Tensor:
    """Mean distance over the values of missing steps (1 in `missing`); 0 where nothing is missing."""
    mask = missing[..., None].expand_as(guess)
    total = DISTANCES[distance](guess * mask, target * mask, reduction="sum")
    return total / (mask.sum() + epsilon)


def emt_losses(
    prediction: tuple[Tensor, Tensor],
    attracted: Mapping[str, Tensor],
    rebuilt: Mapping[str, Tensor],
    attraction_weight: float,
    reconstruction_weight: float,
) -> dict[str, Tensor]:
    """All parts and their `total`.

    Args:
        prediction: loss of the incomplete and of the complete view. The latter counts as a part of the attraction in
            EMT-DLFR, so the attraction weight scales it too.
        attracted: from `attraction`.
        rebuilt: from `reconstruction`, by modality.
        attraction_weight: of the attraction and the complete view's prediction.
        reconstruction_weight: of the reconstruction.
    """
    incomplete, complete = prediction
    attract = torch.stack(list(attracted.values())).sum() + complete
    rebuild = torch.stack(list(rebuilt.values())).sum()
    parts = {"prediction": incomplete, "complete": complete, "attraction": attract, "reconstruction": rebuild}
    parts |= {f"attraction/{n}": v for n, v in attracted.items()} | {
        f"reconstruction/{m}": v for m, v in rebuilt.items()
    }
    return parts | {"total": incomplete + attraction_weight * attract + reconstruction_weight * rebuild}


def _cosine(a: Vector, b: Vector) -> Tensor:
    return functional.cosine_similarity(a, b, dim=-1, eps=1e-8).mean()
