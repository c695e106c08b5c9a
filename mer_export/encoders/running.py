"""Encoders that data are read through: a folder opened once, run by whatever is installed.

What runs a model stands above this room, so it is found by its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle.manifest import MANIFEST
from mer_export.data.media.sound import read_sound
from mer_export.data.tokens.speech_dictionary import SpeechDictionary
from mer_export.encoders.encoder import DICTIONARY
from mer_export.errors import InputError, UsageError
from mer_export.registry import resolve

OPEN = "runtimes.encode:open_encoder"
OLD = "model.onnx"
"""What a folder of an earlier version has in place of a manifest."""


def sentence_vectors(folder: str, sentences: Sequence[str]) -> np.ndarray:
    """Vectors (sentences, width) float32 by a text encoder's folder.

    Raises:
        InputError: a folder of an earlier version.
        UsageError: an encoder of something else, or one that gives sequences.
        BundleError: no encoder, or a damaged one.
    """
    encoding = _opened(folder, os.getpid())
    encoder = encoding.encoder
    if encoder.input.kind != "text" or encoder.sequence or encoder.config.vectors > 1:
        raise UsageError(f"{folder} gives no sentence vectors: make it of a text encoder with mer encoder --pooling")
    found = list(encoding.encode(sentences))
    return np.stack(found) if found else np.zeros((0, encoder.config.width), dtype=np.float32)


def speech_tokens(folder: str, recording: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Ids (int64) of a recording, or of what lies between two times (s), by a speech tokenizer's folder.

    Channels are averaged and resampled. Raises as `sentence_vectors`, and InputError for sound that is too short or
    longer than the tokenizer's window.
    """
    encoding = _opened(folder, os.getpid())
    words = _dictionary(folder)
    sound = read_sound(recording, start, end)
    try:
        (indices,) = encoding.encode([sound.mono(encoding.encoder.input.rate)])
    except InputError as error:
        raise InputError(f"{recording}: {error}") from None
    return words.encode(indices.astype(np.int64))


@lru_cache(maxsize=4)
def _opened(folder: str, process: int) -> Any:
    """An `Encoding`; each process has its own, as its threads stay with it."""
    if not (Path(folder) / MANIFEST).exists() and (Path(folder) / OLD).exists():
        raise InputError(f"{folder} was made by an earlier version: make it again with mer encoder")
    return resolve(OPEN)(folder)


@cache
def _dictionary(folder: str) -> SpeechDictionary:
    """The dictionary of a speech tokenizer; raises UsageError where an encoder has none."""
    bundle = _opened(folder, os.getpid()).encoder.bundle
    if DICTIONARY not in bundle.manifest.files:
        raise UsageError(f"{folder} is no speech tokenizer: make one with mer encoder CHECKPOINT --dictionary dict.txt")
    return SpeechDictionary.load(bundle.path(DICTIONARY))
