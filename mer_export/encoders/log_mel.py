"""Log-mel spectrograms as Whisper reads them, in numpy.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", ICML 2023, section 2.2: windows of 25 ms
every 10 ms, mel filters of equal area (Slaney, Auditory Toolbox, 1998), logarithms no lower than 8 below the largest.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from mer_export.encoders.mel import mel_filters


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
