"""Recordings in wav files of any width, rate and number of channels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.errors import InputError, NotAvailableError
from mer_export.install import not_installed
from mer_export.untrusted.budget import Budget
from mer_export.untrusted.impostors import refuse_impostor

FORMATS = ("WAV", "WAVEX", "RF64")
OPEN_END = 0xFFFFFFFF
"""The length of a chunk that was written without knowing it, into a pipe."""
FULL_SCALE = 1 << 15


def read_recording(path: Path) -> tuple[np.ndarray, int]:
    """Samples (frames, channels) float32 in -1..1, and the rate.

    Raises:
        InputError: another kind of file, cut off, empty or with values that are not finite.
        NotAvailableError: `soundfile` is not installed.
    """
    refuse_impostor(path)
    library = _library("soundfile")
    _refuse_cut_off(path)
    try:
        with library.SoundFile(str(path)) as sound:
            if sound.format not in FORMATS:
                raise InputError(f"{path} is {sound.format}, expected wav: convert it")
            Budget.of(path).take(4 * sound.frames * sound.channels)
            samples, rate = sound.read(dtype="float32", always_2d=True), int(sound.samplerate)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path} is not a readable wav file: {' '.join(str(error).split())}") from None
    if not len(samples):
        raise InputError(f"{path} is not a readable wav file: it has no samples")
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds samples that are not finite: it is damaged, get it again")
    return samples, rate


def write_recording(path: Path, samples: np.ndarray, rate: int) -> None:
    """One channel (samples,) in -1..1 as 16-bit PCM; what was read from 16 bits is written as it was."""
    whole = np.rint(samples.astype(np.float64) * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1)
    _library("soundfile").write(str(path), whole.astype(np.int16), rate, subtype="PCM_16", format="WAV")


def resample(audio: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """A waveform (samples,) at another rate, float32; raises InputError where it would become far larger."""
    if rate == wanted or not len(audio):
        return audio.astype(np.float32)
    if not rate > 0 or not wanted > 0:
        raise InputError(f"rates must be positive, not {rate} and {wanted}")
    Budget(f"a recording at {rate} Hz", audio.nbytes).take(4 * len(audio) * wanted // rate)
    return _library("soxr").resample(audio.astype(np.float32), rate, wanted, quality="VHQ")


def _library(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise NotAvailableError(not_installed(f"{name}, which wav files need,", "media")) from None


def _refuse_cut_off(path: Path) -> None:
    """Raises InputError where the sound claims more bytes than follow: the library reads what there is."""
    held = path.stat().st_size
    with path.open("rb") as stream:
        if stream.read(4) != b"RIFF":
            return
        stream.seek(12)
        while len(head := stream.read(8)) == 8:
            (size,) = struct.unpack("<I", head[4:])
            if head[:4] == b"data":
                if size != OPEN_END and stream.tell() + size > held:
                    rest = held - stream.tell()
                    raise InputError(
                        f"{path} claims {size} bytes of sound and has {rest}: it was cut off, get it again"
                    )
                return
            stream.seek(size + size % 2, 1)
