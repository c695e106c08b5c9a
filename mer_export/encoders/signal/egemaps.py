"""The extended Geneva minimalistic acoustic parameter set, through the `opensmile` package.

Eyben et al., "The Geneva Minimalistic Acoustic Parameter Set (GeMAPS) for Voice Research and Affective Computing", IEEE
Transactions on Affective Computing 7(2), 2016. The package's core is licensed for research, see `LICENCE`.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import metadata
from typing import Any, Literal

import numpy as np

from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed

PACKAGE, SET = "opensmile", "eGeMAPSv02"
LICENCE = "openSMILE, audEERING Research License: research and teaching, no commercial use"
Level = Literal["Functionals", "LowLevelDescriptors"]


def installed() -> str:
    """The version of the package; raises NotAvailableError where there is none."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise NotAvailableError(
            not_installed(f"{PACKAGE} (its core is licensed for research and teaching only)", "opensmile")
        ) from None


def extract(sound: np.ndarray, rate: int, level: Level, version: str) -> np.ndarray:
    """Functionals (1, 88) or descriptors (frames, 25), one each 10 ms, float32, of a waveform (samples,).

    Args:
        sound: in -1..1.
        rate: its rate.
        level: which of the two.
        version: of the package that made the features of training.

    Raises:
        InputError: it is too short for a single frame of pitch.
        NotAvailableError: the package is missing, or has another version.
    """
    if installed() != version:
        raise NotAvailableError(
            f"these features were made by {PACKAGE} {version}, {installed()} is installed and may give others: "
            f"install that version"
        )
    with warnings.catch_warnings():
        # It warns and gives NaN, which is an error here.
        warnings.simplefilter("ignore", UserWarning)
        found = _smile(level).process_signal(sound.astype(np.float32), rate).to_numpy(np.float32)
    if not np.isfinite(found).all():
        raise InputError(f"{len(sound)} samples at {rate} Hz are too short for {SET}: leave the utterance out")
    return np.asarray(found)


@cache
def _smile(level: Level) -> Any:
    import opensmile

    return opensmile.Smile(feature_set=opensmile.FeatureSet[SET], feature_level=getattr(opensmile.FeatureLevel, level))
