"""Log-mel spectrograms and mel cepstra of a waveform, in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from mer_export.encoders.mel import Scale, mel_filters

CHUNK = 4096
"""Windows that are transformed at a time, so that a long recording takes no more memory than its features."""


class Spectrum(BaseModel):
    """Hann windows of `window` seconds every `hop` seconds, the first one at the beginning; a rest is not read.

    Powers of the spectrum, over the next power of two samples, go through `mels` triangles between `low` and `high` Hz
    (None: half the rate): `slaney` is the scale of the Auditory Toolbox with triangles of equal area, `htk` that of the
    Hidden Markov Model Toolkit with triangles of equal height. Natural logarithms, of `floor` at least.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: float = Field(0.025, gt=0, allow_inf_nan=False)
    hop: float = Field(0.010, gt=0, allow_inf_nan=False)
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

    def check(self, rate: int) -> None:
        """Raises ValueError where sound at a rate has no such windows, or not the frequencies of the filters."""
        for name, seconds, least in (("window", self.window, 2), ("hop", self.hop, 1)):
            if round(seconds * rate) < least:
                raise ValueError(f"a {name} of {seconds:g} s at {rate} Hz is less than {least} samples")
        if max(self.low, self.high or 0.0) > rate / 2 or self.low == rate / 2:
            said = f"{self.low:g} to {self.high:g} Hz" if self.high else f"{self.low:g} Hz on"
            raise ValueError(f"mel filters are from {said}, and sound at {rate} Hz has no more than {rate / 2:g} Hz")


def log_mel(sound: np.ndarray, rate: int, spectrum: Spectrum) -> np.ndarray:
    """(frames, mels) float32 of a waveform (samples,); one shorter than a window is filled with zeros."""
    size, step = round(spectrum.window * rate), round(spectrum.hop * rate)
    padded = np.pad(sound, (0, max(0, size - len(sound)))).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
    fft = 1 << (size - 1).bit_length()
    # Periodic, as spectra are taken of it.
    hann = np.hanning(size + 1)[:-1]
    filters = mel_filters(rate, fft, spectrum.mels, spectrum.scale, spectrum.low, spectrum.high)

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(windows), CHUNK):
            power = np.abs(np.fft.rfft(windows[start : start + CHUNK] * hann, n=fft)) ** 2
            yield np.log(np.maximum(power @ filters, spectrum.floor)).astype(np.float32)

    return np.concatenate(list(chunks()))


def mfcc(sound: np.ndarray, rate: int, spectrum: Spectrum, coefficients: int) -> np.ndarray:
    """(frames, coefficients) float32: the first ones of the orthonormal DCT-II of a log-mel spectrogram."""
    logs = log_mel(sound, rate, spectrum).astype(np.float64)
    return (logs @ _cosines(spectrum.mels, coefficients)).astype(np.float32)


@cache
def _cosines(mels: int, coefficients: int) -> np.ndarray:
    """The orthonormal DCT-II (mels, coefficients)."""
    angles = np.pi / mels * (np.arange(mels) + 0.5)[:, None] * np.arange(coefficients)
    return np.cos(angles) * np.where(np.arange(coefficients) == 0, np.sqrt(1 / mels), np.sqrt(2 / mels))
