"""Filters that are evenly spaced on a mel scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

Scale = Literal["slaney", "htk"]
KNEE, FACTOR = 1000.0, math.log(6.4) / 27
"""Slaney's scale is linear below the knee, 15 mel long; above it 27 mel are a factor of 6.4."""


@dataclass(frozen=True)
class _MelScale:
    mel: Callable[[float], float]
    hertz: Callable[[float], float]
    equal_area: bool


SCALES: dict[Scale, _MelScale] = {
    "slaney": _MelScale(
        lambda f: 15 * f / KNEE if f < KNEE else 15 + math.log(f / KNEE) / FACTOR,
        lambda m: KNEE * m / 15 if m < 15 else KNEE * math.exp(FACTOR * (m - 15)),
        equal_area=True,
    ),
    "htk": _MelScale(
        lambda f: 2595 * math.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1), equal_area=False
    ),
}
"""The scale of the Auditory Toolbox (Slaney, 1998) with triangles of equal area, and that of the Hidden Markov Model
Toolkit with triangles of equal height."""


@cache
def mel_filters(
    rate: int, fft: int, mels: int, scale: Scale = "slaney", low: float = 0.0, high: float | None = None
) -> np.ndarray:
    """Triangles (fft // 2 + 1, mels) float64 between `low` and `high` Hz (None: half the rate)."""
    own = SCALES[scale]
    edges = np.asarray([own.hertz(m) for m in np.linspace(own.mel(low), own.mel(high or rate / 2), mels + 2)])
    slopes = edges[None, :] - np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    widths = np.diff(edges)
    triangles = np.maximum(0.0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    return triangles * (2.0 / (edges[2:] - edges[:-2])) if own.equal_area else triangles
