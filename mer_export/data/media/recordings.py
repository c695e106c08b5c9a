"""Recordings in wav files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from mer_export.errors import InputError
from mer_export.untrusted.impostors import refuse_impostor


def read_recording(path: Path) -> tuple[np.ndarray, int]:
    """Samples (frames, channels) int16 and rate of a PCM wav file; raises InputError for another kind."""
    refuse_impostor(path)
    try:
        with wave.open(str(path), "rb") as stream:
            width, channels, rate = stream.getsampwidth(), stream.getnchannels(), stream.getframerate()
            claimed, held = stream.getnframes() * width * channels, path.stat().st_size
            if claimed > held:
                raise InputError(f"{path} claims {claimed} bytes of sound and has {held}: it was cut off, get it again")
            content = stream.readframes(stream.getnframes())
    except (OSError, EOFError, RuntimeError, wave.Error) as error:
        raise InputError(f"{path} is not a readable wav file: {error}") from None
    if width != 2:
        raise InputError(f"{path} has {8 * width} bits per sample, expected 16: convert it to 16-bit PCM")
    if len(content) % (width * channels):
        raise InputError(f"{path} ends within a frame: it was cut off, get it again")
    return np.frombuffer(content, dtype="<i2").reshape(-1, channels), rate


def write_recording(path: Path, samples: np.ndarray, rate: int) -> None:
    """One channel (int16) as PCM."""
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(samples.astype("<i2").tobytes())
