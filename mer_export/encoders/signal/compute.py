"""Signal features of a waveform, as a configuration says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from mer_export.encoders.encoder import averaged
from mer_export.encoders.signal.config import LEVELS, SignalConfig
from mer_export.encoders.signal.egemaps import extract
from mer_export.encoders.signal.spectra import log_mel, mfcc
from mer_export.errors import InputError

Compute = Callable[[np.ndarray], np.ndarray]


def features(config: SignalConfig) -> Compute:
    """What makes features (width,) or (steps, width) float32 of a waveform (samples,) at the encoder's rate.

    It raises InputError for what is no waveform or too short, NotAvailableError where a package is missing. Any number
    of threads may call it.
    """
    states = _states(config)

    def compute(sound: np.ndarray) -> np.ndarray:
        sound = np.asarray(sound)
        if sound.ndim != 1 or not sound.size or sound.dtype.kind != "f" or not np.isfinite(sound).all():
            raise InputError(f"a sound encoder reads finite samples (samples,), not {sound.dtype} {sound.shape}")
        return _pooled(states(sound), config)

    return compute


def _states(config: SignalConfig) -> Compute:
    rate = config.input.rate
    if config.spectrum is None:
        return partial(extract, rate=rate, level=LEVELS[config.signal], version=config.version)
    if config.coefficients is None:
        return partial(log_mel, rate=rate, spectrum=config.spectrum)
    return partial(mfcc, rate=rate, spectrum=config.spectrum, coefficients=config.coefficients)


POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda states: states.mean(axis=0),
    "first": lambda states: states[0],
    "last": lambda states: states[-1],
}


def _pooled(states: np.ndarray, config: SignalConfig) -> np.ndarray:
    if config.pooling == "none":
        return averaged(states, config.every) if config.every > 1 else states
    vector = POOLED[config.pooling](states)
    return vector / max(np.linalg.norm(vector), np.float32(1e-12)) if config.unit else vector
