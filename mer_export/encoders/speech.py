"""The speech tokenizer as a folder: vq-wav2vec as ONNX, its shape, and the dictionary of Speech-BERT."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mer_export.data.media.sound import read_sound
from mer_export.data.tokens.speech_dictionary import SpeechDictionary
from mer_export.encoders.onnx_session import open_session
from mer_export.encoders.vq_wav2vec.config import VqConfig
from mer_export.errors import InputError

CONFIG, MODEL, DICTIONARY, WEIGHTS, TRACED = "config.json", "model.onnx", "dict.txt", "model.safetensors", "model.ts"
RATES = {"faithful": 22050, "correct": 16000}
"""The original reads wav files at 22 050 Hz, which the tokenizer, trained at 16 000 Hz, takes for slow speech."""
Rate = Literal["faithful", "correct"]


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
        dictionary = SpeechDictionary.load(folder / DICTIONARY)
        session = open_session(folder / MODEL, "reads sound into tokens")
        return cls(config, dictionary, rate, session)

    def encode(self, audio: np.ndarray) -> np.ndarray:
        """Ids (int64) of a waveform (samples,) float32 in -1..1 at the tokenizer's rate; raises InputError if short."""
        if len(audio) < self.config.shortest:
            raise InputError(f"{len(audio)} samples are too short, one token needs {self.config.shortest}")
        (indices,) = self.session.run(None, {"audio": audio[None].astype(np.float32)})
        return self.dictionary.encode(indices[0])

    def encode_file(self, path: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
        """Ids of the sound of a file, or of what lies between two times (s): channels averaged, resampled."""
        sound = read_sound(path, start, end)
        try:
            return self.encode(sound.mono(self.rate))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


@lru_cache(maxsize=2)
def load_speech_tokenizer(folder: str) -> SpeechTokenizer:
    """A folder's tokenizer, opened once."""
    return SpeechTokenizer.load(folder)


def speech_tokens(folder: str, recording: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Ids (int64) of a wav file, or of what lies between two times (s), through the speech tokenizer of a folder."""
    return load_speech_tokenizer(folder).encode_file(recording, start, end)
