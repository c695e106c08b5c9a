"""The speech tokenizer as a folder: vq-wav2vec as ONNX, its shape, and the dictionary of Speech-BERT."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mer_export.data.media.recordings import read_recording
from mer_export.data.tokens.speech_dictionary import SpeechDictionary
from mer_export.encoders.vq_wav2vec.config import VqConfig
from mer_export.errors import InputError, NotAvailableError, UsageError
from mer_export.install import not_installed
from mer_export.untrusted.onnx_files import require_own_data

CONFIG, MODEL, DICTIONARY, WEIGHTS, TRACED = "config.json", "model.onnx", "dict.txt", "model.safetensors", "model.ts"
RATES = {"faithful": 22050, "correct": 16000}
"""The original reads wav files at 22 050 Hz, which the tokenizer, trained at 16 000 Hz, takes for slow speech."""
Rate = Literal["faithful", "correct"]
ZEROS, ROLLOFF, BETA = 64, 0.9475937167399596, 14.769656459379492
"""Zero crossings, cut-off and Kaiser window of the resampling filter, the `kaiser_best` of resampy."""
BLOCK = 1 << 14


@dataclass(frozen=True)
class SpeechTokenizer:
    """One utterance at a time, at its true length: padding would change every token."""

    config: VqConfig
    dictionary: SpeechDictionary
    rate: int
    session: Any

    @classmethod
    def load(cls, folder: Path | str) -> SpeechTokenizer:
        """Opens a folder that `mer data speech-tokenizer` wrote.

        Raises:
            InputError: no such folder, or a damaged one.
            NotAvailableError: ONNX Runtime is missing.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / CONFIG).read_text())
            config, rate = VqConfig.model_validate(content["model"]), int(content["sample_rate"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder} is not a speech tokenizer: {str(error).splitlines()[0]}") from None
        try:
            import onnxruntime
        except ImportError:
            raise NotAvailableError(
                not_installed("onnxruntime, which reads wav files into tokens,", "cpu", "gpu")
            ) from None
        dictionary = SpeechDictionary.load(folder / DICTIONARY)
        require_own_data(folder / MODEL)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / MODEL), options, providers=["CPUExecutionProvider"])
        return cls(config, dictionary, rate, session)

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """Ids (int64) of a waveform (samples,) float32 in -1..1 at the tokenizer's rate; raises InputError if short."""
        if len(audio) < self.config.shortest:
            raise InputError(f"{len(audio)} samples are too short, one token needs {self.config.shortest}")
        (indices,) = self.session.run(None, {"audio": audio[None].astype(np.float32)})
        return self.dictionary.encode(indices[0])

    def encode_file(self, path: Path) -> np.ndarray:
        """Ids of a 16-bit wav file: channels averaged, resampled."""
        samples, rate = read_recording(path)
        audio = (samples.astype(np.float32) / 32768).mean(axis=1)
        try:
            return self.encode(resample(audio, rate, self.rate))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


@lru_cache(maxsize=2)
def load_speech_tokenizer(folder: str) -> SpeechTokenizer:
    """A folder's tokenizer, opened once."""
    return SpeechTokenizer.load(folder)


def speech_tokens(folder: str, recording: Path) -> np.ndarray:
    """Ids (int64) of a wav file through the speech tokenizer of a folder."""
    return load_speech_tokenizer(folder).encode_file(recording)


def resample(audio: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The waveform (samples,) at another rate, by a windowed sinc; float32."""
    if rate <= 0 or wanted <= 0:
        raise UsageError(f"rates must be positive, not {rate} and {wanted}")
    if rate == wanted or not len(audio):
        return audio.astype(np.float32)
    scale = min(1.0, wanted / rate)
    reach = int(np.ceil(ZEROS / scale))
    padded = np.pad(audio.astype(np.float64), reach + 1)
    out = np.empty(len(audio) * wanted // rate, dtype=np.float32)
    taps = np.arange(-reach, reach + 2)
    for start in range(0, len(out), BLOCK):
        times = np.arange(start, min(start + BLOCK, len(out))) * (rate / wanted)
        whole = times.astype(np.int64)
        places = whole[:, None] + taps
        near = padded[np.clip(places + reach + 1, 0, len(padded) - 1)]
        out[start : start + BLOCK] = (near * _filter((times[:, None] - places) * scale)).sum(1) * scale
    return out


def _filter(x: np.ndarray) -> np.ndarray:
    inside = np.abs(x) < ZEROS
    window = np.i0(BETA * np.sqrt(np.where(inside, 1 - (x / ZEROS) ** 2, 0))) / np.i0(BETA)
    return np.where(inside, ROLLOFF * np.sinc(ROLLOFF * x) * window, 0)
