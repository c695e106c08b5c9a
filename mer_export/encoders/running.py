"""Encoders that data are read through: a folder opened once, run by whatever is installed.

What runs a model stands above this room, so it is found by its name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mer_export.bundle.manifest import JOURNAL, MANIFEST
from mer_export.data.media.sound import Sound, read_sound
from mer_export.errors import InputError, UsageError
from mer_export.registry import resolve
from mer_export.untrusted.file_state import States, states

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
    encoding = _encoding(folder)
    encoder = encoding.encoder
    if encoder.input.kind != "text" or encoder.sequence or encoder.config.vectors > 1:
        raise UsageError(f"{folder} gives no sentence vectors: make it of a text encoder with mer encoder --pooling")
    found = list(encoding.encode(sentences))
    return np.stack(found) if found else np.zeros((0, encoder.config.width), dtype=np.float32)


def speech_tokens(folder: str, recording: Path, sound: Sound | None = None) -> np.ndarray:
    """Ids (int64) of a recording, or of the `sound` of a part of it, by a speech tokenizer's folder.

    Channels are averaged and resampled. Raises as `sentence_vectors`, and InputError for sound that is too short or
    longer than the tokenizer's window.
    """
    encoding = _encoding(folder)
    words = encoding.encoder.dictionary
    heard = sound or read_sound(recording)
    try:
        (indices,) = encoding.encode([heard.mono(encoding.encoder.input.rate)])
    except InputError as error:
        raise InputError(f"{recording}: {error}") from None
    return words.encode(indices.astype(np.int64))


def _encoding(folder: str) -> Any:
    """An `Encoding`, opened once as long as nobody writes its folder: every change replaces its manifest last."""
    return _opened(folder, os.getpid(), states(Path(folder) / n for n in (MANIFEST, JOURNAL)))


@lru_cache(maxsize=4)
def _opened(folder: str, process: int, _changes: States) -> Any:
    """Each process has its own, as its threads stay with it."""
    if not (Path(folder) / MANIFEST).exists() and (Path(folder) / OLD).exists():
        raise InputError(f"{folder} was made by an earlier version: make it again with mer encoder")
    return resolve(OPEN)(folder)
