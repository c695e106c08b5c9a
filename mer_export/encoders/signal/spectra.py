"""Log-mel spectrograms and mel cepstra of a waveform, in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Scale = Literal["slaney", "htk"]
CHUNK = 4096
"""Windows that are transformed at a time, so that a long recording takes no more memory than its features."""


class Spectrum(BaseModel):
    """Hann windows of `window` seconds every `hop` seconds, the first one at the beginning; a rest is not read.

    Powers of the spectrum, over the next power of two samples, go through `mels` triangles between `low` and `high` Hz
    (None: half the rate): `slaney` is the scale of the Auditory Toolbox with triangles of equal area, `htk` that of the
    Hidden Markov Model Toolkit with triangles of equal height. Natural logarithms, of `floor` at least.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: float = Field(0.025, gt=0)
    hop: float = Field(0.010, gt=0)
    mels: int = Field(40, ge=1)
    scale: Scale = "slaney"
    low: float = Field(0.0, ge=0)
    high: float | None = Field(None, gt=0)
    floor: float = Field(1e-10, gt=0)

    @model_validator(mode="after")
    def _ascending(self) -> Spectrum:
        if self.high is not None and self.high <= self.low:
            raise ValueError(f"mel filters end at {self.high} Hz and begin at {self.low} Hz")
        return self


def log_mel(sound: np.ndarray, rate: int, spectrum: Spectrum) -> np.ndarray:
    """(frames, mels) float32 of a waveform (samples,); one shorter than a window is filled with zeros."""
    size, step = round(spectrum.window * rate), round(spectrum.hop * rate)
    padded = np.pad(sound, (0, max(0, size - len(sound)))).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
    fft = 1 << (size - 1).bit_length()
    # Periodic, as spectra are taken of it.
    hann = np.hanning(size + 1)[:-1]
    filters = mel_filters(rate, fft, spectrum)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(windows), CHUNK):
            power = np.abs(np.fft.rfft(windows[start : start + CHUNK] * hann, n=fft)) ** 2
            yield np.log(np.maximum(power @ filters, spectrum.floor)).astype(np.float32)

    return np.concatenate(list(chunks()))


def mfcc(sound: np.ndarray, rate: int, spectrum: Spectrum, coefficients: int) -> np.ndarray:
    """(frames, coefficients) float32: the first ones of the orthonormal DCT-II of a log-mel spectrogram."""
    return (log_mel(sound, rate, spectrum).astype(np.float64) @ _cosines(spectrum.mels, coefficients)).astype(np.float32)


@cache
def mel_filters(rate: int, fft: int, spectrum: Spectrum) -> np.ndarray:
    """Triangles (fft // 2 + 1, mels) float64 whose edges are evenly spaced on the scale."""
    scale = SCALES[spectrum.scale]
    ends = (scale.mel(spectrum.low), scale.mel(spectrum.high or rate / 2))
    edges = np.asarray([scale.hertz(m) for m in np.linspace(*ends, spectrum.mels + 2)])
    slopes = edges[None, :] - np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    widths = np.diff(edges)
    triangles = np.maximum(0.0, np.minimum(-slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]))
    return triangles * (2.0 / (edges[2:] - edges[:-2])) if scale.equal_area else triangles


@dataclass(frozen=True)
class _MelScale:
    mel: Callable[[float], float]
    hertz: Callable[[float], float]
    equal_area: bool


KNEE, FACTOR = 1000.0, math.log(6.4) / 27
"""Slaney's scale is linear below the knee, 15 mel long; above it 27 mel are a factor of 6.4."""
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


@cache
def _cosines(mels: int, coefficients: int) -> np.ndarray:
    """The orthonormal DCT-II (mels, coefficients)."""
    angles = np.pi / mels * (np.arange(mels) + 0.5)[:, None] * np.arange(coefficients)
    return np.cos(angles) * np.where(np.arange(coefficients) == 0, np.sqrt(1 / mels), np.sqrt(2 / mels))
