"""Log-mel spectrograms as Whisper reads them, in numpy.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", ICML 2023, section 2.2: windows of 25 ms
every 10 ms, mel filters of equal area (Slaney, Auditory Toolbox, 1998), logarithms no lower than 8 below the largest.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np


class LogMel:
    """Spectrograms at one rate and number of filters."""

    FFT: ClassVar[int] = 400
    HOP: ClassVar[int] = 160
    FLOOR: ClassVar[float] = 1e-10

    def __init__(self, rate: int, mels: int):
        self.window = np.hanning(self.FFT + 1)[:-1]
        self.filters = mel_filters(rate, self.FFT, mels)

    def __call__(self, sound: np.ndarray) -> np.ndarray:
        """(samples // HOP, mels) float32 of a waveform (samples,), which is mirrored at its ends."""
        padded = np.pad(sound.astype(np.float64), self.FFT // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.FFT)[:: self.HOP][:-1]
        power = np.abs(np.fft.rfft(frames * self.window)) ** 2
        logs = np.log10(np.maximum(power @ self.filters, self.FLOOR))
        logs = np.maximum(logs, logs.max() - 8.0)
        return ((logs + 4.0) / 4.0).astype(np.float32)


def mel_filters(rate: int, fft: int, mels: int) -> np.ndarray:
    """Triangles (fft // 2 + 1, mels) of equal area between 0 Hz and half the rate, on Slaney's scale."""
    edges = _hertz(np.linspace(_mel(0.0), _mel(rate / 2), mels + 2))
    bins = np.linspace(0, rate / 2, fft // 2 + 1)
    slopes = edges[None, :] - bins[:, None]
    widths = np.diff(edges)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


KNEE, STEP = 1000.0, 27.0 / np.log(6.4)
"""Below the knee the scale is linear (3 mel in 200 Hz), above it 27 mel are a factor of 6.4."""


def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < KNEE else 15 + float(np.log(hertz / KNEE)) * STEP


def _hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15, 200 * mels / 3, KNEE * np.exp((mels - 15) / STEP))
